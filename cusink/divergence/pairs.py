"""Divergences of pairs of measures of unequal sizes: those that were solved together, and those of batches."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cusink.convergence.options import Options
from cusink.divergence.result import VALUES, DivergencePairs, SinkhornDivergence
from cusink.divergence.resumed import resumed
from cusink.solver.pairs.batches import Batch
from cusink.solver.pairs.checks import CheckedPairs
from cusink.solver.pairs.solve import SolvedPairs
from cusink.solver.pairs.together import Together
from cusink.types import Array, ArrayModule, Eps, HostArray


def divergences(
    given: CheckedPairs,
    eps: Eps,
    options: Options,
    balanced: bool,
    call: Callable[..., SinkhornDivergence],
    memory_limit: int | None,
) -> DivergencePairs:
    """Solve checked pairs; `call` is `cusink.sinkhorn_divergence` of a batch of padded problems."""
    solved = SolvedPairs.of(given, eps, options, balanced, True, call, _made, memory_limit)
    return joined(solved)


def joined(solved: SolvedPairs[SinkhornDivergence]) -> DivergencePairs:
    """Join the results of batches and of what was solved together."""
    given, together = solved.given, solved.together
    named: dict[str, Any] = dict.fromkeys((*VALUES, "f", "g", "f_self", "g_self"))
    if together is not None and together.own is not None:
        named = {
            "divergence": _divergence(together, solved.eps),
            "error": together.error,
            "n_iter": together.n_iter,
            "converged": together.solved,
            "f": together.f,
            "g": together.g,
            "f_self": together.own.f,
            "g_self": together.own.g,
        }
    values = {name: solved.values(name, named[name]) for name in VALUES}
    sides = {"f": given.A, "g": given.B}
    potentials = {name: solved.flat(name, sides[name[0]], named[name]) for name in ("f", "g", "f_self", "g_self")}
    return DivergencePairs(solved=solved, **potentials, **values)


def _divergence(together: Together, eps: Eps) -> HostArray:
    """Return the divergences (K,) of pairs that were solved together."""
    assert together.own is not None
    of_self = together.own.value
    out = np.where(together.equal, 0, together.value - of_self)
    cleared: HostArray = without_rounding(np, out, together.value, of_self, eps * together.mass, together.error)
    return cleared


def without_rounding(xp: ArrayModule, out: Array, of_pair: Array, of_self: Array, scale: Array, error: Array) -> Array:
    """Return differences `out` (B,) of two values with zeros where rounding and the `error` explain that they are less.

    `scale` is eps times the mass.
    """
    explained = scale * error + 1e-14 * (xp.abs(of_pair) + xp.abs(of_self) + scale)
    return xp.where((out < 0) & (out > -explained), 0, out)


def _made(solved: SolvedPairs[SinkhornDivergence], batch: Batch) -> SinkhornDivergence:
    """Return the result of a batch of pairs that were solved together."""
    together, (a, b, cloud, eps) = solved.known, solved.problem(batch)
    assert together.own is not None
    f, g = solved.rows(batch, together.f, together.g)
    f_self, g_self = solved.rows(batch, together.own.f, together.own.g)
    error = together.error[batch.pairs]
    return resumed(a, b, cloud, eps=eps, potentials=(f, g, f_self, g_self), shift=None, error=error)
