#!/usr/bin/env python3
"""Time and check losses with their gradients, and the derivatives that training takes; print tables as Markdown.

loss         64 pairs of clouds of 200 points in the unit cube (the targets moved and shrunk), float32: the Sinkhorn
             divergence of each with its gradient by the sources, in PyTorch, beside GeomLoss and OTT-JAX. Each peer
             runs at several settings of its accuracy; gradients of the first pairs are held to float64 iterations
             written here. A peer counts with its fastest setting that errs by no more than `TARGET`, or else with its
             most exact one
clouds       the divergence of clouds, beside that of the same costs as arrays: time of clouds / time of arrays
derivatives  gradients / forward on 256 pairs of 100 bins (100 iterations, eps 0.01), Hessian products by 2000
             points / gradients by them, with their peak memory, and JAX's vmap of 256 problems / one batched call

CPU time on one core; what is compared takes turns, times are medians.
"""

import argparse
import os
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness import works
from benchmarks.harness.timing import machine, shown

PAIRS, POINTS, EPS = 64, 200, 0.05
SAMPLE = 2  # pairs that are held to the reference
TARGET = 1e-2  # relative error of a gradient, in the norm, of the worst pair
SCALINGS = (0.5, 0.9, 0.95, 0.97)  # of GeomLoss
THRESHOLDS = (1e-2, 1e-3)  # of OTT
BATCHES = ((30, 16), (30, 64), (100, 16), (100, 64), (200, 16), (200, 64))


def in_turns(named, rounds, clock=time.process_time):
    """Call every function once, then once in each round; return median times by name."""
    times = {name: [] for name in named}
    for run in named.values():
        run()
    for _ in range(rounds):
        for name, run in named.items():
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: float(np.median(taken)) for name, taken in times.items()}


# ---- the loss ------------------------------------------------------------------------------------------------------


def clouds():
    """Points x and y (PAIRS, POINTS, 3) in float32."""
    rng = np.random.default_rng(0)
    x, y = rng.random((2, PAIRS, POINTS, 3), np.float32)
    return x, 0.8 * y + np.float32(0.3)


def reference(x, y, eps):
    """Return the Sinkhorn divergence of two clouds and its gradient by x, by float64 log-domain iterations."""
    x, y = x.astype(float), y.astype(float)

    def solved(p, q):
        C = ((p[:, None] - q) ** 2).sum(axis=-1)
        log_a, log_b = -np.log(len(p)), -np.log(len(q))
        f = np.zeros(len(p))
        for _ in range(100_000):
            g = -eps * works.log_sum_exp(log_a + (f[:, None] - C) / eps, 0)
            old, f = f, -eps * works.log_sum_exp(log_b + (g - C) / eps, 1)
            if np.abs(f - old).max() <= 1e-13:
                break
        P = np.exp(log_a + log_b + (f[:, None] + g - C) / eps)
        return f.mean() + g.mean(), 2 * (p * P.sum(axis=1)[:, None] - P @ q)

    (of_pair, by_x), (of_x, by_own), (of_y, _) = solved(x, y), solved(x, x), solved(y, y)
    return of_pair - (of_x + of_y) / 2, by_x - by_own


def ours(x, y):
    import torch

    from cusink.torch import PointCloud, sinkhorn_divergence

    x, y = torch.as_tensor(x), torch.as_tensor(y)

    def run():
        points = x.clone().requires_grad_()
        loss = sinkhorn_divergence(None, None, PointCloud(points, y), EPS, reduction="none")
        loss.sum().backward()
        return loss.detach().numpy(), points.grad.numpy()

    return run


def geomloss(x, y, scaling):
    import torch
    from geomloss import SamplesLoss

    loss_of = SamplesLoss("sinkhorn", p=2, blur=(EPS / 2) ** 0.5, scaling=scaling, backend="tensorized")
    x, y = torch.as_tensor(x), torch.as_tensor(y)

    def run():
        points = x.clone().requires_grad_()
        loss = 2 * loss_of(points, y)  # of half the squared distances, at half the eps
        loss.sum().backward()
        return loss.detach().numpy(), points.grad.numpy()

    return run


