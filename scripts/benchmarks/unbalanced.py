#!/usr/bin/env python3
"""Time and check unbalanced transport beside POT; print a table as Markdown.

256 pairs of histograms on a grid of 10 x 10 cells, of masses 1 and 1.5, squared distances of at most 1, float64. cusink
solves all pairs at once, to a marginal error of 1e-7; POT (``ot.unbalanced.sinkhorn_unbalanced``, stopThr 1e-7) takes
some of them, one at a time. Both take turns on one core, in CPU time per pair; ratios are those of medians, with the
smallest and the largest of a round in brackets. The first pairs are held to plain iterations in the log domain that use
no library; a wrong answer is shown as WRONG.

``--clouds`` times problems on shared clouds beside balanced ones, ``--gradients`` the gradients of their `cost` by the
weights and the points, of which that by the weights of the first problem is held to differences of plain iterations.
"""

import argparse
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness import works
from benchmarks.harness.timing import compare, judge, machine, one_turn, shown

SIDE = 10
MASS = 1.5  # of the targets
CASES = ((0.05, 0.5), (0.01, 0.1), (0.01, 1.0))  # eps, reach
CLOUDS = ((300, 64), (600, 16), (1000, 16))  # points, problems
TOL = 1e-7
TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-3  # of a slope, float32 included
SAMPLE = 2  # pairs that are held to the reference


def pairs(count):
    """Histograms a (count, n) of mass 1 and b of mass `MASS`, and the cost between their bins."""
    a, b = np.random.default_rng(0).dirichlet(np.ones(SIDE**2), (2, count))
    return a, MASS * b, works.squared_grid_cost(SIDE, SIDE)


def reference(a, b, C, eps, reach):
    """Transport costs (B,) of the plans that plain iterations in the log domain converge to."""
    log_a, log_b = works.log_weights(a, b)
    damping = reach / (reach + eps)
    f = np.zeros_like(a)
    for _ in range(100_000):
        g = -damping * eps * works.log_sum_exp((log_a + f / eps)[:, :, None] - C / eps, 1)
        old, f = f, -damping * eps * works.log_sum_exp((log_b + g / eps)[:, None, :] - C / eps, 2)
        if np.abs(f - old).max() <= 1e-13:
            break
    return works.plan_costs(log_a + f / eps, log_b + g / eps, C / eps, C)


def ours(a, b, C, eps, reach):
    return cusink.sinkhorn(a, b, C, eps=eps, reach=reach, tol=TOL, max_iter=100_000).cost


def pot(a, b, C, eps, reach):
    import ot

    options = {"stopThr": TOL, "numItermax": 100_000}
    return [
        (ot.unbalanced.sinkhorn_unbalanced(p, q, C, eps, reach, **options) * C).sum() for p, q in zip(a, b, strict=True)
    ]


def run_case(eps, reach, count, share, rounds, competitors):
    """Check everyone, time everyone in turns, print a row for each."""
    a, b, C = pairs(count)
    right = reference(a[:SAMPLE], b[:SAMPLE], C, eps, reach)
    sizes, verdicts, times = {"cusink": count}, {}, {}
    for name, solve in competitors.items():
        size = sizes.setdefault(name, share)
        try:
            answer = np.asarray(solve(a[:size], b[:size], C, eps, reach))
        except ImportError:
            verdicts[name] = "not installed"
            continue
        _, off, text = judge(answer[:SAMPLE], right, TOLERANCE)
        verdicts[name], times[name] = f"{text}, {off:.1e}", []
    for _ in range(rounds):
        for name, taken in times.items():
            run = partial(competitors[name], a[: sizes[name]], b[: sizes[name]], C, eps, reach)
            taken.append(one_turn(run, calls=1, clock=time.process_time) / sizes[name])
    for name, verdict in verdicts.items():
        median = shown(np.median(times[name])) if name in times else ""
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*compare(times["cusink"], times[name])) if name in times else ""
        print(f"| {eps:g} | {reach:g} | {name} | {verdict} | {median} | {ratio} |", flush=True)


