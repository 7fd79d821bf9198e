"""Where and how a call computes: on the device of its arrays, with the digits of their dtype, undisturbed."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

# For messages: an extra of this package would be no help, which is not on PyPI.
INSTALL_CUPY = "pip install 'cupy-cuda12x[ctk]' (NVIDIA driver 580 or newer: 'cupy-cuda13x[ctk]')"
HOLDERS = ("cusink", "cupyx")  # packages whose objects have arrays as attributes
# NumPy's defaults: tails underflow in every solve, and what may overflow is looked at where it does.
FLOATING_ERRORS: Any = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
DEPTH = 3  # a call is given clouds of arrays, results with clouds, gradients with results


def array_module(array: Any) -> Any:
    """Return the module of an array, numpy or cupy; a CuPy array proves that CuPy is loaded."""
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and isinstance(array, cupy.ndarray) and not isinstance(array, np.ndarray) else np


def placed(given: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """Return a context in which CuPy works on the device of the first CuPy array in `given`, if there is one."""
    cupy = sys.modules.get("cupy")
    kind = getattr(cupy, "ndarray", None)  # None where CuPy is not there, or not yet
    found = None if kind is None else _first(given, kind, DEPTH)
    return contextlib.nullcontext() if found is None else _on_device_of(cupy, found)


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function, and all that it calls, run as they stand, whatever stands around the call.

    NumPy's floating-point errors are treated as by default: of a caller who lets them raise, a solve would end at the
    first underflow. PyTorch's compiler does not trace: TorchDynamo makes functions of PyTorch of those of NumPy, and
    not all of them compute the same.
    """
    function = np.errstate(**FLOATING_ERRORS)(function)
    apart: list[Callable[P, R]] = []
    reason = f"'{function.__name__}' of cusink computes with NumPy or CuPy"

    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        if not apart:
            dynamo: Any = sys.modules.get("torch._dynamo")  # without it nothing is traced
            disable = getattr(dynamo, "disable", None)
            if disable is None:
                return function(*args, **options)
            apart.append(disable(function))
        return apart[0](*args, **options)

    vars(wrapped).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)  # nor is this looked into
    return wrapped


def on_device(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute on the device of its arrays, whichever device is current."""

    @undisturbed
    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        with placed((*args, *options.values())):
            return function(*args, **options)

    return wrapped


@contextlib.contextmanager
def _on_device_of(cupy: Any, array: Any) -> Iterator[None]:
    with cupy.cuda.Device(array.device.id), _single_precision:
        yield


def _first(given: Iterable[Any], array_type: type, depth: int) -> Any:
    """Return the first CuPy array among values, in objects that hold arrays, and at the head of lists."""
    for value in given:
        if isinstance(value, np.ndarray) or value is None:
            continue
        if isinstance(value, array_type):
            return value
        if not depth:
            continue
        if isinstance(value, (list, tuple)):
            found = _first(value[:2], array_type, depth - 1)
        elif type(value).__module__.partition(".")[0] in HOLDERS:
            found = _first(tuple(getattr(value, "__dict__", {}).values()), array_type, depth - 1)
        else:
            continue
        if found is not None:
            return found
    return None


class _SinglePrecision:
    """A context in which CuPy multiplies float32 matrices in float32, whatever ``CUPY_TF32`` says.

    With tf32 the products of an iteration and the error that is measured with the same products are off by 1e-3, so
    that a problem would be called converged which is not. CuPy's setting belongs to the process: it is put back when
    the last of the threads that are in this context leaves it.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        from cupy._core import _routines_linalg as linalg

        with self._lock:
            if self._inside == 0:
                self._before = linalg.get_compute_type("f")
                linalg.set_compute_type("f", linalg.COMPUTE_TYPE_DEFAULT)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        from cupy._core import _routines_linalg as linalg

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                linalg.set_compute_type("f", self._before)


_single_precision = _SinglePrecision()
