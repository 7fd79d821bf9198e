"""Choose the launch of an operator on the current device, and launch it."""

import functools
import math
from typing import Any

import cupy as cp
import numpy as np

from cusink.backends.cupy import launch as launches
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import OWN_SHARED_MEMORY, PLAIN_SHARED_MEMORY, Device, Launch

LOG2_E = 1 / math.log(2)
NULL = np.int64(0)  # a null pointer
C_TYPES = {"float": "f4", "double": "f8", "int": "i4", "long long": "i8", "signed char": "i1", "Half": "f2"}
MOST_CHECKED = 4096  # launches that are remembered
FAST_HALVES = ("80", "90", "100", "103")  # by NVIDIA's rates, 16 times those of float or more; 2 to 4 times on others


def find_launch(operator: str, B: int, n: int, m: int, dtype: np.dtype[Any], **options: int) -> Launch | None:
    """Return the launch that `cusink.backends.cupy.launch.configure` chooses for the current device."""
    launch: Launch | None = launches.configure(operator, B, n, m, dtype.name, device(), **options)
    return launch


def choose_launch(operator: str, B: int, n: int, m: int, dtype: np.dtype[Any], **options: int) -> Launch:
    """Return `find_launch` of an operator that fits on every device."""
    launch = find_launch(operator, B, n, m, dtype, **options)
    if launch is None:
        raise RuntimeError(f"no launch of {operator} for sizes {B}, {n}, {m}")
    return launch


# The launches whose arguments have been checked: once each, as a dtype follows from the code and from CuPy's rules.
_checked: set[tuple[Launch, np.dtype[Any]]] = set()


def run(launch: Launch, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Launch a CUDA kernel; the arguments already have the exact types of its parameters."""
    if (launch, dtype) not in _checked:
        _check(launch, dtype, arguments)
    kernel = loader.function(launch.file, launch.kernel, dtype)
    # The static shared memory of a kernel counts towards the default limit too.
    default = PLAIN_SHARED_MEMORY - OWN_SHARED_MEMORY
    if launch.shared > max(default, kernel.max_dynamic_shared_size_bytes):
        kernel.max_dynamic_shared_size_bytes = launch.shared
    kernel((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)


def _check(launch: Launch, dtype: np.dtype[Any], arguments: tuple[Any, ...]) -> None:
    """Refuse arguments of other dtypes than the kernel's: of an array, CuPy hands over an address and no more."""
    types = loader.parameters(launch.file, launch.kernel)
    if len(types) != len(arguments):
        raise TypeError(f"{launch.kernel} of {launch.file} takes {len(types)} arguments; got {len(arguments)}")
    for place, (kind, argument) in enumerate(zip(types, arguments, strict=True)):
        name = kind.rstrip("*")
        wanted = dtype if name == "REAL" else np.dtype(C_TYPES[name])
        null = name != kind and argument is NULL
        if not null and (argument.dtype != wanted or (name == kind) != isinstance(argument, np.generic)):
            got = f"{argument.dtype} of {type(argument).__name__}"
            raise TypeError(
                f"{launch.kernel} of {launch.file}, argument {place}: {kind} as {wanted} expected, got {got}"
            )
    if len(_checked) >= MOST_CHECKED:
        _checked.clear()
    _checked.add((launch, dtype))


def sizes(*numbers: int) -> tuple[np.int64, ...]:
    """Return the sizes as CUDA kernels take them."""
    return tuple(np.int64(number) for number in numbers)


def device() -> Device:
    """Return the properties of the current device that launches depend on."""
    return _device(cp.cuda.runtime.getDevice())


@functools.cache
def _device(number: int) -> Device:
    found = cp.cuda.Device(number)
    capability, attributes = found.compute_capability, found.attributes
    numbers = attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"]
    return Device(*numbers, capability in FAST_HALVES)
