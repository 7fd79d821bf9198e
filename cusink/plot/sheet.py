"""Contact sheets: images, each followed by its nearest neighbours."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cusink.calls import one_call
from cusink.plot import checks
from cusink.plot.style import GREY, INK, RIGHT, WRONG
from cusink.types import Array, HostArray

__all__ = [
    "contact_sheet",
]


INCH = 0.78  # side of an image
LABELS = -0.18  # where the words above the columns stand


class Words(NamedTuple):
    """Words around the images."""

    heading: str
    title: str | None
    subtitle: str | None
    footnote: str | None


class Layout(NamedTuple):
    """Places on the sheet, in a unit of one image's width; y runs down from the first row of images."""

    left: HostArray  # (1 + k,), of the columns: the query and its neighbours
    height: float  # of the tallest image
    step: float  # from a row to the next
    right: float
    top: float
    images_end: float
    bottom: float

    @classmethod
    def of(cls, rows: int, columns: int, height: float, distances: bool, words: Words) -> Self:
        """Lay out `rows` of a query and `columns` neighbours."""
        left = np.concatenate([[0.0], 1.55 + 1.16 * np.arange(columns)])
        step = height + 0.16 + 0.2 * distances
        top = -(0.55 + 0.55 * (words.title is not None) + 0.45 * (words.subtitle is not None))
        bottom = rows * step + 0.15 + 0.3 * (words.footnote is not None)
        return cls(left, height, step, float(left[-1]) + 1, top, rows * step, bottom)


@one_call
def contact_sheet(
    queries: Array,
    corpus: Array,
    indices: Array,
    *,
    distances: Array | None = None,
    query_labels: Sequence[Any] | None = None,
    corpus_labels: Sequence[Any] | None = None,
    shape: tuple[int, int] | None = None,
    title: str | None = None,
    subtitle: str | None = None,
    heading: str | None = None,
    footnote: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw images, each followed by its nearest neighbours.

    Parameters
    ----------
    queries : array, shape (Q, height, width), (Q, height, width, 3 or 4) or (Q, height * width)
        Grey images, where 0 is white and the largest value of each is black; or colours from 0 to 1.
    corpus : array, shape (D, height, width), (D, height, width, 3 or 4) or (D, height * width)
        The images that were searched.
    indices : array of int, shape (Q, k)
        The images of `corpus` nearest to each query, in order: the second value of `cusink.nearest`.
    distances : array, shape (Q, k), optional
        Numbers written under each image.
    query_labels : sequence, length Q, optional
        The class of each query.
    corpus_labels : sequence, length D, optional
        The class of each image of `corpus`. Given with `query_labels`, each image is marked: with a check mark if its
        class is that of the query, with a cross and its own label if not.
    shape : (height, width), optional
        Size of images that are given as rows of numbers; a square by default.
    title, subtitle : str, optional
        Words above the images.
    heading : str, optional
        Words above the nearest images.
    footnote : str, optional
        Words below the images.
    ax : matplotlib Axes, optional
        Where to draw, in a unit of one image's width. By default a figure of a fitting size.

    Returns
    -------
    matplotlib Axes
        The axes of the images.

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
    checks.axes(ax)
    queries, corpus = checks.images("queries", queries, shape), checks.images("corpus", corpus, shape)
    indices, distances = checks.neighbours(indices, distances, len(queries), len(corpus))
    query_labels = checks.labels("query_labels", query_labels, len(queries))
    corpus_labels = checks.labels("corpus_labels", corpus_labels, len(corpus))

    heading = f"nearest of {len(corpus)} images, in order \N{RIGHTWARDS ARROW}" if heading is None else heading
    words = Words(heading, title, subtitle, footnote)
    height = max(images.shape[1] / images.shape[2] for images in (queries, corpus))
    layout = Layout.of(len(indices), indices.shape[1], height, distances is not None, words)
    ax = _new_axes(layout) if ax is None else ax
    for row, y in enumerate(layout.step * np.arange(len(indices))):
        _image(ax, 0, y, queries[row], INK, 1.8)
        for column, k in enumerate(indices[row]):
            x = layout.left[column + 1]
            if query_labels is None or corpus_labels is None:
                _image(ax, x, y, corpus[k], GREY, 0.8)
            else:
                _judged_image(ax, x, y, corpus[k], corpus_labels[k], bool(query_labels[row] == corpus_labels[k]))
            if distances is not None:
                note = f"{distances[row, column]:.3g}"
                ax.text(x + 0.5, y + height + 0.06, note, fontsize=7.5, color=GREY, ha="center", va="top")
    _write(ax, words, layout)
    ax.set_axis_off()
    ax.set_xlim(-0.3, layout.right + 0.3)
    ax.set_ylim(layout.bottom, layout.top)
    ax.set_aspect("equal")
    return ax


def _new_axes(layout: Layout) -> Axes:
    """Return axes that fill a new figure of a fitting size."""
    size = INCH * (layout.right + 0.6), INCH * (layout.bottom - layout.top)
    ax: Axes = plt.figure(figsize=size, facecolor="white").add_axes((0, 0, 1, 1))
    return ax


def _image(ax: Axes, x: float, y: float, image: HostArray, colour: str, line: float) -> None:
    """Draw an image with its upper left corner at (x, y), one wide, in a frame."""
    height = image.shape[0] / image.shape[1]
    ax.imshow(image, cmap="Greys", vmin=0, vmax=1, extent=(x, x + 1, y + height, y), interpolation="nearest")
    ax.add_patch(Rectangle((x, y), 1, height, fill=False, edgecolor=colour, linewidth=line))


def _judged_image(ax: Axes, x: float, y: float, image: HostArray, label: object, same: bool) -> None:
    """Draw an image with a mark: whether its class is the `same` as that of the query, and if not its label."""
    colour, line = (RIGHT, 1.1) if same else (WRONG, 2.6)
    _image(ax, x, y, image, colour, line)
    note = "\N{CHECK MARK}" if same else f"\N{MULTIPLICATION X} {label}"
    box = {"boxstyle": "square,pad=0.16", "facecolor": colour, "edgecolor": "none"}
    corner = x + 0.97, y + image.shape[0] / image.shape[1] - 0.03
    ax.text(*corner, note, color="white", fontsize=7, ha="right", va="bottom", bbox=box, zorder=3)


def _write(ax: Axes, words: Words, layout: Layout) -> None:
    """Write the words above and below the images."""
    ax.text(0.5, LABELS, "query", fontsize=10, color=INK, ha="center")
    ax.text(layout.left[1], LABELS, words.heading, fontsize=10, color=INK)
    if words.subtitle is not None:
        ax.text(0, -0.7, words.subtitle, fontsize=10.5, color=GREY)
    if words.title is not None:
        ax.text(0, -0.7 - 0.38 * (words.subtitle is not None), words.title, fontsize=15, color=INK)
    if words.footnote is not None:
        ax.text(0, layout.images_end + 0.18, words.footnote, fontsize=8.5, color=GREY)
