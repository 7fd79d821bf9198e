#!/usr/bin/env python3
"""W4: time, memory and correctness of the loss with its gradient in the weights, beside autograd and OTT-JAX.

256 pairs of histograms on 100 bins, eps 0.01, exactly 100 iterations; the gradients for both weights of every pair.
Three different gradients are compared, each with a float64 reference of its own, written here without any library:

envelope   the potentials after those iterations, mean taken out: the gradient of ``reg_cost``
exact      the gradient of ``cost`` at convergence. After 100 iterations nobody is there: an answer is right if it is at
           most four times as far from it as the exact gradient at the potentials of the 100th iteration
unrolled   the derivative of the cost after 100 iterations, through the iterations

A wrong answer is shown as WRONG. Turns are interleaved, times are medians, ratios are what counts on a busy machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import tracemalloc
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness import works
from benchmarks.harness.memory import resident
from benchmarks.harness.peers import Competitor
from benchmarks.harness.timing import Target, machine, print_targets, quiet_turn, schedule, shown, summarise

DTYPES = ("float32", "float64")
# Largest error of a gradient, of the largest entry of its pair's; that of an exact one follows from its reference.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
SLACK = 4


# ---- references ----------------------------------------------------------------------------------------------------


def mean_zero(x):
    return x - x.mean(axis=-1, keepdims=True)


def softmax(x, axis):
    x = np.exp(x - x.max(axis=axis, keepdims=True))
    return x / x.sum(axis=axis, keepdims=True)


def iterate(log_a, log_b, D, iterations, start):
    """Log-domain iterations: lists of all ``p = log a + f / eps`` (B, n) and ``q = log b + g / eps`` on the way."""
    p, q = [log_a if start == "weights" else np.zeros_like(log_a)], []
    for _ in range(iterations):
        q.append(log_b - works.log_sum_exp(p[-1][:, :, None] - D, axis=1))
        p.append(log_a - works.log_sum_exp(q[-1][:, None, :] - D, axis=2))
    return p, q


def reference_gradients(work, kind, start="weights", block=16):
    """Return gradients ``(B, n + m)`` for a and b side by side, each of mean zero, in float64.

    `kind` may be "stopped", too: the exact gradient at the potentials of the last iteration, converged or not.
    """
    C = np.asarray(work.C, dtype=float)
    D = C / work.eps
    n = len(C)
    parts = []
    for at in range(0, len(work.a), block):
        log_a, log_b = works.log_weights(work.a[at : at + block], work.b[at : at + block])
        p, q = iterate(log_a, log_b, D, work.iterations, start)
        if kind == "envelope":
            by_a, by_b = work.eps * (p[-1] - log_a), work.eps * (q[-1] - log_b)
        elif kind in ("exact", "stopped"):
            last = list(zip(p[-1], q[-1], np.exp(log_a), np.exp(log_b), strict=True))
            ends = [x[:2] for x in last] if kind == "stopped" else [converge(*x, D) for x in last]
            fits = np.stack([additive_fit(np.exp(x[:, None] + y - D), C) for x, y in ends])
            by_a, by_b = fits[:, :n], fits[:, n:]
        else:
            by_a, by_b = unrolled_by_hand(p, q, log_a, log_b, D, C, start)
        parts.append(np.concatenate([mean_zero(by_a), mean_zero(by_b)], axis=1))
    return np.concatenate(parts)


def converge(p, q, a, b, D, tol=1e-12):
    """Newton's method on the marginals from where the iterations left one problem."""
    b = b * (a.sum() / b.sum())  # weights rounded to float32 differ in mass
    for _ in range(50):
        P = np.exp(p[:, None] + q - D)
        short = np.concatenate([a - P.sum(1), b - P.sum(0)])
        if np.abs(short).sum() <= tol:
            return p, q
        step = marginal_solve(P, short)
        # Far steps overshoot an exponential.
        step *= min(1, 1 / np.abs(step - np.median(step)).max())
        p, q = p + step[: len(p)], q + step[len(p) :]
    raise RuntimeError("the reference did not converge")


