"""
Colours of another photograph
=============================

The colours of a picture are points in a cube. Transport between 500 of one picture and 500 of another gives a map of
the whole cube, which moves the 60 000 pixels of the first picture to colours of the second. The map is smooth: no pixel
jumps. POT has an estimator of the same name, which gives the same picture.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import ot
from skimage import data
from skimage.transform import resize

from cusink.sklearn import SinkhornTransport

size = (200, 300)
pictures = [resize(photograph / 255, size, anti_aliasing=True) for photograph in (data.rocket(), data.coffee())]
source, target = (picture.reshape(-1, 3).astype(np.float32) for picture in pictures)
rng = np.random.default_rng(0)
some = [colours[rng.choice(len(colours), 500, replace=False)] for colours in (source, target)]


def painted(estimator, pixels, others):
    """Return pictures in the colours of each other, and the seconds of the fit and of both maps."""
    start = time.perf_counter()
    estimator.fit(Xs=some[0], Xt=some[1])
    fitted = time.perf_counter()
    pictures = estimator.transform(**pixels), estimator.inverse_transform(**others)
    return pictures, fitted - start, time.perf_counter() - fitted


ours, *seconds = painted(SinkhornTransport(eps=0.02), {"X": source}, {"X": target})
# At its own tolerance of 1e-8 POT does not stop in float32.
of_pot = ot.da.SinkhornTransport(reg_e=0.02, tol=1e-6, max_iter=10_000)
pots, *pot_seconds = painted(of_pot, {"Xs": source}, {"Xt": target})
print("cusink: fit {:.2f} s, both pictures {:.2f} s".format(*seconds))
print("POT:    fit {:.2f} s, both pictures {:.2f} s".format(*pot_seconds))
print(f"largest difference of a colour: {max(abs(a - b).max() for a, b in zip(ours, pots, strict=True)):.1e}")

figure, axes = plt.subplots(2, 3, figsize=(13, 6.2), layout="constrained")
panels = {
    "a rocket": source,
    "in colours of the coffee": ours[0],
    "the rocket, by POT": pots[0],
    "a cup of coffee": target,
    "in colours of the rocket": ours[1],
    "the coffee, by POT": pots[1],
}
for ax, (title, colours) in zip(axes.flat, panels.items(), strict=True):
    ax.imshow(colours.reshape(*size, 3).clip(0, 1))
    ax.set_title(title)
    ax.axis("off")

# %%
# The two clouds of colours, and where the first is moved to: into the hull of the second.
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True, layout="constrained")
clouds = {"a rocket": source, "a cup of coffee": target, "the rocket in colours of the coffee": ours[0]}
for ax, (title, colours) in zip(axes, clouds.items(), strict=True):
    shown = colours[::30]
    ax.scatter(shown[:, 0], shown[:, 2], c=shown.clip(0, 1), s=12, linewidths=0)
    ax.set(title=title, xlabel="red", ylabel="blue", aspect="equal")
