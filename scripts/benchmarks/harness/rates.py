"""How fast the machine is at its best, and which share of that the operators of the NumPy backend reach.

The best is measured in the same run and in the operator's dtype: multiply-adds of a matrix product, exponentials of
``np.exp`` in the cache, bytes of a copy. An operator's limit is the time that the slowest of its three kinds of work
takes at that rate. A share above 1 means that the operator avoids work which its definition asks for.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from benchmarks.harness import works


class Rates(NamedTuple):
    """What one core does per second."""

    flops: float
    exps: float
    bytes: float


@dataclass(frozen=True)
class Operator:
    """One call, what it has to compute, and its float64 answer."""

    name: str
    size: str
    run: Callable
    flops: float = 0
    exps: float = 0
    bytes: float = 0
    expected: Callable | None = None


def seconds_of(run, least=0.03, rounds=3, clock=time.process_time):
    """Median over rounds of the time of a call, each round as many calls as fill `least` seconds."""
    run()
    start, calls = clock(), 0
    while clock() - start < least:
        run()
        calls += 1
    found = []
    for _ in range(rounds):
        start = clock()
        for _ in range(calls):
            run()
        found.append((clock() - start) / calls)
    return statistics.median(found)


def rates(dtype, quick):
    """Measure the machine in one precision."""
    n, least = (64, 0.001) if quick else (512, 0.03)
    rng = np.random.default_rng(0)
    A, B = rng.random((2, n, n)).astype(dtype)
    x = -rng.random(4096).astype(dtype)
    out, long = np.empty_like(x), rng.random(n * n * 16).astype(dtype)
    other = np.empty_like(long)
    return Rates(
        2 * n**3 / seconds_of(lambda: np.matmul(A, B), least),
        len(x) / seconds_of(lambda: np.exp(x, out=out), least),
        2 * long.nbytes / seconds_of(lambda: np.copyto(other, long), least),
    )


def operators(dtype, quick):
    """Yield the operators: dense ones of a shared cost, those of points in space, and some iterations."""
    import cusink
    from cusink.checks.arrays import arrays
    from cusink.costs.kinds import named_arrays
    from cusink.operand import operand

    rng = np.random.default_rng(0)
    B, n, eps, count = (2, 20, 0.05, 10) if quick else (16, 250, 0.05, 10)
    points = rng.random((n, 2))
    C = cusink.cost_matrix(points).astype(dtype)
    a, b = rng.dirichlet(np.ones(n), size=(2, B)).astype(dtype)
    p, q, wide = np.log(a), np.log(b), np.dtype(dtype).itemsize
    entries, size = float(B * n * n), f"{B} x {n} x {n}"
    cost = operand(C, np, np.dtype(dtype), [C])

    def plans():
        return np.exp(p.astype(float)[:, :, None] + q.astype(float)[:, None, :] - C.astype(float) / eps)

    yield Operator(
        "softmin",
        size,
        lambda: cost.ops.softmin(C, q, eps, 1),
        exps=entries,
        expected=lambda: -eps * works.log_sum_exp(q.astype(float)[:, None, :] - C.astype(float) / eps, axis=2),
    )
    yield Operator(
        "apply_plan",
        size,
        lambda: cost.ops.apply_plan(C, p, q, b, eps, 1),
        exps=entries,
        flops=2 * entries,
        expected=lambda: np.einsum("bij,bj->bi", plans(), b.astype(float)),
    )
    yield Operator(
        "transport_cost",
        size,
        lambda: cost.ops.transport_cost(C, p, q, eps),
        exps=entries,
        flops=2 * entries,
        expected=lambda: (plans() * C.astype(float)).sum(axis=(1, 2)),
    )
    yield Operator(
        "plan",
        size,
        lambda: cost.ops.plan(C, p, q, eps),
        exps=entries,
        bytes=wide * entries,
        expected=plans,
    )
    yield Operator(
        "c_transform",
        size,
        lambda: cost.ops.c_transform(C, b, 1),
        bytes=2 * wide * entries,
        expected=lambda: (C.astype(float) - b.astype(float)[:, None, :]).min(axis=2),
    )

    def iterations():
        return cusink.sinkhorn(a, b, C, eps=eps, tol=None, max_iter=count).cost

    yield Operator(
        f"sinkhorn, {count} iterations",
        size,
        iterations,
        flops=count * 4 * entries,
        expected=lambda: works.reference_pairs(works.Pairs("", a, b, C, eps, count)),
    )
    m = 30 if quick else 1000
    x, y = rng.random((2, m, 3)).astype(dtype)
    cloud = cusink.PointCloud(x, y)
    parts, *_ = arrays(**named_arrays(cloud))
    between = operand(cloud, np, np.dtype(dtype), parts)
    logits = np.full((1, m), -np.log(m), dtype)
    yield Operator(
        "softmin between points, d 3",
        f"1 x {m} x {m}",
        lambda: between.ops.softmin(between.data, logits, eps, 1),
        flops=2 * 5 * float(m) ** 2,
        exps=float(m) ** 2,
        expected=lambda: (
            -eps
            * works.log_sum_exp(
                logits.astype(float)[:, None, :]
                - ((x.astype(float)[:, None] - y.astype(float)) ** 2).sum(axis=2)[None] / eps,
                axis=2,
            )
        ),
    )


def operator_records(quick=False):
    """Return a record for each operator and dtype."""
    import cusink

    records = []
    for dtype in ("float64", "float32"):
        best = rates(dtype, quick)
        for operator in operators(dtype, quick):
            wanted = operator.expected()
            error = float(np.max(np.abs(np.asarray(operator.run(), float) - wanted)) / np.max(np.abs(wanted)))
            seconds = seconds_of(operator.run, 0.001 if quick else 0.03)
            parts = {
                "matrix product": operator.flops / best.flops,
                "exp": operator.exps / best.exps,
                "copy": operator.bytes / best.bytes,
            }
            limit = max(parts, key=parts.get)
            records.append(
                {
                    "work": "roofline",
                    "size": operator.size,
                    "dtype": dtype,
                    "peer": operator.name,
                    "package": "cusink",
                    "version": cusink.__version__,
                    "seconds": seconds,
                    "error": error,
                    "status": "right" if error <= {"float64": 1e-9, "float32": 1e-3}[dtype] else "wrong",
                    "limit": limit,
                    "share": parts[limit] / seconds,
                    "rates": best._asdict(),
                }
            )
    return records
