#!/usr/bin/env python3
"""Time problems on which Sinkhorn's iterations hardly converge, beside other solvers; print a table as Markdown.

Each problem is solved alone, in float64, to a marginal error of 1e-4 and of 1e-8, by cusink, by halving eps every 20
iterations, and by what is installed (``pip install regot pot ott-jax``): the sparse quasi-Newton and Newton methods of
regot, POT's iterations in the log domain, and OTT's with momentum, compiled before. All take turns on one core, in CPU
time; the median of some rounds counts. The L1 errors of both marginals are taken from the plans, and what is above
100 times the tolerance is shown as WRONG: such a time means nothing. A solver that failed, or took longer than
`--longest`, is not tried again where the same problem is harder; these cells hold a dash.
"""

import argparse
import functools
import math
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness import works
from benchmarks.harness.timing import machine

EPS = (1e-2, 1e-3, 1e-4)  # of the largest cost
TOLERANCES, WRONG = (1e-4, 1e-8), 100  # times the tolerance
MOST = 20_000  # iterations of cusink and regot
MOST_OTHERS = 5000, 500  # of halving, and of those whose iterations take a logarithm of sums
HALVING = 20  # iterations at each eps


def uniform(n):
    return np.full(n, 1 / n)


def between(x, y):
    """Return squared distances, the largest 1."""
    C = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    return C / C.max()


