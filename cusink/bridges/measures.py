"""Works between measures: the Sinkhorn divergence, kernel distances, likelihoods."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from cusink.bridges.options import (
    CostKind,
    adjoint_tolerance,
    gradient_of,
    options_with,
    reach_gradient,
    takes_reach,
    unbalanced,
)
from cusink.bridges.overflow import finite_or_zero, lost
from cusink.bridges.pairs import PairWork
from cusink.bridges.works import FORWARD, Arrays, Inputs, Shapes, Work, refuse_once
from cusink.checks.arrays import array_module
from cusink.checks.regularisation import regularisations
from cusink.costs.measures import Measures
from cusink.divergence.adjoint import sinkhorn_divergence_adjoint
from cusink.divergence.checks import own_shape, refuse_own, shared_bins
from cusink.divergence.forward import sinkhorn_divergence
from cusink.divergence.result import SinkhornDivergence
from cusink.divergence.resumed import resumed
from cusink.divergence.second import sinkhorn_divergence_hvp, sinkhorn_divergence_jvp
from cusink.norms.likelihood import kernel_neg_log_likelihood, kernel_neg_log_likelihood_adjoint
from cusink.norms.norms import kernel_distance, kernel_distance_adjoint
from cusink.types import Array

POTENTIALS = ("f", "g", "f_self", "g_self")


@dataclass(frozen=True)
class Divergence(Work):
    """The Sinkhorn divergence; `own_costs` says that C_aa and C_bb are inputs."""

    cost: CostKind
    options: tuple[tuple[str, Any], ...]
    own_costs: bool = False
    twice: ClassVar[bool] = True

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options, self.own_costs)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each input of one problem."""
        own = {"C_aa": 2, "C_bb": 2} if self.own_costs else {}
        price = {"reach": 1} if takes_reach(self.options) else {}
        return {"a": 1, "b": 1} | self.cost.ranks | own | {"eps": 0} | price

    @property
    def outputs(self) -> dict[str, int]:
        """The divergence."""
        return {"divergence": 0}

    @property
    def state(self) -> dict[str, int]:
        """Potentials in float64, the shift of unbalanced transport, the error."""
        shift = {"shift": 0} if unbalanced(self.options) else {}
        return {f"potential_{name}": 1 for name in POTENTIALS} | {"error": 0} | shift

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        batch, bins = self.batch(given), self.cost.bins(given)
        if self.own_costs and self.cost.kind != "dense":
            refuse_own("C_aa", "Grid" if self.cost.kind == "grid" else "PointCloud")
        elif self.own_costs:
            (size,) = self.batch({name: given[name] for name in ("a", "b", "C", "eps")}) or (1,)
            for name, n in zip(("C_aa", "C_bb"), bins, strict=True):
                own_shape(name, given[name], n, size)
        elif self.cost.kind == "dense":
            shared_bins(given["C"])
        sizes = {f"potential_{name}": (bins[name.startswith("g")],) for name in POTENTIALS}
        return {name: batch + sizes.get(name, ()) for name in (*self.outputs, *self.state)}

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        result = sinkhorn_divergence(
            given["a"],
            given["b"],
            self.cost.build(given),
            eps=regularisations(given["eps"]),
            C_aa=given.get("C_aa"),
            C_bb=given.get("C_bb"),
            **options_with(self.options, given),
        )
        pair, of_a, of_b = result.problems
        out = {"divergence": result.divergence, "error": result.error}
        for name, x in zip(POTENTIALS, (pair.f, pair.g, of_a.f, of_b.f), strict=True):
            out[f"potential_{name}"] = _at(pair.batched, x.astype(np.float64, copy=False))
        if unbalanced(self.options):  # a price that is an input may be inf
            out["shift"] = _at(pair.batched, pair.xp.zeros(len(pair.a)) if pair.shift is None else pair.shift)
        return out

    def _resumed(self, given: Inputs, state: Inputs) -> SinkhornDivergence:
        options = options_with(self.options, given)
        f, g, f_self, g_self = (x.reshape(-1, x.shape[-1]) for x in (state[f"potential_{name}"] for name in POTENTIALS))
        return resumed(
            given["a"],
            given["b"],
            self.cost.build(given),
            eps=regularisations(given["eps"]),
            potentials=(f, g, f_self, g_self),
            shift=state["shift"].reshape(-1) if "shift" in state else None,
            error=state["error"].reshape(-1),
            C_aa=given.get("C_aa"),
            C_bb=given.get("C_bb"),
            reach=options.get("reach"),
            memory_limit=options.get("memory_limit"),
        )

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        cotangent = cotangents["divergence"]
        grads = sinkhorn_divergence_adjoint(self._resumed(given, state), grad=finite_or_zero(cotangent))
        out = {name: gradient_of(grads, name, given) for name in wanted}
        return {name: lost(x, self.ranks[name], cotangent) for name, x in out.items()}

    def refuse_push(self, moving: Iterable[str]) -> None:
        """Refuse spacings: one number moves with the prices by its gradient."""
        refuse_once(moving, FORWARD, "reach")

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the divergence along directions."""
        result, moves = self._resumed(given, state), dict(directions)
        total: Any = 0
        of_reach = moves.pop("reach", None)
        if of_reach is not None:  # one number, whose derivative is its gradient
            grads = sinkhorn_divergence_adjoint(result, grad=1.0)
            total = (reach_gradient(grads.reach, given) * of_reach).sum(axis=-1)
        if moves:
            total = total + sinkhorn_divergence_jvp(result, **_named(moves, result.f))
        return {"divergence": total.astype(result.divergence.dtype)}

    def product(
        self, given: Inputs, state: Inputs, cotangents: Inputs, directions: Inputs, wanted: tuple[str, ...]
    ) -> Arrays:
        """Return the derivatives of gradients along directions."""
        result = self._resumed(given, state)
        moves, tol = _named(directions, result.f), adjoint_tolerance(self.options)
        cotangent = cotangents["divergence"]
        moved = sinkhorn_divergence_hvp(result, grad=finite_or_zero(cotangent), **moves, tol=tol)
        return {name: lost(getattr(moved, name), self.ranks[name], cotangent) for name in wanted}


@dataclass(frozen=True)
class PairDivergences(PairWork):
    """The Sinkhorn divergences of pairs."""

    def _solved(self, A: Measures, B: Measures, eps: Any) -> tuple[Array, Callable[[], Any]]:
        result = sinkhorn_divergence(A, B, self._metric, eps=eps, **dict(self.options))
        return result.divergence, lambda: sinkhorn_divergence_adjoint(result)


@dataclass(frozen=True)
class KernelWork(Work):
    """The squared kernel distance of measures, or the negative log likelihood of the second under the first."""

    title: ClassVar[str] = "kernel distances and likelihoods"

    function: Literal["distance", "likelihood"]
    kernel: str
    scale: float

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers and words."""
        return (self.function, self.kernel, self.scale)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each input of one problem."""
        return {"x": 2, "a": 1, "y": 2, "b": 1}

    @property
    def outputs(self) -> dict[str, int]:
        """The value."""
        return {"value": 0}

    @property
    def state(self) -> dict[str, int]:
        """Nothing."""
        return {}

    @property
    def positive(self) -> frozenset[str]:
        """The weights of a likelihood; those of a distance may have any sign."""
        return frozenset({"a", "b"}) if self.function == "likelihood" else frozenset()

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shape of the output."""
        return {"value": self.batch(given)}

    def run(self, given: Inputs) -> Arrays:
        """Return the value."""
        function: Callable[..., Array] = kernel_distance if self.function == "distance" else kernel_neg_log_likelihood
        x, a, y, b = (given[name] for name in self.ranks)
        return {"value": function(x, a, y, b, **self._options)}

    @property
    def _options(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "scale": self.scale}

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        del state
        cotangent = cotangents["value"]
        function = {"distance": kernel_distance_adjoint, "likelihood": kernel_neg_log_likelihood_adjoint}[self.function]
        x, a, y, b = (given[name] for name in self.ranks)
        grads = function(x, a, y, b, finite_or_zero(cotangent), wrt=wanted, **self._options)
        return {name: lost(getattr(grads, name), self.ranks[name], cotangent) for name in wanted}

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the value along directions."""
        xp, batch = (
            array_module(given["x"]),
            self.batch({name: x.shape for name, x in (*given.items(), *directions.items())}),
        )
        full = {
            name: xp.broadcast_to(x, batch + x.shape[-rank:])
            for (name, rank), x in zip(self.ranks.items(), given.values(), strict=True)
        }
        ones = {"value": xp.ones(batch, given["x"].dtype)}
        grads = self.pull(full, state, ones, tuple(directions))
        return {"value": sum((grads[name] * x).reshape(*batch, -1).sum(axis=-1) for name, x in directions.items())}


def _at(batched: bool, array: Array) -> Array:
    return array if batched else array[0]


def _named(directions: Inputs, like: Array) -> dict[str, Any]:
    """Return directions under the names of the functions of this package, in the dtype of a result."""
    return {f"d{name}": x.astype(like.dtype) for name, x in directions.items()}
