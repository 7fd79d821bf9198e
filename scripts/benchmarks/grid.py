#!/usr/bin/env python3
"""Time and check a separable cost on a grid beside the dense cost of the same problem, a plain loop, and OTT's grid.

256 pairs of images of 28 x 28 pixels, exactly 100 plain iterations. Images are spots, on an empty ground or on a faint
one. A sample of the pairs is held to a float64 log-domain reference that uses no library; a wrong answer is shown as
WRONG. All run on one core in CPU time, in turns; ratios are those of medians, with the smallest and the largest of a
round in brackets.
"""

import argparse
import functools
import os
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness import works
from benchmarks.harness.timing import compare, judge, machine, one_turn, schedule, shown

SIDE = 28
SAMPLE = 2
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


def images(count, empty, seed):
    """Return sums of three spots each, (count, SIDE * SIDE): about half of the pixels of an `empty` ground are zero."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, width = rng.uniform(6, 22, (2, count, 3, 1, 1)) * (SIDE / 28), rng.uniform(1, 3, (count, 3, 1, 1))
    image = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2)).sum(axis=1).reshape(count, -1)
    image = np.where(image < 0.05, 0, image) if empty else image + 1e-3
    return image / image.sum(axis=1, keepdims=True)


def pairs(empty, eps, count):
    """Return the work; its cost is scaled to [0, 1]."""
    ground = "an empty" if empty else "a faint"
    name = f"{count} pairs of {SIDE} x {SIDE} images on {ground} ground, eps {eps:g}"
    C = works.squared_grid_cost(SIDE, SIDE)
    return works.Pairs(name, images(count, empty, 0), images(count, empty, 1), C, eps)


def spacing():
    """Of cells for which the largest cost is 1."""
    return 1 / ((SIDE - 1) * 2**0.5)


# ---- who takes part: make(work) gives run, and run() gives the costs (B,) ----------------------------------------


def cusink_solve(work, separable, **options):
    import cusink

    C = cusink.Grid((SIDE, SIDE), spacing=spacing()) if separable else work.C
    options = {"max_iter": work.iterations, "tol": None, "overrelaxation": None} | options
    return lambda: cusink.sinkhorn(work.a, work.b, C, eps=work.eps, **options).cost


def plain_loop(work):
    """Two small products per half-step, nothing checked: right where nothing leaves the range."""
    axis = ((np.arange(SIDE)[:, None] - np.arange(SIDE)) * spacing()) ** 2
    K = np.exp(-axis / work.eps).astype(work.a.dtype)
    KC = (K * axis).astype(K.dtype)
    a, b = (np.ascontiguousarray(w.T).reshape(SIDE, SIDE, -1) for w in (work.a, work.b))

    def along(first, second, x):
        return np.matmul(second, (first @ x.reshape(SIDE, -1)).reshape(x.shape))

    def run():
        u = a
        for _ in range(work.iterations):
            v = b / along(K, K, u)
            u = a / along(K, K, v)
        return (u * (along(KC, K, v) + along(K, KC, v))).sum(axis=(0, 1))

    return run


def ott_grid(work, lse_mode):
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry import grid
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    n = work.iterations
    solver = sinkhorn.Sinkhorn(lse_mode=lse_mode, min_iterations=n, max_iterations=n, threshold=-1.0)
    line = jax.numpy.asarray(np.arange(SIDE) * spacing(), work.a.dtype)

    def solve(a, b):
        geometry = grid.Grid(x=[line, line], epsilon=work.eps)
        out = solver(linear_problem.LinearProblem(geometry, a=a, b=b))
        # Its primal cost asks for all costs of a pair of images: <P, C> axis by axis instead.
        f, g = (x.reshape(SIDE, SIDE) for x in (out.f, out.g))
        costs, logs = (line[:, None] - line) ** 2, jax.scipy.special.logsumexp
        D, price = costs / work.eps, jax.numpy.log(costs)
        rows = logs(g[:, None, :] / work.eps - D, axis=2)
        priced_rows = logs(g[:, None, :] / work.eps - D + price, axis=2)
        both = logs(rows.T[:, None, :] - D + price, axis=2), logs(priced_rows.T[:, None, :] - D, axis=2)
        return jax.numpy.exp(f.T / work.eps + jax.numpy.logaddexp(*both)).sum()

    both = jax.jit(jax.vmap(solve))
    a, b = (jax.numpy.asarray(x) for x in (work.a, work.b))
    return lambda: np.asarray(both(a, b))


COMPETITORS = {  # name: make, first iterate, rounds
    "cusink, Grid": (partial(cusink_solve, separable=True), "weights", None),
    "cusink, dense C": (partial(cusink_solve, separable=False), "weights", None),
    "NumPy, unguarded loop along the axes": (plain_loop, "weights", None),
    "OTT Grid `lse_mode=False`": (partial(ott_grid, lse_mode=False), "ones", 3),
    "OTT Grid `lse_mode=True`": (partial(ott_grid, lse_mode=True), "ones", 1),
}


def run_work(work, reference, rounds, without):
    """Check everyone, time everyone in turns, print a table."""
    dtype = work.a.dtype.name
    runs, verdicts, limits = {}, {}, {}
    for name, (make, start, most) in COMPETITORS.items():
        if any(word in name for word in without) or (start == "ones" and not work.a.all()):
            continue  # a first iterate of ones sends mass from empty pixels: after a fixed count that is another answer
        try:
            runs[name] = make(work)
            cost = runs[name]()
        except Exception as problem:  # a peer that is not installed or fails must not end the others' run
            verdicts[name] = (f"FAILED: {type(problem).__name__}: {' '.join(str(problem).split())[:60]}", "")
            continue
        lost = np.count_nonzero(~np.isfinite(cost))
        _, relative, text = judge(cost[:SAMPLE], reference(start)[:SAMPLE], TOLERANCE[dtype])
        verdicts[name] = (f"WRONG: {lost} of {cost.size} not finite" if lost else text, f"{relative:.1e}")
        limits[name] = most
    times = {name: [] for name in limits}
    for name in schedule(limits, rounds):
        times[name].append(one_turn(runs[name], calls=3, clock=time.process_time))
    print(
        f"\n### {work.name}, {dtype}\n\n| | answer | relative error | CPU time | time / Grid's |\n|---|---|---|---|---|"
    )
    ours = times["cusink, Grid"]
    for name, (text, relative) in verdicts.items():
        median = shown(np.median(times[name])) if name in times else ""
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*compare(ours, times[name])) if name in times else ""
        print(f"| {name} | {text} | {relative} | {median} | {ratio} |", flush=True)


# ---- Euclidean distances, which are no sums over the axes --------------------------------------------------------


EUCLIDEAN = [  # cells, pairs, eps over the largest cost
    ((28, 28), 1, 0.01),
    ((28, 28), 64, 0.01),
    ((64, 64), 1, 0.1),
    ((64, 64), 1, 0.01),
    ((64, 64), 16, 0.01),
    ((16, 16, 16), 1, 0.01),
]
TO = {"float64": 1e-8, "float32": 1e-5}  # tolerances


def spots(cells, count, seed):
    """Return sums of three spots each on a faint ground (count, cells)."""
    rng, at = np.random.default_rng(seed), np.indices(cells).reshape(len(cells), 1, 1, -1)
    centre = rng.uniform(0.2, 0.8, (len(cells), count, 3, 1)) * np.reshape(cells, (-1, 1, 1, 1))
    image = np.exp(-((at - centre) ** 2).sum(axis=0) / (2 * (max(cells) / 12) ** 2)).sum(axis=1) + 1e-3
    return image / image.sum(axis=1, keepdims=True)


def euclidean_ways(cells, dtype):
    """Return the cost as a `Grid`, as a cloud of the centres, and as an array."""
    import cusink

    centres = np.indices(cells).reshape(len(cells), -1).T.astype(dtype)
    grid = cusink.Grid(cells, "euclidean")
    cloud = cusink.PointCloud(np.ascontiguousarray(centres), None, "euclidean")
    return {"Grid": grid, "PointCloud": cloud, "stored C": grid.dense().astype(dtype)}


def plan_error(p, q, f, g, centres, eps):
    """Return the error of the marginals of one problem, of a plan made in float64 without the library."""
    C = np.sqrt(((centres[:, None] - centres) ** 2).sum(axis=-1))
    P = p[:, None] * q * np.exp((f[:, None].astype(float) + g - C) / eps)
    return abs(P.sum(axis=1) - p).sum() + abs(P.sum(axis=0) - q).sum()


def run_euclidean(cells, count, share, dtype, rounds):
    """Check all three ways and time them in turns; print a row of the table."""
    import cusink

    a, b = (spots(cells, count, seed).astype(dtype) for seed in (0, 1))
    centres = np.indices(cells).reshape(len(cells), -1).T.astype(float)
    eps = share * float(np.linalg.norm(np.subtract(cells, 1)))
    runs = {
        name: partial(cusink.sinkhorn, a, b, C, eps=eps, tol=TO[dtype], max_iter=20_000)
        for name, C in euclidean_ways(cells, dtype).items()
    }
    first = {name: run() for name, run in runs.items()}
    wrong = [name for name, x in first.items() if plan_error(a[0], b[0], x.f[0], x.g[0], centres, eps) > 4 * TO[dtype]]
    times = {name: [] for name in runs}
    for name in schedule(dict.fromkeys(runs), rounds):
        times[name].append(one_turn(runs[name], calls=3, clock=time.process_time))
    ratios = ("{:.3g} ({:.3g} to {:.3g})".format(*compare(times["Grid"], times[x])) for x in list(times)[1:])
    what = f"{count} x {' x '.join(map(str, cells))}, eps {share:g}"
    verdict = f"WRONG: {', '.join(wrong)}" if wrong else "right"
    spent, steps = shown(np.median(times["Grid"])), int(first["Grid"].n_iter.max())
    print(f"| {what} | {dtype} | {verdict} | {steps} | {spent} | {' | '.join(ratios)} |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.01, 0.003])
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the fast competitors")
    parser.add_argument("--euclidean", action="store_true", help="Euclidean distances, beside a cloud and an array")
    parser.add_argument("--without", nargs="*", default=[], help="leave out competitors with this in their name")
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS and XLA are counted when these are loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    facts = machine() | {"time": "CPU time on one core"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    if args.euclidean:
        print("\n| work | dtype | answer | iterations | Grid | PointCloud / Grid | stored C / Grid |")
        print("|---|---|---|---|---|---|---|")
        for work in EUCLIDEAN:
            for dtype in ("float64", "float32"):
                run_euclidean(*work, dtype, args.repeats)
        return 0
    for eps in args.eps:
        for empty in (False, True):
            exact = replace(pairs(empty, eps, args.pairs), iterations=args.iterations)
            sample = replace(exact, a=exact.a[:SAMPLE], b=exact.b[:SAMPLE])
            reference = functools.cache(partial(works.reference_pairs, sample))
            for dtype in ("float64", "float32"):
                run_work(exact.cast(dtype), reference, args.repeats, args.without)
    return 0


if __name__ == "__main__":
    sys.exit(main())
