"""Checks of the arguments of the adjoints, in the manner of `cusink.solver.checks`."""

from typing import Any, NamedTuple

import numpy as np

from cusink.checks.arrays import array_module, arrays, in_range, kind, owned
from cusink.checks.scalars import positive_integer, positive_number, real
from cusink.solver.problem import Problem
from cusink.types import Array


class Cotangents(NamedTuple):
    """Derivatives of the loss with respect to the outputs: values (B,), potentials (B, n) and (B, m)."""

    cost: Array | None = None
    reg_cost: Array | None = None
    entropic_cost: Array | None = None
    f: Array | None = None
    g: Array | None = None


def instance(name: str, x: Any, wanted: type, source: str) -> None:
    """Check that `x` is of the class that `source` returns."""
    if not isinstance(x, wanted):
        raise TypeError(f"'{name}' must be what {source} returned, a {wanted.__name__}; got {kind(x)}")


def linear_solve(tol: Any, max_iter: Any) -> tuple[float, int]:
    """Check the options of the linear system of `cusink.sinkhorn_adjoint`."""
    if tol is None:
        raise TypeError("'tol' must be a number; got None. Its default is 1e-6")
    return min(positive_number("tol", tol), 1.0), positive_integer("max_iter", max_iter)


def cotangents(problem: Problem, f: Array, values: dict[str, Any], potentials: dict[str, Any]) -> Cotangents:
    """Check the gradients of a call of `cusink.sinkhorn_adjoint`.

    None stays None, but a potential without one has zeros if the other has one. `f` is the result's, in the user's
    dtype.
    """
    named = values | potentials
    out: list[Array | None] = []
    if all(x is None for x in named.values()):
        raise ValueError(f"at least one of {', '.join(map(repr, named))} must be given; got none. Pass grad_cost=1.0")
    simple = {
        name: number
        for name, x in values.items()
        if not isinstance(x, array_module(f).ndarray) and (number := real(x)) is not None
    }
    (*given, _), xp, _ = arrays(**{name: None if name in simple else x for name, x in named.items()}, result=f)
    shapes = [()] * len(values) + [problem.f.shape[1:], problem.g.shape[1:]]
    for name, shape, x in zip(named, shapes, given, strict=True):
        wanted = problem.a.shape[:1] + shape if problem.batched else shape
        if name in simple:
            with np.errstate(over="ignore"):
                x = xp.full(wanted, simple[name], problem.a.dtype)
        if x is not None:
            if x.shape != wanted:
                raise ValueError(f"'{name}' must have shape {wanted} to match the result; got {x.shape}")
            in_range(name, x, xp)
            x = owned(xp.ascontiguousarray(x), named[name]).reshape(problem.a.shape[:1] + shape)
        out.append(x)
    if any(x is not None for x in out[-2:]):
        out[-2:] = (xp.zeros_like(p) if x is None else x for x, p in zip(out[-2:], (problem.f, problem.g), strict=True))
    return Cotangents(*out)
