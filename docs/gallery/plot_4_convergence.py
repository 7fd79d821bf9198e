"""
Iterations, by eps and over-relaxation
======================================

The smaller ``eps`` is beside the largest cost, the more iterations a problem needs. Over-relaxation, on by default,
takes a part of them away. Lines are the median of 40 problems; shades hold half of them, and all.
"""

import matplotlib.pyplot as plt
import numpy as np

import cusink
from cusink.plot import convergence

x = np.linspace(0, 1, 80)
C = cusink.cost_matrix(x)
a, b = np.random.default_rng(0).dirichlet(np.ones(80), size=(2, 40))

figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
for ax, (title, omega) in zip(axes, {"plain iterations": None, "over-relaxed (default)": "auto"}.items(), strict=True):
    for eps, colour in ((0.1, "#0072b2"), (0.01, "#d55e00"), (0.003, "#009e73")):
        history = []
        cusink.sinkhorn(
            a, b, C, eps=eps, max_iter=5000, overrelaxation=omega, callback=lambda *seen, to=history: to.append(seen)
        )
        convergence(history, ax=ax, color=colour, label=f"eps {eps:g}", tol=1e-6)
    ax.set(title=title, xscale="log", xlim=(4, 3000))
