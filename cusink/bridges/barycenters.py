"""The work of a barycenter."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Never

import numpy as np

from cusink.barycenters import checks
from cusink.barycenters.adjoint import barycenter_adjoint
from cusink.barycenters.barycenter import Barycenter, barycenter, make_barycenter
from cusink.barycenters.solved import Found
from cusink.bridges.options import CostKind, adjoint_tolerance, gradient_of
from cusink.bridges.overflow import finite_or_zero, lost, overflowed
from cusink.bridges.works import Arrays, Inputs, Shapes, Work
from cusink.checks.arrays import array_module


@dataclass(frozen=True)
class BarycenterOf(Work):
    """The barycenter of histograms A with weights, of `cusink.barycenter` with `options`."""

    title: ClassVar[str] = "barycenters"

    cost: CostKind
    options: tuple[tuple[str, Any], ...]
    debiased: bool = False

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options, self.debiased)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each input of one problem."""
        return {"A": 2, "weights": 1} | self.cost.ranks | {"eps": 0}

    @property
    def outputs(self) -> dict[str, int]:
        """The barycenter."""
        return {"barycenter": 1}

    @property
    def state(self) -> dict[str, int]:
        """Logarithms of scalings in float64; what the warnings of gradients say."""
        own = {"potential_d": 1} if self.debiased else {}
        return {"potential_v": 2, "potential_p": 1, "error": 0, "converged": 0} | own

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        batch, (n, m), K = self.batch(given), self.cost.bins(given), given["A"][-2]
        if self.debiased and n != m:
            checks.refuse_debiased((n, m))
        sizes = dict.fromkeys(("barycenter", "potential_p", "potential_d"), (m,)) | {"potential_v": (K, m)}
        return {name: batch + sizes.get(name, ()) for name in (*self.outputs, *self.state)}

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        if self._own_costs(given):
            return _stacked([self.run(part) for part, *_ in self._each([given], [self.ranks])])
        result = barycenter(
            given["A"],
            self.cost.build(given),
            given["weights"],
            eps=float(given["eps"]),
            debiased=self.debiased,
            **dict(self.options),
        )
        problem = result.problem
        kept = {"potential_v": problem.v, "potential_p": problem.log_p}
        if problem.d is not None:
            kept["potential_d"] = problem.d
        kept = {name: x.astype(np.float64, copy=False) for name, x in kept.items()}
        if not problem.batched:
            kept = {name: x[0] for name, x in kept.items()}
        return {"barycenter": result.barycenter, "error": result.error, "converged": result.converged} | kept

    def _resumed(self, given: Inputs, state: Inputs) -> Barycenter:
        """Return the result that `run` had."""
        checked = checks.problem(
            given["A"],
            self.cost.build(given),
            given["weights"],
            eps=float(given["eps"]),
            debiased=self.debiased,
            check=False,
            memory_limit=dict(self.options).get("memory_limit"),
        )
        size, K, _ = checked.A.shape
        d = state["potential_d"].reshape(size, -1) if self.debiased else None
        found = Found(
            checked.C.to_host(state["error"].reshape(-1)),
            np.zeros(size, np.int64),
            state["potential_v"].reshape(size, K, -1),
            state["potential_p"].reshape(size, -1),
            d,
        )
        return make_barycenter(checked, found, checked.C.to_host(state["converged"].reshape(-1)))

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        if self._own_costs(given):
            parts = self._each([given, state, cotangents], [self.ranks, self.state, self.outputs])
            return _stacked([self.pull(g, s, c, wanted) for g, s, c in parts])
        cotangent, tol = cotangents["barycenter"], adjoint_tolerance(self.options)
        grads = barycenter_adjoint(self._resumed(given, state), grad_barycenter=finite_or_zero(cotangent), tol=tol)
        wrong = overflowed(cotangent, 1)
        return {name: lost(gradient_of(grads, name, given), self.ranks[name], wrong) for name in wanted}

    def refuse_push(self, moving: Iterable[str]) -> Never:
        """Refuse: there is no derivative of forward mode."""
        raise NotImplementedError(
            "a barycenter can be differentiated once, and backwards only: take grad, vjp or jacrev, not jvp, jacfwd, "
            "hessian or the gradient of a gradient"
        )

    def _own_costs(self, given: Inputs) -> bool:
        """Whether each problem has costs, points or an eps of its own, which `cusink.barycenter` does not take."""
        return any(given[name].ndim > rank for name, rank in (self.cost.ranks | {"eps": 0}).items())

    def _each(self, groups: Sequence[Inputs], ranks: Sequence[dict[str, int]]) -> list[list[Inputs]]:
        """Return the groups of arrays of each problem."""
        (size,) = self.batch({name: x.shape for name, x in groups[0].items()})
        return [
            [
                {name: x[k if len(x) > 1 else 0] if x.ndim > rank[name] else x for name, x in group.items()}
                for group, rank in zip(groups, ranks, strict=True)
            ]
            for k in range(size)
        ]


def _stacked(parts: list[Arrays]) -> Arrays:
    """Return the arrays of single problems as those of a batch."""
    return {name: array_module(x).stack([part[name] for part in parts]) for name, x in parts[0].items()}


def check_shapes(
    A: tuple[int, ...], weights: tuple[int, ...] | None, eps: tuple[int, ...], bins: tuple[int, int]
) -> None:
    """Check the shapes of histograms, weights and eps before a work is traced; `bins` are those of the cost."""
    n = bins[0]
    if len(A) not in (2, 3) or A[-1] != n or 0 in A:
        raise ValueError(
            f"'A' must have shape (K, {n}) or (B, K, {n}), one histogram per row, to match C of shape {bins}; got {A}"
        )
    count = A[-2]
    if weights is not None and (len(weights) not in (1, 2) or weights[-1] != count or 0 in weights):
        raise ValueError(
            f"'weights' must have shape ({count},) or (B, {count}), one for each of {count} histograms; got {weights}"
        )
    sizes = [
        (name, shape[0])
        for name, shape, base in (("A", A, 2), ("weights", weights or (), 1), ("eps", eps, 0))
        if len(shape) > base and shape[0] > 1
    ]
    if len({size for _, size in sizes}) > 1:
        got = ", ".join(f"'{name}' {size}" for name, size in sizes)
        raise ValueError(f"batch sizes must be equal or 1; got {got}")
