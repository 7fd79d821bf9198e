"""Rules for single arguments: numbers, words, byte limits."""

import math
import numbers

from cusink.checks.arrays import kind


def regularisation(eps):
    """Check the regularisation."""
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"'eps' must be a number; got {kind(eps)}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"'eps' must be positive and finite; got {eps}. A usual start is 0.01 times the largest cost")


def one_of(name, value, allowed):
    """Check a word against those allowed."""
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def tile(memory_limit, item_bytes, largest):
    """How many problems of `item_bytes` each fit into the limit, at most `largest`."""
    if memory_limit is None:
        return largest
    if positive_bytes(memory_limit) < item_bytes:
        raise ValueError(f"'memory_limit' must be at least {item_bytes} bytes, what one pair takes; got {memory_limit}")
    return min(int(memory_limit) // item_bytes, largest)


def positive_bytes(memory_limit):
    """Check a number of bytes."""
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, numbers.Integral):
        raise TypeError(f"'memory_limit' must be a number of bytes (an integer) or None; got {kind(memory_limit)}")
    if memory_limit < 0:
        raise ValueError(f"'memory_limit' must be a number of bytes; got {memory_limit}")
    return int(memory_limit)
