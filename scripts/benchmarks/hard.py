#!/usr/bin/env python3
"""Time problems on which Sinkhorn's iterations hardly converge, beside second-order solvers; print a table as Markdown.

Each problem is solved alone, in float64, to a marginal error of 1e-8, by cusink and, where it is installed (``pip
install regot``), by the sparse quasi-Newton and Newton methods of regot. All take turns on one core, in CPU time; the
smallest of some rounds counts. The L1 errors of both marginals are taken from the plans, and what is above 1e-6 is
shown as WRONG: such a time means nothing.
"""

import argparse
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
TOL, WRONG = 1e-8, 1e-6


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
    return out


def solvers():
    """Return functions of a, b, C and eps that return a plan and a number of iterations, by name."""

    def ours(a, b, C, eps):
        result = cusink.sinkhorn(a, b, C, eps=eps, tol=TOL, max_iter=20_000)
        return result.plan(), int(result.n_iter)

    out = {"cusink": ours}
    try:
        import regot
    except ImportError:
        print("regot is not installed: pip install regot", file=sys.stderr)
        return out

    def peer(solve):
        def run(a, b, C, eps):
            found = solve(np.asfortranarray(C), a, b, eps, tol=TOL, max_iter=20_000)
            return np.asarray(found.plan), int(found.niter)

        return run

    return out | {"regot SPLR": peer(regot.sinkhorn_splr), "regot SSNS": peer(regot.sinkhorn_ssns)}


def timed(solve, problem, eps, rounds):
    """Return CPU seconds, iterations and the larger marginal error; infinite where the solver fails."""
    a, b, C = problem
    best, iterations, error = np.inf, 0, np.inf
    for _ in range(rounds):
        begun = time.process_time()
        try:
            plan, iterations = solve(a, b, C, eps)
        except (ArithmeticError, RuntimeError, ValueError):
            return np.inf, 0, np.inf
        best = min(best, time.process_time() - begun)
        error = float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())
    return best, iterations, error


def cell(seconds, iterations, error):
    if not error <= WRONG:
        return f"WRONG ({error:.0e})"
    return f"{seconds:.3f} ({iterations})"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each is solved")
    parser.add_argument("--eps", type=float, nargs="+", default=EPS, help="of the largest cost")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", cusink.ConvergenceWarning)
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        print("set OPENBLAS_NUM_THREADS=1: CPU time of several threads is not comparable", file=sys.stderr)
    found = solvers()
    print(machine())
    print(f"\n| problem | eps | {' | '.join(found)} |\n|{'---|' * (2 + len(found))}")
    for name, problem in problems().items():
        for eps in options.eps:
            cells = [cell(*timed(solve, problem, eps, options.rounds)) for solve in found.values()]
            print(f"| {name} | {eps:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
