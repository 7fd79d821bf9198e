#!/usr/bin/env python3
"""Find a piece of the sky again after the telescope has moved by a few pixels.

The sky is the Hubble eXtreme Deep Field, a photograph of 872 x 1000 pixels that scikit-image ships. Nothing is
downloaded. What is simulated are the exposures: an exposure of a field is the 64 x 64 pixels at its place, moved by a
few pixels along each axis, with new noise. Each becomes a histogram: the brightness above the sky, which is the median
of the photograph, summed over 16 x 16 cells of 4 x 4 pixels. A move of five pixels puts a galaxy into another cell.
Distances that compare cell with cell then see another picture; transport sees a small move.

There are two searches. The first has 195 fields, a grid over the photograph, with 10 exposures of each. 100 new
exposures are looked up, and a neighbour is right if it shows the same field. The second has one picture of each of 460
fields, which overlap. 100 exposures are looked up, and one picture of the 460 is right. Both are repeated with other
moves and noise, and the tables hold the means. The picture shows the first queries that were drawn, not chosen ones.

Sinkhorn distances stand there twice. Balanced transport has to move all light. So light that entered at one edge is
moved to where other light left the picture. With a reach, such light is left where it is, at a price.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from cusink.cli import InputError, Parser, choose_device, positive
from examples.binwise import BINWISE, nearest

SIDE, CELL = 64, 4  # pixels of a field, and of a cell
CELLS = SIDE // CELL
PRICED, MET = "Sinkhorn with reach", "Sinkhorn"  # transport that may leave light where it is, and that may not
NOISE = 5.0  # standard deviation, of 255 levels of grey
NEIGHBOURS = 10
QUERIES = 100
INK, GREY, RIGHT, WRONG = "#1b1b1b", "#5c5c5c", "#0072b2", "#d55e00"


class Search(NamedTuple):
    """Exposures to look up, exposures to find, and the field that each shows."""

    queries: np.ndarray  # (Q, SIDE, SIDE, 3) of float32, where 255 is white
    query_fields: np.ndarray  # (Q,)
    corpus: np.ndarray  # (D, SIDE, SIDE, 3)
    corpus_fields: np.ndarray  # (D,)
    dark: float  # the grey of the sky between stars


def main(arguments=None):
    """Run the demonstration and return its exit status."""
    try:
        given = parse(arguments)
        device = choose_device(given.device)
        sky = deep_field()
    except InputError as error:
        print(f"galaxies: {error}", file=sys.stderr)
        return 2
    begun = time.perf_counter()
    several, single = [], []
    for seed in range(given.rounds):
        search, rng = exposures_search(sky, np.random.default_rng(seed)), np.random.default_rng(seed)
        several.append(look_up(search, given, device))
        single.append(look_up(single_search(sky, rng), given, device))
        if seed == 0:
            pictured = search
    print(f"Hubble eXtreme Deep Field; means over {given.rounds} rounds of {QUERIES} queries, times of one round\n")
    print("10 exposures of each of 195 fields, moved by up to 5 pixels, new noise")
    report("precision of the nearest", several, precisions, (1, 5, 10))
    print(exact_time(pictured, given.sample))
    print("\nOne picture of each of 460 fields, the query moved by up to 6 pixels, new noise")
    report("the right one is among the first", single, found_at, (1, 10))

    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, pictured, several[0], given.rows)
    print(f"\nPicture: {given.output}. All of it took {time.perf_counter() - begun:.0f} s on {device}.")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--eps", type=positive, default=0.5, help="in cells, the unit of the cost (default: %(default)s)"
    )
    parser.add_argument(
        "--reach",
        type=positive,
        default=8.0,
        help="price of light that is left at its place, in cells (default: %(default)s)",
    )
    parser.add_argument("--tol", type=positive, default=1e-3, help="L1 marginal error (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=4, help="repetitions (default: %(default)s)")
    parser.add_argument("--sample", type=count, default=100, help="pairs to solve exactly (default: %(default)s)")
    parser.add_argument("--rows", type=count, default=6, help="queries in the picture (default: %(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    parser.add_argument("--output", type=Path, default=Path("outputs/galaxies.png"), help="(default: %(default)s)")
    return parser.parse_args(arguments)


def count(text):
    """Return a whole number from 1 to 100."""
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= QUERIES:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {QUERIES}; got {text!r}")
    return number


def deep_field():
    """Return the photograph, (872, 1000, 3) of uint8, that lies in scikit-image's wheel."""
    try:
        from skimage.data import hubble_deep_field
    except ImportError as error:
        raise InputError(f"{error}; ./scripts/demo installs what it needs") from None
    return hubble_deep_field()


