"""Who transports images on a grid, and mixes them, in ``benchmarks/suite.py``, and what is right: no library judges."""

from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from benchmarks import grid
from benchmarks.harness import works
from benchmarks.harness.peers import Competitor
from benchmarks.harness.timing import judge

SAMPLE = 2  # pairs that are held to the reference
TOL = 1e-5  # the L1 error of the marginals that is asked for, where it can be
TOLERANCE = 1e-3  # L1 error of a right barycenter: each peer stops by a rule of its own


# ---- pairs, exactly 100 plain iterations ----------------------------------------------------------------------------


def pairs(count, eps=0.01):
    """Make pairs of images on a faint ground."""
    return grid.pairs(False, eps, count)


def judged_costs(work):
    """Return the function that judges the costs (B,) of the pairs."""
    sample = replace(work, a=work.a[:SAMPLE], b=work.b[:SAMPLE])
    reference = cache(partial(works.reference_pairs, sample))

    def judged(competitor, cost):
        lost = int(np.count_nonzero(~np.isfinite(cost)))
        if lost:
            return False, float("inf"), f"WRONG: {lost} of {cost.size} not finite"
        return judge(cost[:SAMPLE], reference(competitor.start), grid.TOLERANCE["float64"])

    return judged


def _as_is(make):
    return lambda work: (make(work), lambda cost: cost)


PAIRS = [
    Competitor(name, "log" if "True" in name else "plain", _as_is(make), rounds, start=start)
    for name, (make, start, rounds) in grid.COMPETITORS.items()
]


# ---- barycenters, to convergence ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixtures:
    """Two images (2, n) of side * side pixels of a square, and the shares (B, 2) of their mixtures."""

    A: np.ndarray
    shares: np.ndarray
    side: int
    eps: float

    @property
    def line(self):
        """Costs between the pixels of a row: the square has a side of 1."""
        x = np.linspace(0, 1, self.side)
        return (x[:, None] - x) ** 2


def mixtures(count, eps=0.02):
    """Make barycenters between two images on a faint ground."""
    return Mixtures(grid.images(2, False, 0), np.linspace([0.9, 0.1], [0.1, 0.9], count), grid.SIDE, eps)


def scalings(work, tol, max_iter=100_000):
    """Return the barycenters (B, n) of plain scalings with two products a step, nothing checked, in float64."""
    K = np.exp(-work.line / work.eps)
    shape = (len(work.shares), len(work.A), work.side, work.side)
    a, V, w = work.A.reshape(1, *shape[1:]), np.ones(shape), work.shares[:, :, None, None]
    for step in range(max_iter):
        U = a / (K @ V @ K)
        sums = K @ U @ K
        p = np.exp((w * np.log(sums)).sum(axis=1, keepdims=True))
        if step % 10 == 9 and np.abs(V * sums - p).sum(axis=(2, 3)).max() <= tol:
            return p.reshape(len(work.shares), -1)
        V = p / sums
    raise RuntimeError("the scalings did not converge")


def judged_mixtures(work):
    """Return the function that judges barycenters (B, n)."""
    right = scalings(work, 1e-10)
    if not np.isfinite(right).all():
        raise RuntimeError("the reference left the range of float64")

    def judged(competitor, found):
        error = float(np.abs(np.asarray(found) - right).sum(axis=1).max())
        if not error <= TOLERANCE:
            return False, error, f"WRONG: off by {error:.1e}"
        return True, error, "right"

    return judged


def by_cusink(work):
    import cusink

    cells = cusink.Grid((work.side, work.side), spacing=1 / (work.side - 1))
    return lambda: cusink.barycenter(work.A, cells, work.shares, eps=work.eps, tol=TOL), lambda found: found.barycenter


def by_pot_convolution(work):
    import ot

    images = work.A.reshape(-1, work.side, work.side)
    solve = partial(ot.bregman.convolutional_barycenter2d, images, work.eps, stopThr=TOL, warn=False)
    return lambda: np.stack([solve(weights=shares).ravel() for shares in work.shares]), lambda found: found


def by_pot(work):
    """Its stabilised loop: the default one, which begins with scalings of equal shares, stops at another point."""
    import ot

    A = np.ascontiguousarray(work.A.T)
    C = (work.line[:, None, :, None] + work.line[None, :, None, :]).reshape(len(A), -1)
    solve = partial(ot.bregman.barycenter_stabilized, A, C, work.eps, stopThr=TOL, numItermax=10_000, warn=False)
    return lambda: np.stack([solve(weights=shares) for shares in work.shares]), lambda found: found


def by_ott(work):
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry import grid as grids
    from ott.problems.linear import barycenter_problem
    from ott.solvers.linear import discrete_barycenter

    line = jax.numpy.linspace(0, 1, work.side)
    solver = discrete_barycenter.FixedBarycenter(threshold=TOL, lse_mode=False, max_iterations=10_000)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def solve(A, shares):
        geometry = grids.Grid(x=[line, line], epsilon=work.eps)
        return solver(barycenter_problem.FixedBarycenterProblem(geometry, a=A, weights=shares)).histogram

    A, shares = jax.numpy.asarray(work.A), jax.numpy.asarray(work.shares)
    return lambda: np.asarray(solve(A, shares)), lambda found: found


MIXTURES = [
    Competitor("cusink", "ours", by_cusink),
    Competitor("NumPy, unguarded scalings", "plain", lambda work: (lambda: scalings(work, TOL), lambda found: found)),
    Competitor("POT `convolutional_barycenter2d`, loop", "kernel", by_pot_convolution, rounds=2),
    Competitor("POT `barycenter_stabilized`, dense C, loop", "kernel", by_pot, rounds=1),
    Competitor("OTT `FixedBarycenter`, kernel mode", "kernel", by_ott, rounds=2),
]
