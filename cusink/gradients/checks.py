"""Checks of the arguments of the adjoints, in the manner of `cusink.solver.checks`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cusink.checks.arrays import all_widened, array_module, in_range, kind, largest, owned, to_host, widened
from cusink.checks.scalars import positive_integer, positive_number, real
from cusink.costs.images import in_bins
from cusink.errors import ConvergenceWarning, warn
from cusink.gradients.parts import Cotangents, Directions
from cusink.solver.problem import Problem
from cusink.types import Array, ArrayModule


def instance(name: str, x: Any, wanted: type, source: str) -> None:
    """Check that `x` is of the class that `source` returns."""
    if not isinstance(x, wanted):
        raise TypeError(f"'{name}' must be what {source} returned, a {wanted.__name__}; got {kind(x)}")


def linear_solve(tol: Any, max_iter: Any) -> tuple[float, int]:
    """Check the options of the linear system of `cusink.sinkhorn_adjoint`."""
    if tol is None:
        raise TypeError("'tol' must be a number; got None. Its default is 1e-6")
    return min(positive_number("tol", tol), 1.0), positive_integer("max_iter", max_iter)


def cotangents(
    problem: Problem,
    f: Array,
    values: dict[str, Any],
    potentials: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> Cotangents:
    """Check the gradients of a call of `cusink.sinkhorn_adjoint`.

    None stays None, but a potential without one has zeros if the other has one. `f` is the result's, in the user's
    dtype; one of `more` may be given instead.
    """
    named = values | potentials
    out: list[Array | None] = []
    every = named | (more or {})
    if all(x is None for x in every.values()):
        raise ValueError(f"at least one of {', '.join(map(repr, every))} must be given; got none. Pass grad_cost=1.0")
    simple = {
        name: number
        for name, x in values.items()
        if not isinstance(x, array_module(f).ndarray) and (number := real(x)) is not None
    }
    xp: ArrayModule = problem.xp
    given = [None if name in simple else x for name, x in named.items()]
    most = largest(problem.a.dtype)
    if all(x is None for x in given) and all(abs(number) <= most for number in simple.values()):
        full = {name: xp.full(len(problem.a), number, problem.a.dtype) for name, number in simple.items()}
        return Cotangents(*map(full.get, named))
    if any(x is not None for x in given):
        given, xp = all_widened(dict(zip(named, given, strict=True)), "result", f)
    shapes = [()] * len(values) + [problem.f.shape[1:], problem.g.shape[1:]][: len(potentials)]
    images = [None] * len(values) + list(problem.images)[: len(potentials)]
    given = [in_bins(name, x, cells)[0] for name, x, cells in zip(named, given, images, strict=True)]
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
    if potentials and any(x is not None for x in out[-2:]):
        out[-2:] = (xp.zeros_like(p) if x is None else x for x, p in zip(out[-2:], (problem.f, problem.g), strict=True))
    return Cotangents(*out)


def cotangent(name: str, x: Any, shape: tuple[int, ...], output: str, like: Array) -> Array:
    """Check the gradient by one `output`, an array of its shape in the dtype of `like`; return it in float64."""
    if x is None:
        raise TypeError(f"'{name}' must be an array of shape {shape}; got None")
    x, xp = widened(name, x, "result", like)
    if x.shape != shape:
        raise ValueError(f"'{name}' must have shape {shape} to match {output}; got {x.shape}")
    in_range(name, x, xp)
    return xp.ascontiguousarray(x.astype(np.float64))


def plan_cotangent(problem: Problem, f: Array, grad_plan: Any) -> Callable[[slice, slice], Array] | None:
    """Check a gradient by the plan, a matrix or a pair of thin ones; return a function that makes blocks of it."""
    if grad_plan is None:
        return None
    pair = tuple(grad_plan) if isinstance(grad_plan, (tuple, list)) and len(grad_plan) == 2 else None
    thin = pair is not None and all(np.ndim(x) in (2, 3) for x in pair)
    size, (n, m) = len(problem.a), problem.C.shape[-2:]
    named = {"grad_plan[0]": grad_plan[0], "grad_plan[1]": grad_plan[1]} if thin else {"grad_plan": grad_plan}
    given, xp = all_widened(named, "result", f)
    rank = given[0].shape[-1] if thin else m
    wanted = ((n, rank), (m, rank)) if thin else ((n, m),)
    full = []
    for name, x, shape in zip(named, given, wanted, strict=True):
        batch = (size, *shape)
        if x.shape not in ({shape, batch} if problem.batched else {shape}):
            raise ValueError(f"'{name}' must have shape {batch if problem.batched else shape}; got {x.shape}")
        in_range(name, x, xp)
        full.append(xp.broadcast_to(owned(x.astype(np.float64), named[name]), batch))
    return partial(_block_of, full)


def _block_of(full: list[Array], problems: slice, rows: slice) -> Array:
    """Return a block of a matrix (B, n, m), or of the product of two thin ones (B, n, r) and (B, m, r)."""
    if len(full) == 1:
        return full[0][problems, rows]
    block: Array = full[0][problems, rows] @ full[1][problems].swapaxes(-1, -2)
    return block


def directions(problem: Problem, f: Array, inputs: dict[str, Any], costs: dict[str, Any]) -> Directions:
    """Check how inputs move: da, db and deps of `inputs`, and of `costs` what the cost has of dC, dx, dy.

    `f` is a potential of the result, in the user's dtype. Errors name dC by its key, which may be dC_aa.
    """
    named = inputs | costs
    if all(x is None for x in named.values()):
        raise ValueError(f"at least one of {', '.join(map(repr, named))} must be given; got none")
    deps = inputs["deps"]
    number = None if deps is None or isinstance(deps, array_module(f).ndarray) else real(deps)
    if number is not None:
        named["deps"] = None
    given, xp = all_widened(named, "result", f)
    size = len(problem.a)
    out: dict[str, Array | None] = {}
    images = {"da": problem.images[0], "db": problem.images[1]}
    for name, x in zip(named, given, strict=True):
        if x is not None:
            in_range(name, x, xp)
            x, _ = in_bins(name, x.astype(np.float64), images.get(name))
        out[name] = x
    shapes = {"da": problem.a.shape, "db": problem.b.shape, "deps": (size,)}
    for name, shape in shapes.items():
        x = out[name]
        wanted = shape if problem.batched else shape[1:]
        if x is None:
            continue
        if x.shape not in {wanted, shape[1:]}:
            raise ValueError(f"'{name}' must have shape {wanted} to match the result; got {x.shape}")
        out[name] = xp.ascontiguousarray(xp.broadcast_to(x, shape))
    if number is not None:
        out["deps"] = xp.full(size, number)
        in_range("deps", out["deps"], xp)
    return Directions(out["da"], out["db"], out["deps"], problem.C.direction({name: out[name] for name in costs}))


def warn_unconverged(converged: Array, error: Array) -> None:
    """Warn once if the solve of a problem had not converged."""
    missed = ~np.atleast_1d(to_host(converged))
    if missed.any():
        worst = np.atleast_1d(to_host(error))[missed].max()
        warn(
            f"{np.count_nonzero(missed)} of {len(missed)} problems had not converged; the largest marginal error is "
            f"{float(worst):.2g}, and their gradients are off by about as much, relative to their size, or more "
            "where the iteration converges slowly. Solve with a larger 'max_iter'",
            ConvergenceWarning,
        )
