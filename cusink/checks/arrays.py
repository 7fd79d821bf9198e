"""Take arrays in: one library, one device, one dtype, real numbers, the machine's byte order."""

import functools
import numbers
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from cusink.checks.naming import kind as kind
from cusink.errors import warn
from cusink.placement import array_module as array_module
from cusink.types import Array, ArrayModule, HostArray

HALF = ("float16", "bfloat16")
ROOM = 2.0**-20  # share of the range of a dtype that inputs may fill


def is_half(dtype: Any) -> bool:
    """Return whether a dtype is one of half precision."""
    return dtype.itemsize == 2 and dtype.name in HALF


def arrays(**named: Any) -> tuple[list[Any], ArrayModule, Any]:
    """Return the inputs as arrays of one library and dtype (None stays None), that library, and the user's dtype.

    A list or a number follows the arrays that it comes with.
    """
    return _converted(named, promote=False)


def promoted(**named: Any) -> tuple[list[Any], ArrayModule, Any]:
    """Return the inputs as `arrays` does; float32 beside float64 becomes that, as the array API standard has it."""
    return _converted(named, promote=True)


def widened(name: str, x: Any, owner: str, like: Array) -> tuple[Array, ArrayModule]:
    """Return an input in the dtype of an array of an earlier call, which may be wider and not narrower than its own."""
    (x,), xp = all_widened({name: x}, owner, like)
    return x, xp


def all_widened(named: Mapping[str, Any], owner: str, like: Array) -> tuple[list[Any], ArrayModule]:
    """Return several inputs as `widened` does one; None stays None."""
    (*found, _), xp, dtype = promoted(**named, **{owner: like})
    if dtype != like.dtype:
        name, x = next((name, x) for name, x in named.items() if hasattr(x, "dtype") and x.dtype == dtype)
        _same("dtype", {name: str(x.dtype), owner: like.dtype.name}, "Convert one of them with .astype")
    return found, xp


def weights_dtype(dtype: Any, *weights: Any) -> Any:
    """Return the dtype that masses are judged by: float32 where weights came in it, though costs made `dtype` wider."""
    if dtype == np.float64 and "float32" in {str(w.dtype) for w in weights if hasattr(w, "dtype")}:
        return np.dtype(np.float32)
    return dtype


def _converted(named: Mapping[str, Any], promote: bool) -> tuple[list[Any], ArrayModule, Any]:
    given = {name: x for name, x in named.items() if x is not None}
    libraries = {name: _library(name, x) for name, x in given.items()}
    libraries = {
        name: library
        for name, library in libraries.items()
        if not isinstance(given[name], (list, tuple, numbers.Number))
    }
    _same(
        "library",
        {name: library.__name__ for name, library in libraries.items()},
        "Move them to one with cupy.asarray or cupy.asnumpy",
    )
    xp = next(iter(libraries.values()), np)
    if xp is not np:
        _same("device", {name: str(given[name].device) for name in libraries}, "Copy them to one device")
    converted = {name: _numeric(name, x, xp) for name, x in given.items()}
    floating = {name: x.dtype for name, x in converted.items() if _is_floating(x.dtype)}
    floating = {name: dtype for name, dtype in floating.items() if name in libraries} or floating
    if len(set(floating.values())) > 1:  # a dtype takes its time to say its name
        if promote and {dtype.name for dtype in floating.values()} == {"float32", "float64"}:
            floating = {"all": np.dtype(np.float64)}
        _same("dtype", {name: dtype.name for name, dtype in floating.items()}, "Convert one of them with .astype")
    dtype = next(iter(floating.values()), np.dtype(np.float64))
    computing = np.dtype(np.float32) if is_half(dtype) else dtype
    cast = {name: as_dtype(name, x, computing) for name, x in converted.items()}
    return [cast.get(name) for name in named], xp, dtype


def as_dtype(name: str, x: Array, dtype: Any) -> Array:
    """Return `x` in another dtype, in whose range it must lie: a number beyond must not become +inf."""
    try:
        with np.errstate(over="raise"):
            return x.astype(dtype, copy=False)
    except FloatingPointError:
        raise ValueError(f"'{name}' must lie in the range of {dtype}, the dtype of the other inputs") from None


def one_array(name: str, x: Any) -> Array:
    """Return one input as an array of real numbers, in its own library and dtype."""
    return _numeric(name, x, _library(name, x))


