"""The workloads of ``benchmarks/sinkhorn.py`` and their float64 reference answers, written without any solver library.

The reference is the plain log-domain iteration of the contract (one g-update, then one f-update, log-sum-exp with the
maximum taken out), so that an answer can be called wrong whoever gave it.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """B pairs on one cost, for a fixed number of iterations: a ``(B, n)``, b ``(B, m)``, C ``(n, m)``."""

    name: str
    a: np.ndarray
    b: np.ndarray
    C: np.ndarray
    eps: float
    iterations: int = 100

    def cast(self, dtype):
        """Return the same problem in `dtype`."""
        return replace(self, a=self.a.astype(dtype), b=self.b.astype(dtype), C=self.C.astype(dtype))


@dataclass(frozen=True)
class Retrieval:
    """All pairs of queries ``(Q, n)`` and corpus ``(D, n)`` on one cost, each to the marginal error `tol`."""

    name: str
    queries: np.ndarray
    corpus: np.ndarray
    C: np.ndarray
    eps: float
    tol: float = 1e-6


def squared_grid_cost(height, width):
    """Squared Euclidean distance between the cells of a grid, scaled to [0, 1]: ``(height * width,) * 2``."""
    cells = np.stack(np.divmod(np.arange(height * width), width), axis=1).astype(float)
    C = ((cells[:, None] - cells[None]) ** 2).sum(axis=2)
    return C / C.max()


def dirichlet_pairs(eps, count=256):
    """W1: strictly positive Dirichlet(1) histograms on a 10 x 10 grid."""
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(100), size=(2, count))
    return Pairs("W1", a, b, squared_grid_cost(10, 10), eps)


def gaussian_pairs(eps=1e-3, count=256):
    """W1g: 1-D Gaussians far apart on 100 bins of [0, 100], with weights down to 1e-195."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 100, 100)
    mean, deviation = rng.uniform(10, 90, (2, count, 1)), rng.uniform(3, 20, (2, count, 1))
    # The first pair is the extreme one, whatever the seed draws: as narrow and as far apart as the work allows.
    mean[:, 0, 0], deviation[:, 0, 0] = (10, 90), 3
    weights = np.exp(-(((x - mean) / deviation) ** 2) / 2)
    a, b = weights / weights.sum(axis=2, keepdims=True)
    C = (x[:, None] - x[None]) ** 2
    return Pairs("W1g", a, b, C / C.max(), eps)


def digit_retrieval(eps, queries=50, corpus=500):
    """W2: scikit-learn's 8 x 8 digits as histograms, about half of whose bins are empty."""
    from sklearn.datasets import load_digits

    images = load_digits().data
    weights = images / images.sum(axis=1, keepdims=True)
    return Retrieval("W2", weights[:queries], weights[queries : queries + corpus], squared_grid_cost(8, 8), eps)


def some_queries(count, share):
    """Return indices of about ``share * count`` queries, evenly spread."""
    return np.unique(np.linspace(0, count - 1, max(1, round(share * count))).round().astype(int))


def log_sum_exp(x, axis):
    """``log(sum(exp(x)))`` along `axis`; -inf where every term is zero."""
    largest = x.max(axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - largest).sum(axis=axis)) + largest.squeeze(axis)


def log_weights(*arrays):
    with np.errstate(divide="ignore"):
        return [np.log(np.asarray(x, dtype=float)) for x in arrays]


def plan_costs(p, q, D, C):
    """``<P, C>`` of every pair, with ``P_ij = exp(p_i + q_j - D_ij)``."""
    return np.einsum("bij,ij->b", np.exp(p[:, :, None] + q[:, None, :] - D), C)


