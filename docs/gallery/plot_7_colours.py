"""
Colours of another photograph
=============================

The colours of a picture are points in a cube. Transport between 500 of one picture and 500 of another gives a map of
the whole cube, which moves the 60 000 pixels of the first picture to colours of the second. The map is smooth: no pixel
jumps.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage import data
from skimage.transform import resize

from cusink.sklearn import SinkhornTransport

size = (200, 300)
pictures = [resize(photograph / 255, size, anti_aliasing=True) for photograph in (data.rocket(), data.coffee())]
source, target = (picture.reshape(-1, 3).astype(np.float32) for picture in pictures)
rng = np.random.default_rng(0)
some = [colours[rng.choice(len(colours), 500, replace=False)] for colours in (source, target)]

to_target = SinkhornTransport(eps=0.02).fit(*some)
moved = to_target.transform(source)
back = to_target.inverse_transform(target)

figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
panels = {
    "a rocket": source,
    "a cup of coffee": target,
    "the rocket in colours of the coffee": moved,
    "the coffee in colours of the rocket": back,
}
for ax, (title, colours) in zip(axes.flat, panels.items(), strict=True):
    ax.imshow(colours.reshape(*size, 3).clip(0, 1))
    ax.set_title(title)
    ax.axis("off")

# %%
# The two clouds of colours, and where the first is moved to: into the hull of the second.
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True, layout="constrained")
for ax, (title, colours) in zip(axes, list(panels.items())[:3], strict=True):
    shown = colours[::30]
    ax.scatter(shown[:, 0], shown[:, 2], c=shown.clip(0, 1), s=12, linewidths=0)
    ax.set(title=title, xlabel="red", ylabel="blue", aspect="equal")