def additive_fit(P, C):
    """Return the x_i + y_j nearest to C in the mean square weighted by P, as x and y in one array."""
    return marginal_solve(P, np.concatenate([(P * C).sum(1), (P * C).sum(0)]))


def marginal_solve(P, right):
    """Solve ``sum_j P_ij (x_i + y_j) = right_i`` and the same for columns, in one array x, y: dense."""
    system = np.block([[np.diag(P.sum(1)), P], [P.T, np.diag(P.sum(0))]])
    # Scaled to a unit diagonal, light bins weigh as much as heavy ones.
    scale = 1 / np.sqrt(np.diag(system))
    # x + t, y - t is the same function: that direction is taken out.
    free = np.concatenate([np.ones(len(P)), -np.ones(P.shape[1])]) / scale
    free /= np.linalg.norm(free)
    return scale * np.linalg.solve(system * scale[:, None] * scale + np.outer(free, free), right * scale)


def unrolled_by_hand(p, q, log_a, log_b, D, C, start):
    """Reverse mode through the iterations, written out: the derivative of ``<P, C>`` by a and b."""
    priced = np.exp(p[-1][:, :, None] + q[-1][:, None, :] - D) * C
    to_p, to_q = priced.sum(2), priced.sum(1)
    by_log_a, by_log_b = np.zeros_like(log_a), np.zeros_like(log_b)
    for k in reversed(range(len(q))):
        by_log_a += to_p
        to_q -= (softmax(q[k][:, None, :] - D, 2) * to_p[:, :, None]).sum(1)
        by_log_b += to_q
        to_p = -(softmax(p[k][:, :, None] - D, 1) * to_q[:, None, :]).sum(2)
        to_q = np.zeros_like(to_q)
    if start == "weights":
        by_log_a += to_p
    return by_log_a / np.exp(log_a), by_log_b / np.exp(log_b)


# ---- who takes part: make(work) gives run, and run() gives (by_a, by_b) -------------------------------------------


def cusink_gradients(work, kind, **options):
    import cusink

    cotangent = {"envelope": "grad_reg_cost", "exact": "grad_cost"}[kind]
    options = {"max_iter": work.iterations, "tol": None} | options

    def run():
        result = cusink.sinkhorn(work.a, work.b, work.C, eps=work.eps, **options)
        grads = cusink.sinkhorn_adjoint(result, **{cotangent: 1.0})
        return grads.a, grads.b

    return run


def cusink_forward(work, **options):
    import cusink

    options = {"max_iter": work.iterations, "tol": None} | options
    return lambda: cusink.sinkhorn(work.a, work.b, work.C, eps=work.eps, **options).cost


def cusink_backward(work, kind, **options):
    """Run the adjoint alone, of a problem that is solved already."""
    import cusink

    options = {"max_iter": work.iterations, "tol": None} | options
    result = cusink.sinkhorn(work.a, work.b, work.C, eps=work.eps, **options)
    cotangent = {"envelope": "grad_reg_cost", "exact": "grad_cost"}[kind]

    def run():
        grads = cusink.sinkhorn_adjoint(result, **{cotangent: 1.0})
        return grads.a, grads.b

    return run


def torch_unguarded(a, b, C, eps, iterations):
    """Costs as `works.torch_log_domain` gives them, by matrix products, with nothing to keep them in range."""
    K = (-C / eps).exp()
    u = a
    for _ in range(iterations):
        v = b / (u @ K)
        u = a / (v @ K.T)
    return ((u @ (K * C)) * v).sum(dim=1)


def torch_gradients(work, costs):
    import torch

    a, b, C = (torch.as_tensor(x) for x in (work.a, work.b, work.C))

    def run():
        leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
        costs(*leaves, C, work.eps, work.iterations).sum().backward()
        return [x.grad.numpy() for x in leaves]

    return run


