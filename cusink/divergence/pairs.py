"""Divergences of pairs of measures of unequal sizes: those that were solved together, and those of batches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cusink.calls import one_call
from cusink.convergence.options import Options
from cusink.costs.clouds import sides_of
from cusink.divergence.result import SinkhornDivergence
from cusink.solver.pairs.batches import Batch
from cusink.solver.pairs.given import CheckedPairs
from cusink.solver.pairs.ragged import Side
from cusink.solver.pairs.single import alone, padded
from cusink.solver.pairs.solve import SolvedPairs
from cusink.solver.pairs.together import Together
from cusink.summary import Summary
from cusink.types import Array, ArrayModule, Eps, HostArray, Reach

__all__ = ["DivergencePairs"]

VALUES = ("divergence", "error", "n_iter", "converged")  # of every pair


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DivergencePairs(Summary):
    """Sinkhorn divergences of K pairs of measures of unequal sizes; ``len(pairs)`` is K.

    ``pairs[k]`` is the `cusink.SinkhornDivergence` of pair k alone.

    Attributes
    ----------
    divergence, error, n_iter, converged : array, shape (K,)
        As in `cusink.SinkhornDivergence`.
    f, f_self : array, shape (N,)
        Potentials of all points of the first measures, item after item, as their weights are.
    g, g_self : array, shape (M,)
        Potentials of all points of the second measures.
    """

    divergence: Array
    f: Array
    g: Array
    f_self: Array
    g_self: Array
    error: Array
    n_iter: Array
    converged: Array
    solved: SolvedPairs[SinkhornDivergence] = field(repr=False)
    one_price: bool = field(default=True, repr=False)

    def __len__(self) -> int:
        return self.solved.given.count

    @one_call
    def __getitem__(self, k: int) -> SinkhornDivergence:
        """Return the divergence of one pair."""
        given = self.solved.given
        k, result, row = self.solved.place(k)
        sides = (given.A, given.B), (given.A, given.A), (given.B, given.B)
        cross, of_a, of_b = (
            alone(given, pair, k, problem, row) for pair, problem in zip(sides, result.problems, strict=True)
        )
        of_f, of_g = given.A.item(k), given.B.item(k)
        return SinkhornDivergence(
            problems=(cross, of_a, of_b),
            own_costs=False,
            one_price=self.one_price,
            f=self.f[of_f],
            g=self.g[of_g],
            f_self=self.f_self[of_f],
            g_self=self.g_self[of_g],
            **{name: getattr(self, name)[k] for name in VALUES},
        )


def divergences(
    given: CheckedPairs,
    eps: Eps,
    options: Options,
    reach: Reach | None,
    one_price: bool,
    call: Callable[..., SinkhornDivergence],
    memory_limit: int | None,
) -> DivergencePairs:
    """Solve checked pairs; `call` is `cusink.sinkhorn_divergence` of a batch of padded problems."""
    if given.ground.formula().symmetric is False:
        raise ValueError(
            "'C' must be a symmetric cost within either side, which a divergence subtracts; got "
            f"{given.ground.metric!r}, which is not. Take cusink.sinkhorn"
        )
    solved = SolvedPairs.of(given, eps, options, reach, True, call, _made, memory_limit)
    return joined(solved, one_price)


def joined(solved: SolvedPairs[SinkhornDivergence], one_price: bool = True) -> DivergencePairs:
    """Join the results of batches and of what was solved together."""
    given, together = solved.given, solved.together
    named: dict[str, Any] = dict.fromkeys((*VALUES, "f", "g", "f_self", "g_self"))
    if together is not None and together.own is not None:
        named = {
            "divergence": _divergence(solved, together),
            "error": together.error,
            "n_iter": together.n_iter,
            "converged": given.xp.asarray(together.solved),
            "f_self": together.own.f,
            "g_self": together.own.g,
        }
        named["f"], named["g"] = solved.shown()
    values = {name: solved.values(name, named[name]) for name in VALUES}
    sides = {"f": given.A, "g": given.B}
    potentials = {name: solved.flat(name, sides[name[0]], named[name]) for name in ("f", "g", "f_self", "g_self")}
    return DivergencePairs(solved=solved, one_price=one_price, **potentials, **values)


def _divergence(solved: SolvedPairs[SinkhornDivergence], together: Together) -> Array:
    """Return the divergences (K,) of pairs that were solved together."""
    assert together.own is not None
    given, of_self, eps = solved.given, together.own.value, solved.given.xp.asarray(solved.eps)
    out = given.xp.where(given.xp.asarray(together.equal), 0, together.value - of_self)
    if not solved.balanced:
        of_a, of_b = given.masses
        out += eps / 2 * given.xp.asarray((of_a - of_b) ** 2)
    spread = together.spread
    if spread is None:
        spread = _ranges(given.A, together.f) + _ranges(given.B, together.g)
    scale = (eps + spread) * together.mass
    return without_rounding(given.xp, out, together.value, of_self, scale, together.error)


def _ranges(side: Side, potential: HostArray) -> HostArray:
    """Return by how much the potential differs between the points of each measure (K,)."""
    starts = side.offsets[:-1]
    ranges: HostArray = np.maximum.reduceat(potential, starts) - np.minimum.reduceat(potential, starts)
    return ranges


def without_rounding(xp: ArrayModule, out: Array, of_pair: Array, of_self: Array, scale: Array, error: Array) -> Array:
    """Return differences `out` (B,) of two values with zeros where rounding and the `error` explain that they are less.

    `scale` is the mass, times the sum of eps and the range of the potentials: a bin lighter than the error may be
    without its mass, and what that is worth is a matter of its potential.
    """
    with np.errstate(over="ignore"):  # the error of potentials that solve nothing explains anything
        explained = scale * error + 1e-14 * (xp.abs(of_pair) + xp.abs(of_self) + scale)
    return xp.where((out < 0) & (out > -explained), 0, out)


def _made(solved: SolvedPairs[SinkhornDivergence], batch: Batch) -> SinkhornDivergence:
    """Return the result of a batch of pairs that were solved together."""
    together, (a, b, cloud, eps) = solved.known, solved.problem(batch)
    assert together.own is not None
    f, g = solved.rows(batch, together.f, together.g)
    f_self, g_self = solved.rows(batch, together.own.f, together.own.g)
    x, y = sides_of(cloud)
    cross = padded((a, b), cloud, eps, (f, g), solved.reach, solved.shift(batch))
    still = None if solved.balanced else cross.xp.zeros(len(f))
    of_a = padded((cross.a, cross.a), x, eps, (f_self, f_self), solved.reach, still)
    of_b = padded((cross.b, cross.b), y, eps, (g_self, g_self), solved.reach, still)
    f, g = cross.shown_potentials()
    named = {name: cross.to_user(part) for name, part in (("f", f), ("g", g), ("f_self", f_self), ("g_self", g_self))}
    at = cross.xp.asarray(batch.pairs)
    return SinkhornDivergence(
        problems=(cross, of_a, of_b),
        own_costs=False,
        divergence=cross.to_user(_divergence(solved, together)[at]),
        error=cross.to_user(together.error[at]),
        n_iter=together.n_iter[at],
        converged=cross.xp.asarray(together.solved[batch.pairs]),
        **named,
    )
