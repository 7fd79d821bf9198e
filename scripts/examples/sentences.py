#!/usr/bin/env python3
"""Find the first sentence of a news text by its last one. Nothing is simulated.

The texts are the 350 of the Lee corpus, which gensim ships; the word vectors are those that wordllama ships. The last
sentence of each text is looked up among the first sentences of all texts. One is right: that of the same text. A
sentence is its words, gensim's stop words left out, with their shares of the TF-IDF weights. The Sinkhorn distance
moves the words of one sentence to those of the other, at the cosine distance of their vectors.

The second table is judged by people. They compared 50 of the texts with each other. For each text the table tells which
share of its nearest k texts is among the k that people found most alike.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness.lee import JUDGED, read_corpus, read_sentences, tfidf_shares, word_costs

import cusink
from cusink.cli import Parser, positive
from cusink.cli.files import InputError
from examples.binwise import nearest

RANKS = (1, 5, 10)


def main(arguments=None):
    """Run the search and return its exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=positive, default=0.05, help="words are up to 2 apart (default: %(default)s)")
    parser.add_argument("--tol", type=positive, default=0.01, help="L1 marginal error (default: %(default)s)")
    try:
        given = parser.parse_args(arguments)
        corpus = read_corpus()
    except InputError as error:
        print(f"sentences: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"sentences: {error}; ./scripts/demo sentences installs what it needs", file=sys.stderr)
        return 2
    last, first = read_sentences(corpus)
    count = len(last.texts)
    # The share of the texts that have a word is counted over first and last sentences together.
    rows = tfidf_shares(replace(corpus, texts=last.texts + first.texts))
    print(f"{count} last sentences looked up among {count} first ones; one of them is right")
    report("found among the first", distances(rows[:count], rows[count:], corpus, given), found)
    print(f"\n{JUDGED} texts that people compared")
    texts = tfidf_shares(corpus)[:JUDGED]
    report(
        "share of people's nearest", distances(texts, texts, corpus, given), lambda D: by_people(D, corpus.judgements)
    )
    return 0


def distances(A, B, corpus, given):
    """Return the distances of all rows of A and B, by name, and the seconds that they took."""
    computed = {
        "Sinkhorn": lambda: cusink.distance_matrix(
            A, B, word_costs(corpus, "cosine"), eps=given.eps, tol=given.tol, max_iter=5000
        ),
        "TF-IDF cosine": lambda: -cosines(A.toarray(), B.toarray()),
        "cosine of mean vectors": lambda: -cosines(A @ corpus.vectors, B @ corpus.vectors),
    }
    answers = {}
    for name, compute in computed.items():
        start = time.perf_counter()
        answers[name] = compute(), time.perf_counter() - start
    return answers


def cosines(x, y):
    """Return the cosines (len(x), len(y)) of the rows of two arrays."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return x @ y.T


def found(D):
    """Return the shares of rows whose own column is among the nearest k, for each k of RANKS."""
    hits = nearest(D, max(RANKS)) == np.arange(len(D))[:, None]
    return [hits[:, :k].any(axis=1).mean() for k in RANKS]


def by_people(D, judgements):
    """Return which share of the nearest k of each text is among the k that people found most alike."""
    D, judgements = (without_diagonal(matrix) for matrix in (D, judgements))
    return [
        np.mean([len(set(a) & set(b)) / k for a, b in zip(nearest(D, k), nearest(-judgements, k), strict=True)])
        for k in RANKS
    ]


def without_diagonal(matrix):
    """Return a square matrix without its diagonal, (n, n - 1)."""
    return matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)


def report(title, answers, measure):
    """Print a table of what each distance reaches."""
    print(f"{title:<26}" + "".join(f"{k:>8}" for k in RANKS) + f"{'time':>11}")
    for name, (D, seconds) in answers.items():
        print(f"{name:<26}" + "".join(f"{share:8.3f}" for share in measure(D)) + f"{seconds:9.2f} s")


if __name__ == "__main__":
    sys.exit(main())