def ott(x, y, threshold):
    import jax
    from ott.tools.sinkhorn_divergence import sinkdiv

    options = {"threshold": threshold, "max_iterations": 10_000}

    def loss_of(p, q):
        return sinkdiv(p, q, epsilon=EPS, solve_kwargs=options)[0]

    gradient = jax.jit(jax.vmap(jax.value_and_grad(loss_of)))
    x, y = jax.numpy.asarray(x), jax.numpy.asarray(y)
    return lambda: [np.asarray(part) for part in gradient(x, y)]


def losses(rounds):
    x, y = clouds()
    values, grads = zip(*(reference(x[k], y[k], EPS) for k in range(SAMPLE)), strict=True)
    made = {("cusink", "defaults"): lambda: ours(x, y)}
    made |= {("GeomLoss tensorized", f"scaling {s:g}"): lambda s=s: geomloss(x, y, s) for s in SCALINGS}
    made |= {("OTT jitted", f"threshold {t:g}"): lambda t=t: ott(x, y, t) for t in THRESHOLDS}
    runs, errors = {}, {}
    for key, make in made.items():
        try:
            runs[key] = make()
            value, grad = runs[key]()
        except ImportError:
            print(f"{key[0]} is not installed", flush=True)
            runs.pop(key, None)
            continue
        of_value = max(abs(value[k] - values[k]) / values[k] for k in range(SAMPLE))
        of_grad = max(np.linalg.norm(grad[k] - grads[k]) / np.linalg.norm(grads[k]) for k in range(SAMPLE))
        errors[key] = float(of_value), float(of_grad)
    times = in_turns(runs, rounds)
    mine = times["cusink", "defaults"]
    print("\n| | setting | error of the value | of the gradient | time | / cusink's |\n|---|---|---|---|---|---|")
    for key, taken in times.items():
        row = (*key, *(f"{e:.1e}" for e in errors[key]), shown(taken), f"{taken / mine:.3g}")
        print("| " + " | ".join(row) + " |", flush=True)
    print("\n| at a gradient that errs by 1e-2 at most | wanted | measured | |\n|---|---|---|---|")
    for name, wanted in (("GeomLoss tensorized", 5.0), ("OTT jitted", 1.5)):
        keys = [key for key in times if key[0] == name]
        if not keys:
            continue
        near = [key for key in keys if errors[key][1] <= TARGET] or [min(keys, key=lambda key: errors[key][1])]
        best = min(near, key=times.get)
        ratio = times[best] / mine
        verdict = "met" if ratio >= wanted else "MISSED"
        print(f"| {name}, {best[1]} (errs by {errors[best][1]:.1e}) | >= {wanted:g} | {ratio:.3g} | {verdict} |")


# ---- clouds beside arrays ------------------------------------------------------------------------------------------


def clouds_and_arrays(rounds):
    print("\n| dtype | points | pairs | clouds | arrays | ratio | |\n|---|---|---|---|---|---|---|")
    for dtype in ("float32", "float64"):
        for n, size in BATCHES:
            rng = np.random.default_rng(0)
            x, y = rng.random((2, size, n, 3)).astype(dtype)
            C, C_aa, C_bb = (cusink.PointCloud(*pair).dense() for pair in ((x, y), (x, x), (y, y)))
            cloud = cusink.PointCloud(x, y)
            a = np.full((size, n), 1 / n, dtype)
            of_clouds = cusink.sinkhorn_divergence(a, a, cloud, eps=EPS).divergence
            of_arrays = cusink.sinkhorn_divergence(a, a, C, C_aa=C_aa, C_bb=C_bb, eps=EPS).divergence
            np.testing.assert_allclose(of_clouds, of_arrays, rtol=1e-3)
            times = in_turns(
                {
                    "clouds": lambda a=a, cloud=cloud: cusink.sinkhorn_divergence(a, a, cloud, eps=EPS),
                    "arrays": lambda a=a, C=C, own={"C_aa": C_aa, "C_bb": C_bb}: cusink.sinkhorn_divergence(
                        a, a, C, eps=EPS, **own
                    ),
                },
                rounds,
            )
            ratio = times["clouds"] / times["arrays"]
            verdict = "met" if ratio <= 1.2 else "MISSED"
            row = (dtype, n, size, shown(times["clouds"]), shown(times["arrays"]), f"{ratio:.2f}", verdict)
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


# ---- derivatives ---------------------------------------------------------------------------------------------------


