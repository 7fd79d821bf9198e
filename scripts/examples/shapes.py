#!/usr/bin/env python3
"""Barycenters between four shapes: mixtures that move ink instead of fading it, blurred and debiased.

A ring, a star, a heart and a cross stand in the corners of a square. Each place in it is a mixture of the four with
bilinear weights: as a debiased Wasserstein barycenter, as one with the blur of the regularisation, and as the average
of the pixels. All barycenters of a kind are one call of cusink.barycenter on a cusink.Grid.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import cusink
from cusink.cli import InputError, Parser, positive

INK, GREY = "#1b1b1b", "#6b6b6b"


def main(arguments=None):
    """Compute, draw, and return the exit status."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"shapes: {error}", file=sys.stderr)
        return 2
    A, weights = shapes(given.pixels), bilinear(given.steps)
    grid = cusink.Grid((given.pixels, given.pixels), spacing=1 / given.pixels)
    print(f"{len(weights)} barycenters of 4 shapes on {given.pixels} x {given.pixels} pixels, eps = {given.eps:.2g}\n")
    print(f"{'':<12}{'seconds':>9}{'iterations':>12}{'error':>10}{'sharpness':>12}")
    pictures = {"average": weights @ A}
    for name, debiased in (("barycenter", False), ("debiased", True)):
        start = time.perf_counter()
        result = cusink.barycenter(A, grid, weights, eps=given.eps, debiased=debiased, tol=1e-3, max_iter=3000)
        seconds = time.perf_counter() - start
        pictures[name] = result.barycenter
        row = f"{name:<12}{seconds:>9.2f}{result.n_iter.max():>12}{result.error.max():>10.1e}"
        print(row + f"{sharpness(result.barycenter) / sharpness(A):>12.2f}")
    print(f"{'average':<12}{'':>31}{sharpness(pictures['average']) / sharpness(A):>12.2f}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, pictures, given)
    print(f"\nPicture: {given.output}")
    return 0


def parse(arguments):
    """Return the arguments, checked."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--eps",
        type=positive,
        help="the picture has a side of 1, costs are squared (default: the square of a pixel's side)",
    )
    parser.add_argument("--pixels", type=int, default=48, help="on a side of a shape (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="mixtures on a side of the square (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/barycenters.png"), help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.pixels < 8 or given.steps < 2:
        raise InputError("--pixels must be at least 8, and --steps at least 2")
    if given.eps is None:  # of a larger one debiased barycenters have stripes, as wide as its square root
        given.eps = 1 / given.pixels**2
    return given


def shapes(pixels):
    """Return the histograms (4, pixels * pixels) of a ring, a star, a heart and a cross, of sum 1."""
    t = (np.arange(pixels) + 0.5) / pixels * 2.6 - 1.3
    y, x = np.meshgrid(-t, t, indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    ring = (radius > 0.55) & (radius < 0.95)
    sector = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # from the nearest of five points
    star = radius * np.cos(sector - np.pi / 5 * 2) < 0.38
    star &= radius < 1.1
    heart = (x**2 + (1.15 * y + 0.1 - 0.75 * np.sqrt(np.abs(x))) ** 2) < 0.85
    cross = (np.minimum(np.abs(x), np.abs(y)) < 0.24) & (np.maximum(np.abs(x), np.abs(y)) < 1)
    A = np.stack([shape.ravel() for shape in (ring, star, heart, cross)]).astype(float)
    return A / A.sum(axis=1, keepdims=True)


def bilinear(steps):
    """Return the weights (steps * steps, 4) of the corners, row by row of the square."""
    t = np.linspace(0, 1, steps)
    down, across = (x.ravel() for x in np.meshgrid(t, t, indexing="ij"))
    return np.stack([(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across], axis=1)


def sharpness(histograms):
    """Return the mean over histograms of the sum of squares: how little ink is spread."""
    return float((histograms**2).sum(axis=1).mean())


def draw(path, pictures, given):
    """Save the picture: three squares of mixtures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.2, 5.2), facecolor="white")
    lines = (
        (0.94, 15, INK, "Between four shapes: moving ink instead of fading it"),
        (
            0.893,
            10,
            GREY,
            f"Bilinear weights of the corners; Wasserstein barycenters with eps = {given.eps:.2g}, side 1.",
        ),
    )
    for y, size, colour, line in lines:
        figure.text(0.02, y, line, fontsize=size, color=colour)
    titles = {
        "barycenter": "barycenters with the blur of eps",
        "debiased": "barycenters, debiased: without that blur",
        "average": "averages of the pixels",
    }
    side = 0.3
    for k, (name, title) in enumerate(titles.items()):
        ax = figure.add_axes((0.02 + k * (side + 0.03), 0.035, side, side * 13.2 / 5.2))
        tiles = pictures[name].reshape(given.steps, given.steps, given.pixels, given.pixels)
        tiles = tiles / (tiles**2).sum(axis=(2, 3), keepdims=True)  # black is what ink is on the mean
        ax.imshow(tiles.swapaxes(1, 2).reshape(given.steps * given.pixels, -1), cmap="Greys", vmin=0, vmax=1)
        ax.set_title(title, fontsize=11, color=INK, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_color("#d0d0d0")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
