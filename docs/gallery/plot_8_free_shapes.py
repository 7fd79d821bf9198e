"""
Shapes as clouds of points
==========================

Two silhouettes become clouds of points. A barycenter with free points is a cloud between both, where points go to the
means of where their mass would go; a flow moves a cloud down the gradient of the divergence to a shape.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data

import cusink

rng = np.random.default_rng(0)


def cloud(silhouette, count=200):
    """Return points of a silhouette (true where the shape is), centred, of unit height."""
    points = np.argwhere(silhouette)[:, ::-1] * [1.0, -1.0]
    points = points[rng.choice(len(points), count, replace=False)]
    points -= points.mean(axis=0)
    return points / np.ptp(points[:, 1])


red, green, blue = data.logo()[..., :3].transpose(2, 0, 1).astype(int)
horse, python = cloud(~data.horse()), cloud((red > 200) & (green < 170) & (blue < 120))

# %%
# Barycenters, from the horse on the left to the orange half of scikit-image's logo on the right. Each starts from the
# one before.

shapes = cusink.Measures.of([horse, python])
shares, clouds = [0.0, 0.25, 0.5, 0.75, 1.0], [horse]
for share in shares[1:]:
    found = cusink.free_barycenter(
        shapes, [1 - share, share], x=clouds[-1], eps=0.01, debiased=True, tol=1e-2, solver_tol=1e-3
    )
    clouds.append(found.points)

# %%
# A flow from a small disc to the horse: the whole of it is this loop. The gradient by a point has its weight, 1 / 200,
# as a factor.

moved = [rng.normal(size=horse.shape) * 0.05]
for _ in range(20):
    C = cusink.PointCloud(moved[-1], horse)
    divergence = cusink.sinkhorn_divergence(None, None, C, eps=0.01, tol=1e-3)
    gradient = cusink.sinkhorn_divergence_adjoint(divergence).x * len(horse)
    moved.append(moved[-1] - 0.25 * gradient)

figure, axes = plt.subplots(2, 5, figsize=(11, 4.6), layout="constrained", sharex=True, sharey=True)
for row, drawn, name in zip(axes, (clouds, [moved[k] for k in (0, 1, 2, 4, 20)]), ("barycenters", "flow"), strict=True):
    for ax, points in zip(row, drawn, strict=False):
        ax.scatter(*points.T, s=5, c="black")
        ax.set(xticks=[], yticks=[], aspect="equal")
    row[0].set_ylabel(name)
for ax, share in zip(axes[0], shares, strict=True):
    ax.set_title(f"{share:.0%} logo", fontsize=10)
for ax, step in zip(axes[1], (0, 1, 2, 4, 20), strict=True):
    ax.set_title(f"step {step}", fontsize=10)
