"""
What eps does to the plan
=========================

A small ``eps`` gives a plan that is nearly a map. A large one blurs it, and in the end the target says nothing of the
source.
"""

import matplotlib.pyplot as plt
import numpy as np

import cusink
import cusink.plot

x = np.linspace(0, 1, 120)
a = np.exp(-(((x - 0.25) / 0.1) ** 2))
b = np.exp(-(((x - 0.4) / 0.05) ** 2)) + 0.7 * np.exp(-(((x - 0.8) / 0.06) ** 2))
a, b = a / a.sum(), b / b.sum()
C = cusink.cost_matrix(x)

figure, axes = plt.subplots(1, 3, figsize=(11, 4.4))
figure.subplots_adjust(left=0.06, right=0.94, wspace=0.5, top=0.76, bottom=0.12)
for ax, eps in zip(axes, (0.0005, 0.01, 0.2), strict=True):
    result = cusink.sinkhorn(a, b, C, eps=eps)
    cusink.plot.plan(result, x=x, y=x, ax=ax)
    ax.set_title(f"eps = {eps:g}, cost {result.cost:.3f}", y=1.24, fontsize=11)
