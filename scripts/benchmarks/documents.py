#!/usr/bin/env python3
"""Time document distances beside exact ones: 50 x 350 texts of the Lee corpus, see ``examples/documents.py``.

Competitors take turns. In each round cusink solves all pairs of 8 texts with the 350, and the exact solvers
`--sample` of these pairs, drawn anew. Times are per pair; ratios are those of a round, and their median, smallest and
largest are shown. Only right answers count: cusink's costs must lie above the exact ones by at most 2 %, and POT's must
be gensim's.

    wmdistance   gensim's, in a loop, as a user calls it: vectors, distances and the linear program for each pair
    emd2         POT's linear program alone, its cost matrices cut out of one matrix of the vocabulary beforehand

Set OPENBLAS_NUM_THREADS=1 for CPU time per core; `--one-core` counts CPU seconds instead of wall time.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness import lee
from benchmarks.harness.timing import machine

LARGEST_OFF = 0.02


def main(arguments=None):
    """Run the benchmark and return its exit status: 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.019)
    parser.add_argument("--tol", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=6, help="of 8 texts each (default: %(default)s)")
    parser.add_argument(
        "--sample", type=int, default=100, help="pairs of an exact solver in a round (default: %(default)s)"
    )
    parser.add_argument("--one-core", action="store_true", help="CPU seconds instead of wall time")
    given = parser.parse_args(arguments)
    clock = time.process_time if given.one_core else time.perf_counter

    corpus = lee.read_corpus()
    rows, costs = lee.shares(corpus), lee.word_costs(corpus)
    exact = Exact(corpus, rows)
    solve = {
        "cusink": lambda texts, pairs: distances(rows, costs, texts, given),
        "gensim wmdistance": lambda texts, pairs: exact.gensim(pairs),
        "POT emd2, costs at hand": lambda texts, pairs: exact.pot(pairs),
    }
    distances(rows, costs, [0], given)
    exact.gensim([(0, 1)])
    rng = np.random.default_rng(0)
    taken = {name: [] for name in solve}
    off, apart, iterations = [], [], []
    for turn in range(given.rounds):
        texts = [(8 * turn + k) % lee.JUDGED for k in range(8)]
        pairs = [(int(rng.choice(texts)), int(j)) for j in rng.integers(lee.JUDGED, len(corpus.texts), given.sample)]
        exact.prepare(pairs)
        answers = {}
        for name, run in solve.items():
            start = clock()
            answers[name] = run(texts, pairs)
            each = len(texts) * len(corpus.texts) if name == "cusink" else len(pairs)
            taken[name].append((clock() - start) / each)
        result = answers["cusink"]
        right = np.array(answers["gensim wmdistance"])
        ours = np.array([result.distances[texts.index(i), j] for i, j in pairs])
        off.extend(ours / right - 1)
        apart.append(np.abs(np.array(answers["POT emd2, costs at hand"]) / right - 1).max())
        iterations.append(result.n_iter)
        converged = bool(result.converged.all())
        if not (converged and min(off) > 0 and max(off) <= LARGEST_OFF and max(apart) < 1e-4):
            print(f"WRONG: off by {min(off):.2%} to {max(off):.2%}, POT by {max(apart):.1e}, converged: {converged}")
            return 1

    facts = machine() | {"time": "CPU seconds" if given.one_core else "wall time"}
    facts |= {"eps": given.eps, "marginal error": given.tol, "dtype": rows.dtype}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    count = np.concatenate([part.ravel() for part in iterations])
    print(f"- iterations: median {np.median(count):.0f}, mean {count.mean():.0f}, at most {count.max()}")
    print(
        f"- cost above the exact one: median {np.median(off):.2%}, at most {max(off):.2%}, {len(off)} pairs looked at\n"
    )
    print("| | us per pair, median | time / cusink's, median (smallest to largest) |\n|---|---|---|")
    for name, times in taken.items():
        ratios = [t / own for t, own in zip(times, taken["cusink"], strict=True)]
        span = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {1e6 * statistics.median(times):.0f} | {span} |")
    return 0


def distances(rows, costs, texts, given):
    """Return cusink's distances of some texts to all."""
    options = {"eps": given.eps, "tol": given.tol, "max_iter": 5000, "full_output": True}
    return cusink.distance_matrix(rows[texts], rows, costs, **options)


class Exact:
    """The exact solvers, with what they may prepare."""

    def __init__(self, corpus, rows):
        from gensim.models import KeyedVectors

        self.texts, self.rows, self.vectors = corpus.texts, rows, corpus.vectors.astype(np.float64)
        self.model = KeyedVectors(corpus.vectors.shape[1])
        self.model.add_vectors(corpus.vocabulary, corpus.vectors)

    def prepare(self, pairs):
        """Cut the cost matrices of these pairs."""
        from scipy.spatial.distance import cdist

        self.problems = []
        for pair in pairs:
            (a, i), (b, j) = ((row.data, row.indices) for row in (self.rows[[k]] for k in pair))
            a, b = (w.astype(np.float64) / w.sum(dtype=np.float64) for w in (a, b))
            self.problems.append((a, b, cdist(self.vectors[i], self.vectors[j])))

    def gensim(self, pairs):
        return [self.model.wmdistance(self.texts[i], self.texts[j]) for i, j in pairs]

    def pot(self, pairs):
        import ot

        return [ot.emd2(a, b, C) for a, b, C in self.problems]


if __name__ == "__main__":
    sys.exit(main())
