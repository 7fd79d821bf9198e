"""The arrays of problems whose scalings are columns, and reductions of them."""

from typing import Any, Literal, NamedTuple

import numpy as np

from cusink.backends.numpy.forms.kernel import log_scaled
from cusink.types import HostArray


class Workspace(NamedTuple):
    """Arrays like U (n, B) and like V (m, B). They are kept: to fetch memory takes longer than to use it."""

    U: HostArray
    row_sums: HostArray
    gamma_a: HostArray
    V: HostArray
    column_sums: HostArray
    gamma_b: HostArray
    scratch_rows: HostArray
    scratch_columns: HostArray


class Numerators(NamedTuple):
    """The largest entries of ``gamma a`` and ``gamma b``, and the columns (B,) in which none underflows."""

    largest_a: float
    largest_b: float
    normal: HostArray | Literal[True]


class LastUpdate(NamedTuple):
    """Problems at their last update: weights, scaling of b, sums T (n, B), room S (m, B), numerators, exponents.

    Also which problems are `inside` the range, and which sums are `sound`.
    """

    a: HostArray
    b: HostArray
    smallest: HostArray
    V: HostArray
    T: HostArray
    S: HostArray
    gamma_a: HostArray
    gamma_b: HostArray
    eu: HostArray
    ev: HostArray
    inside: HostArray
    sound: HostArray | Literal[True]


def both(one: HostArray | Literal[True], other: HostArray | Literal[True]) -> HostArray | Literal[True]:
    """Return the columns that are in both; True stands for all."""
    return other if one is True else one if other is True else one & other


def distance(scaling: HostArray, sums: HostArray, numerators: HostArray) -> HostArray:
    """Return ``sum |scaling * sums - numerators|`` of each column; overwrite `sums`."""
    sums *= scaling
    sums -= numerators
    total: HostArray = np.abs(sums, out=sums).sum(axis=0)
    return total


def empty_bins(weights: HostArray) -> HostArray | None:
    """Return 1 where a weight is zero and 0 elsewhere; None where no weight is zero."""
    return None if weights.min(initial=1) > 0 else (weights == 0).astype(weights.dtype)


def smallest_weight(weights: HostArray) -> HostArray:
    """Return the smallest positive weight of each column."""
    smallest: HostArray = weights.min(axis=0)
    if not smallest.all():
        smallest = np.where(weights > 0, weights, np.inf).min(axis=0)
    return smallest


def normal_columns(scaling: HostArray, weights: HostArray, tiny: float) -> HostArray:
    """Return the columns in which every positive weight has a finite scaling that has not underflowed."""
    if scaling.min(initial=1) >= tiny and scaling.max(initial=1) < np.inf:
        return np.ones(scaling.shape[1], bool)
    normal: HostArray = (((scaling >= tiny) & (scaling < np.inf)) | (weights == 0)).all(axis=0)
    return normal


def log2_ratio(most: Any, least: Any) -> Any:
    """Return ``log2(most / least)`` of positive numbers, in float64."""
    return np.log2(most, dtype=np.float64) - np.log2(least, dtype=np.float64)


def log_ratio(scaling: HostArray, weights: HostArray, exponent: HostArray) -> HostArray:
    """Return ``log(scaling * 2**exponent / weights)`` (B, n), 0 where the weight is zero."""
    positive = weights > 0
    tiny = np.finfo(scaling.dtype).tiny  # reached only in problems that no form can go on with
    scaling, weights = (np.where(positive, x, 1).astype(np.float64) for x in (np.maximum(scaling, tiny), weights))
    return np.where(positive, np.log(scaling) - np.log(weights) + exponent * np.log(2), 0.0)


def log_quotient(scaling: HostArray, weights: HostArray, exponent: HostArray) -> HostArray:
    """Return ``log(scaling * 2**exponent / weights)`` of columns, transposed, in float64."""
    with np.errstate(over="ignore"):
        quotient = scaling / weights
    if quotient.max(initial=0) < np.inf:
        return log_scaled(quotient, exponent)
    return log_scaled(scaling, exponent) - np.log(weights.T, dtype=np.float64)
