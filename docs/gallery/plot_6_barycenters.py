"""
Between two shapes
==================

A barycenter moves mass where an average of pixels fades it.
"""

import matplotlib.pyplot as plt
import numpy as np

import cusink

side = 40
y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
ring = (abs(np.hypot(x, y) - 0.6) < 0.12).astype(float)
cross = ((abs(x) < 0.14) | (abs(y) < 0.14)) * (np.hypot(x, y) < 0.85).astype(float)
shapes = np.stack([(shape / shape.sum()).ravel() for shape in (ring, cross)])
shares = np.linspace([1, 0], [0, 1], 5)
grid = cusink.Grid((side, side), spacing=1 / side)
moved = cusink.barycenter(shapes, grid, shares, eps=1e-3, debiased=True, tol=1e-4).barycenter

figure, axes = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained")
for row, images in zip(axes, (moved, shares @ shapes), strict=True):
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.reshape(side, side), cmap="Greys")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("#d0d0d0")
axes[0, 0].set_ylabel("barycenters")
axes[1, 0].set_ylabel("averages")
for ax, share in zip(axes[0], shares[:, 1], strict=True):
    ax.set_title(f"{share:.0%} cross", fontsize=10)
