"""Who transports histograms of unequal masses in ``benchmarks/suite.py``, each to convergence: no library judges."""

from dataclasses import dataclass

import numpy as np
from benchmarks import unbalanced
from benchmarks.harness.peers import Competitor
from benchmarks.harness.timing import judge


@dataclass(frozen=True)
class Masses:
    """Histograms a (B, n) of mass 1 and b of another, the cost between their bins, eps and reach."""

    a: np.ndarray
    b: np.ndarray
    C: np.ndarray
    eps: float
    reach: float

    @property
    def arguments(self):
        """What the functions of ``benchmarks/unbalanced.py`` take."""
        return self.a, self.b, self.C, self.eps, self.reach


def problem(count, eps=0.05, reach=0.5):
    """Make the pairs of ``benchmarks/unbalanced.py``."""
    return Masses(*unbalanced.pairs(count), eps, reach)


def judged_costs(work):
    """Return the function that judges the costs (B,) of all pairs."""
    right = unbalanced.reference(*work.arguments)
    return lambda competitor, cost: judge(cost, right, unbalanced.TOLERANCE)


def by_numpy(work):
    """Scale rows and columns of all pairs by two products, until they rest; nothing is checked."""
    a, b, C, eps, reach = work.arguments
    power = reach / (reach + eps)

    def run():
        K = np.exp(-C / eps)
        u = np.ones_like(a)
        for _ in range(100_000):
            v = ((a * u) @ K) ** -power
            new = ((b * v) @ K.T) ** -power
            change, u = np.abs(new / u - 1).max(), new
            if change <= unbalanced.TOL:
                break
        return (a * u * ((b * v) @ (K * C).T)).sum(axis=1)

    return run, lambda cost: cost


COMPETITORS = [
    Competitor("cusink", "ours", lambda work: (lambda: unbalanced.ours(*work.arguments), lambda cost: cost)),
    Competitor("NumPy, unguarded loop", "plain", by_numpy),
    Competitor(
        "POT `sinkhorn_unbalanced`, loop over pairs",
        "kernel",
        lambda work: (lambda: unbalanced.pot(*work.arguments), lambda cost: cost),
        rounds=1,
    ),
]
