"""Who compares texts by their words in ``benchmarks/suite.py``; SciPy's linear program judges, in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.documents import LARGEST_OFF, Exact
from benchmarks.harness import lee
from benchmarks.harness.peers import Competitor

SHARE = 0.05  # of the pairs, which the exact solvers are given
SAMPLE = 3  # pairs that are held to the linear program


@dataclass(frozen=True)
class Texts:
    """Some judged texts against the others, word vectors, and the regularisation."""

    corpus: lee.Corpus
    rows: Any
    texts: list
    others: np.ndarray
    eps: float = 0.019
    tol: float = 0.01

    @property
    def some(self):
        """The pairs (i, j) of the exact solvers."""
        pairs = [(i, int(j)) for i in self.texts for j in self.others]
        return pairs[:: round(1 / SHARE)]


def problem(texts, others):
    """Make the work from the Lee corpus, which gensim ships."""
    corpus = lee.read_corpus()
    return Texts(corpus, lee.shares(corpus), list(range(texts)), np.arange(lee.JUDGED, lee.JUDGED + others))


def exact(work, i, j):
    """Return the exact distance of two texts by a linear program, of float64 costs that are computed here."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    (a, x), (b, y) = (
        (row.data.astype(float), work.corpus.vectors[row.indices]) for row in map(work.rows.__getitem__, ([i], [j]))
    )
    C = np.sqrt(np.maximum(((x[:, None].astype(float) - y) ** 2).sum(axis=2), 0))
    n, m = C.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    found = linprog(C.ravel(), A_eq=sums, b_eq=np.concatenate([a / a.sum(), b / b.sum()]), method="highs")
    return found.fun


def judged(work):
    """Return the function that judges the distances of the pairs in `some`: at most 2 % above the exact ones."""
    right = np.array([exact(work, i, j) for i, j in work.some[:SAMPLE]])

    def judge(competitor, found):
        off = np.asarray(found)[:SAMPLE] / right - 1
        error = float(np.abs(off).max())
        if not (-1e-4 < off.min() and off.max() <= LARGEST_OFF and np.isfinite(found).all()):
            return False, error, f"WRONG: off by {error:.1e}"
        return True, error, "right"

    return judge


def by_cusink(work):
    costs = lee.word_costs(work.corpus)
    at = [(work.texts.index(i), j - work.others[0]) for i, j in work.some]

    def run():
        import cusink

        options = {"eps": work.eps, "tol": work.tol, "max_iter": 5000}
        return cusink.distance_matrix(work.rows[work.texts], work.rows[work.others], costs, **options)

    return run, lambda matrix: matrix[tuple(np.transpose(at))]


def by_gensim(work):
    solver = Exact(work.corpus, work.rows)
    return lambda: solver.gensim(work.some), lambda found: found


def by_pot(work):
    """Its linear program alone: the costs are cut out beforehand."""
    solver = Exact(work.corpus, work.rows)
    solver.prepare(work.some)
    return lambda: solver.pot(work.some), lambda found: found


COMPETITORS = [
    Competitor("cusink", "ours", by_cusink),
    Competitor("gensim `wmdistance`, loop over pairs", "exact", by_gensim, rounds=2, share=SHARE),
    Competitor("POT `emd2`, costs ready, loop over pairs", "exact", by_pot, rounds=2, share=SHARE),
]
