"""Rules for single arguments: numbers, words, flags, byte limits."""

import math
import numbers
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import numpy as np

from cusink.checks.arrays import HALF, array_module, kind, largest
from cusink.types import Tolerance

DEFAULT_TOLERANCE = {"float16": 1e-5, "bfloat16": 1e-5, "float32": 1e-5}  # what the dtype can reach; else 1e-6
LONGEST = 40  # digits of a number in a message


def real(value: Any) -> float | None:
    """Return a real number as a float, infinite where it exceeds the range; None for anything else, bools included.

    Numbers are those of Python, of `fractions` and `decimal`, the scalars of NumPy, and arrays without axes.
    """
    if type(value) is float:  # as nearly always
        return value
    if _is_array(value):
        if value.ndim or not (value.dtype.kind in "fiu" or value.dtype.name in HALF):
            return None
    elif isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except ValueError:  # a signalling NaN of `decimal`
        return math.nan


def integer(value: Any) -> int | None:
    """Return an integer, of Python, NumPy or an array without axes; None for anything else, bools included."""
    if _is_array(value):
        return int(value) if value.ndim == 0 and value.dtype.kind in "iu" else None
    return None if isinstance(value, bool) or not isinstance(value, numbers.Integral) else int(value)


def shown(value: object) -> str:
    """Return a number for a message, cut where it is long."""
    try:
        text = str(value)
    except ValueError:  # Python limits the digits of an integer
        return "an integer of very many digits"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def positive_number(
    name: str, value: object, advice: str = "", *, wanted: str = "a number", rule: str = "positive and finite"
) -> float:
    """Check a positive, finite number; `wanted` and `rule` name what else the caller allows, `advice` the way out."""
    number = real(value)
    if number is None:
        raise TypeError(f"'{name}' must be {wanted}; got {kind(value)}")
    if not 0 < number < math.inf:  # comparisons alone: compiled code has symbols for numbers
        raise ValueError(f"'{name}' must be {rule}; got {shown(value)}{advice and f'. {advice}'}")
    return number


def positive_integer(name: str, value: object) -> int:
    """Check an integer of at least 1."""
    number = integer(value)
    if number is None:
        raise TypeError(f"'{name}' must be an integer; got {kind(value)}")
    if number < 1:
        raise ValueError(f"'{name}' must be at least 1; got {shown(value)}")
    return number


def regularisation(eps: object, wanted: str = "a number") -> float:
    """Check the regularisation; `wanted` names what else the caller takes."""
    return positive_number("eps", eps, "A usual start is 0.01 times the largest cost", wanted=wanted)


def price_in_range(name: str, value: float, dtype: Any) -> None:
    """Check that a number in the unit of the costs, `eps` or `reach`, is one of the dtype of the computation too."""
    low, high = float(np.finfo(dtype).tiny), largest(dtype)
    if not low <= value <= high:
        raise ValueError(
            f"'{name}' must be such that C / {name} is finite, between {low:.2g} and {high:.2g} in {dtype}; got "
            f"{value:g}. Change the unit of 'C'"
        )


def one_of(name: str, value: object, allowed: Collection[str], advice: str = "") -> None:
    """Check a word against those allowed."""
    listed = ", ".join(map(repr, allowed))
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be one of {listed}; got {kind(value)}. Pass one of these words")
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {listed}; got {shown(repr(value))}{advice and f'. {advice}'}")


def flag(name: str, value: object) -> bool:
    """Check True or False, of Python or NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"'{name}' must be a bool, True or False; got {kind(value)}")
    return bool(value)


def flags(**named: object) -> None:
    """Check several arguments that are True or False."""
    for name, value in named.items():
        flag(name, value)


def tile(memory_limit: object, item_bytes: int, largest: int) -> int:
    """Return how many problems of `item_bytes` each fit into the limit, at most `largest`."""
    if memory_limit is None:
        return largest
    limit = positive_bytes(memory_limit)
    if limit < item_bytes:
        raise ValueError(f"'memory_limit' must be at least {item_bytes} bytes, what one pair takes; got {limit}")
    return min(limit // item_bytes, largest)


def positive_bytes(memory_limit: object) -> int:
    """Check a number of bytes."""
    number = integer(memory_limit)
    if number is None:
        raise TypeError(f"'memory_limit' must be a number of bytes (an integer) or None; got {kind(memory_limit)}")
    if number < 0:
        raise ValueError(f"'memory_limit' must be a number of bytes; got {shown(memory_limit)}")
    return number


def tolerance(tol: Tolerance, *given: object) -> float | None:
    """Return the marginal error that is asked for: for "auto" the default for the dtype of what was given."""
    if not isinstance(tol, str) or tol != "auto":
        return tol  # checked with the other options
    dtypes = {
        str(getattr(x, name).dtype)
        for x in given
        for name in ("x", "weights")
        if hasattr(getattr(x, name, None), "dtype")
    }
    dtypes |= {str(x.dtype) for x in given if hasattr(x, "dtype")}
    return min((DEFAULT_TOLERANCE.get(dtype, 1e-6) for dtype in dtypes), default=1e-6)


def _is_array(value: object) -> bool:
    """Return whether `value` is an array or an array scalar, without a mask."""
    if isinstance(value, (np.ndarray, np.generic)):
        return not isinstance(value, np.ma.MaskedArray)
    return not isinstance(value, (numbers.Number, str)) and array_module(value) is not np