def ott_gradients(work, kind, lse_mode):
    """OTT: the regularised cost, potentials fixed (Danskin), or ``primal_cost`` with implicit differentiation."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import implicit_differentiation, sinkhorn

    n = work.iterations
    options = {"lse_mode": lse_mode, "min_iterations": n, "max_iterations": n, "threshold": -1.0}
    if kind == "exact":
        options["implicit_diff"] = implicit_differentiation.ImplicitDiff()
    solver = sinkhorn.Sinkhorn(**options)
    C = jax.numpy.asarray(work.C)

    def loss(a, b):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=C, epsilon=work.eps), a=a, b=b)
        out = solver(problem)
        if kind == "exact":
            return out.primal_cost
        return linear_problem_value(jax, out, problem)

    a, b = jax.numpy.asarray(work.a), jax.numpy.asarray(work.b)
    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)))).lower(a, b).compile()

    def run():
        return [np.asarray(x) for x in gradient(a, b)]

    return run


def linear_problem_value(jax, out, problem):
    """OTT's regularised cost, its potentials held fixed: what its Danskin mode differentiates."""
    f, g = jax.lax.stop_gradient(out.f), jax.lax.stop_gradient(out.g)
    eps = problem.epsilon
    # OTT keeps the weights inside its potentials.
    return (problem.a * (f - eps * jax.numpy.log(problem.a))).sum() + (
        problem.b * (g - eps * jax.numpy.log(problem.b))
    ).sum()


@dataclass(frozen=True)
class Entrant:
    """A competitor and which reference its gradient is held to; None is one that gives no gradient."""

    competitor: Competitor
    gradient: str | None
    memory: bool = True


def entrants(quick):
    few = 1 if quick else 2
    ours = [
        Entrant(Competitor("cusink, envelope", "ours", partial(cusink_gradients, kind="envelope")), "envelope"),
        Entrant(Competitor("cusink, exact", "exact", partial(cusink_gradients, kind="exact")), "exact"),
        Entrant(Competitor("cusink, forward alone", "part", cusink_forward), None),
        Entrant(Competitor("cusink, envelope adjoint alone", "part", partial(cusink_backward, kind="envelope")), None),
        Entrant(Competitor("cusink, exact adjoint alone", "part", partial(cusink_backward, kind="exact")), None),
    ]
    peers = [
        (
            "torch autograd, unguarded products",
            "plain",
            partial(torch_gradients, costs=torch_unguarded),
            None,
            "unrolled",
        ),
        (
            "OTT Danskin, kernel mode",
            "kernel",
            partial(ott_gradients, kind="envelope", lse_mode=False),
            None,
            "envelope",
        ),
        ("OTT Danskin, lse", "log", partial(ott_gradients, kind="envelope", lse_mode=True), few, "envelope"),
        ("OTT implicit, lse", "log", partial(ott_gradients, kind="exact", lse_mode=True), 1, "exact"),
        ("torch autograd, log domain", "log", partial(torch_gradients, costs=works.torch_log_domain), 1, "unrolled"),
    ]
    starts = {"torch": "weights", "OTT": "ones"}
    theirs = [
        Entrant(Competitor(name, kind, make, rounds=rounds, start=starts[name.split()[0]]), gradient)
        for name, kind, make, rounds, gradient in peers
    ]
    return [replace(x, competitor=replace(x.competitor, start="weights")) for x in ours] + theirs


TARGETS = [
    Target("torch autograd, log domain", at_least=50),
    Target("OTT Danskin, kernel mode", at_least=1.5),
    Target("torch autograd, unguarded products", at_least=2),
]


# ---- the rows ------------------------------------------------------------------------------------------------------


def judge_gradient(answer, reference, tolerance):
    """``(right, error, text)`` of (by_a, by_b), the error relative to the largest entry of the pair's gradient."""
    got = np.concatenate([mean_zero(np.asarray(x, dtype=float)) for x in answer], axis=1)
    if got.shape != reference.shape:
        return False, float("inf"), f"WRONG: shape {got.shape} for {reference.shape}"
    bad = int(np.count_nonzero(~np.isfinite(got).all(axis=1)))
    if bad:
        return False, float("inf"), f"WRONG: {bad} of {len(got)} pairs not finite"
    error = float((np.abs(got - reference).max(axis=1) / np.abs(reference).max(axis=1)).max())
    return (True, error, "right") if error <= tolerance else (False, error, f"WRONG: off by {error:.1e}")


