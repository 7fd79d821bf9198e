"""Who finds nearest neighbours among digits in ``benchmarks/suite.py``, and what is right: no library judges."""

from dataclasses import dataclass

import numpy as np
from benchmarks.harness import peers, works
from benchmarks.harness.peers import Competitor

PROPOSED = 100  # candidates that a vector index hands on


@dataclass(frozen=True)
class Search:
    """The k nearest rows of B for each row of A by transport cost, and how far `far` all items are (Q, D)."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    eps: float
    k: int
    tol: float
    far: np.ndarray


def digits(queries, items, eps=0.01, k=10, tol=1e-6):
    """Make the search among scikit-learn's digits; the reference is a plain loop of products that converges."""
    work = works.digit_retrieval(eps, queries, items)
    run, read = peers.plain_retrieval(works.Retrieval("nearest", work.queries, work.corpus, work.C, eps, 1e-9))
    far = read(run()).cost
    if not np.isfinite(far).all():
        raise RuntimeError("the reference left the range of float64")
    return Search(work.queries, work.corpus, work.C, eps, k, tol, far)


def judged(work, competitor, found):
    """Judge neighbours (Q, k): ``(right, share of them that are further than the k-th, words)``."""
    found = np.asarray(found)
    if found.shape != (len(work.A), work.k):
        return False, float("inf"), f"WRONG: shape {found.shape}"
    last = np.sort(work.far, axis=1)[:, work.k - 1 : work.k]
    missed = float((np.take_along_axis(work.far, found, axis=1) > last * (1 + 1e-5)).mean())
    return missed == 0, missed, f"WRONG: {missed:.1%} missed" if missed else "right"


def by_nearest(work):
    import cusink

    def run():
        return cusink.nearest(work.A, work.B, work.C, eps=work.eps, k=work.k, value="cost", tol=work.tol)

    return run, lambda found: found[1]


def by_matrix(work):
    import cusink

    def run():
        matrix = cusink.distance_matrix(work.A, work.B, work.C, eps=work.eps, value="cost", tol=work.tol)
        return np.argsort(matrix, axis=1, kind="stable")[:, : work.k]

    return run, lambda found: found


def proposals(work):
    """Return a function that has faiss propose candidates (Q, c) by Euclidean distance of the histograms."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(work.B.shape[1])
    index.add(work.B.astype(np.float32))
    count = min(PROPOSED, len(work.B))
    return lambda: index.search(work.A.astype(np.float32), count)[1]


def by_faiss_and_pot(work):
    import ot

    propose = proposals(work)

    def run():
        found = []
        for a, candidates in zip(work.A, propose(), strict=True):
            inside = a > 0
            costs = ot.sinkhorn2(
                a[inside],
                np.ascontiguousarray(work.B[candidates].T),
                work.C[inside],
                work.eps,
                stopThr=work.tol / 5,
                numItermax=100_000,
                warn=False,
            )
            found.append(candidates[np.argsort(costs, kind="stable")[: work.k]])
        return np.stack(found)

    return run, lambda found: found


def by_faiss_and_cusink(work):
    import cusink

    propose = proposals(work)

    def run():
        options = {"eps": work.eps, "k": work.k, "value": "cost", "tol": work.tol}
        return cusink.nearest(work.A, work.B, work.C, candidates=propose(), **options)

    return run, lambda found: found[1]


def by_scikit_learn(work):
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=work.k, algorithm="brute").fit(work.B)
    return lambda: model.kneighbors(work.A, return_distance=False), lambda found: found


COMPETITORS = [
    Competitor("cusink `nearest`", "ours", by_nearest),
    Competitor("cusink, all pairs and a sort", "ours", by_matrix),
    Competitor("faiss, 100 candidates, cusink `nearest`", "plain", by_faiss_and_cusink),
    Competitor("faiss, 100 candidates, POT `sinkhorn2`", "kernel", by_faiss_and_pot, rounds=2),
    Competitor("scikit-learn `NearestNeighbors`, L2", "plain", by_scikit_learn),
]
