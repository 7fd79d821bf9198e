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


def run(launch: Launch, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Launch a CUDA kernel; the arguments already have the exact types of its parameters."""
    kernel = loader.function(launch.file, launch.kernel, dtype)
    # The static shared memory of a kernel counts towards the default limit too.
    default = PLAIN_SHARED_MEMORY - OWN_SHARED_MEMORY
    if launch.shared > max(default, kernel.max_dynamic_shared_size_bytes):
        kernel.max_dynamic_shared_size_bytes = launch.shared
    kernel((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)


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
