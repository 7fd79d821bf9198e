"""Distances that compare histograms bin by bin, to set beside transport."""

import numpy as np
from scipy.spatial.distance import cdist


def euclidean(queries, corpus):
    """Return the L2 distances (Q, D)."""
    return cdist(queries, corpus, "euclidean")


def cityblock(queries, corpus):
    """Return the L1 distances (Q, D)."""
    return cdist(queries, corpus, "cityblock")


def chi_square(queries, corpus):
    """Return the sums (Q, D) over the bins of (x - y)**2 / (x + y)."""
    distances = np.empty((len(queries), len(corpus)))
    for row, query in enumerate(queries):
        total = query + corpus
        shares = np.divide((query - corpus) ** 2, total, out=np.zeros_like(total), where=total > 0)
        distances[row] = shares.sum(axis=1)
    return distances


def hellinger(queries, corpus):
    """Return the Hellinger distances (Q, D)."""
    return cdist(np.sqrt(queries), np.sqrt(corpus), "euclidean") / np.sqrt(2)


BINWISE = {"L2": euclidean, "L1": cityblock, "chi-square": chi_square, "Hellinger": hellinger}


def nearest(distances, k):
    """Return the indices (Q, k) of the smallest distances of each row, smallest first."""
    return np.argsort(distances, axis=1, kind="stable")[:, :k]
