"""Solve small problems on a device in one go, without a look before the end.

What the host would have looked at comes back with the solution: whether the input is what it has to be, and whether it
needed more than this way has. Where it is not, or did, the answer is thrown away: the solver begins from the checks,
which then say what is wrong. The time that is lost then is short beside that of the looks that are otherwise saved.
Costs for which float32 has too few digits are solved at once in float64.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from cusink.checks.arrays import largest, weights_dtype
from cusink.checks.regularisation import for_problems
from cusink.checks.weights import MASS_TOLERANCE
from cusink.convergence.options import Options
from cusink.convergence.rules import NEARLY_ALL
from cusink.costs.at_once import AtOnce, AtOnceRules
from cusink.costs.cost import Cost
from cusink.solver.ending import PLAN_ROUNDING
from cusink.solver.gauge import DIGITS
from cusink.solver.loop import CARRIED, needs_float64
from cusink.solver.problem import ArrivedProblem, Problem
from cusink.types import HostArray

MOST_BITS = 60  # powers of 2 between a mass and 1: far from where weights would leave their range


def solve_at_once(given: ArrivedProblem, options: Options, check: bool) -> tuple[Problem, AtOnce] | None:
    """Return the solved problem and what is known of it; None where the solver has to look."""
    C, eps = given.C, given.eps
    if not isinstance(eps, float) or given.init is not None or given.dtype != C.dtype:
        return None
    found = C.solve_at_once(given.a, given.b, given.size, eps, _rules(C, options))
    if found is None or not _fit(given, found, eps, check):
        return None
    for_problems(eps, given.size, given.batched, C.dtype.name)
    kept = found
    if needs_float64(C, C.dtype, options.tol, float(np.max(_exponent(found, eps)))):
        wide = C.widened()
        a, b = (None if w is None else w.astype(np.float64) for w in (given.a, given.b))
        again = wide.solve_at_once(a, b, given.size, eps, _rules(wide, options))
        if again is None:
            return None
        found = again
    if not _solved(found, eps):
        return None
    problem = Problem(
        a=kept.a,
        b=kept.b,
        C=replace(C, data=kept.C),
        eps=eps,
        f=found.f,
        g=found.g,
        dtype=given.dtype,
        batched=given.batched,
        batch_of_one=given.batch_of_one,
        images=given.images,
    )
    return problem, found


def _rules(C: Cost[Any], options: Options) -> AtOnceRules:
    """Return how to solve problems with a cost in its dtype."""
    adaptive = options.overrelaxation == "auto" and options.tol is not None
    omega = options.overrelaxation if isinstance(options.overrelaxation, float) else 1.0
    carried = CARRIED * float(np.finfo(C.dtype).eps) / 2
    how = (options.max_iter, options.tol, options.check_every, options.method)
    return AtOnceRules(*how, None if adaptive else omega, carried, C.exponent_rounding() + PLAN_ROUNDING, NEARLY_ALL)


def _exponent(found: AtOnce, eps: float) -> HostArray:
    """Return the largest cost (B,) over eps."""
    with np.errstate(over="ignore"):
        exponent: HostArray = np.maximum(abs(found.facts.low), abs(found.facts.high)) / eps
    return exponent


@np.errstate(over="ignore", invalid="ignore")
def _fit(given: ArrivedProblem, found: AtOnce, eps: float, check: bool) -> bool:
    """Return whether the input is one that this way is for; `checked` says what is wrong with others."""
    facts, C = found.facts, given.C
    limits, most = np.finfo(C.dtype), largest(C.dtype.name)
    fit = (facts.odd == 0) & (facts.least >= 0) & (abs(facts.exponent) <= MOST_BITS)
    for mass in (facts.mass_a, facts.mass_b):
        fit &= (mass >= float(limits.tiny)) & (mass <= float(limits.max))
    fit &= (facts.low >= -most) & (facts.high <= most) & (_exponent(found, eps) <= DIGITS)
    if check:
        tolerance = MASS_TOLERANCE[weights_dtype(given.dtype, *given.given).name]
        fit &= abs(facts.mass_b - facts.mass_a) <= tolerance * facts.mass_a
    return bool(fit.all())


def _solved(found: AtOnce, eps: float) -> bool:
    """Return whether every problem ended in range, within the tolerance, with potentials that have digits."""
    facts = found.facts
    solved = (facts.sound == 1) & (facts.reached == 1) & np.isfinite(facts.error) & (facts.largest <= DIGITS * eps)
    return bool(solved.all())
