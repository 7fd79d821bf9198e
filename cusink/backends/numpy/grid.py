"""The operators of `backends.operators` between the cells of a grid, in NumPy: axis by axis, see docs/grid.md."""

import functools

import numpy as np
import numpy as xp

from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.grid.means import log_means
from cusink.backends.numpy import dense, iteration
from cusink.backends.numpy.dense import to_host
from cusink.backends.numpy.forms.log import LogDomain, finish_log
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.means import shared_means, tile_means
from cusink.backends.numpy.softmin import Products
from cusink.backends.numpy.softmin import repeated_softmin as repeated_dense
from cusink.costs.grid import GridCosts
from cusink.costs.operators import Operators

__all__ = [
    "Iteration",
    "apply_plan",
    "bilinear",
    "c_transform",
    "cost_block",
    "cost_range",
    "plan",
    "plan_means",
    "plan_sum",
    "repeated_softmin",
    "softmin",
    "to_host",
    "transport_cost",
    "xp",
]


PLAN_BYTES = 1 << 28


class Reductions:
    """Log-sum-exp along one axis at a time."""

    @staticmethod
    def softmin(C, logits, eps, axis):
        return grid.softmin(dense, C, logits, eps)

    @staticmethod
    def transport_cost(C, p, q, eps):
        return grid.transport_cost(dense, C, p, q, eps)


class NumpyGridKernel(GridKernel):
    """A `GridKernel` with what lies beyond its range."""

    def __init__(self, C, dtype, eps):
        super().__init__(dense, C, dtype, eps)

    def repair(self, potential, sound, logits, axis):
        """Overwrite the entries of `potential` (B, n) that are not `sound` (n, B) by their softmin."""
        if np.all(sound):
            return
        problems = np.flatnonzero(~sound.all(axis=0))
        right = grid.softmin(dense, self.C, logits[problems], self.eps)
        potential[problems] = np.where(sound[:, problems].T, potential[problems], right)

    def finish_log(self, a, b, g):
        """``(f, g, cost, error)`` after a plain f-update, as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, Reductions)

    @property
    def K(self):
        """The kernel (n, n): memory of that size."""
        return functools.reduce(np.kron, self.axes)

    @property
    def costs(self):
        """The cost (n, n): memory of that size."""
        return self.C.block(np)


class LineProducts:
    """`softmin` as an exponential, a small product and a logarithm along each axis.

    Every line of cells has a scale of its own, so that this reaches further than one product with the whole kernel.
    """

    def __init__(self, C, eps):
        self.cells, self.eps = C.cells, eps
        self.reductions = [_along(repeated_dense(cost, eps)) for cost in C.axes]

    def __call__(self, logits, axis):
        return grid.by_axis(logits, self.cells, self.reductions, -1 / self.eps)


class GridProducts(Products):
    """`softmin` as one exponential, a product along each axis, and one logarithm, where that is certified."""

    def __init__(self, C, eps):
        super().__init__(NumpyGridKernel(C, C.dtype, eps))
        self.lines = LineProducts(C, eps)

    def _repair(self, out, sound, logits, axis):
        problems = np.flatnonzero(~sound.all(axis=0))
        out[problems] = self.lines(logits[problems], axis)


def _along(softmin):
    return lambda lines: softmin(lines, 1)


class Iteration(iteration.Iteration):
    """Problems under way, see `cusink.backends.operators`."""

    def _forms(self, C, dtype, eps, method):
        if method == "log":
            return [LogDomain(C, dtype, eps, Reductions)]
        kernels = [NumpyGridKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        forms = [SharedKernel(kernel) for kernel in kernels]
        if method == "auto":
            wide = C.astype(np.float64)
            forms.append(LogDomain(wide, np.float64, eps, Prepared(wide, eps)))
        return forms


class Prepared(Reductions):
    """`Reductions` of one cost and eps with the certified products of `LineProducts`."""

    def __init__(self, C, eps):
        self.products = LineProducts(C, eps)

    def softmin(self, C, logits, eps, axis):
        return self.products(logits, axis)


def plan_means(C, a, b, f, g, eps):
    """Iterate over ``(index, means)``, see `backends.operators`; all the means of a group can be taken at once."""
    rest = np.arange(len(a))
    for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
        rest = yield from shared_means(NumpyGridKernel(C, dtype, eps), rest, a, b, f, g)
    if C.shape[0] ** 2 * 8 <= PLAN_BYTES and len(rest):
        yield from tile_means(C.block(np), rest, a, b, f, g, eps)
    elif len(rest):
        parts = (x[rest].astype(np.float64) for x in (a, b, f, g))
        yield rest, log_means(dense, C.astype(np.float64), eps, *parts)


def softmin(C, logits, eps, axis):
    """``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    return grid.softmin(dense, C, logits, eps)


def repeated_softmin(C, eps):
    """A function (logits, axis) that is `softmin`, prepared for many calls."""
    return GridProducts(C, eps)


def plan(C, p, q, eps):
    """Plans (B, n, n) of the logits p (B, n) and q (B, n)."""
    return dense.plan(C.block(xp), p, q, eps)


def apply_plan(C, p, q, v, eps, axis):
    """``P v`` (axis 1) or ``P' v`` (axis 0), v (B, n) of any sign."""
    return grid.apply_plan(dense, C, *((p, q) if axis == 1 else (q, p)), v, eps)


def transport_cost(C, p, q, eps):
    """``sum_ij P_ij C_ij`` (B,)."""
    return grid.transport_cost(dense, C, p, q, eps)


def plan_sum(C, p, q, weights, eps):
    """``sum_b weights_b P_b`` (n, n)."""
    return dense.plan_sum(C.block(xp), p, q, weights, eps)


def c_transform(C, potential, axis):
    """``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    return grid.c_transform(dense, C, potential)


def cost_range(C):
    """Bounds of the costs, as numbers."""
    return 0.0, C.largest(xp)


def cost_block(C, problems, rows):
    """Costs (rows, n) as an array."""
    return C.block(xp, problems, rows)


def bilinear(C, x, y):
    """``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    return grid.bilinear(xp, C, x, y)


OPERATORS: Operators[GridCosts] = Operators(
    xp=xp,
    to_host=to_host,
    softmin=softmin,
    repeated_softmin=repeated_softmin,
    plan=plan,
    apply_plan=apply_plan,
    transport_cost=transport_cost,
    c_transform=c_transform,
    cost_range=cost_range,
    cost_block=cost_block,
    bilinear=bilinear,
    iteration=Iteration,
    plan_means=plan_means,
)
