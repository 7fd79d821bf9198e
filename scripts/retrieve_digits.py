#!/usr/bin/env python3
"""Find the nearest neighbours of handwritten digits by Sinkhorn distance, and show them in a picture.

The data are scikit-learn's 1797 digits, 8x8 images of people's handwriting. Each is a histogram over the 64 cells of a
grid: its ink divided by its sum. 100 of them, drawn once by ``numpy.random.default_rng(0)``, are the queries; the other
1697 are the corpus. The cost is the squared Euclidean distance between cells divided by its maximum. The same split and
the same neighbour search give the precision of L2, L1 and chi-square, which compare the histograms cell by cell.
"""

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

import cusink
from cusink.cli import InputError, Parser, choose_device, positive

SIDE = 8
QUERIES = 100
NEIGHBOURS = 10
RIGHT, WRONG, INK, GREY = "#0072b2", "#d55e00", "#1b1b1b", "#6b6b6b"


def main(arguments=None):
    """Run the demonstration and return its exit status."""
    try:
        given = parse(arguments)
        device = choose_device(given.device)
    except InputError as error:
        print(f"retrieve_digits: {error}", file=sys.stderr)
        return 2
    queries, query_digits, corpus, corpus_digits = split_digits()
    result, seconds = sinkhorn_distances(queries, corpus, given, device)
    pairs = result.distances.size
    print(f"{len(queries)} queries x {len(corpus)} images = {pairs} pairs of histograms on {SIDE}x{SIDE} cells")
    print(
        f"Sinkhorn: eps {given.eps:g} of the largest cost, marginal error {given.tol:g}, {given.dtype} on {device};"
        f" iterations: median {np.median(result.n_iter):.0f}, at most {result.n_iter.max()};"
        f" {result.converged.sum()} of {pairs} pairs converged"
    )
    print(f"{seconds:.2f} s, {1e6 * seconds / pairs:.1f} ms per thousand pairs\n")

    print(f"{'precision of the nearest':<26}{'1':>8}{'5':>8}{'10':>8}")
    for name, distances in {"Sinkhorn": result.distances, **cellwise_distances(queries, corpus)}.items():
        hits = corpus_digits[nearest(distances)] == query_digits[:, None]
        print(f"{name:<26}" + "".join(f"{hits[:, :k].mean():8.3f}" for k in (1, 5, 10)))

    first = [int(np.flatnonzero(query_digits == digit)[0]) for digit in range(10)]
    found = nearest(result.distances[first])
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, queries[first], query_digits[first], corpus[found], corpus_digits[found], given.eps)
    print(f"\nPicture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def sinkhorn_distances(queries, corpus, given, device):
    """Return a DistanceMatrix of NumPy arrays and the seconds that it took."""
    cells = np.indices((SIDE, SIDE)).reshape(2, -1).T.astype(np.float64)
    C = cusink.cost_matrix(cells, cells)
    A, B, C = (array.astype(given.dtype) for array in (queries, corpus, C / C.max()))
    if device == "cuda":
        import cupy

        A, B, C = (cupy.asarray(array) for array in (A, B, C))
        cusink.distance_matrix(A[:2], B, C, eps=given.eps, tol=given.tol)  # compiles the kernels
    start = time.perf_counter()
    result = cusink.distance_matrix(
        A, B, C, eps=given.eps, tol=given.tol, progress=sys.stderr.isatty(), full_output=True
    )
    if device == "cuda":
        result = cusink.DistanceMatrix(**{field.name: getattr(result, field.name).get() for field in fields(result)})
    return result, time.perf_counter() - start


def cellwise_distances(queries, corpus):
    """Return distance matrices that compare the same histograms cell by cell, by name."""
    from scipy.spatial.distance import cdist

    total = queries[:, None] + corpus
    squares = (queries[:, None] - corpus) ** 2
    return {
        "L2": cdist(queries, corpus, "euclidean"),
        "L1": cdist(queries, corpus, "cityblock"),
        "chi-square": np.divide(squares, total, out=np.zeros_like(total), where=total > 0).sum(axis=2),
    }


def nearest(distances):
    """Return the indices of the nearest NEIGHBOURS of each row, nearest first."""
    return np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]


def draw(path, queries, query_digits, neighbours, neighbour_digits, eps):
    """Save a contact sheet: one query per row, then its neighbours, nearest first."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = neighbour_digits.shape
    gap, step = 0.55, 1.16  # after the column of queries; from tile to tile
    left = np.concatenate([[0.0], 1 + gap + step * np.arange(columns)])
    right_digit = neighbour_digits == query_digits[:, None]

    width, head = left[-1] + 1, 1.55
    figure = Figure(figsize=(0.78 * (width + 0.6), 0.78 * (rows * step + head + 0.7)), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    def tile(x, y, histogram, colour, line):
        # Each image on its own scale, so that thin and bold writing are equally dark.
        image = histogram.reshape(SIDE, SIDE) / histogram.max()
        axes.imshow(image, cmap="Greys", vmin=0, vmax=1, extent=(x, x + 1, y + 1, y), interpolation="nearest")
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=line))

    for row in range(rows):
        y = row * step
        tile(left[0], y, queries[row], INK, 1.8)
        for column in range(columns):
            is_right = right_digit[row, column]
            x, colour = left[column + 1], RIGHT if is_right else WRONG
            tile(x, y, neighbours[row, column], colour, 1.1 if is_right else 2.6)
            note = "\N{CHECK MARK}" if is_right else f"\N{MULTIPLICATION X} {neighbour_digits[row, column]}"
            box = {"boxstyle": "square,pad=0.16", "facecolor": colour, "edgecolor": "none"}
            axes.text(x + 0.97, y + 0.97, note, color="white", fontsize=7, ha="right", va="bottom", bbox=box, zorder=3)

    axes.text(0, -1.08, "Handwritten digits and their nearest neighbours by Sinkhorn distance", fontsize=15, color=INK)
    axes.text(
        0,
        -0.7,
        f"{right_digit.sum()} of the {right_digit.size} neighbours show the digit of their query (\N{CHECK MARK});"
        f" the others are marked \N{MULTIPLICATION X} and their own digit.",
        fontsize=10.5,
        color=GREY,
    )
    axes.text(left[0] + 0.5, -0.18, "query", fontsize=10, color=INK, ha="center")
    axes.text(left[1], -0.18, "nearest of 1697 images, in order \N{RIGHTWARDS ARROW}", fontsize=10, color=INK)
    axes.text(
        0,
        rows * step + 0.18,
        "scikit-learn digits; the first query of each class; squared Euclidean cost on the"
        f" {SIDE}\N{MULTIPLICATION SIGN}{SIDE} grid, eps = {eps:g} of the largest",
        fontsize=8.5,
        color=GREY,
    )
    axes.set_xlim(-0.3, width + 0.3)
    axes.set_ylim(rows * step + 0.45, -head)
    axes.set_aspect("equal")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
