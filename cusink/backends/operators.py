"""Choose the operators of a call by its array library and its kind of cost, and state what each of them must offer.

The ``_ops_*`` modules define the names in `OPERATORS` with equal signatures (a test compares them). All
arrays of a call are C-contiguous, of one library, one device and one dtype (float32 or float64); every array of
problems has the batch axis first. ``C`` is ``(n, m)``, shared by all problems, or ``(B, n, m)``; its entries may be
+inf ("forbidden"). Or it is a `PointCosts` or `GridCosts`, which has ``shape``, ``ndim``, ``dtype`` and ``astype`` like
an array and stands for costs that are never stored.

Operators take the weights and the potentials of one side as one array of *logits*,

    p = log a + f / eps   (B, n)        q = log b + g / eps   (B, m)

so that a zero weight is a true -inf and ``P_ij = exp(p_i + q_j - C_ij / eps)``. ``axis`` is the axis of one cost matrix
that is summed over: 1 sums over j and gives ``(B, n)``, 0 sums over i and gives ``(B, m)``.

softmin(C, logits, eps, axis)
    ``-eps * log(sum_j exp(q_j - C_ij / eps))``; +inf where every term is zero.
repeated_softmin(C, eps)
    A function ``(logits, axis)`` that is ``softmin(C, logits, eps, axis)``, prepared for many calls.
plan(C, p, q, eps)
    ``(B, n, m)``: the plans themselves.
apply_plan(C, p, q, v, eps, axis)
    ``P v`` (axis 1, v ``(B, m)``) or ``P' v`` (axis 0, v ``(B, n)``), v of any sign, no ``B*n*m`` memory.
transport_cost(C, p, q, eps)
    ``(B,)``: ``sum_ij P_ij C_ij`` with ``0 * inf = 0``, no ``B*n*m`` memory.
c_transform(C, potential, axis)
    ``min_j (C_ij - potential_j)``: the softmin at eps = 0.
cost_range(C)
    Numbers between which all finite costs lie.
cost_block(C, problems, rows)
    The costs ``(rows, m)`` or ``(problems, rows, m)`` as an array.
bilinear(C, x, y)
    ``(B,)``: ``sum_ij x_i C_ij y_j`` of non-negative x and y, +inf only where a forbidden pair meets mass.
Iteration(C, a, b, eps, f, g, method)
    B problems under way. ``f`` and ``g`` are the potentials to start from. Methods:
    ``advance(omega, count)``: `count` iterations (one g-update, one f-update each) of every problem, over-relaxed by
    its own ``omega`` (a NumPy array (B,) in [1, 2)); returns an upper bound ``(B,)`` of each problem's marginal error
    after one more plain f-update, which for omega = 1 is the error itself, and inf for a problem that left the range
    of ``method="scaling"``. ``finish(index)``: ``(f, g, cost, error)`` of the problems at `index` (a NumPy array)
    after a plain f-update. A zero weight gets the potential of its own softmin.
    ``keep(index)``: drop all problems but those at `index`. A backend that can test on its device has an attribute
    ``watched`` too, see `cusink.backends.cupy.iteration`.
plan_means(C, a, b, f, g, eps)
    Means of vectors under the plans, to be taken many times: iterates over pairs ``(index, means)`` of problems
    (a NumPy array) and an object for them, each problem in one pair; a pair may be as small as memory wants it.
    ``mean(v, axis)``: ``sum_j P_ij v_j / sum_j P_ij`` (axis 1, v (B, m)) or ``sum_i P_ij v_i / sum_i P_ij`` (axis 0, v
    (B, n)), for a bin of weight zero the limit. ``mean_cost(axis)``: the same of the costs. ``marginal(axis)``: ``P 1``
    or ``P' 1``. ``plan_sum(rows, columns, costs)``: ``sum_b P_b (rows_bi + columns_bj + costs_b C_ij)`` (n, m), where
    `columns` and `costs` may be None. ``at(index)``: the same for some of the problems.
xp, to_host(array)
    The array module, and an array as a NumPy array.
"""

import importlib
import sys

import numpy as np

from cusink.costs.grid import GridCosts
from cusink.costs.points import PointCosts

OPERATORS = (
    "softmin",
    "repeated_softmin",
    "plan",
    "apply_plan",
    "transport_cost",
    "c_transform",
    "cost_range",
    "cost_block",
    "bilinear",
    "Iteration",
    "plan_means",
    "to_host",
)


def ops_for(array):
    """Return the operators that fit `array`, which may be a `PointCosts` or `GridCosts`.

    A CuPy array proves that CuPy is loaded, so nothing has to be tried or configured.
    """
    kind, sample = "dense", array
    if isinstance(array, PointCosts):
        kind, sample = "points", array.x
    elif isinstance(array, GridCosts):
        kind, sample = "grid", array.axes[0]
    cupy = sys.modules.get("cupy")
    on_device = cupy is not None and not isinstance(sample, np.ndarray) and isinstance(sample, cupy.ndarray)
    return importlib.import_module(f"cusink.backends.{'cupy' if on_device else 'numpy'}.{kind}")
