"""The terms of a divergence that compare each measure with itself."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.divergence.values import value_in_float64
from cusink.solver.each import self_potentials_each
from cusink.solver.form import SinkhornForm, form_of_self
from cusink.solver.prices import own_prices
from cusink.solver.problem import CheckedProblem, Problem
from cusink.solver.symmetric import SelfSolution, of_free_masses
from cusink.types import Array, HostArray, Reach


class SelfTerms(NamedTuple):
    """Potentials f (B, n), g (B, m) of both measures with themselves, the sum of half values, the larger error.

    `n_iter` (B,) are the iterations of the one with that error, and `forms` say how each was solved.
    """

    f: Array
    g: Array
    reg_cost: Array
    error: HostArray
    n_iter: HostArray
    forms: tuple[SinkhornForm, SinkhornForm]


def self_terms(
    given: CheckedProblem, costs: tuple[Cost[Any], Cost[Any]], prices: Reach | None, options: Options
) -> SelfTerms:
    """Solve both measures with themselves."""
    mass = given.a.sum(axis=1, dtype=np.float64)
    of_a, of_b = (
        _solved_with_itself(replace(given, a=weights, b=weights, C=C), own_prices(prices, k), options, mass)
        for k, (weights, C) in enumerate(zip((given.a, given.b), costs, strict=True))
    )
    n_iter = np.where(of_b.error >= of_a.error, of_b.n_iter, of_a.n_iter)
    reg_cost, error = of_a.reg_cost / 2 + of_b.reg_cost / 2, np.maximum(of_a.error, of_b.error)
    forms = form_of_self(of_a.omitted, of_a.stages), form_of_self(of_b.omitted, of_b.stages)
    return SelfTerms(of_a.f, of_b.f, reg_cost, error, n_iter, forms)


def _solved_with_itself(given: CheckedProblem, prices: Reach | None, options: Options, mass: Array) -> SelfSolution:
    """Solve a measure with itself; its value is that of a `mass` (B,).

    That of potentials in float32, or with a loss, is the `value_in_float64`. Costs that are kept for both are forgotten
    here.
    """
    xp, kept, a = given.C.xp, given.C.kept(), given.a
    # One measure that is compared with many is solved once.
    same = kept.shared and len(a) > 1 and bool((a == a[:1]).all())
    some, rho = a[:1] if same else a, math.inf if prices is None else prices[0]
    coarse = prices is None and len(a) == 1
    own = self_potentials_each(kept, some, given.eps, options, rho, coarse=coarse)
    f = xp.ascontiguousarray(xp.broadcast_to(own.f, a.shape))
    error, n_iter = (np.broadcast_to(x, len(a)) for x in (own.error, own.n_iter))
    value = own.reg_cost
    if a.dtype != np.float64 or own.omitted[0] > 0:
        still = None if prices is None else xp.zeros(len(a))
        value = value_in_float64(Problem.of(replace(given, C=kept), f, f, prices, still), mass)
    elif prices is not None and rho == math.inf:
        value = of_free_masses(a, value, xp.asarray(given.eps))
    return own._replace(f=f, reg_cost=value, error=error, n_iter=n_iter)