def tolerance_of(entrant, dtype, reference):
    """Return the largest error of a right answer."""
    if entrant.gradient != "exact":
        return TOLERANCE[dtype]
    exact, stopped = (reference(kind, entrant.competitor.start) for kind in ("exact", "stopped"))
    return SLACK * float((np.abs(stopped - exact).max(axis=1) / np.abs(exact).max(axis=1)).max())


def first_call(entrant, work, dtype, reference):
    """Make, call once and judge: ``(run or None, entry of the table)``."""
    competitor = entrant.competitor
    entry = {"name": competitor.name, "kind": competitor.kind, "share": 1.0, "gradient": entrant.gradient or ""}
    entry |= {"right": entrant.gradient is None, "verdict": "", "times": [], "others": []}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = competitor.make(work)
            answer = run()
    except Exception as problem:  # a peer that is not installed or fails must not end the others' run
        message = " ".join(str(problem).split())[:80]
        return None, entry | {"verdict": f"FAILED: {type(problem).__name__}: {message}", "right": False}
    if entrant.gradient is None:
        return run, entry
    wanted = reference(entrant.gradient, competitor.start)
    right, error, text = judge_gradient(answer, wanted, tolerance_of(entrant, dtype, reference))
    return run, entry | {"right": right, "relative": error, "verdict": text}


