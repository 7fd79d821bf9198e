"""Colours, and the axes of a new figure."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Told apart in print and by colour-blind eyes (Okabe and Ito).
SOURCE, TARGET = "#0072b2", "#d55e00"
RIGHT, WRONG, INK, GREY = "#0072b2", "#d55e00", "#1b1b1b", "#6b6b6b"
COLOURS = (SOURCE, TARGET, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new figure of pyplot, which notebooks show, of a size in inches."""
    ax: Axes = plt.figure(figsize=(width, height), facecolor="white", layout="constrained").add_subplot()
    ax.set_prop_cycle(color=COLOURS)
    return ax


def quiet_ticks(ax: Axes) -> None:
    """Make the ticks small and grey: the data come first."""
    ax.tick_params(labelsize=8.5, colors=GREY, length=3)
