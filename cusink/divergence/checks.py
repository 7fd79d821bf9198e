"""Checks of the arguments of `cusink.sinkhorn_divergence` and its adjoint, in the manner of `cusink.solver.checks`."""

from typing import Any, Never

import numpy as np

from cusink.checks.arrays import all_widened, array_module, arrays, in_range, kind, owned, widened
from cusink.checks.scalars import real
from cusink.costs.checks import costs_in_range
from cusink.costs.clouds import sides_of
from cusink.costs.cost import Cost
from cusink.costs.kinds import kind_of, named_arrays, one_cloud
from cusink.operand import dense_cost, operand
from cusink.solver.problem import CheckedProblem, Problem
from cusink.types import Array, ArrayModule

FIX = "Pass the costs within each side as 'C_aa' and 'C_bb', or points as a cusink.PointCloud"


def self_costs(
    C: Any, C_aa: Any, C_bb: Any, given: CheckedProblem, memory_limit: int | None, check: bool
) -> tuple[Cost[Any], Cost[Any]]:
    """Return the costs of either side to itself; `given` is the checked problem of the pair."""
    own = {"C_aa": C_aa, "C_bb": C_bb}
    if not given.C.stored:
        extra = [name for name, x in own.items() if x is not None]
        if extra:
            refuse_own(extra[0], type(C).__name__)
        if kind_of(C) == "grid":
            return given.C, given.C
        if not given.C.has_own:
            raise ValueError(
                "'C' must be a symmetric cost within either side, which a divergence subtracts; got a PointCloud that "
                "is not. Take cusink.sinkhorn, or a symmetric cost"
            )
        both = [given.C] * 2 if one_cloud(C) else [_cloud(cloud, given, memory_limit) for cloud in sides_of(C)]
        of_a, of_b = (own.weighted(w > 0, w > 0) for own, w in zip(both, (given.a, given.b), strict=True))
        return of_a, of_b
    if C_aa is None and C_bb is None:
        if check:
            _shared(given.C.data)
        return given.C, given.C
    for name, x in own.items():
        if x is None:
            raise ValueError(f"'C_aa' and 'C_bb' must both be given, or neither; '{name}' is None")
    xp, like = given.C.xp, given.C.xp.empty(0, given.dtype)
    checked = [widened(name, x, "C", like)[0] for name, x in own.items()]
    n, m = given.C.shape[-2:]
    of_a, of_b = (
        _own(xp, name, x, bins, len(given.a), check) for name, x, bins in zip(own, checked, (n, m), strict=True)
    )
    return of_a, of_b


def cotangent(grad: Any, cross: Problem, f: Array) -> Array:
    """Check the gradient (B,) with respect to divergences; `f` is a potential of the result in the user's dtype."""
    size, dtype = len(cross.a), cross.a.dtype
    if grad is None:
        raise TypeError("'grad' must be a number or an array of the shape of the divergence; got None")
    number = None if isinstance(grad, array_module(f).ndarray) else real(grad)
    (given,), xp = all_widened({"grad": grad if number is None else None}, "result", f)
    if given is None:
        with np.errstate(over="ignore"):
            given = xp.full(size if cross.batched else (), number, dtype)
    wanted = (size,) if cross.batched else ()
    if given.shape != wanted:
        raise ValueError(f"'grad' must have shape {wanted} to match the result; got {given.shape}")
    in_range("grad", given, xp)
    return owned(given, grad).reshape(size)  # gradients are taken of it later


def own_directions(own_costs: bool, dC_aa: Any, dC_bb: Any) -> None:
    """Check that directions of the costs within a side are of costs that were given."""
    for name, x in (("dC_aa", dC_aa), ("dC_bb", dC_bb)):
        if x is not None and not own_costs:
            raise ValueError(
                f"'{name}' must be None, as the divergence was computed without '{name[1:]}'; got {kind(x)}. Pass "
                "'dC', or 'dx' and 'dy', which move the costs within each side too"
            )


def _cloud(cloud: Any, given: CheckedProblem, memory_limit: int | None) -> Cost[Any]:
    """Return the cost of a cloud to itself; one for all, if it is a batch of one."""
    parts, xp, _ = arrays(**named_arrays(cloud))
    parts = [p.astype(given.C.dtype, copy=False) for p in parts]  # weights may be wider
    C = operand(cloud, xp, given.dtype, parts, memory_limit, weights_follow=True)  # as checked between the clouds
    return C.at(0) if not C.shared and C.shape[0] == 1 else C


def refuse_own(name: str, of: str) -> Never:
    """Refuse a cost of one side to itself beside a cost that is no array."""
    raise ValueError(f"'{name}' must be None for a {of}, which knows its own costs; got one")


def shared_bins(shape: tuple[int, ...]) -> None:
    """Check that a cost of this shape may be between bins that both measures share."""
    if shape[-2] != shape[-1]:
        raise ValueError(f"'C' must be square, between bins that 'a' and 'b' share; got shape {shape}. {FIX}")


def own_shape(name: str, shape: tuple[int, ...], bins: int, size: int) -> None:
    """Check the shape of a cost of one side to itself, in a batch of this size."""
    if shape not in ((bins, bins), (1, bins, bins), (size, bins, bins)):
        raise ValueError(f"'{name}' must have shape {(bins, bins)} or {(size, bins, bins)}; got {shape}")


def _shared(C: Array) -> None:
    """Check that a cost is between bins that both measures share."""
    shared_bins(C.shape)
    if C.diagonal(0, -2, -1).any():
        raise ValueError(f"'C' must have a diagonal of zeros, between bins that 'a' and 'b' share. {FIX}")
    _symmetric("C", C, FIX)


def _own(xp: ArrayModule, name: str, C: Array, bins: int, size: int, check: bool) -> Cost[Any]:
    """Return the checked cost of one side to itself, of shape (n, n) or (B, n, n)."""
    own_shape(name, C.shape, bins, size)
    if C.ndim == 3 and len(C) == 1:
        C = C[0]
    if check:
        if not np.isfinite(float(C.max())) or not np.isfinite(float(C.min())):
            raise ValueError(f"'{name}' must be finite; got {float(C.max() + C.min())}")
        costs_in_range(name, C, xp)
        _symmetric(name, C, "Pass the costs between the bins of one side")
    return dense_cost(owned(xp.ascontiguousarray(C), C))  # the result keeps it


def _symmetric(name: str, C: Array, fix: str) -> None:
    """Check that a cost is symmetric, to the rounding of how it may have been made."""
    other = C.swapaxes(-1, -2)
    unequal = C != other
    if not unequal.any():
        return
    off = abs(C[unequal] - other[unequal]).max()
    scale = abs(C[unequal]).max()
    if not off <= 64 * float(np.finfo(C.dtype).eps) * scale:
        raise ValueError(f"'{name}' must be symmetric; an entry and its mirror image are {float(off):.3g} apart. {fix}")
