#!/usr/bin/env python3
"""Animate optimal transport: a disc of dots becomes the letters "OT" and goes back, each dot along a straight line.

A dot moves to the mean of the places to which the plan sends its mass. Dots keep the colour of where they began, which
shows who goes where: neighbours stay neighbours.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import cusink
from cusink.cli import InputError, Parser, positive

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "transport.gif"
EPS = 2e-4  # of a unit that is half the width of the picture, squared


def main(arguments=None):
    """Save the animation and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=positive, default=500, help="dots (default: %(default)s)")
    parser.add_argument(
        "--frames", type=positive, default=20, help="from one shape to the other (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="file to write (default: docs/images/transport.gif)"
    )
    try:
        given = parser.parse_args(arguments)
    except InputError as error:
        print(f"transport: {error}", file=sys.stderr)
        return 2
    source, target = disc(int(given.points)), letters("OT", int(given.points))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    draw(given.output, source, destinations(source, target), int(given.frames))
    print(given.output)
    return 0


def disc(n):
    """Return n points spread evenly over a disc (n, 2), by the golden angle."""
    k = np.arange(n) + 0.5
    angle = k * np.pi * (3 - 5**0.5)
    return 0.55 * np.sqrt(k / n)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def letters(text, n):
    """Return n points (n, 2), drawn at random with a fixed seed, inside the letters of a text."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    text_path = TextPath((0, 0), text, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    outlines = [Outline(polygon) for polygon in text_path.to_polygons()]  # those of holes too
    low, high = text_path.vertices.min(axis=0), text_path.vertices.max(axis=0)
    rng = np.random.default_rng(0)
    inside = np.empty((0, 2))
    while len(inside) < n:
        points = rng.uniform(low, high, (4 * n, 2))
        crossed = sum(outline.contains_points(points).astype(int) for outline in outlines)
        inside = np.concatenate([inside, points[crossed % 2 == 1]])
    return (inside[:n] - (low + high) / 2) * (1.7 / (high - low).max())


def destinations(source, target):
    """Return where each source point goes (n, 2): the mean of the targets under the plan."""
    result = cusink.sinkhorn(None, None, cusink.PointCloud(source, target), eps=EPS, tol=1e-3)
    P = result.plan()
    return (P @ target) / P.sum(axis=1, keepdims=True)


def draw(path, source, moved, frames):
    """Save a GIF that goes there and back, and rests at both ends."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    ax.axis("off")
    dots = ax.scatter(*source.T, s=22, c=source[:, 0], cmap="viridis", vmax=0.65, linewidths=0)
    there = (1 - np.cos(np.linspace(0, np.pi, frames))) / 2  # slowly off, slowly in
    rest = max(1, frames // 3)
    times = [*rest * [0.0], *there, *rest * [1.0], *there[::-1]]
    steps = FuncAnimation(figure, lambda time: dots.set_offsets((1 - time) * source + time * moved), times)
    steps.save(path, writer=PillowWriter(fps=15), dpi=70)


if __name__ == "__main__":
    sys.exit(main())