def _library(name: str, x: object) -> ArrayModule:
    """Return the array library of `x`: NumPy or CuPy."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"'{name}' must be an array without a mask; got numpy.ma.MaskedArray. Fill it first")
    if isinstance(x, (list, tuple)) and any(isinstance(part, np.ma.MaskedArray) for part in x):
        raise TypeError(f"'{name}' must hold arrays without a mask; got numpy.ma.MaskedArray. Fill them first")
    if isinstance(x, (np.ndarray, np.generic, list, tuple, numbers.Number)):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    raise TypeError(f"'{name}' must be an array, or a list of numbers; got {kind(x)}. Convert it with numpy.asarray")


def _numeric(name: str, x: Any, xp: ArrayModule) -> Array:
    """Return `x` as an array of real numbers in the machine's byte order."""
    try:
        x = xp.asarray(x)
    except ValueError:
        raise TypeError(f"'{name}' must be a rectangular array of numbers; got lists of unequal lengths") from None
    except Exception as error:  # by a class of the user, anything
        raise TypeError(
            f"'{name}' must be an array of numbers; got {kind(x)}, of which none can be made: {error}"
        ) from None
    if x.dtype.kind not in "fiub" and x.dtype.name not in HALF:
        advice = ". Convert it with .astype(float)" if x.dtype.kind == "O" else ""
        raise TypeError(f"'{name}' must hold real numbers; got dtype {x.dtype}{advice}")
    if not x.dtype.isnative:
        raise TypeError(
            f"'{name}' must have the machine's byte order; got dtype {x.dtype.str}. "
            "Convert it with x.astype(x.dtype.newbyteorder('='))"
        )
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        raise TypeError(f"'{name}' must be float16, float32 or float64; got dtype {x.dtype}. Convert it with .astype")
    return x


def _is_floating(dtype: Any) -> bool:
    return dtype.kind == "f" or dtype.name in HALF


def _same(shared: str, by_name: Mapping[str, str], fix: str) -> None:
    """Check that all named inputs share one library, device or dtype."""
    if len(set(by_name.values())) > 1:
        (first, one), (second, other) = next(
            (pair, next(p for p in by_name.items() if p[1] != pair[1])) for pair in by_name.items()
        )
        raise TypeError(f"all inputs must share one {shared}; '{first}' is {one} and '{second}' is {other}. {fix}")


def finite_entries(name: str, array: Array, xp: ArrayModule, advice: str = "") -> None:
    """Check that all entries are finite; the message shows the first that is not."""
    wrong = ~xp.isfinite(array)
    if wrong.any():
        raise ValueError(f"'{name}' must be finite; got {float(array[wrong][0])}{advice and f'. {advice}'}")


@functools.cache
def largest(dtype: Any) -> float:
    """Return the largest magnitude of an input of `dtype`: sums and products of a million such stay in the range."""
    return float(np.finfo(dtype).max) * ROOM


def in_range(name: str, array: Array, xp: ArrayModule, advice: str = "") -> None:
    """Check that all entries are finite, and so far from the end of the range that sums of them do not leave it."""
    finite_entries(name, array, xp, advice)
    most = largest(array.dtype)
    if array.size and not max(float(array.max()), -float(array.min())) <= most:
        raise ValueError(
            f"'{name}' must be at most {most:.2g} in {array.dtype}, so that sums do not leave the range; got "
            f"{float(abs(array).max()):.3g}. Change the unit"
        )


def finite(name: str, array: Array, xp: ArrayModule) -> None:
    """Check that all entries are finite; the message shows none of them."""
    if not xp.isfinite(array).all():
        raise ValueError(f"'{name}' must be finite; got NaN or infinity")


def narrowed(array: Array, dtype: Any, xp: ArrayModule) -> Array:
    """Return `array` in the user's dtype; warn, in place of NumPy, where half precision cannot hold a value."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if is_half(dtype) and (xp.isinf(out) & xp.isfinite(array)).any():
        warn(f"a result exceeds the range of {dtype.name} and is infinite there. Pass float32", RuntimeWarning)
    return out


def to_host(array: Array) -> HostArray:
    """Return an array, or a list or number, as a NumPy array."""
    xp = array_module(array)
    return np.asanyarray(array) if xp is np else xp.asnumpy(array)


def owned(array: Array, *given: Any) -> Array:
    """Return `array`, or a copy where it shares memory with an array that the caller gave.

    What a result keeps must be its own: the caller may change his arrays at any time.
    """
    xp = array_module(array)
    shared = any(isinstance(x, xp.ndarray) and xp.may_share_memory(array, x) for x in given)
    return array.copy() if shared else array
