#!/usr/bin/env python3
"""Find the nearest neighbours of handwritten digits by Sinkhorn distance, and show them in a picture.

The data are scikit-learn's 1797 digits, 8x8 images of people's handwriting. Each is a histogram over the 64 cells of a
grid: its ink divided by its sum. 100 of them, drawn once by ``numpy.random.default_rng(0)``, are the queries; the other
1697 are the corpus. With --all each of the 1797 is a query among all others, and the precision of the nearest is the
leave-one-out accuracy of classification by it. The cost is the squared Euclidean distance between cells divided by
its maximum. The same split and the same neighbour search give the precision of L2, L1, chi-square and Hellinger, which
compare the histograms cell by cell. They do better here: all digits are written into the same frame.
"""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from cusink.cli import InputError, Parser, choose_device, positive
from examples.binwise import BINWISE, nearest

SIDE = 8
QUERIES = 100
NEIGHBOURS = 10


def main(arguments=None):
    """Run the demonstration and return its exit status."""
    try:
        given = parse(arguments)
        device = choose_device(given.device)
    except InputError as error:
        print(f"digits: {error}", file=sys.stderr)
        return 2
    queries, query_digits, corpus, corpus_digits = every_digit() if given.all else split_digits()
    result, seconds = sinkhorn_distances(queries, None if given.all else corpus, given, device)
    total = result.distances.size
    pairs = len(queries) * (len(queries) + 1) // 2 if given.all else total
    if given.all:
        print(f"{len(queries)} images against each other = {pairs} pairs of histograms on {SIDE}x{SIDE} cells")
    else:
        print(f"{len(queries)} queries x {len(corpus)} images = {pairs} pairs of histograms on {SIDE}x{SIDE} cells")
    print(
        f"Sinkhorn: eps {given.eps:g} of the largest cost, marginal error {given.tol:g}, {given.dtype} on {device};"
        f" iterations: median {np.median(result.n_iter):.0f}, at most {result.n_iter.max()};"
        f" {round(result.converged.sum() / total * pairs)} of {pairs} pairs converged"
    )
    print(f"{seconds:.2f} s, {1e6 * seconds / pairs:.1f} ms per thousand pairs\n")

    print(f"{'precision of the nearest':<26}{'1':>8}{'5':>8}{'10':>8}")
    binwise = {name: distance(queries, corpus) for name, distance in BINWISE.items()}
    for name, distances in {"Sinkhorn": result.distances, **binwise}.items():
        if given.all:
            np.fill_diagonal(distances, np.inf)  # an image is no neighbour of itself
        hits = corpus_digits[nearest(distances, NEIGHBOURS)] == query_digits[:, None]
        print(f"{name:<26}" + "".join(f"{hits[:, :k].mean():8.3f}" for k in (1, 5, 10)))

    first = [int(np.flatnonzero(query_digits == digit)[0]) for digit in range(10)]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(
        given.output,
        queries[first],
        query_digits[first],
        corpus,
        corpus_digits,
        nearest(result.distances[first], NEIGHBOURS),
        given.eps,
    )
    print(f"\nPicture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="each image is a query among all others (a minute or two)")
    parser.add_argument("--eps", type=positive, default=0.01, help="share of the largest cost (default: %(default)s)")
    parser.add_argument("--tol", type=positive, default=1e-4, help="L1 marginal error (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="(default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/digits_retrieval.png"), help="(default: %(default)s)"
    )
    return parser.parse_args(arguments)


def split_digits():
    """Return the histograms and digits of the queries, then those of the corpus."""
    from sklearn.datasets import load_digits

    ink, digits = load_digits(return_X_y=True)
    histograms = ink / ink.sum(axis=1, keepdims=True)
    queries = np.zeros(len(ink), dtype=bool)
    queries[np.random.default_rng(0).choice(len(ink), QUERIES, replace=False)] = True
    return histograms[queries], digits[queries], histograms[~queries], digits[~queries]


def every_digit():
    """Return all histograms and digits, twice: as queries and as corpus."""
    from sklearn.datasets import load_digits

    ink, digits = load_digits(return_X_y=True)
    histograms = ink / ink.sum(axis=1, keepdims=True)
    return histograms, digits, histograms, digits


def sinkhorn_distances(queries, corpus, given, device):
    """Return a DistanceMatrix of NumPy arrays and the seconds that it took; `corpus` None is the queries themselves."""
    cells = np.indices((SIDE, SIDE)).reshape(2, -1).T.astype(np.float64)
    C = cusink.cost_matrix(cells, cells)
    A, C = queries.astype(given.dtype), (C / C.max()).astype(given.dtype)
    B = None if corpus is None else corpus.astype(given.dtype)
    if device == "cuda":
        import cupy

        A, B, C = (None if array is None else cupy.asarray(array) for array in (A, B, C))
        cusink.distance_matrix(A[:2], B, C, eps=given.eps, tol=given.tol)  # compiles the kernels
    start = time.perf_counter()
    result = cusink.distance_matrix(
        A, B, C, eps=given.eps, tol=given.tol, progress=sys.stderr.isatty(), full_output=True
    )
    if device == "cuda":
        result = cusink.DistanceMatrix(**{field.name: getattr(result, field.name).get() for field in fields(result)})
    return result, time.perf_counter() - start


def draw(path, queries, query_digits, corpus, corpus_digits, found, eps):
    """Save a contact sheet: one query per row, then its neighbours `found` in the corpus, nearest first."""
    from cusink import plot

    right = corpus_digits[found] == query_digits[:, None]
    ax = plot.contact_sheet(
        queries,
        corpus,
        found,
        query_labels=query_digits,
        corpus_labels=corpus_digits,
        shape=(SIDE, SIDE),
        title="Handwritten digits and their nearest neighbours by Sinkhorn distance",
        subtitle=f"{right.sum()} of the {right.size} neighbours show the digit of their query (\N{CHECK MARK});"
        " the others are marked \N{MULTIPLICATION X} and their own digit.",
        footnote="scikit-learn digits; the first query of each class; squared Euclidean cost on the"
        f" {SIDE}\N{MULTIPLICATION SIGN}{SIDE} grid, eps = {eps:g} of the largest",
    )
    ax.figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