def on_clouds(n, size, dtype):
    """Histograms (size, n) on the points of two clouds, and the cost between them."""
    rng = np.random.default_rng(0)
    cloud = cusink.PointCloud(*rng.random((2, n, 3)).astype(dtype))
    return *rng.dirichlet(np.ones(n), (2, size)).astype(dtype), cloud


def run_clouds(n, size, dtype, rounds):
    """Print how long unbalanced problems on shared clouds take, beside balanced ones."""
    a, b, cloud = on_clouds(n, size, dtype)
    runs = {
        name: partial(cusink.sinkhorn, a, b, cloud, eps=0.05, reach=reach)
        for name, reach in (("balanced", None), ("unbalanced", 0.5))
    }
    _, off, text = judge(
        runs["unbalanced"]().cost[:1], [cusink.sinkhorn(a[0], b[0], cloud, eps=0.05, reach=0.5).cost], 1e-3
    )
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(one_turn(run, calls=1, clock=time.process_time))
    ratio = "{:.3g} ({:.3g} to {:.3g})".format(*compare(times["balanced"], times["unbalanced"]))
    balanced, unbalanced = (shown(np.median(times[name])) for name in runs)
    print(f"| {n} | {size} | {dtype} | {text}, {off:.1e} | {balanced} | {unbalanced} | {ratio} |", flush=True)


def gradients(result, value="grad_cost"):
    """Gradients by the weights, and by the points, which are computed when they are read."""
    grads = cusink.sinkhorn_adjoint(result, **{value: 1.0})
    return grads.a, grads.x, grads.y


def run_gradients(n, size, dtype, rounds, pull=gradients):
    """Print how long gradients of unbalanced problems on shared clouds take, beside their solves and balanced ones."""
    a, b, cloud = on_clouds(n, size, dtype)
    solves = {
        name: partial(cusink.sinkhorn, a, b, cloud, eps=0.05, reach=reach)
        for name, reach in (("balanced", None), ("unbalanced", 0.5))
    }
    results = {name: solve() for name, solve in solves.items()}
    first, second, C = a[:1].astype(float), b[:1].astype(float), cloud.dense().astype(float)
    move = 1e-4 * first * np.random.default_rng(1).normal(size=(1, n))
    up, down = (reference(first + sign * move, second, C, 0.05, 0.5) for sign in (1, -1))
    slope = (pull(results["unbalanced"])[0][:1] * move).sum(axis=1)
    _, off, text = judge(slope, (up - down) / 2, GRADIENT_TOLERANCE)
    runs = {"solve": solves["unbalanced"]} | {name: partial(pull, result) for name, result in results.items()}
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(one_turn(run, calls=1, clock=time.process_time))
    cells = [shown(np.median(taken)) for taken in times.values()]
    cells += [
        "{:.3g} ({:.3g} to {:.3g})".format(*compare(times[name], times["unbalanced"])) for name in ("solve", "balanced")
    ]
    print(f"| {n} | {size} | {dtype} | {text}, {off:.1e} | {' | '.join(cells)} |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--sample", type=int, default=16, help="pairs that POT solves (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--clouds", action="store_true", help="problems on shared clouds alone")
    parser.add_argument("--gradients", action="store_true", help="gradients of problems on shared clouds alone")
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    warnings.simplefilter("ignore")
    facts = machine() | {"time": "CPU time on one core, of one pair"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    if args.gradients:
        print("\n| points | problems | dtype | answer | solve | balanced gradient | gradient | / solve | / balanced |")
        print("|---|---|---|---|---|---|---|---|---|")
        for n, size in CLOUDS:
            for dtype in ("float64", "float32"):
                run_gradients(n, size, dtype, args.repeats)
        return 0
    if args.clouds:
        print("\n| points | problems | dtype | answer | balanced | unbalanced | ratio |\n|---|---|---|---|---|---|---|")
        for n, size in CLOUDS:
            for dtype in ("float64", "float32"):
                run_clouds(n, size, dtype, args.repeats)
        return 0
    print("\n| eps | reach | | answer | time of a pair | time / cusink's |\n|---|---|---|---|---|---|")
    for eps, reach in CASES:
        run_case(eps, reach, args.pairs, args.sample, args.repeats, {"cusink": ours, "POT": pot})
    return 0


if __name__ == "__main__":
    sys.exit(main())
