#!/usr/bin/env python3
"""Sinkhorn's algorithm in a few lines of NumPy, beside cusink and the exact plan, in numbers and in a picture.

The few lines follow Luca Ambrogioni's post on Sinkhorn iterations: the cost is divided by its maximum, so that eps is a
share of it, and two vectors are scaled in turn until the marginals are right. Two distributions on a line are
transported with the squared distance as the cost. For each eps the plan is compared with that of cusink.sinkhorn; the
exact plan is a linear program, solved by SciPy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import cusink
from cusink.cli import InputError, Parser, positive

SAME = 1e-10  # how much of the mass may lie elsewhere in plans that are called the same
INK, GREY, SOURCE, TARGET = "#1b1b1b", "#6b6b6b", "#0072b2", "#d55e00"


def sinkhorn(C, a, b, eps, iterations):
    """Return the plan of the regularised problem and what it costs; `eps` is a share of the largest cost."""
    K = np.exp(-C / C.max() / eps)
    u = np.ones(len(a))
    for _ in range(iterations):
        v = b / (K.T @ u)
        u = a / (K @ v)
    P = u[:, None] * K * v
    return P, (P * C).sum()


def exact(C, a, b):
    """Return an optimal plan without regularisation: the linear program itself."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    rows, columns = kron(eye_array(len(a)), np.ones((1, len(b)))), kron(np.ones((1, len(a))), eye_array(len(b)))
    found = linprog(C.ravel(), A_eq=vstack([rows, columns]).tocsr(), b_eq=np.concatenate([a, b]), method="highs")
    return found.x.reshape(C.shape)


def main(arguments=None):
    """Compare, draw, and return the exit status: 1 if a plan differs from cusink's."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"basics: {error}", file=sys.stderr)
        return 2
    x = np.linspace(0, 1, given.bins)
    a, b = distributions(x)
    C = cusink.cost_matrix(x)
    best = exact(C, a, b)
    print(f"two distributions on {given.bins} bins, squared distance; {given.iterations} iterations\n")
    print(f"{'eps (of the largest cost)':<28}{'cost':>14}{'by cusink':>14}{'mass elsewhere':>18}")
    print(f"{'exact':<28}{(best * C).sum():>14.8f}")
    differ, plans = False, [("exact", 0.0, best)]
    for eps in given.eps:
        with np.errstate(all="ignore"):
            P, cost = sinkhorn(C, a, b, eps, given.iterations)
        result = cusink.sinkhorn(a, b, C / C.max(), eps=eps, tol=1e-11, max_iter=100_000)
        plans.append((f"eps = {eps:g}", eps, result.plan()))
        elsewhere = np.abs(P - result.plan()).sum() / 2
        differ |= elsewhere > SAME
        verdict = f"{elsewhere:18.1e}" if np.isfinite(cost) else "out of range".rjust(18)
        print(f"{eps:<28g}{cost:>14.8f}{result.cost * C.max():>14.8f}{verdict}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, x, a, b, C, plans)
    print(f"\nPicture: {given.output}")
    if differ:
        print(f"basics: plans differ by more than {SAME:g}. Raise --iterations", file=sys.stderr)
    return int(differ)


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--eps", type=positive, nargs="+", default=[0.004, 0.02, 0.1], help="shares of the largest cost"
    )
    parser.add_argument("--bins", type=int, default=100, help="of each distribution (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=5000, help="of the few lines (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/few_lines.png"), help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.bins < 2 or given.iterations < 1:
        raise InputError("--bins must be at least 2, and --iterations at least 1")
    return given


def distributions(x):
    """Return two distributions over positions from 0 to 1: a narrow and a wide hill, and two alike."""
    a = np.exp(-(((x - 0.25) / 0.07) ** 2) / 2) + 0.5 * np.exp(-(((x - 0.65) / 0.12) ** 2) / 2)
    b = 0.8 * np.exp(-(((x - 0.4) / 0.05) ** 2) / 2) + np.exp(-(((x - 0.8) / 0.06) ** 2) / 2)
    return a / a.sum(), b / b.sum()


def draw(path, x, a, b, C, plans):
    """Save the picture: both distributions, what the plans cost, and the plans as joint probabilities."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    from cusink import plot

    figure = Figure(figsize=(12.6, 7.4), facecolor="white")
    lines = (
        (0.952, 15, INK, "One transport plan, sharp and blurred: Sinkhorn's algorithm in a few lines of NumPy"),
        (0.918, 10, GREY, "Squared distance between positions; eps is a share of the largest cost."),
        (
            0.025,
            8.5,
            GREY,
            "Joint probabilities with their marginals, shaded by the square root, black for the largest of each plan.",
        ),
    )
    for y, size, colour, line in lines:
        figure.text(0.03, y, line, fontsize=size, color=colour)
    ax = figure.add_axes((0.05, 0.6, 0.42, 0.25))
    for weights, colour, name in ((a, SOURCE, "source"), (b, TARGET, "target")):
        ax.fill_between(x, weights, color=colour, alpha=0.25, linewidth=0)
        ax.plot(x, weights, color=colour, linewidth=1.8, label=name)
    ax.set_title("two distributions on a line", fontsize=11, color=INK, loc="left")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, None)
    ax.legend(frameon=False, loc="upper left")
    plain(ax, "position")

    ax = figure.add_axes((0.57, 0.6, 0.4, 0.25))
    shares = np.geomspace(1e-3, 1, 25)
    costs = [cusink.sinkhorn(a, b, C / C.max(), eps=eps, max_iter=10_000).cost * C.max() for eps in shares]
    ax.semilogx(shares, costs, color=INK, linewidth=1.6)
    for name, eps, P in plans[1:]:
        ax.plot(eps, (P * C).sum(), "o", color=INK, markersize=6)
        ax.annotate(name, (eps, (P * C).sum()), (-6, 4), textcoords="offset points", ha="right", fontsize=9, color=INK)
    best, product = (plans[0][2] * C).sum(), a @ C @ b
    for level, name in ((best, "exact"), (product, "source and target independent")):
        ax.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (5, 3)))
        x_text, ha = (shares[-1], "right") if name == "exact" else (shares[0], "left")
        ax.annotate(name, (x_text, level), (0, 3), textcoords="offset points", ha=ha, fontsize=9, color=GREY)
    ax.set_title("what the plan costs", fontsize=11, color=INK, loc="left")
    ax.set_ylim(0.9 * best, 1.12 * product)
    plain(ax, "eps")

    for k, (name, _, P) in enumerate(plans):
        ax = figure.add_axes(((k + 0.22) / len(plans), 0.09, 0.72 / len(plans), 0.72 / len(plans) * 12.6 / 7.4))
        plot.plan(P, x=x, y=x, ax=ax, norm=PowerNorm(0.5, vmin=0, vmax=P.max()))
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_xlabel(f"{name}, cost {(P * C).sum():.4f}", fontsize=10.5, color=INK)
        ax.set_ylabel("")  # the colours of the marginals say which side is which
    figure.savefig(path, dpi=100)


def plain(ax, label):
    """Axes without what distracts."""
    ax.set_xlabel(label, fontsize=9, color=GREY)
    ax.tick_params(labelsize=8.5, colors=GREY)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
