"""The operators between the cells of a grid in NumPy: axis by axis, see docs/grid.md."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy as xp

from cusink.backends.grid import reductions as grid
from cusink.backends.grid.kernel import GridKernel
from cusink.backends.grid.means import log_means
from cusink.backends.numpy import dense, iteration, limits
from cusink.backends.numpy.dense import to_host
from cusink.backends.numpy.forms.form import Finished, Form
from cusink.backends.numpy.forms.log import LogForm, LogReductions, finish_log
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.means import IndexedMeans, shared_means, tile_means
from cusink.backends.numpy.softmin import KernelSoftmin
from cusink.backends.numpy.softmin import repeated_softmin as repeated_dense
from cusink.costs.cells import GridCosts
from cusink.costs.operators import Operators
from cusink.types import Array, Axis, HostArray, Method

__all__ = [
    "OPERATORS",
    "Iteration",
    "apply_plan",
    "bilinear",
    "c_transform",
    "cost_block",
    "cost_range",
    "plan",
    "plan_means",
    "repeated_softmin",
    "softmin",
    "to_host",
    "transport_cost",
    "xp",
]

ARRAYS = dense.OPERATORS


def softmin(C: GridCosts, logits: HostArray, eps: float, axis: Axis) -> Array:
    """Return ``-eps * log(sum_j exp(logits_j - C_ij / eps))`` (B, n)."""
    del axis  # the cost is symmetric
    return grid.softmin(ARRAYS, C, logits, eps)


def repeated_softmin(C: GridCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`, prepared for many calls."""
    return GridSoftmin(C, eps)


def plan(C: GridCosts, p: HostArray, q: HostArray, eps: float) -> HostArray:
    """Return the plans (B, n, n) of the logits p (B, n) and q (B, n)."""
    return dense.plan(C.block(np), p, q, eps)


def apply_plan(C: GridCosts, p: HostArray, q: HostArray, v: HostArray, eps: float, axis: Axis) -> Array:
    """Return ``P v`` (axis 1) or ``P' v`` (axis 0), v (B, n) of any sign."""
    kept, summed = (p, q) if axis == 1 else (q, p)
    return grid.apply_plan(ARRAYS, C, kept, summed, v, eps)


def transport_cost(C: GridCosts, p: HostArray, q: HostArray, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""
    return grid.transport_cost(ARRAYS, C, p, q, eps)


def c_transform(C: GridCosts, potential: HostArray, axis: Axis) -> Array:
    """Return ``min_j (C_ij - potential_j)`` (B, n); a potential of -inf takes its bin out of the minimum."""
    del axis
    return grid.c_transform(ARRAYS, C, potential)


def cost_range(C: GridCosts) -> tuple[float, float]:
    """Return numbers between which the costs lie."""
    return 0.0, C.largest(np)


def cost_block(C: GridCosts, problems: slice | HostArray, rows: slice | HostArray) -> Array:
    """Return the costs (rows, n) as an array."""
    return C.block(np, problems, rows)


def bilinear(C: GridCosts, x: HostArray, y: HostArray) -> Array:
    """Return ``sum_ij x_i C_ij y_j`` (B,) of non-negative x and y."""
    return grid.bilinear(np, C, x, y)


def plan_means(
    C: GridCosts, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[IndexedMeans]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    rest = np.arange(len(a))
    for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
        rest = yield from shared_means(NumpyGridKernel(C, dtype, eps), rest, a, b, f, g)
    if C.shape[0] ** 2 * 8 <= limits.LIMITS.grid_plan_bytes and len(rest):
        yield from tile_means(C.block(np), rest, a, b, f, g, eps)
    elif len(rest):
        a, b, f, g = (x[rest].astype(np.float64) for x in (a, b, f, g))
        yield rest, log_means(ARRAYS, C.astype(np.float64), eps, a, b, f, g)


LOGS = LogReductions(softmin, transport_cost)


class Iteration(iteration.Iteration):
    """Problems under way, see `cusink.costs.operators`."""

    def _forms(self, C: GridCosts, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:
        if method == "log":
            return [LogForm(C, dtype, eps, LOGS)]
        kernels = [NumpyGridKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        forms: list[Form] = [SharedKernel(kernel) for kernel in kernels]
        if method == "auto":
            wide = C.astype(np.float64)
            forms.append(LogForm(wide, np.float64, eps, LOGS._replace(softmin=LineSoftmin(wide, eps).softmin)))
        return forms


class NumpyGridKernel(GridKernel):
    """A `GridKernel` that is a `Kernel` for the forms in NumPy."""

    def __init__(self, C: GridCosts, dtype: Any, eps: float) -> None:
        super().__init__(ARRAYS, C, dtype, eps)

    def in_float32(self) -> Self:
        """Return the kernel in float32."""
        return type(self)(self.C, np.float32, self.eps)

    def repair(self, potential: HostArray, sound: HostArray | Literal[True], logits: HostArray, axis: Axis) -> None:
        """Overwrite the entries of `potential` (B, n) that are not `sound` (n, B) by their softmin."""
        if sound is True or sound.all():
            return
        problems = np.flatnonzero(~sound.all(axis=0))
        right = softmin(self.C, logits[problems], self.eps, axis)
        potential[problems] = np.where(sound[:, problems].T, potential[problems], right)

    def finish_log(self, a: HostArray, b: HostArray, g: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` after a plain f-update as log-sum-exp."""
        return finish_log(self.C, a, b, g, self.eps, LOGS)

    @property
    def K(self) -> HostArray:  # noqa: N802
        """The kernel (n, n): memory of that size."""
        return functools.reduce(np.kron, self.axes)

    @property
    def costs(self) -> Array:
        """The cost (n, n): memory of that size."""
        return self.C.block(np)


class LineSoftmin:
    """The softmin of one cost and eps as an exponential, a small product and a logarithm along each axis.

    Every line of cells has a scale of its own, so that this reaches further than one product with the whole kernel.
    """

    def __init__(self, C: GridCosts, eps: float) -> None:
        self.cells, self.eps = C.cells, eps
        self.reductions = [_along(repeated_dense(cost, eps)) for cost in C.axes]

    def __call__(self, logits: HostArray, axis: Axis) -> Array:
        """Return the softmin (B, n)."""
        del axis
        return grid.by_axis(logits, self.cells, self.reductions, -1 / self.eps)

    def softmin(self, C: GridCosts, logits: HostArray, eps: float, axis: Axis) -> Array:
        """Return the same for a `LogForm`, which names the cost and eps in each call."""
        del C, eps
        return self(logits, axis)


class GridSoftmin(KernelSoftmin):
    """The softmin as one exponential, a product along each axis, and one logarithm, where that is certified."""

    def __init__(self, C: GridCosts, eps: float) -> None:
        super().__init__(NumpyGridKernel(C, C.dtype, eps))
        self.lines = LineSoftmin(C, eps)

    def _repaired(self, out: HostArray, sound: HostArray, logits: HostArray, axis: Axis) -> HostArray:
        problems = np.flatnonzero(~sound.all(axis=0))
        out[problems] = self.lines(logits[problems], axis)
        return out


def _along(softmin: Callable[[Array, Axis], Array]) -> Callable[[Array], Array]:
    return lambda lines: softmin(lines, 1)


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
