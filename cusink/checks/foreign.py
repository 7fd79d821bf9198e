"""Arrays of other libraries: taken in without a copy where that can be, and given back as what they were.

No library is imported here: an array proves that its own is loaded.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cusink.checks.arrays import array_module, kind
from cusink.types import Array

P = ParamSpec("P")
R = TypeVar("R")

RETURNED = ("torch", "jax")  # whose users go on with them; all others get NumPy
CPU, CUDA = (1, 3, 11, 13), (2,)  # kinds of devices in DLPack: memory that a CPU reads, and that of NVIDIA GPUs


def any_array(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arrays of any library; the first of torch or JAX decides what its result is made of."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        library = next((own for x in (*args, *keywords.values()) if (own := _library(x)) in RETURNED), None)
        numpy_args: Any = [taken(name, x) for name, x in zip(names, args, strict=False)] + list(args[len(names) :])
        numpy_keywords: Any = {name: taken(name, x) for name, x in keywords.items()}
        found: Any = function(*numpy_args, **numpy_keywords)
        given: R = found if library is None else _given_back(found, library)
        return given

    return wrapped


def taken(name: str, x: Any) -> Any:
    """Return an array of another library as one of NumPy, or of CuPy if it is on a GPU; all else as it is."""
    library = _library(x)
    if library in ("", "numpy", "cupy", "cupyx", "scipy", "cusink"):
        return x
    if getattr(x, "requires_grad", False) is True:
        raise TypeError(
            f"'{name}' must not require a gradient, which this function does not have; pass {name}.detach(), or take a "
            "loss of cusink.torch"
        )
    try:
        if library == "torch" and x.device.type == "cpu":
            return x.numpy()  # that may be written to, which DLPack does not promise
        device = x.__dlpack_device__()[0] if hasattr(x, "__dlpack__") and library != "dask" else None
        if device in CUDA:
            import cupy

            return cupy.from_dlpack(x)
        return np.asarray(x)
    except ImportError:
        raise TypeError(
            f"'{name}' is on a GPU, for which CuPy is needed: pip install 'cusink[cuda12]', or move it to the CPU"
        ) from None
    except Exception as error:  # by a class of the user, anything
        text = " ".join(str(error).split())
        raise TypeError(
            f"'{name}' must be an array of numbers; got {kind(x)}, of which none can be made: {text[:200]}"
        ) from None


def _library(x: object) -> str:
    """Return the name of the library that an array is of, "" for what is no array."""
    if isinstance(x, (np.ndarray, np.generic, str, bytes, int, float, list, tuple, dict, type)) or x is None:
        return ""
    if array_module(x) is not np:
        return "cupy"  # a subclass of its arrays, too
    if not (hasattr(type(x), "__array__") or hasattr(type(x), "__dlpack__")):
        return ""
    library = type(x).__module__.partition(".")[0]
    return "jax" if library == "jaxlib" else library


def _given_back(found: Any, library: str) -> Any:
    """Return arrays, alone, in a tuple or in the fields of a result, as those of a library; files as they are."""
    if isinstance(found, tuple) and not hasattr(found, "_fields"):
        return tuple(_given_back(part, library) for part in found)
    ours = type(found).__module__.startswith("cusink.")  # an array of Zarr is a dataclass, too
    if ours and dataclasses.is_dataclass(found) and not isinstance(found, type):
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return dataclasses.replace(found, **{name: _given_back(x, library) for name, x in fields.items()})
    if isinstance(found, np.memmap) and not found.flags.writeable:
        return found
    if isinstance(found, np.ndarray) or array_module(found) is not np:
        return _as_array_of(found, library)
    return found


def _as_array_of(array: Array, library: str) -> Any:
    module: Any = sys.modules[library]
    if library == "torch":
        if not isinstance(array, np.ndarray):
            return module.from_dlpack(array)
        return module.from_numpy(array if array.flags.writeable else array.copy())  # a tensor may be written to
    if not isinstance(array, np.ndarray):
        return module.dlpack.from_dlpack(array)
    # Without 64 bits in JAX the result has the 32 that its arrays have.
    return module.numpy.asarray(array, module.dtypes.canonicalize_dtype(array.dtype))
