#!/usr/bin/env python3
"""Time and check ragged pairs: divergence and gradient beside a loop over pairs and one padded batch; print a table.

K pairs of clouds of 20 to 200 points in the unit cube (the second moved by 0.2), squared distances, uniform weights.
``sinkhorn_divergence(Measures, Measures, "sqeuclidean")`` and its adjoint take all pairs; the loop calls the same
functions for some pairs, one at a time; a padded batch, of some pairs too, fills every cloud up to the largest with
points of weight zero. They take turns on one core in one process, in CPU time per pair; ratios are those of medians,
with the smallest and the largest of a round in brackets. Loop and padded batch take the first pairs, which are drawn
like all others. The divergences and gradients of all three are held to each other, on the pairs that the loop takes.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness.timing import compare, machine, one_turn, shown

SIZES = (20, 200)
CASES = ((0.05, np.float64), (0.01, np.float64), (0.05, np.float32))  # eps, dtype
TOLERANCE = {np.float64: 1e-6, np.float32: 1e-4}  # of divergences and gradients beside each other


def pairs(count, dtype):
    """Clouds x and y of all pairs."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(SIZES[0], SIZES[1] + 1, (2, count))
    return [
        [(rng.random((n, 3)) + shift).astype(dtype) for n in side] for shift, side in zip((0, 0.2), sizes, strict=True)
    ]


def ours(x, y, eps):
    """Divergences, and gradients by the points x."""
    found = cusink.sinkhorn_divergence(cusink.Measures.of(x), cusink.Measures.of(y), "sqeuclidean", eps=eps)
    return found.divergence, cusink.sinkhorn_divergence_adjoint(found).x


def loop(x, y, eps):
    """Return the same, a pair at a time."""
    values, gradients = [], []
    for u, v in zip(x, y, strict=True):
        found = cusink.sinkhorn_divergence(None, None, cusink.PointCloud(u, v), eps=eps)
        values.append(found.divergence)
        gradients.append(cusink.sinkhorn_divergence_adjoint(found).x)
    return np.array(values), np.concatenate(gradients)


def padded(x, y, eps):
    """Return the same from one batch of the largest size."""
    (a, x_all), (b, y_all) = (_filled(side) for side in (x, y))
    found = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x_all, y_all), eps=eps)
    gradient = cusink.sinkhorn_divergence_adjoint(found).x
    return found.divergence, np.concatenate([g[: len(u)] for g, u in zip(gradient, x, strict=True)])


def _filled(clouds):
    largest, dtype = max(map(len, clouds)), clouds[0].dtype
    weights, points = np.zeros((len(clouds), largest), dtype), np.empty((len(clouds), largest, 3), dtype)
    for w, p, cloud in zip(weights, points, clouds, strict=True):
        w[: len(cloud)], p[: len(cloud)], p[len(cloud) :] = 1 / len(cloud), cloud, cloud[0]
    return weights, points


def run_case(eps, dtype, sizes, rounds, solvers):
    """Check everyone against the loop, time everyone in turns, print a row for each."""
    x, y = pairs(max(sizes.values()), dtype)
    right = loop(x[: sizes["loop"]], y[: sizes["loop"]], eps)
    calls, verdicts = {}, {}
    for name, solve in solvers.items():
        size = sizes[name]
        found = solve(x[:size], y[:size], eps)
        off = max(float(np.abs(mine[: len(other)] - other).max()) for mine, other in zip(found, right, strict=True))
        verdicts[name] = f"{'right' if off <= TOLERANCE[dtype] else 'WRONG'}, {off:.1e}"
        calls[name] = partial(solve, x[:size], y[:size], eps), size
    times = {name: [] for name in solvers}
    for _ in range(rounds):
        for name, (call, size) in calls.items():
            times[name].append(one_turn(call, calls=1, clock=time.process_time) / size)
    for name, taken in times.items():
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*compare(times["ragged"], taken))
        row = (f"{eps:g}", np.dtype(dtype).name, name, verdicts[name], shown(np.median(taken)), ratio)
        print(f"| {' | '.join(row)} |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--padded", type=int, default=200, help="pairs in the padded batch (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=50, help="pairs that the loop takes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    facts = machine() | {"time": "CPU time on one core, of one pair"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    print("\n| eps | dtype | | answer | time of a pair | time / ragged |\n|---|---|---|---|---|---|")
    for eps, dtype in CASES:
        sizes = {"ragged": args.pairs, "loop": args.sample, "padded": args.padded}
        run_case(eps, dtype, sizes, args.repeats, {"ragged": ours, "loop": loop, "padded": padded})
    return 0


if __name__ == "__main__":
    sys.exit(main())
