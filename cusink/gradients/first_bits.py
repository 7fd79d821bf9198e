"""Derivatives by a first bit of weight in an empty bin: nothing bounds them, and the potential there has no error."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from cusink.checks.arrays import largest
from cusink.costs.logits import logits
from cusink.solver.problem import Problem
from cusink.types import Array, ArrayModule

LARGEST_SHARE = 1e150  # of what moves, in a bin that is empty on both sides
LARGE_IN_FLOAT32 = 2.0**13  # costs in eps from which on float32 rounds densities by more than 2**-10


def in_all_digits(problem: Problem) -> Problem:
    """Return a balanced problem in float64, with the potentials of bins without weight as exact as the others."""
    narrow, problem = problem.C.dtype == np.float32, problem.in_float64()
    if narrow and problem.reach is None and problem.C.largest() > LARGE_IN_FLOAT32 * float(np.min(problem.eps)):
        return _of_empty_bins(problem)
    return problem


def _of_empty_bins(problem: Problem) -> Problem:
    """Return the problem with the potentials of bins without weight in all digits; the others have them."""
    xp, found = problem.xp, []
    sides = (problem.b, problem.g, problem.a, problem.f), (problem.a, problem.f, problem.b, problem.g)
    for axis, (weights, potential, others, of_others) in enumerate(sides):
        if bool((weights > 0).all()):
            found.append(potential)
        else:
            at = logits(xp, others, of_others, problem.eps_as(2))
            softmin = problem.C.softmin(at, problem.eps, 0 if axis == 0 else 1)
            found.append(xp.where((weights > 0) | ~xp.isfinite(potential), potential, softmin))
    return replace(problem, f=found[1], g=found[0])


def largest_shares(xp: ArrayModule, *of: Array) -> Array:
    """Return the largest numbers (B, 1) to which shares of products of arrays (B, ...) are clipped.

    A first bit of weight gives any number, where a bin is empty on both sides.
    """
    size = 1.0
    with np.errstate(over="ignore"):
        for x in of:
            size = size * xp.abs(x).max(axis=tuple(range(1, x.ndim)))
        most: Array = xp.minimum(LARGEST_SHARE * xp.maximum(size, 1.0), largest(np.float64))
    return most[:, None]


def in_range(xp: ArrayModule, x: Array, dtype: Any) -> Array:
    """Return `x` clipped to numbers whose products are finite in the user's `dtype`, of half precision in float32."""
    most = largest_factor(dtype)
    return xp.clip(x, -most, most)


def clipped(xp: ArrayModule, x: Array, dtype: Any) -> Array:
    """Return `x` clipped to numbers that sums in the user's `dtype` have room for."""
    most = largest(np.float64 if dtype == np.float64 else np.float32)
    return xp.clip(x, -most, most)


def largest_factor(dtype: Any) -> float:
    """Return the root of the largest number of the user's dtype, or of float32 if that is a narrower one."""
    return math.sqrt(np.finfo(np.float64 if dtype == np.float64 else np.float32).max)
