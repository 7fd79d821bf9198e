"""A divergence from potentials that were found before, for derivatives that are taken later and elsewhere."""

from dataclasses import replace
from typing import Any

from cusink.divergence import checks
from cusink.divergence.result import SinkhornDivergence
from cusink.solver import checks as solver_checks
from cusink.solver.prices import own_prices
from cusink.solver.problem import Problem
from cusink.types import Array, Eps


def resumed(
    a: Array,
    b: Array,
    C: Any,
    *,
    eps: Eps,
    potentials: tuple[Array, Array, Array, Array],
    shift: Array | None,
    error: Array,
    C_aa: Array | None = None,
    C_bb: Array | None = None,
    reach: Any = None,
    memory_limit: int | None = None,
) -> SinkhornDivergence:
    """Return what `cusink.sinkhorn_divergence` returned, given the potentials f, g and those of both self-terms.

    `shift` and `error` are (B,). The value of the divergence is not computed again; the `error` stands in its place.
    """
    rho = solver_checks.reach(reach)
    given = solver_checks.problem(a, b, C, eps=eps, check=False, memory_limit=memory_limit, reach=rho)
    of_a, of_b = checks.self_costs(C, C_aa, C_bb, given, memory_limit, False)
    of_one = [given.batch_of_one if own is None else own.ndim == 3 and len(own) == 1 for own in (C_aa, C_bb)]
    f, g, f_self, g_self = potentials
    cross = Problem.of(given, f, g, rho, shift)
    alone = replace(cross, shift=None if shift is None else shift * 0)
    problems = (
        cross,
        replace(alone, b=given.a, C=of_a, f=f_self, g=f_self, reach=own_prices(rho, 0), batch_of_one=of_one[0]),
        replace(alone, a=given.b, C=of_b, f=g_self, g=g_self, reach=own_prices(rho, 1), batch_of_one=of_one[1]),
    )
    shown = [cross.to_user(x) for x in (f, g, f_self, g_self)]
    errors = cross.to_user(error)
    return SinkhornDivergence(
        divergence=errors,
        f=shown[0],
        g=shown[1],
        f_self=shown[2],
        g_self=shown[3],
        error=errors,
        n_iter=errors,
        converged=errors,
        problems=problems,
        own_costs=of_a.stored and not (of_a is given.C and of_b is given.C),
        one_price=not solver_checks.for_each_side(reach),
    )
