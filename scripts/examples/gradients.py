#!/usr/bin/env python3
"""Compare gradients by the weights with centred differences, and count what they cost beside unrolled back-propagation.

The report that this library grew from returns the transport cost and takes the Lagrange multiplier, which is the
gradient of the regularised value, for its gradient. The first table says by how much each gradient is off: the norm of
its difference from centred differences of fourth order, in all bins of both weights, relative to their norm. The second
says what a solve and each gradient take, and, where PyTorch is installed, what back-propagation through a log-domain
loop takes that runs as many plain iterations as reach the same marginal error.
"""

import argparse
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness.works import torch_log_domain

import cusink
from cusink.cli import InputError, Parser, positive

EPS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
ROUNDING = 1e-13  # a marginal error that no solve falls far below


def main(arguments=None):
    """Print both tables and return the exit status."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"gradients: {error}", file=sys.stderr)
        return 2
    a, b, C = problem(given.bins, given.seed)
    print(f"One pair of random histograms on {given.bins} bins of a line, squared distance in [0, 1], float64\n")
    print("Relative difference from centred differences\n")
    print("| eps | multiplier, of `cost` | exact, of `cost` | of `reg_cost` | of `entropic_cost` |")
    print("|---|---|---|---|---|")
    slopes = {}
    for eps in given.eps:
        slopes[eps] = centred_differences(a, b, C, eps)
        off = differences(a, b, C, eps, slopes[eps])
        print(f"| {eps:g} | " + " | ".join(f"{x:.1%}" if x > 1e-3 else f"{x:.1e}" for x in off) + " |", flush=True)
    print(f"\nTime and memory of one pair, solved to a marginal error of {given.tol:g}\n")
    print(
        "| eps | solve | envelope | exact | memory, all three | unrolled: iterations | time | memory | its difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for eps in given.eps:
        print(f"| {eps:g} | " + " | ".join(effort(a, b, C, eps, slopes[eps]["cost"], given.tol)) + " |", flush=True)
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--eps", type=positive, nargs="+", default=EPS, help="shares of the largest cost")
    parser.add_argument("--tol", type=positive, default=1e-6, help="for the second table (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.bins < 2 or given.seed < 0:
        raise InputError("--bins must be at least 2 and --seed not negative")
    return given


def problem(bins, seed):
    """Random positive weights a, b and the squared distance between equally spaced bins."""
    a, b = np.random.default_rng(seed).gamma(2.0, size=(2, bins)) + 0.1
    return a / a.sum(), b / b.sum(), cusink.cost_matrix(np.linspace(0, 1, bins))


def solve(a, b, C, eps):
    """Solve as accurately as rounding lets; the warning that it cannot be nearer is no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = cusink.sinkhorn(a, b, C, eps=eps, tol=ROUNDING, max_iter=100_000)
    if np.max(result.error) > 1e-9:
        raise RuntimeError(f"eps={eps:g}: the solve stopped at a marginal error of {np.max(result.error):.1e}")
    return result


def centred_differences(a, b, C, eps, step=0.01):
    """Slopes of all three values in every bin of both weights, mean zero, a's first: ``{value: (n + m,)}``.

    A bin moves by `step` of its weight, and all bins of its side against it so that the mass stays.
    """
    slopes = {value: [] for value in ("cost", "reg_cost", "entropic_cost")}
    for side, weights in enumerate((a, b)):
        h = step * weights
        moves = h[:, None] * (np.eye(len(weights)) - 1 / len(weights))
        moved = np.concatenate([weights + k * moves for k in (-2, -1, 1, 2)])
        result = solve(*((moved, b) if side == 0 else (a, moved)), C, eps)
        for value, found in slopes.items():
            low2, low, high, high2 = getattr(result, value).reshape(4, -1)
            found.append((8 * (high - low) - (high2 - low2)) / (12 * h))
    return {value: np.concatenate(found) for value, found in slopes.items()}


def by_weights(result, **cotangents):
    """Return the gradient with respect to a and b in one vector."""
    grads = cusink.sinkhorn_adjoint(result, tol=1e-10, **cotangents)
    return np.concatenate([grads.a, grads.b])


def differences(a, b, C, eps, slopes):
    """Return the errors of the multiplier and of the exact gradients: four numbers."""
    result = solve(a, b, C, eps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        multiplier = by_weights(result, grad_reg_cost=1.0)
        exact = by_weights(result, grad_cost=1.0)
        entropic = by_weights(result, grad_entropic_cost=1.0)
    return [
        relative(multiplier, slopes["cost"]),
        relative(exact, slopes["cost"]),
        relative(multiplier, slopes["reg_cost"]),
        relative(entropic, slopes["entropic_cost"]),
    ]


def relative(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def effort(a, b, C, eps, slope, tol):
    """Return times and memory of ours, and of unrolled back-propagation, as texts."""
    options = {"eps": eps, "tol": tol, "max_iter": 100_000}
    result = cusink.sinkhorn(a, b, C, **options)
    calls = (
        lambda: cusink.sinkhorn(a, b, C, **options),
        lambda: cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0),
        lambda: cusink.sinkhorn_adjoint(result, grad_cost=1.0),
    )
    times = [milliseconds(call) for call in calls]
    tracemalloc.start()
    for call in calls:
        call()
    ours = [*times, size(tracemalloc.get_traced_memory()[1])]
    tracemalloc.stop()
    iterations = int(cusink.sinkhorn(a, b, C, **options, overrelaxation=None).n_iter)
    return [*ours, *unrolled(a, b, C, eps, iterations, slope)]


def unrolled(a, b, C, eps, iterations, slope):
    """Measure autograd through a loop: iterations, time, bytes that it keeps, difference of its gradient."""
    try:
        import torch
    except ImportError:
        return [str(iterations), "PyTorch is not installed", "", ""]
    leaves = [torch.as_tensor(x).clone().requires_grad_() for x in (a, b)]
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        cost = torch_log_domain(*(x[None] for x in leaves), torch.as_tensor(C), eps, iterations)
    cost.sum().backward()
    seconds = time.perf_counter() - start
    gradient = np.concatenate([x.grad.numpy() - x.grad.numpy().mean() for x in leaves])
    return [str(iterations), f"{1e3 * seconds:.3g} ms", size(sum(kept.values())), f"{relative(gradient, slope):.1e}"]


def milliseconds(call, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return f"{1e3 * np.median(times):.3g} ms"


def size(count):
    return f"{count / 2**20:.3g} MiB" if count >= 2**20 else f"{count / 2**10:.3g} KiB"


if __name__ == "__main__":
    sys.exit(main())
