#!/usr/bin/env python3
"""Train a classifier with a Wasserstein loss and its explicit gradient, in NumPy and SciPy alone.

A picture shows two of scikit-learn's handwritten digits side by side; its label is a histogram over the classes 0 to 9
with half of the mass on each of the two (multi-label learning, as in Frogner et al., Learning with a Wasserstein
loss, NIPS 2015). Half of the training labels are misread by one. A cost between classes, |i - j| / 9, tells the loss
that 7 for 8 is a smaller mistake than 1 for 8, which cross-entropy cannot know.

The model is a softmax regression on the pixels. It is trained twice from zero by L-BFGS: with cross-entropy, and with
the Wasserstein loss plus a tenth of cross-entropy, a combination that Frogner et al. use too (alone, the Wasserstein
loss of a softmax is far from convex and ends in worse minima). Weight decay is the same for both.

Both are measured on pictures of other digits with true labels: by how many classes a predicted unit of mass is off,
which is the exact Wasserstein distance on a line, and how many of the shown digits are among the two most probable.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

import cusink
from cusink.cli import InputError, Parser, positive

CLASSES = 10
C = np.abs(np.subtract.outer(np.arange(CLASSES), np.arange(CLASSES))) / (CLASSES - 1)
TRAINING, TESTING, MISREAD = 500, 1000, 0.5
SHARE_OF_CROSS_ENTROPY, DECAY = 0.1, 1e-3
LOSSES = {"cross-entropy": (1.0, 0.0), "Wasserstein": (SHARE_OF_CROSS_ENTROPY, 1.0)}
COLOURS = {"cross-entropy": "#d55e00", "Wasserstein": "#0072b2"}
INK, GREY = "#1b1b1b", "#6b6b6b"


def main(arguments=None):
    """Run the experiment and return its exit status."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    print(f"{TRAINING} training pictures, half of the labels misread by one; {TESTING} to test; {given.seeds} draws")
    print(f"Wasserstein: eps {given.eps:g} of the largest cost, plus {SHARE_OF_CROSS_ENTROPY:g} of cross-entropy\n")
    start = time.perf_counter()
    runs = []
    for seed in range(given.seeds):
        data = draw_data(seed)
        runs.append({loss: train(data, *weights, given) for loss, weights in LOSSES.items()})
    print(f"{'test':<14}{'off by (classes)':>20}{'digits found':>20}{'evaluations':>14}{'seconds':>10}")
    for loss in LOSSES:
        final = np.array([run[loss]["curve"][-1] for run in runs])
        columns = [f"{m:.3f} +- {s:.3f}" for m, s in zip(final.mean(0), final.std(0), strict=True)]
        count, seconds = (sum(run[loss][key] for run in runs) for key in ("evaluations", "seconds"))
        print(f"{loss:<14}{columns[0]:>20}{columns[1]:>20}{count:>14}{seconds:>10.1f}")
    better = [run["Wasserstein"]["curve"][-1] for run in runs], [run["cross-entropy"]["curve"][-1] for run in runs]
    closer, more = (np.array(better[0]) - np.array(better[1])).T
    print(f"\nWasserstein is closer in {np.sum(closer < 0)} of {len(runs)} draws, finds more in {np.sum(more > 0)}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, runs, draw_data(0), given.eps)
    print(f"{time.perf_counter() - start:.1f} s in all. Picture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=positive, default=0.05, help="share of the largest cost (default: %(default)s)")
    parser.add_argument("--tol", type=positive, default=1e-4, help="L1 marginal error (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the data (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="steps of L-BFGS at most (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/wasserstein_loss.png"), help="(default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    if given.seeds < 1 or given.steps < 1:
        raise InputError("--seeds and --steps must be at least 1")
    return given


def draw_data(seed):
    """Return pictures (count, 129), the last column ones, and labels (count, 10), by name of the part."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels / 16
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pixels))
    data = {}
    for part, index, count in (("training", order[:900], TRAINING), ("test", order[900:], TESTING)):
        shown = rng.choice(index, (count, 2))
        read = digits[shown]
        if part == "training":
            misread = rng.random(read.shape) < MISREAD
            read = np.where(misread, np.clip(read + rng.choice([-1, 1], read.shape), 0, CLASSES - 1), read)
        labels = np.zeros((count, CLASSES))
        np.add.at(labels, (np.arange(count)[:, None], read), 0.5)
        data[part] = np.hstack([pixels[shown[:, 0]], pixels[shown[:, 1]], np.ones((count, 1))]), labels
    return data


def train(data, cross_entropy, wasserstein, given):
    """Minimise the weighted losses by L-BFGS; return the model, the test figures of every step, and the effort."""
    pictures, labels = data["training"]
    shape = pictures.shape[1], CLASSES
    curve, seconds = [figures(np.zeros(shape), *data["test"])], []

    def objective(flat):
        start = time.perf_counter()
        W = flat.reshape(shape)
        log_a = log_softmax(pictures @ W, axis=1)
        a = np.exp(log_a)
        loss = 0.5 * DECAY * (W**2).sum() - cross_entropy * (labels * log_a).sum(axis=1).mean()
        by_scores = cross_entropy * (a - labels)
        if wasserstein:
            transport, by_a = wasserstein_loss(a, labels, given)
            loss += wasserstein * transport.mean()
            # Through the softmax: the explicit gradient has done the rest.
            by_scores += wasserstein * a * (by_a - (a * by_a).sum(axis=1, keepdims=True))
        gradient = pictures.T @ by_scores / len(pictures) + DECAY * W
        seconds.append(time.perf_counter() - start)
        return loss, gradient.ravel()

    found = minimize(
        objective,
        np.zeros(shape).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": given.steps},
        callback=lambda flat: curve.append(figures(flat.reshape(shape), *data["test"])),
    )
    return {"W": found.x.reshape(shape), "curve": np.array(curve), "evaluations": found.nfev, "seconds": sum(seconds)}


def wasserstein_loss(a, b, given):
    """Transport costs (B,) of all pairs in one call, and their gradient (B, n) by a."""
    result = cusink.sinkhorn(a, b, C, eps=given.eps, tol=given.tol, max_iter=10_000)
    return result.cost, cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=given.tol).a


def figures(W, pictures, labels):
    """By how many classes a unit of predicted mass is off; the share of shown digits among the two most probable."""
    a = softmax(pictures @ W, axis=1)
    off_by = np.abs(np.cumsum(a - labels, axis=1)).sum(axis=1).mean()
    best = np.argsort(-a, axis=1, kind="stable")[:, :2]
    found = np.take_along_axis(labels > 0, best, axis=1).sum() / (labels > 0).sum()
    return off_by, found


def draw(path, runs, data, eps):
    """Save the picture: both figures along the training, and what both models say about a few test pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), facecolor="white")
    grid = figure.add_gridspec(3, 10, left=0.065, right=0.985, top=0.83, bottom=0.075, hspace=0.62, wspace=1.2)
    names = ("by how many classes a unit of mass is off", "share of the shown digits found")
    for k, name in enumerate(names):
        axes = figure.add_subplot(grid[:2, 5 * k : 5 * k + 5])
        ends = []
        for loss, colour in COLOURS.items():
            curves = [run[loss]["curve"][:, k] for run in runs]
            for number, curve in enumerate(curves):
                axes.plot(curve, color=colour, linewidth=1.6, label=loss if number == 0 else None)
                axes.plot(len(curve) - 1, curve[-1], "o", color=colour, markersize=5)
            ends.append((np.mean([curve[-1] for curve in curves]), loss, colour))
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        axes.set_xlabel("step of L-BFGS", fontsize=9, color=GREY)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.tick_params(labelsize=8.5, colors=GREY)
        axes.legend(frameon=False, fontsize=10, loc="upper right" if k == 0 else "lower right")
        if k == 0:
            axes.set_ylim(1.2, 2.4)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    pictures, labels = data["test"]
    models = {loss: softmax(pictures @ runs[0][loss]["W"], axis=1) for loss in LOSSES}
    for k, row in enumerate(np.flatnonzero((labels > 0).sum(axis=1) == 2)[:5]):
        axes = figure.add_subplot(grid[2, 2 * k : 2 * k + 2])
        for shift, (loss, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
            axes.bar(np.arange(CLASSES) + shift, models[loss][row], width=0.4, color=colour)
        axes.set_ylim(0, 0.85)
        axes.set_xticks(range(CLASSES))
        axes.set_yticks([0, 0.5])
        axes.tick_params(labelsize=8, colors=GREY, length=2)
        for digit in np.flatnonzero(labels[row] > 0):
            axes.get_xticklabels()[digit].set(color=INK, fontweight="bold", fontsize=10)
            axes.axvspan(digit - 0.5, digit + 0.5, color="#ececec", zorder=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        inset = axes.inset_axes((0.24, 0.62, 0.52, 0.5))
        inset.imshow(np.hstack(pictures[row, :-1].reshape(2, 8, 8)), cmap="Greys", interpolation="nearest")
        inset.set_xticks([])
        inset.set_yticks([])
    lines = (
        (0.952, 15, INK, "Which two digits? Trained with a Wasserstein loss and with cross-entropy"),
        (
            *(0.917, 10, GREY),
            f"{TRAINING} training pictures, half of their labels misread by one; tested on {TESTING} pictures of other "
            f"digits with true labels; {len(runs)} draws.",
        ),
        (
            *(0.891, 10, GREY),
            f"Wasserstein: cost |i - j| between classes, eps = {eps:g} of the largest, plus"
            f" {SHARE_OF_CROSS_ENTROPY:g} of cross-entropy.",
        ),
        (
            0.012,
            8.5,
            GREY,
            "Below: the first test pictures and the probabilities predicted for them; true digits shaded.",
        ),
    )
    for y, size, colour, line in lines:
        figure.text(0.02, y, line, fontsize=size, color=colour)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
