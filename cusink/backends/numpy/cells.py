"""The operators of distances between the cells of a grid that are no sums over its axes, in NumPy."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cusink.backends.blocks.means import block_means
from cusink.backends.blocks.operators import block_operators
from cusink.backends.numpy import blocks, means
from cusink.backends.numpy.clouds.iteration import StabilisedForm
from cusink.backends.numpy.forms.form import Form
from cusink.backends.numpy.forms.own import OwnKernel
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.backends.numpy.shifts import ARRAYS, LOGS, ShiftKernel, has_shifts
from cusink.backends.numpy.softmin import KernelSoftmin, costs_by_products
from cusink.costs.cells import EuclideanCosts
from cusink.costs.operators import Operators
from cusink.costs.points import PointCosts
from cusink.deferred import cached_property
from cusink.types import Array, Axis, HostArray, Method


class Iteration(blocks.Iteration):
    """Problems under way: on a `ShiftKernel` where it pays, else as all costs that are made in blocks."""

    def _forms(self, C: EuclideanCosts, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:  # type: ignore[override]
        C = C.astype(np.float64)  # a root rounded to float32 is another cost: at 1e3 eps the plan is off by 1e-5
        if method != "log" and not has_shifts(C) and not C.kept and not C.around:
            return [_between_centres(C, eps)]
        if method == "log" or not has_shifts(C):
            return super()._forms(C, dtype, eps, method)
        kernels = [ShiftKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        forms: list[Form] = [SharedKernel(kernel) for kernel in kernels]
        if method == "auto":
            if not C.around:
                forms.append(_between_centres(C, eps))
            else:
                late = LateKernel(C, np.float64, eps) if C.kept else blocks.BlockLogForm(C, np.float64, eps, LOGS)
                forms.append(late)
        return forms


def _between_centres(C: EuclideanCosts, eps: float) -> Form:
    """Return a form for problems between points, which looks at those pairs alone that count."""
    x = C.centres(np)
    points = PointCosts(x, x, "squared", exponent=0.5, memory_limit=C.memory_limit)
    return StabilisedForm(points, np.float64, eps)


class LateKernel(OwnKernel):
    """An `OwnKernel` whose costs are made when the first problem comes."""

    @cached_property
    def _costs(self) -> Array:
        return self.C.block(np)

    def cost(self, index: slice | HostArray = slice(None)) -> Array:
        """Return the cost as an array."""
        del index
        return self._costs


class ShiftSoftmin(KernelSoftmin):
    """The softmin as a product, where that is certified."""

    def _repaired(self, out: HostArray, sound: HostArray, logits: HostArray, axis: Axis) -> HostArray:
        self.kernel.repair(out, sound, logits, axis)
        return out


def repeated_softmin(C: EuclideanCosts, eps: float) -> Callable[[Array, Axis], Array]:
    """Return a function (logits, axis) that is `softmin`, prepared for many calls."""
    return ShiftSoftmin(ShiftKernel(C, C.dtype, eps)) if has_shifts(C) else BLOCKS.repeated_softmin(C, eps)


def transport_cost(C: EuclideanCosts, p: HostArray, q: HostArray, eps: float) -> Array:
    """Return ``sum_ij P_ij C_ij`` (B,)."""

    def directly(p: HostArray, q: HostArray) -> HostArray:
        return LOGS.transport_cost(C, p, q, eps)

    if not has_shifts(C):
        return directly(p, q)
    return costs_by_products(lambda dtype: ShiftKernel(C, dtype, eps), p, q, directly)


def plan_means(
    C: EuclideanCosts, a: HostArray, b: HostArray, f: HostArray, g: HostArray, eps: float
) -> Iterator[means.IndexedMeans]:
    """Iterate over ``(index, means)``, see `cusink.costs.operators`."""
    if not has_shifts(C):
        yield from BLOCKS.plan_means(C, a, b, f, g, eps)
        return
    rest = np.arange(len(a))
    for dtype in dict.fromkeys((a.dtype, np.dtype(np.float64))):
        rest = yield from means.shared_means(ShiftKernel(C, dtype, eps), rest, a, b, f, g)
    if len(rest) and C.kept:
        yield from means.tile_means(C.block(np), rest, a, b, f, g, eps)
    elif len(rest):
        yield rest, block_means(ARRAYS, C, a[rest], b[rest], f[rest], g[rest], eps)


BLOCKS: Operators[EuclideanCosts] = block_operators(ARRAYS, Iteration)
OPERATORS: Operators[EuclideanCosts] = dataclasses.replace(
    BLOCKS, repeated_softmin=repeated_softmin, transport_cost=transport_cost, plan_means=plan_means
)