def exposures_search(sky, rng):
    """Return the search among 10 exposures of each of 195 fields."""
    fields = places(sky, 13, 15, step=SIDE)
    corpus_fields = np.repeat(np.arange(len(fields)), 10)
    corpus = expose(sky, fields[corpus_fields], 5, rng)
    query_fields = rng.choice(len(fields), QUERIES, replace=False)
    return Search(expose(sky, fields[query_fields], 5, rng), query_fields, corpus, corpus_fields, darkness(sky))


def single_search(sky, rng):
    """Return the search among one picture of each of 460 fields, which overlap."""
    fields = places(sky, 20, 23, step=41)
    corpus = expose(sky, fields, 0, rng)
    query_fields = rng.choice(len(fields), QUERIES, replace=False)
    queries = expose(sky, fields[query_fields], 6, rng)
    return Search(queries, query_fields, corpus, np.arange(len(fields)), darkness(sky))


def darkness(sky):
    """Return the median grey of the photograph: most of it is empty."""
    return float(np.median(sky.mean(axis=2)))


def places(sky, rows, columns, step):
    """Return the upper left corners (rows * columns, 2) of fields in a grid, `step` pixels apart, about the middle."""
    free = np.array(sky.shape[:2]) - step * np.array([rows - 1, columns - 1]) - SIDE
    return free // 2 + step * np.stack(np.indices((rows, columns)), axis=-1).reshape(-1, 2)


def expose(sky, corners, move, rng):
    """Return exposures (count, SIDE, SIDE, 3) at corners that are moved by up to `move` pixels, with new noise."""
    moved = corners + rng.integers(-move, move + 1, corners.shape)
    taken = np.stack([sky[y : y + SIDE, x : x + SIDE] for y, x in moved])
    return taken + np.float32(NOISE) * rng.standard_normal(taken.shape, dtype=np.float32)


def histograms(exposures, dark):
    """Return the light above the `dark` sky in each of CELLS x CELLS cells, as shares (count, CELLS * CELLS)."""
    light = (exposures.mean(axis=3, dtype=np.float32) - np.float32(dark)).clip(0, None)
    cells = light.reshape(-1, CELLS, CELL, CELLS, CELL).sum(axis=(2, 4)).reshape(len(light), -1)
    return cells / cells.sum(axis=1, keepdims=True)


def ground_cost():
    """Return the Euclidean distances between the cells, in cells."""
    cells = np.indices((CELLS, CELLS)).reshape(2, -1).T.astype(np.float32)
    return cusink.cost_matrix(cells, cells, metric="euclidean")


class Found(NamedTuple):
    """What one distance found."""

    indices: np.ndarray  # (Q, NEIGHBOURS), of the nearest exposures
    right: np.ndarray  # (Q, NEIGHBOURS), whether they show the field of their query
    seconds: float


def look_up(search, given, device):
    """Return what each distance finds, by its name."""
    queries, corpus = (histograms(part, search.dark) for part in (search.queries, search.corpus))
    found = {}
    for name in (PRICED, MET, *BINWISE):
        start = time.perf_counter()
        if name in (PRICED, MET):
            indices = sinkhorn_nearest(queries, corpus, given, given.reach if name == PRICED else None, device)
        else:
            indices = nearest(BINWISE[name](queries, corpus), NEIGHBOURS)
        seconds = time.perf_counter() - start
        found[name] = Found(indices, search.corpus_fields[indices] == search.query_fields[:, None], seconds)
    return found


def sinkhorn_nearest(queries, corpus, given, reach, device):
    """Return the indices of the nearest by Sinkhorn distance; `reach` is None for balanced transport."""
    A, B, C = queries, corpus, ground_cost()
    if device == "cuda":
        import cupy

        A, B, C = cupy.asarray(A), cupy.asarray(B), cupy.asarray(C)
    options = {"k": NEIGHBOURS, "eps": given.eps, "tol": given.tol, "value": "reg_cost"}
    indices = cusink.nearest(A, B, C, reach=reach, **options)[1]
    return indices.get() if device == "cuda" else indices