def problems():
    """Return weights and costs by name."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300, 16))
    y[:150] = x[:150]
    out = {"300 points in R^16, half of them shared": (uniform(300), uniform(300), between(x, y))}
    x, y = rng.normal(size=(2, 400, 3))
    out["Gaussian against Gaussian, 400 points in R^3"] = (uniform(400), uniform(400), between(x, y / 2 + 1))
    x = rng.random((200, 2))
    out["a permutation of 200 points"] = (uniform(200), uniform(200), between(x, rng.permutation(x)))
    x, y = (np.concatenate([rng.random((k, 2)), rng.random((200 - k, 2)) + 5]) for k in (100, 90))
    out["two towns of unequal mass"] = (uniform(200), uniform(200), between(x, y))
    cells = np.stack(np.divmod(np.arange(256), 16), axis=1).astype(float)
    C = np.abs(cells[:, None] - cells[None]).sum(axis=2)
    out["16 x 16 cells, city-block cost"] = (*rng.dirichlet(np.ones(256), 2), C / C.max())
    x, y = rng.random((2, 500, 2))
    out["500 points in the plane"] = (uniform(500), uniform(500), between(x, y))
    a, b = rng.dirichlet(np.ones(100), 2)
    out["10 x 10 cells, squared distances"] = (a, b, works.squared_grid_cost(10, 10))
    row, column = np.divmod(np.arange(400), 20)
    radius = np.hypot(row - 9.5, column - 9.5)
    disk, ring = (np.where(inside, 1 + rng.random(400), 0.0) for inside in (radius < 5, (radius > 6) & (radius < 9)))
    C = (np.abs(row[:, None] - row) + np.abs(column[:, None] - column))[disk > 0][:, ring > 0].astype(float)
    disk, ring = disk[disk > 0], ring[ring > 0]
    out["a disk and a ring of 20 x 20 pixels, city-block cost"] = (disk / disk.sum(), ring / ring.sum(), C / C.max())
    out["150 classes, cost 0 or 1"] = (*rng.dirichlet(np.ones(150), 2), 1 - np.eye(150))
    out["an assignment of 200 by random costs"] = (uniform(200), uniform(200), rng.random((200, 200)))
    x = np.linspace(0, 1, 128)
    mixtures = [
        sum(np.exp(-(((x - mean) / width) ** 2) / 2) for mean, width in bumps) + 1e-6
        for bumps in (((0.2, 0.05), (0.6, 0.1)), ((0.5, 0.05), (0.9, 0.03)))
    ]
    out["mixtures on a line, tails of 1e-6"] = (*(w / w.sum() for w in mixtures), between(x[:, None], x[:, None]))
    x = rng.random((200, 3))
    out["one cloud of 200 points, two sets of weights"] = (*rng.dirichlet(np.ones(200), 2), between(x, x))
    row, column = np.indices((28, 28)).reshape(2, -1)
    images = [
        sum(np.exp(-((row - up) ** 2 + (column - left) ** 2) / 8) for up, left in places) + 1e-6
        for places in 28 * rng.random((2, 5, 2))
    ]
    C = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    out["two images of 28 x 28 pixels, city-block cost"] = (*(w / w.sum() for w in images), C / C.max())
    row, column = np.indices((32, 32)).reshape(2, -1)
    C = np.hypot(row[:, None] - row, column[:, None] - column)
    out["32 x 32 cells, Euclidean cost"] = (*rng.dirichlet(np.ones(1024), 2), C / C.max())
    x, y = rng.normal(size=(2, 1100, 16))
    y[:550] = x[:550]
    out["1100 points in R^16, half of them shared"] = (uniform(1100), uniform(1100), between(x, y))
    return out


def ours(a, b, C, eps, tol):
    result = cusink.sinkhorn(a, b, C, eps=eps, tol=tol, max_iter=MOST)
    return result.plan(), int(result.n_iter)


def halved(a, b, C, eps, tol):
    """Halve eps every 20 plain iterations from the largest cost on, and go on over-relaxed by a fixed factor."""
    start, taken = None, 0
    for stage in range(math.ceil(math.log2(1 / eps)), 0, -1):
        settings = {"eps": eps * 2**stage, "overrelaxation": None, "check": False, "init": start}
        found = cusink.sinkhorn(a, b, C, tol=None, max_iter=HALVING, **settings)
        start, taken = (found.f, found.g), taken + HALVING
    result = cusink.sinkhorn(a, b, C, eps=eps, tol=tol, max_iter=MOST_OTHERS[0], overrelaxation=1.5, init=start)
    return result.plan(), int(result.n_iter) + taken


def regots():
    import regot

    def of(solve):
        def run(a, b, C, eps, tol):
            found = solve(np.asfortranarray(C), a, b, eps, tol=tol, max_iter=MOST)
            return np.asarray(found.plan), int(found.niter)

        return run

    return {"regot SPLR": of(regot.sinkhorn_splr), "regot SSNS": of(regot.sinkhorn_ssns)}


def pot():
    import ot

    def run(a, b, C, eps, tol):
        options = {"method": "sinkhorn_log", "numItermax": MOST_OTHERS[1], "stopThr": tol, "log": True, "warn": False}
        plan, log = ot.sinkhorn(a, b, C, eps, **options)
        return plan, int(log["niter"])

    return {"POT": run}


def ott():
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    @functools.cache
    def compiled(tol, shape):
        def solve(a, b, C, eps):
            found = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=C, epsilon=eps), a=a, b=b))
            return found.matrix, found.n_iters

        momentum = acceleration.Momentum(start=30)
        solver = sinkhorn.Sinkhorn(momentum=momentum, threshold=tol, max_iterations=MOST_OTHERS[1])
        n, m = shape
        return jax.jit(solve).lower(*(np.ones(n) / n, np.ones(m) / m, np.ones(shape), 1.0)).compile()

    def run(a, b, C, eps, tol):
        plan, iterations = compiled(tol, C.shape)(a, b, C, eps)
        return np.asarray(plan), int(iterations)

    def prepared(tol, shape):
        compiled(tol, shape)

    run.prepare = prepared
    return {"OTT": run}


def solvers():
    """Return functions of a, b, C, eps and the tolerance that return a plan and a number of iterations, by name."""
    out = {"cusink": ours, "halving": halved}
    for library, made in (("regot", regots), ("POT", pot), ("ott-jax", ott)):
        try:
            out |= made()
        except ImportError:
            print(f"{library} is not installed: pip install {library.lower()}", file=sys.stderr)
    return out


def timed(solve, problem, eps, tol, rounds):
    """Return CPU seconds, iterations and the larger marginal error; infinite where the solver fails."""
    a, b, C = problem
    seconds, iterations, error = [], 0, np.inf
    if hasattr(solve, "prepare"):
        solve.prepare(tol, C.shape)
    for _ in range(rounds):
        begun = time.process_time()
        try:
            plan, iterations = solve(a, b, C, eps, tol)
        except (ArithmeticError, RuntimeError, ValueError):
            return np.inf, 0, np.inf
        seconds.append(time.process_time() - begun)
        error = float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())
    return float(np.median(seconds)), iterations, error


def cell(seconds, iterations, error, tol):
    if not error <= WRONG * tol:
        return f"WRONG ({error:.0e})"
    return f"{seconds:.3f} ({iterations})"


def ratio(found, tol):
    """Return the time of the first solver over that of the fastest other one that is right, as text."""
    others = [seconds for seconds, _, error in found[1:] if error <= WRONG * tol]
    return f"{found[0][0] / min(others):.2f}" if others else "—"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each is solved")
    parser.add_argument("--eps", type=float, nargs="+", default=EPS, help="of the largest cost")
    parser.add_argument("--tol", type=float, nargs="+", default=TOLERANCES, help="marginal errors")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds after which a solver is left out")
    parser.add_argument("--only", nargs="+", help="solvers by name")
    parser.add_argument("--problems", nargs="+", default=[""], help="parts of the names of problems")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        print("set OPENBLAS_NUM_THREADS=1: CPU time of several threads is not comparable", file=sys.stderr)
    chosen = {name: solve for name, solve in solvers().items() if not options.only or name in options.only}
    for solve in chosen.values():  # what is slow at the first call
        timed(solve, (uniform(3), uniform(3), 1 - np.eye(3)), 1.0, 1e-4, 1)
    print(machine())
    print(f"\n| problem | eps | error | {' | '.join(chosen)} | of the best |\n|{'---|' * (4 + len(chosen))}")
    for name, problem in problems().items():
        if not any(part in name for part in options.problems):
            continue
        left_out = set()
        for tol in sorted(options.tol, reverse=True):
            for eps in sorted(options.eps, reverse=True):
                found, cells = [], []
                for peer, solve in chosen.items():
                    if any(peer == other and eps <= at and tol <= to for other, at, to in left_out):
                        cells.append("—")
                        found.append((np.inf, 0, np.inf))
                        continue
                    found.append(timed(solve, problem, eps, tol, options.rounds))
                    cells.append(cell(*found[-1], tol))
                    if peer != "cusink" and not (found[-1][0] <= options.longest and found[-1][2] <= WRONG * tol):
                        left_out.add((peer, eps, tol))
                row = [name, f"{eps:g}", f"{tol:g}", *cells, ratio(found, tol)]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
