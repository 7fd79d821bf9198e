"""Who solves two clouds of points in ``benchmarks/suite.py``, each to convergence by its own rule.

All are judged by one number, the regularised cost, which the reference computes in float64 from its own iteration.
"""

import functools
from dataclasses import dataclass
from functools import partial

import numpy as np
from benchmarks.harness import works
from benchmarks.harness.peers import Competitor

TOLERANCE = 1e-3  # relative error of a right value: each peer stops by a rule of its own
STOP = 1e-4  # the L1 error of the marginals that is asked for, where it can be


@dataclass(frozen=True)
class Clouds:
    """Two clouds in float32 with uniform weights."""

    x: np.ndarray
    y: np.ndarray
    eps: float


def squares(x, y):
    """Squared distances in float64."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return ((x[:, None] - y) ** 2).sum(axis=2)


@functools.cache
def problem(n, d=3):
    """Return two normal clouds of n points, one of them shifted."""
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 0.5
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Clouds(x, y, float(0.05 * squares(x, y).mean()))


def dual_value(C, f, g, eps):
    """Return ``<a, f> + <b, g> - eps (sum P - 1)`` of uniform weights: a lower bound, exact at the optimum."""
    mass = np.exp((f[:, None] + g - C) / eps).mean()
    return float(f.mean() + g.mean() - eps * (mass - 1))


@functools.cache
def value_of(n, tol=1e-10):
    """Return the regularised cost in float64 by a log-domain iteration that converges."""
    work = problem(n)
    C, eps, f = squares(work.x, work.y), work.eps, np.zeros(n)
    for _ in range(10_000):
        g = -eps * (works.log_sum_exp((f[:, None] - C) / eps, axis=0) - np.log(n))
        new = -eps * (works.log_sum_exp((g - C) / eps, axis=1) - np.log(n))
        if np.abs(new - f).max() <= tol * eps:
            return dual_value(C, new, g, eps)
        f = new
    raise RuntimeError("the reference did not converge")


def judged(work, competitor, value):
    """Judge a value: ``(right, relative error, words)``."""
    wanted = value_of(len(work.x))
    error = abs(float(value) - wanted) / wanted
    if not error <= TOLERANCE:
        return False, error, f"WRONG: off by {error:.1e}"
    return True, error, "right"


def by_cusink(work):
    import cusink

    def run():
        return cusink.sinkhorn(None, None, cusink.PointCloud(work.x, work.y), eps=work.eps, tol=STOP)

    return run, lambda result: result.reg_cost


def by_numpy(work):
    """Iterate by log-sum-exp in float32 until the marginals are met."""
    n = len(work.x)

    def run():
        x, y = work.x, work.y
        C = np.maximum((x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * x @ y.T, 0) / np.float32(work.eps)
        f = np.zeros(n, np.float32)
        for _ in range(1000):
            g = np.float32(np.log(n)) - works.log_sum_exp(f[:, None] - C, axis=0)
            new = np.float32(np.log(n)) - works.log_sum_exp(g - C, axis=1)
            change, f = np.abs(np.expm1(f - new)).mean(), new
            if change <= STOP:
                break
        return f, g

    return run, lambda pair: dual_value(squares(work.x, work.y), *(work.eps * v.astype(float) for v in pair), work.eps)


def by_ott(work):
    import jax
    from ott.geometry import pointcloud
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    solver = sinkhorn.Sinkhorn(lse_mode=True, threshold=STOP, max_iterations=2000)

    @jax.jit
    def solve(x, y):
        out = solver(linear_problem.LinearProblem(pointcloud.PointCloud(x, y, epsilon=work.eps)))
        return out.f, out.g

    x, y = jax.numpy.asarray(work.x), jax.numpy.asarray(work.y)

    def read(pair):
        # Its weights are inside: f + eps log a.
        f, g = (np.asarray(v, dtype=float) + work.eps * np.log(len(v)) for v in pair)
        return dual_value(squares(work.x, work.y), f, g, work.eps)

    return lambda: [np.asarray(v) for v in solve(x, y)], read


def by_pot(work):
    import ot

    def run():
        options = {"stopThr": STOP, "numIterMax": 2000, "warn": False}
        return ot.bregman.empirical_sinkhorn(work.x, work.y, work.eps, metric="sqeuclidean", **options)

    def read(plan):
        P = np.asarray(plan, dtype=float)
        inside = P > 0
        entropy = (P[inside] * np.log(P[inside] * P.size)).sum()
        return (P * squares(work.x, work.y)).sum() + work.eps * entropy

    return run, read


def by_geomloss(work, backend):
    """Its annealed iteration without the self-terms; its cost is half the square. "online" is KeOps, built by g++."""
    import torch
    from geomloss import SamplesLoss

    if backend == "online":
        import pykeops.torch  # noqa: F401  # where it is missing GeomLoss would fail by a name

    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y)
    loss = SamplesLoss("sinkhorn", p=2, blur=(work.eps / 2) ** 0.5, scaling=0.9, debias=False, backend=backend)
    return lambda: 2 * loss(x, y).item(), float


COMPETITORS = [
    Competitor("cusink", "ours", by_cusink),
    Competitor("NumPy, log-sum-exp", "plain", by_numpy, rounds=2),
    Competitor("OTT `PointCloud`", "log", by_ott, rounds=2),
    Competitor("POT `empirical_sinkhorn`", "kernel", by_pot, rounds=2),
    Competitor("GeomLoss `SamplesLoss`, tensorized", "log", partial(by_geomloss, backend="tensorized"), rounds=2),
    Competitor("GeomLoss `SamplesLoss`, KeOps", "log", partial(by_geomloss, backend="online"), rounds=2),
]
