#!/usr/bin/env python3
"""Time and check proved gaps: ``sinkhorn(..., gap=1e-3)`` beside POT's ``emd2``, on pairs of images; print a table.

Images of 28 x 28 pixels of two kinds that packages ship, squared distances between pixels: the digits of scikit-learn,
8 x 8, enlarged with linear interpolation (about 610 pixels are not empty), and pieces of the photographs of
scikit-image at full resolution (no pixel is empty). cusink solves a block of pairs in one call on a `Grid`; POT takes
one pair after the other, with the empty pixels left out, which is faster than with them. Blocks take turns on one core;
the times are CPU times per pair, with the medians over blocks, and the ratio with its smallest and largest block in
brackets. Each interval of cusink is held to POT's cost, and to the gap that was asked for.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from benchmarks.harness.timing import compare, machine, shown

SIDE = 28
GAP = 1e-3
SOLVE = {"eps": 0.5, "tol": 1e-2, "gap": GAP}  # eps in squared pixels
PHOTOGRAPHS = ("camera", "coins", "moon", "page", "text", "brick", "grass", "gravel", "clock")


def digits(count):
    """Return the first images of scikit-learn's digits as histograms (count, 784)."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    images = load_digits().images[:count]
    return _normalised(np.array([zoom(image, SIDE / 8, order=1) for image in images]))


def photographs(count):
    """Return pieces of scikit-image's photographs, at random places, as histograms (count, 784)."""
    import skimage

    rng, pieces = np.random.default_rng(0), []
    images = [np.asarray(getattr(skimage.data, name)(), float) for name in PHOTOGRAPHS]
    for k in range(count):
        image = images[k % len(images)]
        row, column = (rng.integers(0, size - SIDE) for size in image.shape)
        pieces.append(image[row : row + SIDE, column : column + SIDE])
    return _normalised(np.array(pieces))


def _normalised(images):
    rows = images.reshape(len(images), -1)
    return rows / rows.sum(axis=1, keepdims=True)


def peer(a, b, C):
    """Return the costs of all pairs by POT."""
    import ot

    costs = []
    for one, other in zip(a, b, strict=True):
        rows, columns = np.flatnonzero(one), np.flatnonzero(other)
        costs.append(ot.emd2(one[rows], other[columns], C[np.ix_(rows, columns)], numThreads=1))
    return np.array(costs)


def ours(a, b, grid):
    """Return the proved intervals of all pairs."""
    return cusink.sinkhorn(a, b, grid, **SOLVE).bounds()


def run(name, images, block):
    """Check and time all pairs of consecutive images, block by block; print a row for each side."""
    grid = cusink.Grid((SIDE, SIDE))
    cells = np.stack(np.mgrid[:SIDE, :SIDE], axis=-1).reshape(-1, 2)
    C = ((cells[:, None] - cells) ** 2).sum(axis=-1).astype(float)
    times, widest, wrong = {"cusink": [], "POT": []}, 0.0, 0
    for first in range(0, len(images), 2 * block):
        a, b = images[first : first + 2 * block : 2], images[first + 1 : first + 2 * block : 2]
        start = time.process_time()
        lower, upper = ours(a, b, grid)
        middle = time.process_time()
        costs = peer(a, b, C)
        times["cusink"].append((middle - start) / len(a))
        times["POT"].append((time.process_time() - middle) / len(a))
        wrong += int(((lower > costs * (1 + 1e-9)) | (costs > upper * (1 + 1e-9))).sum())
        widest = max(widest, float(((upper - lower) / upper).max()))
    verdict = "right" if not wrong and widest <= GAP else f"WRONG, {wrong} outside"
    pixels = f"{(images > 0).sum(axis=1).mean():.0f}"
    for who, answer in (("cusink", f"{verdict}, widest gap {widest:.1e}"), ("POT", "exact")):
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*compare(times["cusink"], times[who]))
        row = (name, pixels, str(len(images) // 2), who, answer, shown(np.median(times[who])), ratio)
        print(f"| {' | '.join(row)} |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--photographs", type=int, default=100, help="pairs of photographs (default: %(default)s)")
    parser.add_argument("--block", type=int, default=50, help="pairs in a call (default: %(default)s)")
    args = parser.parse_args(argv)
    if len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    facts = machine() | {"time": "CPU time on one core, of one pair", "call": f"cusink.sinkhorn(a, b, grid, **{SOLVE})"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    print("\n| images | pixels with weight | pairs | | answer | time of a pair | time / cusink |")
    print("|---|---|---|---|---|---|---|")
    warnings.simplefilter("error", cusink.ConvergenceWarning)
    first = digits(4).reshape(2, 2, -1)
    ours(*first, cusink.Grid((SIDE, SIDE)))  # the first call of each loads what it needs
    peer(*first, np.zeros((SIDE**2, SIDE**2)))
    for name, images, count in (("digits", digits, args.pairs), ("photographs", photographs, args.photographs)):
        run(name, images(2 * count), args.block)
    return 0


if __name__ == "__main__":
    sys.exit(main())
