#!/usr/bin/env python3
"""Learn the ground cost between pixels, so that the nearest images by transport show the same digit.

The data are scikit-learn's handwritten digits, 8x8 images, as histograms of ink. 300 of them with their digits are
known, 300 others are looked up among them. The cost C between the 64 cells is free: symmetric, zero on the diagonal, a
softplus elsewhere, which makes 2016 numbers. It starts as the Euclidean distance between cells, cut off at two cells.

Each step draws known images, and for each some near ones of its digit and some of another. The loss is
log(1 + exp((d(same) - d(other)) / temperature)), the mean over all such pairs of pairs, with d the `reg_cost` of
transport. All its distances are one call of `sinkhorn`, and `sinkhorn_adjoint(...).C` is the gradient by the cost
that they share: the plans, weighted and summed. Adam, in NumPy, does the rest.

Held-out precision is set beside that of fixed costs, of bin-wise distances, and of two transforms that learn from the
same images without transport: neighbourhood components and discriminant analysis, both of scikit-learn.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from cusink.cli import InputError, Parser, positive
from examples.binwise import BINWISE, euclidean, nearest

SIDE = 8
KNOWN, HELD_OUT, NEIGHBOURS = 300, 300, 10
TEMPERATURE, RATE, DECAY = 0.03, 0.02, (0.9, 0.99)
IMAGES, EACH = 24, 6  # drawn in a step, and near ones of each kind beside each
NEAR_SAME, NEAR_OTHER = 20, 40  # of which they are drawn
SEARCH_AGAIN = 50  # steps after which the near ones are looked for by the cost as it is by then
TOL = 1e-3  # L1 marginal error
CELLS = np.indices((SIDE, SIDE)).reshape(2, -1).T.astype(float)
OFF_DIAGONAL = ~np.eye(SIDE**2, dtype=bool)
START, LEARNT = "the start of the learnt cost", "learnt cost"


def main(arguments=None):
    """Run the experiment and return its exit status."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"learnt_cost: {error}", file=sys.stderr)
        return 2
    print(
        f"{KNOWN} known images, {HELD_OUT} looked up; {given.draws} draws;"
        f" {given.steps} steps of Adam, eps {given.eps:g}\n"
    )
    runs, seconds = [], []
    for draw in range(1, given.draws + 1):
        queries, query_digits, corpus, digits = draw_images(draw)
        start = time.process_time()
        C, losses = learn(corpus, digits, np.random.default_rng(draw), given)
        seconds.append(time.process_time() - start)
        curves = {name: precision(D, digits, query_digits) for name, D in fixed(queries, corpus, digits).items()}
        for name, cost in ((START, cut(2.0)), (LEARNT, C)):
            curves[name] = precision(distances(queries, corpus, cost, given.eps), digits, query_digits)
        runs.append((curves, C, losses))
    print(table([curves for curves, *_ in runs]))
    print(f"\nloss: {np.mean([losses[0] for *_, losses in runs]):.3f} at first,", end=" ")
    print(f"{np.mean([np.mean(losses[-10:]) for *_, losses in runs]):.3f} at last (mean of ten steps)")
    print(f"training: {np.mean(seconds):.1f} s of CPU time for each draw")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    picture(given.output, [curves for curves, *_ in runs], runs[0][1])
    print(f"Picture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=positive, default=0.1, help="the cost starts with a maximum of 1 (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="steps of Adam (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="draws of the images (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/learnt_cost.png"), help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.steps < 1 or given.draws < 1:
        raise InputError("--steps and --draws must be at least 1")
    return given


def draw_images(seed):
    """Return histograms and digits to look up, then the known ones."""
    from sklearn.datasets import load_digits

    ink, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(ink))
    histograms = (ink / ink.sum(axis=1, keepdims=True)).astype(np.float32)
    known, held_out = order[:KNOWN], order[KNOWN : KNOWN + HELD_OUT]
    return histograms[held_out], digits[held_out], histograms[known], digits[known]


# ---- learning ------------------------------------------------------------------------------------------------------


def cut(cells):
    """Return the Euclidean cost between cells, cut off at so many cells, over its maximum."""
    C = np.minimum(np.sqrt(cusink.cost_matrix(CELLS)), cells)
    return C / C.max()


def cost(theta):
    """Return the symmetric cost (64, 64) of symmetric parameters: their softplus, and zero on the diagonal."""
    return np.where(OFF_DIAGONAL, np.logaddexp(0, theta), 0.0)


def parameters(C):
    """Return theta (64, 64) with cost(theta) = C; the diagonal has no part in it."""
    return np.log(np.expm1(np.where(OFF_DIAGONAL, C, 1.0)))


def loss_and_gradient(theta, images, same, other, eps):
    """Return the mean loss of images (I, 64) with near ones (I, E, 64) of each kind, and its gradient by theta."""
    each = same.shape[1]
    near = np.concatenate([same, other], axis=1)
    C = cost(theta).astype(images.dtype)
    result = cusink.sinkhorn(np.repeat(images, 2 * each, axis=0), near.reshape(-1, near.shape[-1]), C, eps=eps, tol=TOL)
    d = result.reg_cost.reshape(len(images), 2 * each).astype(float)
    gaps = (d[:, :each, None] - d[:, None, each:]) / TEMPERATURE  # (I, same, other): at most 0 if all is well
    slope = 1 / (1 + np.exp(-gaps)) / (TEMPERATURE * gaps.size)
    by_d = np.concatenate([slope.sum(axis=2), -slope.sum(axis=1)], axis=1)
    by_C = cusink.sinkhorn_adjoint(result, grad_reg_cost=by_d.ravel().astype(images.dtype)).C.astype(float)
    # One parameter stands for C_ij and C_ji; the derivative of the softplus is the logistic function.
    by_theta = np.where(OFF_DIAGONAL, (by_C + by_C.T) / (1 + np.exp(-theta)), 0.0)
    return np.logaddexp(0, gaps).mean(), by_theta


def learn(images, digits, rng, given):
    """Return a cost (64, 64) learnt from images and their digits, and the loss of each step."""
    theta = parameters(cut(2.0))
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    losses = []
    for step in range(given.steps):
        if step % SEARCH_AGAIN == 0:
            same, other = near_ones(images, digits, cost(theta), given.eps)
        rows = rng.choice(len(images), IMAGES, replace=False)
        drawn = (np.stack([rng.choice(near[row], EACH, replace=False) for row in rows]) for near in (same, other))
        loss, gradient = loss_and_gradient(theta, images[rows], *(images[near] for near in drawn), given.eps)
        losses.append(loss)
        mean = DECAY[0] * mean + (1 - DECAY[0]) * gradient
        square = DECAY[1] * square + (1 - DECAY[1]) * gradient**2
        steady = np.sqrt(square / (1 - DECAY[1] ** (step + 1))) + 1e-9
        theta -= RATE * mean / (1 - DECAY[0] ** (step + 1)) / steady
    return cost(theta), losses


def near_ones(images, digits, C, eps):
    """Return the indices of the nearest of each image, (N, up to NEAR_SAME) of its digit, (N, NEAR_OTHER) of others."""
    D = distances(images, None, C, eps)
    np.fill_diagonal(D, np.inf)  # an image is not drawn beside itself
    same = digits[:, None] == digits
    count = min(NEAR_SAME, same.sum(axis=1).min() - 1)
    return nearest(np.where(same, D, np.inf), count), nearest(np.where(same, np.inf, D), NEAR_OTHER)


# ---- looking up ----------------------------------------------------------------------------------------------------


def distances(queries, corpus, C, eps, value="reg_cost"):
    """Return transport distances (Q, D); without a corpus, those of the queries among themselves."""
    return cusink.distance_matrix(queries, corpus, C.astype(queries.dtype), eps=eps, value=value, tol=TOL)


def precision(D, digits, query_digits):
    """Return the share of the nearest 1, 2, ..., 10 that show the digit of their query."""
    hits = digits[nearest(D, NEIGHBOURS)] == query_digits[:, None]
    return np.cumsum(hits.mean(axis=0)) / np.arange(1, NEIGHBOURS + 1)


def fixed(queries, corpus, digits):
    """Return the distances (Q, D) of what the learnt cost is compared with, by name."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.neighbors import NeighborhoodComponentsAnalysis

    squared = cusink.cost_matrix(CELLS)
    # Each fixed cost has the eps that did best for it, of a few, on other draws.
    costs = {
        "squared Euclidean cost": (squared / squared.max(), 0.01),
        "Euclidean cost": (cut(np.inf), 0.05),
        "Euclidean cost, cut off at 2 cells": (cut(2.0), 0.2),
    }
    found = {name: distances(queries, corpus, C, eps, "cost") for name, (C, eps) in costs.items()}
    found |= {name: distance(queries, corpus) for name, distance in BINWISE.items()}
    transforms = {
        "neighbourhood components, L2": NeighborhoodComponentsAnalysis(max_iter=50, random_state=0),
        "discriminant analysis, L2": LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.3),
    }
    for name, transform in transforms.items():
        transform.fit(32 * corpus, digits)  # about the scale at which neighbourhood components do best
        found[name] = euclidean(transform.transform(32 * queries), transform.transform(32 * corpus))
    return found


def table(curves):
    """Return the precision of each name, mean and standard deviation over the draws, as Markdown."""
    lines = ["| precision of the nearest | 1 | 5 | 10 |", "|---|---|---|---|"]
    for name in curves[0]:
        at = np.array([draw[name][[0, 4, 9]] for draw in curves])
        cells = (f"{m:.3f} ± {s:.3f}" for m, s in zip(at.mean(axis=0), at.std(axis=0), strict=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- the picture ---------------------------------------------------------------------------------------------------


def picture(path, curves, C):
    """Save the costs from three cells before and after, and the precision of the nearest k."""
    from matplotlib.figure import Figure

    ink, grey = "#1b1b1b", "#6b6b6b"
    figure = Figure(figsize=(11, 5.2), facecolor="white")
    grid = figure.add_gridspec(2, 3, left=0.06, right=0.47, top=0.78, bottom=0.06, hspace=0.16, wspace=0.08)
    highest = max(C.max(), 1.0)
    for column, cell in enumerate((2 * SIDE + 2, 3 * SIDE + 4, 5 * SIDE + 5)):
        for row, (shown, word) in enumerate(((cut(2.0), "start"), (C, "learnt"))):
            axes = figure.add_subplot(grid[row, column])
            image = axes.imshow(shown[cell].reshape(SIDE, SIDE), cmap="viridis", vmin=0, vmax=highest)
            axes.plot(cell % SIDE, cell // SIDE, "o", color="white", markersize=6, markeredgecolor=ink)
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(word, fontsize=13, color=ink)
    figure.colorbar(image, cax=figure.add_axes((0.485, 0.06, 0.012, 0.72))).ax.tick_params(labelsize=11, colors=grey)
    axes = figure.add_axes((0.59, 0.11, 0.39, 0.67))
    lines = {
        LEARNT: ("#0072b2", "-"),
        START: ("#56b4e9", "--"),
        "discriminant analysis, L2": ("#009e73", "-"),
        "L2": ("#d55e00", "-"),
        "squared Euclidean cost": ("#6b6b6b", "-"),
    }
    ranks = np.arange(1, NEIGHBOURS + 1)
    for name, (colour, style) in lines.items():
        mean = np.mean([draw[name] for draw in curves], axis=0)
        axes.plot(ranks, mean, style, color=colour, linewidth=2, label=name)
    axes.set_xticks(ranks)
    axes.set_xlabel("nearest k", fontsize=12, color=grey)
    axes.set_title("share of the nearest k that show the digit", fontsize=13, color=ink, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.tick_params(labelsize=11, colors=grey)
    axes.legend(frameon=False, fontsize=11.5, loc="lower left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.text(0.02, 0.93, "A cost between pixels that is learnt from digits", fontsize=17, color=ink)
    about = (
        f"Left: the cost from the marked cell to each other. Right: {HELD_OUT} held-out images; draws: {len(curves)}."
    )
    figure.text(0.02, 0.87, about, fontsize=12, color=grey)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
