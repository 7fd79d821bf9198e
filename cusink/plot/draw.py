"""Pictures of a plan, as a heat map and as lines, and of convergence."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, to_rgba
from matplotlib.patches import Patch

from cusink.calls import one_call
from cusink.plot import checks
from cusink.plot.style import GREY, SOURCE, TARGET, new_axes, quiet_ticks
from cusink.solver.result import SinkhornResult
from cusink.types import Array, HostArray

__all__ = [
    "convergence",
    "plan",
    "transport_lines",
]


MOST_CURVES = 12  # curves that are drawn one by one
SHADES = {"all problems": 0.15, "half of the problems": 0.25}  # and their opacities, from below


@one_call
def plan(
    P: Array | SinkhornResult,
    *,
    x: Array | None = None,
    y: Array | None = None,
    ax: Axes | None = None,
    cmap: str | Colormap = "Greys",
    **image: Any,
) -> Axes:
    """Draw a transport plan as a heat map between its marginals.

    Parameters
    ----------
    P : array, shape (n, m), or SinkhornResult
        The plan, or the result of one problem.
    x : array, shape (n,), optional
        Increasing positions of the source bins on a line; their numbers by default.
    y : array, shape (m,), optional
        Increasing positions of the target bins.
    ax : matplotlib Axes, optional
        Where to draw; the marginals stand outside of it, on the left and on top.
    cmap : str or Colormap
        Colours from no mass to the largest.
    **image : dict
        Other options of `matplotlib.axes.Axes.pcolormesh`, such as `vmax` and `norm`.

    Returns
    -------
    matplotlib Axes
        The axes of the heat map; their `child_axes` show the marginals, of the source and of the target.

    Raises
    ------
    TypeError
        The result of a batch.
    ValueError
        A plan that is no matrix of finite numbers, or positions that do not fit it.

    Notes
    -----
    The picture is laid out as the array is printed: sources run down, targets to the right. Each marginal is a sum of
    `P`.

    Examples
    --------
    >>> import cusink, cusink.plot
    >>> result = cusink.sinkhorn([0.5, 0.5], [0.25, 0.75], [[0.0, 1.0], [1.0, 0.0]], eps=0.1)
    >>> ax = cusink.plot.plan(result)
    >>> ax.figure.savefig("plan.png")  # doctest: +SKIP
    """
    checks.axes(ax)
    P = checks.plan(P)
    positions = [checks.positions(name, p, count) for name, p, count in (("x", x, P.shape[0]), ("y", y, P.shape[1]))]
    ax = new_axes(5, 5) if ax is None else ax
    edges = [_edges(p) for p in positions]
    ax.pcolormesh(
        edges[1], edges[0], P, cmap=cmap, rasterized=True, **({"vmin": 0} | image if "norm" not in image else image)
    )
    ax.set_xlim(edges[1][0], edges[1][-1])
    ax.set_ylim(edges[0][-1], edges[0][0])
    ax.yaxis.tick_right()
    ax.yaxis.set_label_position("right")
    ax.set_xlabel("target", color=TARGET)
    ax.set_ylabel("source", color=SOURCE)
    quiet_ticks(ax)
    for spine in ax.spines.values():
        spine.set(color=GREY, linewidth=0.6)

    left = ax.inset_axes((-0.23, 0, 0.2, 1), sharey=ax)
    left.fill_betweenx(np.repeat(edges[0], 2)[1:-1], np.repeat(P.sum(axis=1), 2), color=SOURCE, linewidth=0)
    left.set_xlim(left.get_xlim()[1], 0)
    top = ax.inset_axes((0, 1.03, 1, 0.2), sharex=ax)
    top.fill_between(np.repeat(edges[1], 2)[1:-1], np.repeat(P.sum(axis=0), 2), color=TARGET, linewidth=0)
    top.set_ylim(0, None)
    for side in (left, top):
        side.set_axis_off()
    return ax


@one_call
def transport_lines(
    P: Array | SinkhornResult,
    x: Array,
    y: Array,
    *,
    ax: Axes | None = None,
    least: float = 0.01,
    size: float = 36,
    color: Any = GREY,
    linewidth: float = 1.6,
) -> Axes:
    """Draw a transport plan between points of the plane as lines.

    Parameters
    ----------
    P : array, shape (n, m), or SinkhornResult
        The plan, or the result of one problem.
    x : array, shape (n, 2)
        Source points.
    y : array, shape (m, 2)
        Target points.
    ax : matplotlib Axes, optional
        Where to draw.
    least : float
        A pair is left out if it carries less than this share of the mass of its source.
    size : float
        Area in square points of the dot of an average weight; the area of a dot is in proportion to its weight. 0
        draws lines alone. The dots are labelled "source" and "target": `ax.legend()` says which is which.
    color : colour
        Colour of the lines.
    linewidth : float
        Width of a line that carries the mass of a whole average source; a line of a tenth of that mass is a tenth as
        wide, and fainter.

    Returns
    -------
    matplotlib Axes
        The axes of the lines.

    Raises
    ------
    TypeError
        The result of a batch.
    ValueError
        A plan that is no matrix of finite numbers, or points that do not fit it.

    Examples
    --------
    >>> import cusink, cusink.plot
    >>> x, y = [[0.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 2.0]]
    >>> result = cusink.sinkhorn(None, None, cusink.cost_matrix(x, y), eps=0.1)
    >>> ax = cusink.plot.transport_lines(result, x, y)
    """
    checks.axes(ax)
    P = checks.plan(P)
    x, y = (checks.points(name, p, count) for name, p, count in (("x", x, P.shape[0]), ("y", y, P.shape[1])))
    least, size = checks.number("least", least), checks.number("size", size)
    linewidth = checks.number("linewidth", linewidth, zero=False)
    if P.min() < 0:
        raise ValueError(f"'P' must be non-negative, masses that are moved; got {P.min():g}")
    ax = new_axes(5, 5) if ax is None else ax
    a, b = P.sum(axis=1), P.sum(axis=0)
    i, j = np.nonzero((P >= least * a[:, None]) & (P > 0))
    carried = np.minimum(P[i, j] / max(a.mean(), np.finfo(float).tiny), 1)
    order = np.argsort(carried)  # the pairs that carry most come on top
    i, j, carried = i[order], j[order], carried[order]
    # Width falls with the mass; below the width that a screen can show, opacity falls instead.
    width = np.maximum(linewidth * carried, 0.25 * linewidth)
    colours = np.tile(to_rgba(color), (len(carried), 1))
    colours[:, 3] *= np.clip(linewidth * carried / width, 0.06, 1) ** 0.7
    lines = LineCollection(list(np.stack([x[i], y[j]], axis=1)), linewidths=width, colors=colours, zorder=1)
    lines.set_capstyle("round")
    ax.add_collection(lines)
    if size > 0:
        for name, points, weights, colour in (("source", x, a, SOURCE), ("target", y, b, TARGET)):
            area = size * weights / max(weights.mean(), np.finfo(float).tiny)
            dots = ax.scatter(points[:, 0], points[:, 1], area, color=colour, edgecolors="white", zorder=2)
            dots.set(linewidths=0.5, label=name)
    ax.set_aspect("equal")
    ax.autoscale_view()
    quiet_ticks(ax)
    return ax


@one_call
def convergence(
    history: Iterable[tuple[int, Array]],
    *,
    tol: float | None = None,
    label: str | None = None,
    color: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how the marginal error falls with the iterations.

    Parameters
    ----------
    history : sequence of (iteration, error)
        The arguments that `cusink.sinkhorn` passes to its `callback`; `error` is a number, or an array with one for
        each problem.
    tol : float, optional
        The tolerance, drawn as a line; once, however often it is given for the same `ax`.
    label : str, optional
        Name of the curve, shown in a legend; further calls with the same `ax` add curves.
    color : colour, optional
        Colour of the curve; by default the next one of the axes.
    ax : matplotlib Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib Axes
        The axes of the curves.

    Raises
    ------
    ValueError
        An empty history, or one with errors of different numbers of problems.

    Notes
    -----
    Up to twelve problems are drawn as a curve each; of more, the median is drawn as a curve, over shades that hold half
    of the problems and all of them, which the legend names. A problem that has stopped keeps its last error.

    Examples
    --------
    >>> import numpy as np, cusink, cusink.plot
    >>> history = []
    >>> C = cusink.cost_matrix(np.linspace(0, 1, 20))
    >>> a, b = np.random.default_rng(0).dirichlet(np.ones(20), size=(2, 5))
    >>> result = cusink.sinkhorn(a, b, C, eps=0.01, callback=lambda *check: history.append(check))
    >>> ax = cusink.plot.convergence(history, tol=1e-6)
    """
    checks.axes(ax)
    tol = None if tol is None else checks.number("tol", tol, zero=False)
    iterations, errors = checks.history(history)
    ax = new_axes(6, 4) if ax is None else ax
    if color is None:
        color = ax.plot([], [])[0].get_color()
    if errors.shape[1] <= MOST_CURVES:
        curves = ax.plot(iterations, errors, color=color, linewidth=1.3)
    else:
        low, quarter, median, three_quarters, high = np.nanquantile(errors, (0, 0.25, 0.5, 0.75, 1), axis=1)
        for edges, (name, alpha) in zip(((low, high), (quarter, three_quarters)), SHADES.items(), strict=True):
            ax.fill_between(iterations, *edges, color=color, alpha=alpha, linewidth=0, gid=name)
        curves = ax.plot(iterations, median, color=color, linewidth=1.6)
    curves[0].set_label(label)
    name = "" if tol is None else f"tol = {tol:g}"
    if tol is not None and name not in [text.get_text() for text in ax.texts]:  # one line for all curves
        ax.axhline(tol, color=GREY, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        place = ax.get_yaxis_transform()
        ax.text(0.01, tol, name, transform=place, color=GREY, fontsize=8.5, va="bottom")
    ax.set_yscale("log", nonpositive="clip")
    ax.set_xlabel("iteration", color=GREY)
    ax.set_ylabel("marginal error", color=GREY)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    quiet_ticks(ax)
    _legend(ax)
    return ax


def _legend(ax: Axes) -> None:
    """Name the curves that have a label, and the shades, which all curves share, in grey."""
    handles: list[Artist] = ax.get_legend_handles_labels()[0]
    drawn = {shade.get_gid() for shade in ax.collections}
    if drawn.intersection(SHADES):
        all_of_them, middle = SHADES.values()
        seen = (all_of_them, 1 - (1 - all_of_them) * (1 - middle))  # the middle lies over the other
        handles += [Patch(color=GREY, alpha=a, linewidth=0, label=n) for n, a in zip(SHADES, seen, strict=True)]
    if handles:
        ax.legend(handles=handles, frameon=False)


def _edges(positions: HostArray) -> HostArray:
    """Return the edges (count + 1,) of the bins around positions: halfway between neighbours."""
    if len(positions) == 1:
        return np.concatenate([positions - 0.5, positions + 0.5])
    half = np.diff(positions) / 2
    return np.concatenate([positions[:1] - half[:1], positions[:-1] + half, positions[-1:] + half[-1:]])
