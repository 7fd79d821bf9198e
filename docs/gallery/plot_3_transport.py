"""
Mass on its way
===============

Each pair of points that the plan joins carries its mass along a straight line. At time 0 it is the source, at time 1
the target. Between them nothing fades out or in.

.. image:: /images/transport.gif
   :alt: A disc of dots becomes the letters OT and goes back; dots that are neighbours stay neighbours.
   :width: 280

``scripts/examples/transport.py`` makes this animation. The program below shows the same for a ring and two clusters, as
pictures at five times.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

import cusink
from cusink.plot import transport_lines

rng = np.random.default_rng(1)
angle = rng.uniform(0, 2 * np.pi, 220)
source = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.06 * rng.normal(size=(220, 2))
target = np.concatenate(
    [[-0.6, 0.7] + 0.13 * rng.normal(size=(110, 2)), [0.7, -0.5] + 0.13 * rng.normal(size=(110, 2))]
)
result = cusink.sinkhorn(None, None, cusink.PointCloud(source, target), eps=0.01)
P = result.plan()

# A circle of colours for the angles, none of them pale.
circle = LinearSegmentedColormap.from_list("circle", ["#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#0072b2"])
figure, axes = plt.subplots(1, 5, figsize=(13, 3), sharex=True, sharey=True, layout="constrained")
i, j = np.nonzero(P > 0.02 / len(source))
for ax, time in zip(axes, (0, 0.25, 0.5, 0.75, 1), strict=True):
    moved = (1 - time) * source[i] + time * target[j]
    ax.scatter(*moved.T, s=9000 * P[i, j], c=np.arctan2(*source[i].T), cmap=circle, alpha=0.8, linewidths=0)
    ax.set(title=f"time {time:g}", aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

# %%
# The same plan as lines.
ax = transport_lines(P, source, target, linewidth=1)
ax.legend(frameon=False, loc="center")
ax.spines[["top", "right"]].set_visible(False)
