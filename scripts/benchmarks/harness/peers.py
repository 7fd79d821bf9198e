"""Everyone in ``benchmarks/sinkhorn.py``, called as users would: this library, plain NumPy, POT and OTT-JAX.

A competitor's ``make(work)`` does what is not timed (conversions, compilation) and returns ``run``, which is timed, and
``read``, which turns what ``run`` returned into an `Answer` and is not.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from benchmarks.harness.works import some_queries


@dataclass(frozen=True)
class Answer:
    """Costs ``(B,)`` or ``(Q, D)``; where known each pair's L1 marginal error and its count of iterations."""

    cost: np.ndarray
    error: np.ndarray | None = None
    n_iter: np.ndarray | None = None


@dataclass(frozen=True)
class Competitor:
    """One way to do the work.

    ``kind`` is "ours", "plain" (NumPy loops), "kernel" (a library's matrix products), "log" (a library's log domain) or
    "exact" (another distance, shown for its time). ``rounds`` bounds how often a slow one is timed, ``share`` is the
    part of the queries that it is given: its time is divided by it. ``start`` says which first iterate it uses.
    """

    name: str
    kind: str
    make: Callable
    rounds: int | None = None
    share: float = 1.0
    start: str = "ones"


# ---- this library --------------------------------------------------------------------------------------------------


def cusink_pairs(work, method="auto"):
    import cusink

    def run():
        # The cost is asked for inside: where it is computed on demand, that is part of the work.
        result = cusink.sinkhorn(
            work.a, work.b, work.C, eps=work.eps, max_iter=work.iterations, tol=None, method=method
        )
        return result.cost

    return run, Answer


def cusink_retrieval(work, overrelaxation="auto", max_iter=100_000, **options):
    import cusink

    def run():
        return cusink.distance_matrix(
            work.queries,
            work.corpus,
            work.C,
            eps=work.eps,
            tol=work.tol,
            max_iter=max_iter,
            overrelaxation=overrelaxation,
            full_output=True,
            **options,
        )

    return run, lambda result: Answer(result.distances, result.error, result.n_iter)


# ---- plain NumPy ---------------------------------------------------------------------------------------------------


def unguarded_loop(work):
    """``v = b / (u @ K); u = a / (v @ K.T)``, and the cost."""

    def run():
        K = np.exp(-work.C / work.eps)
        u = work.a
        for _ in range(work.iterations):
            v = work.b / (u @ K)
            u = work.a / (v @ K.T)
        return ((u @ (K * work.C)) * v).sum(axis=1)

    return run, Answer


def unguarded_in_place(work):
    """Run the same without a new array at every step: as fast as this loop gets in NumPy."""

    def run():
        K = np.exp(-work.C / work.eps)
        Kt = np.ascontiguousarray(K.T)
        u, v = work.a.copy(), np.empty_like(work.b)
        for _ in range(work.iterations):
            np.divide(work.b, np.matmul(u, K, out=v), out=v)
            np.divide(work.a, np.matmul(v, Kt, out=u), out=u)
        return ((u @ (K * work.C)) * v).sum(axis=1)

    return run, Answer


def plain_retrieval(work, max_iter=20_000, every=10):
    """Solve a query's pairs together, on the query's support, by matrix products; drop pairs that have converged."""

    def one_query(a, B):
        support = a > 0
        K = np.exp(-work.C[support] / work.eps)
        Kt, KC, a = np.ascontiguousarray(K.T), K * work.C[support], a[support]
        cost, error, n_iter = np.full(len(B), np.nan), np.full(len(B), np.nan), np.full(len(B), max_iter)
        left, u = np.arange(len(B)), np.tile(a, (len(B), 1))
        v = B / (u @ K)
        for iteration in range(1, max_iter + 1):
            u = a / (v @ Kt)
            S = u @ K
            if iteration % every == 0:
                e = np.abs(v * S - B).sum(axis=1)
                done = ~(e > work.tol)  # also what has overflowed: a NaN is not worth more iterations
                at = left[done]
                cost[at] = ((u[done] @ KC) * v[done]).sum(axis=1)
                error[at], n_iter[at] = e[done], iteration
                left, B, S = left[~done], B[~done], S[~done]
                if not len(left):
                    break
            v = B / S
        return cost, error, n_iter

    def run():
        return [one_query(a, work.corpus) for a in work.queries]

    return run, lambda parts: Answer(*(np.stack(x) for x in zip(*parts, strict=True)))


# ---- POT -----------------------------------------------------------------------------------------------------------