def run_row(dtype, exact, taking_part, rounds, patience, keep, clock=None):
    """Check everyone, then time everyone in turns."""
    title = (
        f"W4, {dtype}: {len(exact.a)} pairs x {exact.a.shape[1]} bins, eps {exact.eps:g}, {exact.iterations} iterations"
    )
    print(f"{title} ...", file=sys.stderr, flush=True)
    work = exact.cast(dtype)
    kept = keep(reference_gradients)
    rounded = work.cast("float64")  # what a float32 solver is given is the problem that it must solve
    runs, entries = {}, {}
    for entrant in taking_part:
        name = entrant.competitor.name
        reference = partial(kept, rounded)
        runs[name], entries[name] = first_call(entrant, work, dtype, reference)
    limits = {x.competitor.name: x.competitor.rounds for x in taking_part if runs[x.competitor.name] is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        until = time.perf_counter() + patience
        for name in schedule(limits, rounds):
            seconds, share = quiet_turn(runs[name], until, clock=clock)
            entries[name]["times"].append(seconds)
            entries[name]["others"].append(share)
    return summarise(title, list(entries.values()), TARGETS)


def add_memory(outcome, dtype):
    """Measure every competitor's peak in a fresh process of its own."""
    for entry in outcome["entries"]:
        if entry["verdict"].startswith("FAILED"):
            continue
        child = [sys.executable, __file__, "--peak-of", entry["name"], "--dtypes", dtype]
        done = subprocess.run(child, capture_output=True, text=True)
        if done.returncode == 0:
            entry |= json.loads(done.stdout)


def peak_of(name, dtype):
    """Return the bytes that one call adds to this child process, counted in two ways."""
    make = next(x.competitor.make for x in entrants(False) if x.competitor.name == name)
    work = works.dirichlet_pairs(0.01).cast(dtype)
    warnings.simplefilter("ignore")
    if "OTT" not in name:
        make(replace(work, a=work.a[:2], b=work.b[:2], iterations=2))()  # what the first call loads is not its memory
    run = make(work)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak afresh
    before = resident("VmRSS")
    answer = run()
    peak = {"resident": resident("VmHWM") - before}
    del answer
    if "cusink" in name:
        tracemalloc.start()
        answer = run()
        peak["traced"] = tracemalloc.get_traced_memory()[1]
        if name.endswith("adjoint alone"):
            peak["gradients"] = sum(x.nbytes for x in answer)
    return peak


def memory_targets(outcome):
    """Return the targets for memory, as rows of their table."""
    entries = {e["name"]: e for e in outcome["entries"]}
    ours, loop = entries["cusink, envelope"], entries["torch autograd, log domain"]
    adjoint = entries["cusink, envelope adjoint alone"]
    targets = []
    if "resident" in loop and "resident" in ours:
        ratio = loop["resident"] / max(ours["resident"], ours["traced"], 1)
        measured = f"{ratio:.3g} x ({mib(loop['resident'])} / {mib(max(ours['resident'], ours['traced']))})"
        targets.append({"against": "memory of torch, log domain", "wanted": ">= 100 x less", "measured": measured})
        targets[-1]["met"] = ratio >= 100
    if "traced" in adjoint:
        ratio = adjoint["traced"] / adjoint["gradients"]
        targets.append({"against": "allocations of the envelope adjoint / gradients", "wanted": "<= 1"})
        targets[-1] |= {"measured": f"{ratio:.2f}", "met": ratio <= 1.0}
    return targets


def share_targets(outcome):
    """Return the targets for the share of a forward pass that the adjoint takes."""
    entries = {e["name"]: e for e in outcome["entries"]}
    forward = entries["cusink, forward alone"]
    targets = []
    for kind, most in (("envelope", 0.05), ("exact", 1.0)):
        adjoint = entries[f"cusink, {kind} adjoint alone"]
        ratio = adjoint["median"] / forward["median"]
        targets.append({"against": f"{kind} adjoint / forward", "wanted": f"<= {most:g}", "measured": f"{ratio:.3g}"})
        targets[-1]["met"] = ratio <= most
    return targets


def mib(size):
    return f"{size / 2**20:.1f} MiB"


def print_row(outcome):
    print(f"\n### {outcome['title']}\n")
    head = "gradient | answer | error | median time | time / cusink's (pairwise) | peak growth | others' cores"
    print(f"| | {head} |")
    print("|---|---|---|---|---|---|---|---|")
    for e in outcome["entries"]:
        error = f"{e['relative']:.1e}" if "relative" in e else ""
        median = shown(e["median"]) if "median" in e else ""
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*e["ratio"]) if "ratio" in e else ""
        memory = mib(e["resident"]) if "resident" in e else ""
        others = f"{np.median(e['others']):.2f}" if e["others"] else ""
        row = (e["name"], e["gradient"], e["verdict"], error, median, ratio, memory, others)
        print("| " + " | ".join(row) + " |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--repeats", type=int, default=None, help="rounds of the fast competitors (default 9; quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no log-domain loop of torch")
    parser.add_argument("--patience", type=float, default=120, help="seconds that a row waits for a quiet CPU")
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one core: steady where others use the machine, too"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the child processes that measure memory")
    parser.add_argument("--json", metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--peak-of", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak_of:
        print(json.dumps(peak_of(args.peak_of, args.dtypes[0])))
        return 0
    if args.one_core and len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS, XLA and PyTorch are counted when these are loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    from joblib import Memory

    keep = Memory(Path(__file__).resolve().parents[2] / ".cache" / "bench", verbose=0).cache
    clock, patience = (time.process_time, 0) if args.one_core else (time.perf_counter, args.patience)
    facts = machine() | {"time": "CPU time on one core" if args.one_core else "wall time on all cores"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    work = works.dirichlet_pairs(0.01)
    rounds = args.repeats or (3 if args.quick else 9)
    taking_part = entrants(args.quick)[: -1 if args.quick else None]
    done = []
    for dtype in args.dtypes:
        outcome = run_row(dtype, work, taking_part, rounds, patience, keep, clock)
        outcome["targets"] += share_targets(outcome)
        if not args.no_memory:
            add_memory(outcome, dtype)
            if not args.quick:
                outcome["targets"] += memory_targets(outcome)
        print_row(outcome)
        done.append(outcome)
    print_targets(done)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "rows": done}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