def derivatives(rounds):
    print("\n| work | dtype | / | wanted | measured | |\n|---|---|---|---|---|---|")

    def row(work, dtype, per, wanted, ratio):
        verdict = "met" if ratio <= wanted else "MISSED"
        print(f"| {work} | {dtype} | {per} | <= {wanted:g} | {ratio:.3g} | {verdict} |", flush=True)

    C = works.squared_grid_cost(10, 10)
    for dtype in ("float32", "float64"):
        a, b = np.random.default_rng(0).dirichlet(np.ones(100), (2, 256)).astype(dtype)
        costs = C.astype(dtype)

        def forward(a=a, b=b, costs=costs):
            return cusink.sinkhorn(a, b, costs, eps=0.01, max_iter=100, tol=None)

        result = forward()
        times = in_turns(
            {
                "forward": forward,
                "cost": lambda r=result: cusink.sinkhorn_adjoint(r, grad_cost=1.0),
                "reg_cost": lambda r=result: cusink.sinkhorn_adjoint(r, grad_reg_cost=1.0),
            },
            3 * rounds,
        )
        row("gradient of `cost` by weights, W1", dtype, "forward", 0.5, times["cost"] / times["forward"])
        row("gradient of `reg_cost` by weights, W1", dtype, "forward", 0.02, times["reg_cost"] / times["forward"])
    peaks = []
    for dtype in ("float32", "float64"):
        rng = np.random.default_rng(0)
        x, y, dx = rng.random((3, 2000, 3)).astype(dtype)
        result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=EPS)
        named = {
            "gradient": lambda r=result: cusink.sinkhorn_adjoint(r, grad_cost=1.0).x,
            "reg_cost": lambda r=result, dx=dx: cusink.sinkhorn_hvp(r, grad_reg_cost=1.0, dx=dx).x,
            "cost": lambda r=result, dx=dx: cusink.sinkhorn_hvp(r, grad_cost=1.0, dx=dx).x,
        }
        times = in_turns(named, rounds)
        for value in ("reg_cost", "cost"):
            work = f"Hessian of `{value}` by 2000 points, a product"
            row(work, dtype, "gradient of `cost`", 3.0, times[value] / times["gradient"])
    for n in (1000, 2000, 4000):
        x, y, dx = np.random.default_rng(0).random((3, n, 3))
        result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=EPS, memory_limit=1 << 20)
        tracemalloc.start()
        cusink.sinkhorn_hvp(result, grad_cost=1.0, dx=dx)
        peaks.append((n, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    try:
        vmapped(row, C, rounds)
    except ImportError:
        print("| JAX | | | | not installed | |")
    print("\n| points | peak of a Hessian product of `cost`, `memory_limit` 1 MiB | the plan |\n|---|---|---|")
    for n, peak in peaks:
        print(f"| {n} | {peak / 2**20:.1f} MiB | {n * n * 8 / 2**20:.1f} MiB |")


def vmapped(row, C, rounds):
    import jax

    from cusink.jax import sinkhorn_loss

    a, b = np.random.default_rng(0).dirichlet(np.ones(100), (2, 256)).astype("float32")
    a, b, C = (jax.numpy.asarray(x, "float32") for x in (a, b, C))
    one, batch = (jax.jit(f) for f in (
        jax.vmap(jax.value_and_grad(lambda p, q: sinkhorn_loss(p, q, C, 0.01))),
        jax.value_and_grad(lambda p, q: sinkhorn_loss(p, q, C, 0.01, reduction="sum")),
    ))  # fmt: skip
    np.testing.assert_allclose(one(a, b)[1], batch(a, b)[1], atol=1e-4)
    times = in_turns(
        {"one": lambda: jax.block_until_ready(one(a, b)), "batch": lambda: jax.block_until_ready(batch(a, b))},
        3 * rounds,
    )
    row("JAX's vmap of 256 problems with gradients", "float32", "one batched call", 1.3, times["one"] / times["batch"])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--only", choices=("losses", "clouds", "derivatives"))
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    warnings.simplefilter("ignore")
    facts = machine() | {"time": "CPU time on one core"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    parts = {"losses": losses, "clouds": clouds_and_arrays, "derivatives": derivatives}
    for name, part in parts.items():
        if args.only in (None, name):
            part(args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