def pot_pairs(work):
    """Loop over the pairs with ``ot.sinkhorn2`` (its default, matrix products)."""
    import ot

    def run():
        return [
            ot.sinkhorn2(a, b, work.C, work.eps, numItermax=work.iterations, stopThr=0, warn=False)
            for a, b in zip(work.a, work.b, strict=True)
        ]

    return run, lambda costs: Answer(np.array(costs))


def pot_batch(work, method):
    """``ot.batch.solve_batch``. It updates f first, so a and b change places to make its iteration the others'."""
    from ot.batch import solve_batch

    def run():
        costs = np.broadcast_to(work.C.T, (len(work.a), *work.C.T.shape))
        return solve_batch(costs, work.eps, work.b, work.a, max_iter=work.iterations, tol=0, method=method).value_linear

    return run, Answer


def pot_one_to_many(work, method="sinkhorn", stop=2e-7, share=1.0):
    """``ot.sinkhorn2`` of one query and the whole corpus, once per query.

    The query's empty bins are removed by hand: with them in, POT returns wrong values. `stop` is its ``stopThr``, for
    which `read` computes the marginal errors that it really leads to.
    """
    import ot

    queries = work.queries[some_queries(len(work.queries), share)]
    columns = np.ascontiguousarray(work.corpus.T)

    def run():
        solved = []
        for a in queries:
            support = a > 0
            solved.append(
                ot.sinkhorn2(
                    a[support],
                    columns,
                    work.C[support],
                    work.eps,
                    method=method,
                    stopThr=stop,
                    numItermax=100_000,
                    log=True,
                    warn=False,
                )
            )
        return solved

    def read(solved):
        costs, errors, counts = [], [], []
        for a, (cost, log) in zip(queries, solved, strict=True):
            costs.append(cost)
            if "u" in log:
                K = np.exp(-work.C[a > 0] / work.eps)
                errors.append(np.abs(log["v"] * (K.T @ log["u"]) - columns).sum(axis=0))
                counts.append(np.full(len(cost), log["niter"] + 1))
        return Answer(np.stack(costs), np.stack(errors) if errors else None, np.stack(counts) if counts else None)

    return run, read


def pot_exact(work, share=1.0):
    """Loop over the pairs with ``ot.emd2``, the distance without regularisation, on the bins that are not empty."""
    import ot

    def run():
        costs = []
        for a in work.queries[some_queries(len(work.queries), share)]:
            i = np.flatnonzero(a)
            for b in work.corpus:
                j = np.flatnonzero(b)
                costs.append(ot.emd2(a[i], b[j], np.ascontiguousarray(work.C[np.ix_(i, j)])))
        return costs

    return run, lambda costs: Answer(np.reshape(costs, (-1, len(work.corpus))))


# ---- OTT-JAX -------------------------------------------------------------------------------------------------------


def ott_solver(eps, momentum=None, **options):
    """Return a jitted, vmapped OTT solve of ``a (B, n)``, ``b (B, m)`` on one cost: cost, last error and iterations."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    solver = sinkhorn.Sinkhorn(momentum=momentum and acceleration.Momentum(**momentum), **options)

    def solve(a, b, C):
        out = solver(linear_problem.LinearProblem(geometry.Geometry(cost_matrix=C, epsilon=eps), a=a, b=b))
        return out.primal_cost, out.errors, out.n_iters

    return jax.jit(jax.vmap(solve, in_axes=(0, 0, None)))


def ott_pairs(work, lse_mode):
    import jax

    n = work.iterations
    solve = ott_solver(work.eps, lse_mode=lse_mode, min_iterations=n, max_iterations=n, threshold=-1.0)
    a, b, C = (jax.numpy.asarray(x) for x in (work.a, work.b, work.C))

    def run():
        return np.asarray(solve(a, b, C)[0])

    run()
    return run, Answer


def ott_retrieval(work, momentum=None, share=1.0):
    """One call per query with the whole corpus, in the log domain, to the same L1 error (OTT's own stopping rule)."""
    import jax

    solve = ott_solver(work.eps, momentum, lse_mode=True, threshold=work.tol, max_iterations=20_000)
    B, C = jax.numpy.asarray(work.corpus), jax.numpy.asarray(work.C)
    queries = [
        jax.numpy.broadcast_to(jax.numpy.asarray(a), B.shape)
        for a in work.queries[some_queries(len(work.queries), share)]
    ]

    def run():
        return [[np.asarray(x) for x in solve(a, B, C)] for a in queries]

    def read(solved):
        # OTT fills the errors it has not come to with -1.
        errors = [np.array([e[e >= 0][-1] if np.any(e >= 0) else np.nan for e in part[1]]) for part in solved]
        return Answer(np.stack([part[0] for part in solved]), np.stack(errors), np.stack([part[2] for part in solved]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solve(queries[0], B, C)[0].block_until_ready()
    return run, read