def precisions(right, k):
    """Return the share of right ones among the nearest k."""
    return right[:, :k].mean()


def found_at(right, k):
    """Return the share of queries with a right one among the nearest k."""
    return right[:, :k].any(axis=1).mean()


def report(title, rounds, measure, ranks):
    """Print a table: for each distance the mean of its measure at each rank, and its seconds."""
    print(f"{title:<34}" + "".join(f"{k:>8}" for k in ranks) + f"{'time':>11}")
    for name in rounds[0]:
        means = [np.mean([measure(found[name].right, k) for found in rounds]) for k in ranks]
        seconds = np.mean([found[name].seconds for found in rounds])
        print(f"{name:<34}" + "".join(f"{mean:8.3f}" for mean in means) + f"{seconds:9.2f} s")


def exact_time(search, sample):
    """Return a line on the time of the exact distance, measured on some pairs."""
    from ot import emd2

    rng, C = np.random.default_rng(0), ground_cost().astype(np.float64)
    A, B = (histograms(part, search.dark).astype(np.float64) for part in (search.queries, search.corpus))
    pairs = rng.integers(0, (len(A), len(B)), (sample, 2))
    start = time.perf_counter()
    for i, j in pairs:
        emd2(A[i] / A[i].sum(), B[j] / B[j].sum(), C)
    each = (time.perf_counter() - start) / sample
    total = each * len(A) * len(B)
    return (
        f"The exact distance (POT's emd2) takes {1e3 * each:.1f} ms a pair, measured on {sample} pairs: all"
        f" {len(A) * len(B)} would take {total:.0f} s."
    )


def draw(path, search, found, rows):
    """Save the first queries, each with its five nearest by Sinkhorn (with a reach) and by L2 distance."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names, shown, gap = {PRICED: "Sinkhorn", "L2": "L2"}, 5, 0.32
    left = np.concatenate([[0], 1 + gap + np.arange(shown), 1 + 2 * gap + shown + np.arange(shown)])
    step, top, bottom = 1.06, 0.95, 0.62
    width, height = left[-1] + 1, rows * step + top + bottom
    inch = 1.12
    figure = Figure(figsize=(inch * (width + 0.2), inch * height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.1, width + 0.1)
    ax.set_ylim(rows * step + bottom, -top)
    ax.set_axis_off()

    def show(image, x, y, colour, line):
        bright = (image / 255).clip(0, 1) ** 0.6  # the faint galaxies would be black
        ax.imshow(bright, extent=(x, x + 1, y + 1, y), interpolation="bicubic", aspect="auto")
        ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=colour, linewidth=line))

    for row in range(rows):
        y = row * step
        show(search.queries[row], 0, y, INK, 1.5)
        for block, name in enumerate(names):
            for column, k in enumerate(found[name].indices[row, :shown]):
                x = left[1 + block * shown + column]
                same = found[name].right[row, column]
                colour = RIGHT if same else WRONG
                show(search.corpus[k], x, y, colour, 2.2)
                note = "\N{CHECK MARK}" if same else "\N{MULTIPLICATION X}"
                box = {"boxstyle": "square,pad=0.2", "facecolor": colour, "edgecolor": "none"}
                ax.text(x + 0.95, y + 0.94, note, color="white", fontsize=10, ha="right", va="bottom", bbox=box)
    ax.text(0, -0.16, "query", fontsize=15, color=INK)
    for block, name in enumerate(names):
        hits = found[name].right[:rows, :shown]
        heading = f"five nearest by {names[name]}: {hits.sum()} of {hits.size} right"
        ax.text(left[1 + block * shown], -0.16, heading, fontsize=15, color=INK)
    title = f"Which of {len(search.corpus)} exposures show the piece of sky of the query?"
    ax.text(0, -0.6, title, fontsize=20, color=INK)
    caption = (
        "Hubble eXtreme Deep Field. Simulated: each exposure is moved by up to 5 pixels along each axis, with new"
        " noise.\nThere are 10 exposures of each of 195 fields. The queries are the first that were drawn. Sinkhorn"
        " distances have a reach."
    )
    ax.text(0, rows * step + 0.08, caption, fontsize=12, color=GREY, va="top", linespacing=1.5)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
