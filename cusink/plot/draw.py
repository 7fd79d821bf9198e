"""Pictures of plans, transport, retrieval and convergence; ``pip install "cusink[plot]"``.

Every function draws into the axes `ax`, or into those of a new figure, and returns them: ``ax.figure.savefig(...)``. A
new figure belongs to no window and needs no closing; to see it in one, pass ``ax=matplotlib.pyplot.gca()``. Arrays may
be NumPy's or CuPy's.
"""

import numpy as np

from cusink.plot import checks

__all__ = [
    "contact_sheet",
    "convergence",
    "plan",
    "transport_lines",
]


try:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ImportError('cusink.plot needs matplotlib: pip install "cusink[plot]"') from error

# Told apart in print and by colour-blind eyes (Okabe and Ito).
SOURCE, TARGET = "#0072b2", "#d55e00"
RIGHT, WRONG, INK, GREY = "#0072b2", "#d55e00", "#1b1b1b", "#6b6b6b"
COLOURS = (SOURCE, TARGET, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FEW = 12  # curves that are drawn one by one
INCH = 0.78  # side of a tile of a contact sheet


def plan(P, *, x=None, y=None, ax=None, cmap="Greys", **image):
    """Draw a transport plan as a heat map, with its marginals beside it.

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
        Colours from nothing to much.
    **image
        `vmax`, `norm` and the other options of `matplotlib.axes.Axes.pcolormesh`.

    Returns
    -------
    matplotlib Axes
        Those of the heat map; its `child_axes` are the marginals, of the source and of the target.

    Raises
    ------
    TypeError
        The result of a batch.
    ValueError
        A plan that is no matrix of finite numbers, or positions that do not fit it.

    Notes
    -----
    Laid out as the array is printed: sources run down, targets to the right, and each marginal is a sum of `P`.

    Examples
    --------
    >>> import cusink, cusink.plot
    >>> result = cusink.sinkhorn([0.5, 0.5], [0.25, 0.75], [[0.0, 1.0], [1.0, 0.0]], eps=0.1)
    >>> ax = cusink.plot.plan(result)
    >>> ax.figure.savefig("plan.png")  # doctest: +SKIP
    """
    P = checks.plan(P)
    positions = [checks.positions(name, p, count) for name, p, count in (("x", x, P.shape[0]), ("y", y, P.shape[1]))]
    ax = _new_axes(5, 5) if ax is None else ax
    edges = [_edges(p) for p in positions]
    ax.pcolormesh(
        edges[1], edges[0], P, cmap=cmap, rasterized=True, **({"vmin": 0} | image if "norm" not in image else image)
    )
    ax.set_xlim(edges[1][0], edges[1][-1])
    ax.set_ylim(edges[0][-1], edges[0][0])
    ax.yaxis.tick_right()
    _quiet(ax)
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


def transport_lines(P, x, y, *, ax=None, least=0.01, size=36, color=GREY, linewidth=1.6):
    """Draw a transport plan between points of the plane as a web of lines.

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
        Area in square points of the dot of an average weight; each dot's own is in proportion to its weight. 0 draws
        lines alone.
    color : colour
        Of the lines.
    linewidth : float
        Of a line that carries the mass of a whole average source; one of a tenth is a tenth as wide and fainter.

    Returns
    -------
    matplotlib Axes

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
    P = checks.plan(P)
    x, y = (checks.points(name, p, count) for name, p, count in (("x", x, P.shape[0]), ("y", y, P.shape[1])))
    ax = _new_axes(5, 5) if ax is None else ax
    a, b = P.sum(axis=1), P.sum(axis=0)
    i, j = np.nonzero((P >= least * a[:, None]) & (P > 0))
    carried = np.minimum(P[i, j] / max(a.mean(), np.finfo(float).tiny), 1)
    order = np.argsort(carried)  # what carries most comes on top
    i, j, carried = i[order], j[order], carried[order]
    # Width falls with the mass, and below what a screen can show opacity falls in its place.
    width = np.maximum(linewidth * carried, 0.25 * linewidth)
    colours = np.tile(to_rgba(color), (len(carried), 1))
    colours[:, 3] *= np.clip(linewidth * carried / width, 0.06, 1) ** 0.7
    lines = LineCollection(np.stack([x[i], y[j]], axis=1), linewidths=width, colors=colours, zorder=1)
    lines.set_capstyle("round")
    ax.add_collection(lines)
    if size > 0:
        for points, weights, colour in ((x, a, SOURCE), (y, b, TARGET)):
            area = size * weights / max(weights.mean(), np.finfo(float).tiny)
            ax.scatter(*points.T, area, color=colour, edgecolors="white", linewidths=0.5, zorder=2)
    ax.set_aspect("equal")
    ax.autoscale_view()
    _quiet(ax)
    return ax


def contact_sheet(
    queries,
    corpus,
    indices,
    *,
    distances=None,
    query_labels=None,
    corpus_labels=None,
    shape=None,
    title=None,
    subtitle=None,
    heading=None,
    footnote=None,
    ax=None,
):
    """Draw images and, beside each, those nearest to it.

    Parameters
    ----------
    queries : array, shape (Q, height, width), (Q, height, width, 3 or 4) or (Q, height * width)
        Grey images, where 0 is white and the largest value of each is black; or colours from 0 to 1.
    corpus : array, shape (D, height, width), (D, height, width, 3 or 4) or (D, height * width)
        The images that were searched.
    indices : array of int, shape (Q, k)
        For each query, which of `corpus` are nearest, in order: the second value of `cusink.nearest`.
    distances : array, shape (Q, k), optional
        Written under each image.
    query_labels : sequence, length Q, optional
        What each query shows.
    corpus_labels : sequence, length D, optional
        What each image of `corpus` shows. Given with `query_labels`, each image is marked: with a check mark if it
        shows what its query shows, with a cross and its own label if not.
    shape : (height, width), optional
        Of images given as rows of numbers; a square by default.
    title, subtitle, footnote : str, optional
        Words above and below.
    heading : str, optional
        Words above the nearest images.
    ax : matplotlib Axes, optional
        Where to draw, in a unit of one image's width. By default a figure of a fitting size.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        Arrays whose shapes do not fit, or indices outside of the corpus.

    Examples
    --------
    >>> import numpy as np, cusink, cusink.plot
    >>> A, cells = np.eye(9), np.indices((3, 3)).reshape(2, -1).T
    >>> D = cusink.distance_matrix(A[:2], A, cusink.cost_matrix(cells), eps=0.1)
    >>> nearest = D.argsort(axis=1)[:, :4]
    >>> ax = cusink.plot.contact_sheet(A[:2], A, nearest, distances=np.take_along_axis(D, nearest, axis=1))
    """
    queries, corpus = checks.images("queries", queries, shape), checks.images("corpus", corpus, shape)
    indices, distances = checks.neighbours(indices, distances, len(queries), len(corpus))
    query_labels = checks.labels("query_labels", query_labels, len(queries))
    corpus_labels = checks.labels("corpus_labels", corpus_labels, len(corpus))

    rows, columns = indices.shape
    tallest = max(images.shape[1] / images.shape[2] for images in (queries, corpus))
    step = tallest + 0.16 + 0.2 * (distances is not None)
    left = np.concatenate([[0.0], 1.55 + 1.16 * np.arange(columns)])
    right, bottom = left[-1] + 1, rows * step
    head = 0.55 + 0.55 * (title is not None) + 0.45 * (subtitle is not None)
    foot = 0.15 + 0.3 * (footnote is not None)
    if ax is None:
        size = INCH * (right + 0.6), INCH * (bottom + head + foot)
        ax = Figure(figsize=size, facecolor="white").add_axes((0, 0, 1, 1))
    for row, y in enumerate(step * np.arange(rows)):
        _tile(ax, 0, y, queries[row], INK, 1.8)
        for column, k in enumerate(indices[row]):
            x = left[column + 1]
            colour, line = GREY, 0.8
            if query_labels is not None and corpus_labels is not None:
                same = bool(query_labels[row] == corpus_labels[k])
                colour, line = (RIGHT, 1.1) if same else (WRONG, 2.6)
                note = "\N{CHECK MARK}" if same else f"\N{MULTIPLICATION X} {corpus_labels[k]}"
                box = {"boxstyle": "square,pad=0.16", "facecolor": colour, "edgecolor": "none"}
                corner = x + 0.97, y + corpus.shape[1] / corpus.shape[2] - 0.03
                ax.text(*corner, note, color="white", fontsize=7, ha="right", va="bottom", bbox=box, zorder=3)
            _tile(ax, x, y, corpus[k], colour, line)
            if distances is not None:
                ax.text(
                    x + 0.5,
                    y + tallest + 0.06,
                    f"{distances[row, column]:.3g}",
                    fontsize=7.5,
                    color=GREY,
                    ha="center",
                    va="top",
                )

    heading = f"nearest of {len(corpus)} images, in order \N{RIGHTWARDS ARROW}" if heading is None else heading
    ax.text(0.5, -0.18, "query", fontsize=10, color=INK, ha="center")
    ax.text(left[1], -0.18, heading, fontsize=10, color=INK)
    if subtitle is not None:
        ax.text(0, -0.7, subtitle, fontsize=10.5, color=GREY)
    if title is not None:
        ax.text(0, -0.7 - 0.38 * (subtitle is not None), title, fontsize=15, color=INK)
    if footnote is not None:
        ax.text(0, bottom + 0.18, footnote, fontsize=8.5, color=GREY)
    ax.set_axis_off()
    ax.set_xlim(-0.3, right + 0.3)
    ax.set_ylim(bottom + foot, -head)
    ax.set_aspect("equal")
    return ax


def convergence(history, *, tol=None, label=None, color=None, ax=None):
    """Draw how the marginal error falls with the iterations.

    Parameters
    ----------
    history : sequence of (iteration, error)
        What `cusink.sinkhorn` passes to its `callback`; `error` is a number or an array of one for each problem.
    tol : float, optional
        The tolerance, drawn as a line.
    label : str, optional
        Name of the curve, shown in a legend; further calls with the same `ax` add curves.
    color : colour, optional
        Of the curve; by default the next one of the axes.
    ax : matplotlib Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError
        An empty history, or one with errors of different numbers of problems.

    Notes
    -----
    Up to twelve problems are a curve each; of more, the median is drawn as a curve, with shades that hold half of the
    problems and all of them. A problem that has stopped keeps its last error.

    Examples
    --------
    >>> import numpy as np, cusink, cusink.plot
    >>> history = []
    >>> C = cusink.cost_matrix(np.linspace(0, 1, 20))
    >>> a, b = np.random.default_rng(0).dirichlet(np.ones(20), size=(2, 5))
    >>> result = cusink.sinkhorn(a, b, C, eps=0.01, callback=lambda *check: history.append(check))
    >>> ax = cusink.plot.convergence(history, tol=1e-6)
    """
    iterations, errors = checks.history(history)
    ax = _new_axes(6, 4) if ax is None else ax
    if color is None:
        color = ax.plot([], [])[0].get_color()
    if errors.shape[1] <= FEW:
        curves = ax.plot(iterations, errors, color=color, linewidth=1.3)
    else:
        low, quarter, median, three_quarters, high = np.nanquantile(errors, (0, 0.25, 0.5, 0.75, 1), axis=1)
        ax.fill_between(iterations, low, high, color=color, alpha=0.15, linewidth=0)
        ax.fill_between(iterations, quarter, three_quarters, color=color, alpha=0.25, linewidth=0)
        curves = ax.plot(iterations, median, color=color, linewidth=1.6)
    curves[0].set_label(label)
    if tol is not None:
        ax.axhline(tol, color=GREY, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
        note = {"color": GREY, "fontsize": 8.5, "va": "bottom"}
        ax.text(0.01, tol, f"tol = {tol:g}", transform=ax.get_yaxis_transform(), **note)
    ax.set_yscale("log", nonpositive="clip")
    ax.set_xlabel("iteration", color=GREY)
    ax.set_ylabel("marginal error", color=GREY)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _quiet(ax)
    if label is not None:
        ax.legend(frameon=False)
    return ax


def _edges(positions):
    """Edges (count + 1,) of the bins around positions: halfway between neighbours."""
    if len(positions) == 1:
        return positions[0] + np.array([-0.5, 0.5])
    half = (positions[1:] - positions[:-1]) / 2
    return np.concatenate([positions[:1] - half[:1], positions[:-1] + half, positions[-1:] + half[-1:]])


def _tile(ax, x, y, image, colour, line):
    """Draw an image with its upper left corner at (x, y), one wide, in a frame."""
    height = image.shape[0] / image.shape[1]
    ax.imshow(image, cmap="Greys", vmin=0, vmax=1, extent=(x, x + 1, y + height, y), interpolation="nearest")
    ax.add_patch(Rectangle((x, y), 1, height, fill=False, edgecolor=colour, linewidth=line))


def _new_axes(width, height):
    """Axes of a new figure, in inches."""
    ax = Figure(figsize=(width, height), facecolor="white", layout="constrained").add_subplot()
    ax.set_prop_cycle(color=COLOURS)
    return ax


def _quiet(ax):
    """Small grey ticks: the data come first."""
    ax.tick_params(labelsize=8.5, colors=GREY, length=3)
