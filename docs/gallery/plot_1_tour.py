"""
A tour in six calls
===================

Solve one problem, then a batch; take gradients; compare all pairs; find the nearest.
"""

# %%
# Two histograms over the same 50 bins, and the cost of moving a unit of mass from bin to bin.
import numpy as np

import cusink

x = np.linspace(0, 1, 50)
a = np.exp(-(((x - 0.2) / 0.08) ** 2))
b = np.exp(-(((x - 0.6) / 0.15) ** 2))
a, b = a / a.sum(), b / b.sum()
C = cusink.cost_matrix(x)  # squared distances

# %%
# One problem. ``eps`` has the unit of the cost. The result holds three values; ``cost`` is what the plan costs.
result = cusink.sinkhorn(a, b, C, eps=0.002)
print(result)
print(f"cost {result.cost:.4f}, marginal error {result.error:.1e}, {result.n_iter} iterations")

# %%
# The plan says where the mass goes: each row is a bin of the source, each column one of the target. Its marginals stand
# beside it.
import cusink.plot  # noqa: E402

ax = cusink.plot.plan(result, x=x, y=x)

# %%
# A batch is a row for each problem. The cost is shared, and each problem stops by itself.
A = np.random.default_rng(0).dirichlet(np.ones(50), size=8)
batch = cusink.sinkhorn(A, np.tile(b, (8, 1)), C, eps=0.002)
print(batch.cost.round(4), batch.n_iter)

# %%
# Gradients are computed from the solution, not through the iterations. This is that of the mean cost.
grads = cusink.sinkhorn_adjoint(batch, grad_cost=np.full(8, 1 / 8))
print(grads.a.shape, grads.C.shape)

# %%
# All pairs, and the nearest of them. ``nearest`` solves only the pairs that no lower bound rules out.
D = cusink.distance_matrix(A[:3], A, C, eps=0.002)
distances, indices = cusink.nearest(A[:3], A, C, k=2, eps=0.002)
print(D.shape, indices.tolist())
