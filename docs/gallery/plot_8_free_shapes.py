"""
Shapes as clouds of points
==========================

Two silhouettes become clouds of points. A barycenter with free points is a cloud between both, where points go to the
means of where their mass would go. A flow moves a cloud down the gradient of a loss to a shape: of the Sinkhorn
divergence, or of a kernel norm.
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
# Flows from a small disc to the horse, by the divergence, and by the kernel norm of "energy" with momentum. What
# `callback` is told is the path; no step raises the loss. The divergence knows where all of the mass has to go, and
# points go there straight. Under a kernel norm they push each other apart first, and the shape gathers them again; the
# last are still on their way.


def keeper(path):
    """Return a callback that adds the points it is told to a path."""
    return lambda *told: path.append(told[1])


disc = rng.normal(size=horse.shape) * 0.05
paths, flows = [[], []], []
for path, options in zip(
    paths,
    (
        {"eps": 0.01, "solver_tol": 1e-3, "max_iter": 20},
        {"loss": "energy", "scale": 0.2, "step": 0.02, "momentum": 0.8, "max_iter": 200},
    ),
    strict=True,
):
    flows.append(cusink.gradient_flow(disc, horse, callback=keeper(path), **options))

figure, axes = plt.subplots(3, 5, figsize=(11, 6.8), layout="constrained", sharex=True, sharey=True)
steps = [(0, 1, 2, 4, 20), (0, 5, 20, 60, 200)]
rows = [clouds, *([path[k] for k in row] for path, row in zip(paths, steps, strict=True))]
for row, drawn, name in zip(axes, rows, ("barycenters", "flow by divergence", "flow by kernel norm"), strict=True):
    for ax, points in zip(row, drawn, strict=True):
        ax.scatter(*points.T, s=5, c="black")
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_color("#d0d0d0")
    row[0].set_ylabel(name)
for ax, share in zip(axes[0], shares, strict=True):
    ax.set_title(f"{1 - share:.0%} horse, {share:.0%} logo", fontsize=10)
for row, row_steps in zip(axes[1:], steps, strict=True):
    for ax, step in zip(row, row_steps, strict=True):
        ax.set_title(f"step {step}", fontsize=10)

# %%
# How the losses fall: each is of its own unit.

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for flow, name, colour in zip(flows, ("divergence", "kernel norm"), ("#0072b2", "#d55e00"), strict=True):
    ax.semilogy(flow.losses / flow.losses[0], color=colour, label=name)
    print(f"{name}: steps that were shortened because the loss would have risen: {flow.n_shortened}")
ax.set(xlabel="step", ylabel="loss / loss at the start")
ax.legend(frameon=False)
ax.grid(color="#e6e6e6")
ax.spines[["top", "right"]].set_visible(False)
