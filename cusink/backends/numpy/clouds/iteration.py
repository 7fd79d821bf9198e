"""Sinkhorn iterations of problems between clouds in NumPy: which form runs which problem, see docs/point-clouds.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cusink.backends.numpy import iteration as dense
from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.absorbed import StabilisedProblem
from cusink.backends.numpy.clouds.layout import costs_kept, sorted_clouds
from cusink.backends.numpy.clouds.shared import CLOUDS, CloudKernel
from cusink.backends.numpy.forms.form import Finished, Form
from cusink.backends.numpy.forms.log import LogForm, chosen_costs
from cusink.backends.numpy.forms.own import OwnKernel
from cusink.backends.numpy.forms.shared import SharedKernel
from cusink.costs.points import PointCosts
from cusink.deferred import cached_property
from cusink.types import Array, HostArray, Method


class Iteration(dense.Iteration):
    """Problems under way, see `cusink.costs.operators`."""

    def __init__(
        self, C: PointCosts, a: HostArray, b: HostArray, eps: float, f: HostArray, g: HostArray, method: Method
    ) -> None:
        self.alone = len(a) == 1
        super().__init__(C, a, b, eps, f, g, method)

    def _forms(self, C: PointCosts, dtype: np.dtype[Any], eps: float, method: Method) -> Sequence[Form]:
        small = C.shape[-2] * C.shape[-1] <= limits.LIMITS.cloud_array_pairs
        # In blocks an exponent of float32 has several roundings, which a sum over few pairs does not average.
        if small and (C.ndim == 2 or (method == "log" and costs_kept(C))):
            return super()._forms(C.block(np), dtype, eps, method)
        if method == "log":
            return [CloudLogForm(C, dtype, eps, CLOUDS)]
        if small:
            return [CloudTiles(C, dtype, eps)]
        if C.ndim == 3 or self.alone:
            return [StabilisedForm(C, dtype, eps)]
        kernels = [CloudKernel(C, precision, eps) for precision in dict.fromkeys((dtype, np.dtype(np.float64)))]
        return [*map(SharedKernel, kernels), *([StabilisedForm(C, dtype, eps)] if method == "auto" else [])]

    def omitted(self, index: HostArray) -> HostArray:
        """See `cusink.costs.operators.Iteration`."""
        out = super().omitted(index)
        for form, (place, local) in zip(self.forms, self._places(index), strict=True):
            if isinstance(form, StabilisedForm) and len(place):
                out[place] = [form.problems[k].omitted for k in local]
        return out


class CloudLogForm(LogForm):
    """Log-sum-exp over blocks of points."""

    def cost(self, index: slice | HostArray = slice(None)) -> PointCosts:
        """Return the shared cost, or the costs of the problems at `index`."""
        C: PointCosts = self.C if self.problems is None else self.C.at(self.problems[index])
        return C


class CloudTiles(OwnKernel):
    """Many small problems with clouds of their own: costs as arrays, of all that fit, else of a tile of problems."""

    @cached_property
    def _costs(self) -> Array | None:
        return self.C.block(np) if costs_kept(self.C) else None

    def cost(self, index: slice | HostArray = slice(None)) -> Array:
        """Return the costs of the problems at `index` as an array."""
        assert self.problems is not None  # each problem has a cost of its own
        chosen = self.problems[index]
        return self.C.block(np, chosen) if self._costs is None else chosen_costs(self._costs, chosen)


class StabilisedForm:
    """Problems one after another, each as a `StabilisedProblem`."""

    def __init__(self, C: PointCosts, dtype: Any, eps: float) -> None:
        self.C, self.dtype, self.eps = C, np.dtype(dtype), eps
        self.problems: list[StabilisedProblem] = []
        self.error: HostArray = np.empty(0)

    def can_start(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> HostArray:
        """Return which problems can start here: all."""
        del b, f, g
        return np.ones(len(a), bool)

    def append(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> None:
        """Add problems that start from the potentials f (B, n) and g (B, m)."""
        a, b = a.astype(self.dtype, copy=False), b.astype(self.dtype, copy=False)
        budget = self.C.memory_limit // max(1, len(a) + len(self.problems))
        self.problems += [
            StabilisedProblem(sorted_clouds(self.C, k), a[k], b[k], f[k], g[k], self.eps, budget, self.C.loss)
            for k in range(len(a))
        ]

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems left the range: none."""
        self.error = np.array(
            [problem.advance(float(w), count) for problem, w in zip(self.problems, omega, strict=True)]
        )
        return np.zeros(len(omega), bool)

    def bound(self) -> HostArray:
        """Return bounds on the marginal errors after one more plain f-update, for omega = 1 the errors."""
        return self.error

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""
        every = [self.problems[k].finish() for k in index]
        f, g, cost, error = (np.stack(x) for x in zip(*every, strict=True))
        return f, g, cost, error

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""
        self.problems = [self.problems[k] for k in index]

    def state(self, chosen: HostArray) -> Finished:
        """Raise an error: no problem leaves this form."""
        raise NotImplementedError