def reference_pairs(work, start="weights", block=16):
    """Costs ``(B,)`` after exactly ``work.iterations`` log-domain iterations in float64.

    Parameters
    ----------
    work : Pairs
        Its arrays are taken as they are, in their own dtype, and computed with in float64.
    start : {"weights", "ones"}
        The plan's first row scaling: the weights (f = 0 in ``P = a b exp((f + g - C) / eps)``) or ones (f = 0 in
        ``P = exp((f + g - C) / eps)``, what POT and OTT start from). After a fixed count the two differ.
    """
    C = np.asarray(work.C, dtype=float)
    D = C / work.eps
    costs = []
    for at in range(0, len(work.a), block):
        log_a, log_b = log_weights(work.a[at : at + block], work.b[at : at + block])
        p = log_a if start == "weights" else np.zeros_like(log_a)
        for _ in range(work.iterations):
            q = log_b - log_sum_exp(p[:, :, None] - D, axis=1)
            p = log_a - log_sum_exp(q[:, None, :] - D, axis=2)
        costs.append(plan_costs(p, q, D, C))
    return np.concatenate(costs)


def torch_log_domain(a, b, C, eps, iterations):
    """Costs (B,) of tensors by a log-domain loop that autograd records: (B, n, m) temporaries in every half-step."""
    D, log_a, log_b = C / eps, a.log(), b.log()
    p = log_a
    for _ in range(iterations):
        q = log_b - (p[:, :, None] - D).logsumexp(dim=1)
        p = log_a - (q[:, None, :] - D).logsumexp(dim=2)
    return ((p[:, :, None] + q[:, None, :] - D).exp() * C).sum(dim=(1, 2))


@dataclass(frozen=True)
class Sample:
    """Converged costs of some pairs of a `Retrieval`, and how far a plain iteration stopped at `tol` is from them."""

    query: np.ndarray
    item: np.ndarray
    cost: np.ndarray
    stopped: float
    error: float


def reference_sample(work, per_query=10, accuracy=1e-11, max_iter=100_000, every=10):
    """Converge `per_query` random pairs of every query in the log domain, in float64.

    The plain iteration runs until the L1 error of every pair is below `accuracy`. What its cost was at the check where
    the pair first met ``work.tol`` gives ``stopped``, the largest relative deviation that an honest solver stopped
    by the same rule shows: the yardstick for calling another answer wrong.
    """
    rng = np.random.default_rng(1)
    query = np.repeat(np.arange(len(work.queries)), per_query)
    item = np.concatenate([rng.choice(len(work.corpus), per_query, replace=False) for _ in work.queries])
    a, b, C = work.queries[query], work.corpus[item], work.C
    D = C / work.eps
    log_a, log_b = log_weights(a, b)
    cost, cost_at_tol = np.full(len(a), np.nan), np.full(len(a), np.nan)
    error = np.full(len(a), np.inf)
    left = np.arange(len(a))
    S = log_sum_exp(log_a[:, :, None] - D, axis=1)
    for iteration in range(1, max_iter + 1):
        q = log_b[left] - S
        p = log_a[left] - log_sum_exp(q[:, None, :] - D, axis=2)
        S = log_sum_exp(p[:, :, None] - D, axis=1)
        if iteration % every:
            continue
        # exp(q + S) is the plan's column sum; its row sum is right after the f-update.
        error[left] = np.abs(np.exp(q + S) - b[left]).sum(axis=1)
        new = np.flatnonzero((error[left] <= work.tol) & np.isnan(cost_at_tol[left]))
        cost_at_tol[left[new]] = plan_costs(p[new], q[new], D, C)
        done = np.flatnonzero(error[left] <= accuracy)
        cost[left[done]] = plan_costs(p[done], q[done], D, C)
        going = np.flatnonzero(error[left] > accuracy)
        left, S = left[going], S[going]
        if not len(left):
            break
    else:
        raise RuntimeError(f"the reference of {work.name} at eps {work.eps} did not reach {accuracy}")
    return Sample(query, item, cost, float(np.max(np.abs(cost_at_tol - cost) / cost)), float(error.max()))
