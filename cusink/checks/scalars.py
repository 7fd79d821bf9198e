"""Rules for single arguments: numbers, words, byte limits."""

import math
import numbers
from collections.abc import Collection
from typing import TypeGuard

from cusink.checks.arrays import kind
from cusink.types import Tolerance


def is_real(value: object) -> TypeGuard[float]:
    """Return whether `value` is a real number and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether `value` is an integer and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def positive_number(
    name: str, value: object, advice: str = "", *, wanted: str = "a number", rule: str = "positive and finite"
) -> float:
    """Check a positive, finite number; `wanted` and `rule` name what else the caller allows, `advice` the way out."""
    if not is_real(value):
        raise TypeError(f"'{name}' must be {wanted}; got {kind(value)}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"'{name}' must be {rule}; got {value}{advice and f'. {advice}'}")
    return float(value)


def positive_integer(name: str, value: object) -> int:
    """Check an integer of at least 1."""
    if not is_integer(value):
        raise TypeError(f"'{name}' must be an integer; got {kind(value)}")
    if value < 1:
        raise ValueError(f"'{name}' must be at least 1; got {value}")
    return int(value)


def regularisation(eps: object) -> float:
    """Check the regularisation."""
    return positive_number("eps", eps, "A usual start is 0.01 times the largest cost")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Check a word against those allowed."""
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def tile(memory_limit: object, item_bytes: int, largest: int) -> int:
    """Return how many problems of `item_bytes` each fit into the limit, at most `largest`."""
    if memory_limit is None:
        return largest
    limit = positive_bytes(memory_limit)
    if limit < item_bytes:
        raise ValueError(f"'memory_limit' must be at least {item_bytes} bytes, what one pair takes; got {memory_limit}")
    return min(limit // item_bytes, largest)


def positive_bytes(memory_limit: object) -> int:
    """Check a number of bytes."""
    if not is_integer(memory_limit):
        raise TypeError(f"'memory_limit' must be a number of bytes (an integer) or None; got {kind(memory_limit)}")
    if memory_limit < 0:
        raise ValueError(f"'memory_limit' must be a number of bytes; got {memory_limit}")
    return int(memory_limit)


DEFAULT_TOLERANCE = {"float16": 1e-5, "bfloat16": 1e-5, "float32": 1e-5}  # what the dtype can reach; else 1e-6


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
