"""Works of one transport problem: its values, its potentials, and products with its plan."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cusink.bridges.options import (
    CostKind,
    Gradient,
    adjoint_tolerance,
    gradient_of,
    options_with,
    reach_gradient,
    takes_reach,
    unbalanced,
)
from cusink.bridges.overflow import finite_or_zero, lost, overflowed
from cusink.bridges.pairs import PairWork
from cusink.bridges.works import FORWARD, Arrays, Inputs, Shapes, Work, refuse_once
from cusink.checks.arrays import array_module, in_range
from cusink.checks.regularisation import regularisations
from cusink.costs.measures import Measures
from cusink.gradients import checks as checks_of_gradients
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.gradients.hvp import sinkhorn_hvp
from cusink.gradients.jvp import sinkhorn_jvp
from cusink.gradients.system import LinearSolve
from cusink.gradients.through_plan import applied_tangent
from cusink.solver import checks
from cusink.solver.problem import Problem
from cusink.solver.result import SinkhornResult, make_result
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Array, Axis, Value


@dataclass(frozen=True)
class Transport(Work):
    """The solution of `cusink.sinkhorn` with `options` for weights a and b, a cost, and eps."""

    cost: CostKind
    options: tuple[tuple[str, Any], ...]

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each input of one problem."""
        price = {"reach": 1} if takes_reach(self.options) else {}
        return {"a": 1, "b": 1} | self.cost.ranks | {"eps": 0} | price | self.more

    @property
    def more(self) -> dict[str, int]:
        """Axes of inputs beside those of the solve; no ``super().ranks``, which ``torch.compile`` does not follow."""
        return {}

    @property
    def state(self) -> dict[str, int]:
        """Potentials in float64 and, for unbalanced transport, their shift; what the warnings of gradients say."""
        shift = {"shift": 0} if unbalanced(self.options) else {}
        return {"potential_f": 1, "potential_g": 1, "error": 0, "converged": 0} | shift

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        batch, (n, m) = self.batch(given), self.cost.bins(given)
        sizes = {"f": (n,), "g": (m,), "potential_f": (n,), "potential_g": (m,)}
        return {name: batch + sizes.get(name, ()) for name in (*self.outputs, *self.state)}

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        result = self.solved(given)
        return self.kept(result) | {name: getattr(result, name) for name in self.outputs}

    def solved(self, given: Inputs) -> SinkhornResult:
        """Solve the problems."""
        C, eps = self.cost.build(given), regularisations(given["eps"])
        result: SinkhornResult = sinkhorn(given["a"], given["b"], C, eps=eps, **options_with(self.options, given))
        return result

    def kept(self, result: SinkhornResult) -> Arrays:
        """Return the state of a result."""
        problem = result.problem
        out = {"error": result.error, "converged": result.converged}
        for name in ("f", "g"):
            potential = getattr(problem, name).astype(np.float64, copy=False)
            out[f"potential_{name}"] = potential if problem.batched else potential[0]
        if unbalanced(self.options):  # prices that are an input may both be inf
            shift = problem.shift if problem.shift is not None else problem.xp.zeros(len(problem.a))
            out["shift"] = shift if problem.batched else shift[0]
        return out

    def resumed(self, given: Inputs, state: Inputs) -> SinkhornResult:
        """Return the result that `run` had, but for the values."""
        options, eps = options_with(self.options, given), regularisations(given["eps"])
        reach, limit = checks.reach(options.get("reach")), options.get("memory_limit")
        checked = checks.problem(
            given["a"],
            given["b"],
            self.cost.build(given),
            eps=eps,
            check=False,
            reach=reach,
            memory_limit=limit,
        )
        f, g = (
            state[f"potential_{name}"].reshape(-1, bins) for name, bins in zip("fg", checked.C.shape[-2:], strict=True)
        )
        shift = None if reach is None else state["shift"].reshape(-1)
        problem = Problem.of(checked, f, g, reach, shift)
        error, converged = state["error"].reshape(-1), state["converged"].reshape(-1)
        nothing = problem.xp.zeros_like(error)
        every = dict.fromkeys(("cost", "reg_cost", "entropic_cost"), nothing) | {"error": error}
        return make_result(problem, every, nothing, converged)

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivatives of the outputs along directions."""
        result = self.resumed(given, state)
        tangents = sinkhorn_jvp(result, **named(directions, result), tol=adjoint_tolerance(self.options))
        return {name: getattr(tangents, name) for name in self.outputs}

    def chosen(self, grads: Any, given: Inputs, wanted: Iterable[str], wrong: Array) -> Arrays:
        """Return gradients by name, NaN for the problems in which numbers `wrong` (B,) or () are not finite."""
        out = {name: gradient_of(grads, name, given) for name in wanted}
        return {name: lost(x, self.ranks[name], wrong) for name, x in out.items()}

    @abstractmethod
    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""


@dataclass(frozen=True)
class ValueOf(Transport):
    """One of the three values. "multiplier" takes the gradient of `reg_cost` for that of `cost`."""

    value: Value = "cost"
    gradient: Gradient = "exact"
    twice: ClassVar[bool] = True

    @property
    def outputs(self) -> dict[str, int]:
        """The value."""
        return {self.value: 0}

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options, self.value, self.gradient)

    @property
    def differentiated(self) -> str:
        """The value whose gradient is taken."""
        return "reg_cost" if self.gradient == "multiplier" and self.value == "cost" else self.value

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        result, cotangent = self.resumed(given, state), cotangents[self.value]
        tol = adjoint_tolerance(self.options)
        weight: Any = {f"grad_{self.differentiated}": finite_or_zero(cotangent)}
        return self.chosen(sinkhorn_adjoint(result, tol=tol, **weight), given, wanted, cotangent)

    def refuse_push(self, moving: Iterable[str]) -> None:
        """Refuse spacings: one number moves with the prices by its gradient."""
        refuse_once(moving, FORWARD, "reach")

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the value along directions."""
        result, moves = self.resumed(given, state), dict(directions)
        total: Any = 0
        tol, of_reach = adjoint_tolerance(self.options), moves.pop("reach", None)
        if of_reach is not None:  # one number, whose derivative is its gradient
            weight: Any = {f"grad_{self.differentiated}": 1.0}
            grads = sinkhorn_adjoint(result, tol=tol, **weight)
            total = (reach_gradient(grads.reach, given) * of_reach).sum(axis=-1)
        if moves:
            tangents = sinkhorn_jvp(result, **named(moves, result), tol=tol)
            total = total + getattr(tangents, self.differentiated)
        return {self.value: total.astype(result.f.dtype)}

    def product(
        self, given: Inputs, state: Inputs, cotangents: Inputs, directions: Inputs, wanted: tuple[str, ...]
    ) -> Arrays:
        """Return the derivatives of gradients along directions."""
        result = self.resumed(given, state)
        cotangent = cotangents[self.value]
        weight: Any = {f"grad_{self.differentiated}": finite_or_zero(cotangent)}
        moved = sinkhorn_hvp(result, **weight, **named(directions, result), tol=adjoint_tolerance(self.options))
        return {name: lost(getattr(moved, name), self.ranks[name], cotangent) for name in wanted}


@dataclass(frozen=True)
class PairValues(PairWork):
    """One of the three values of pairs. "multiplier" takes the gradient of `reg_cost` for that of `cost`."""

    value: Value = "cost"
    gradient: Gradient = "exact"

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.metric, self.of_metric, self.offsets, self.options, self.slopes, self.value, self.gradient)

    def _solved(self, A: Measures, B: Measures, eps: Any) -> tuple[Array, Callable[[], Any]]:
        result = sinkhorn(A, B, self._metric, eps=eps, **dict(self.options))
        differentiated = "reg_cost" if self.gradient == "multiplier" and self.value == "cost" else self.value
        weight: Any = {f"grad_{differentiated}": 1.0}
        tol = adjoint_tolerance(self.options)
        return getattr(result, self.value), lambda: sinkhorn_adjoint(result, tol=tol, **weight)


@dataclass(frozen=True)
class Potentials(Transport):
    """The dual potentials f and g."""

    title: ClassVar[str] = "potentials"

    @property
    def outputs(self) -> dict[str, int]:
        """Both potentials."""
        return {"f": 1, "g": 1}

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        result = self.resumed(given, state)
        of_f, of_g = finite_or_zero(cotangents["f"]), finite_or_zero(cotangents["g"])
        grads = sinkhorn_adjoint(result, grad_f=of_f, grad_g=of_g, tol=adjoint_tolerance(self.options))
        wrong = overflowed(cotangents["f"], 1) + overflowed(cotangents["g"], 1)
        return self.chosen(grads, given, wanted, wrong)


@dataclass(frozen=True)
class Applied(Transport):
    """The plan times values: ``P v`` (axis 1, v (m, d)) or ``P' v`` (axis 0, v (n, d))."""

    title: ClassVar[str] = "products with plans"

    axis: Axis = 1

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options, self.axis)

    @property
    def more(self) -> dict[str, int]:
        """Axes of the values."""
        return {"values": 2}

    @property
    def outputs(self) -> dict[str, int]:
        """The product."""
        return {"applied": 2}

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        bins = self.cost.bins(given)[1 - self.axis]
        return super().shapes(given) | {"applied": (*self.batch(given), bins, given["values"][-1])}

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        if given["values"].dtype.kind == "f":  # integers are finite
            in_range("values", given["values"], array_module(given["values"]))
        size = given["values"].shape[0] if given["values"].ndim > 2 else 1
        if size > 1 and given["a"].ndim == 1:  # one problem with several values is as many problems
            xp = array_module(given["a"])
            given = dict(given) | {"a": xp.ascontiguousarray(xp.broadcast_to(given["a"], (size, *given["a"].shape)))}
        result = self.solved(given)
        return self.kept(result) | {"applied": self.of(result, given["values"])}

    def of(self, result: SinkhornResult, values: Array) -> Array:
        """Return what the plan makes of values."""
        return _apply(result, values, self.axis)

    def resumed(self, given: Inputs, state: Inputs) -> SinkhornResult:
        """Return the result that `run` had, with a batch where the values have one."""
        xp, rows = array_module(given["a"]), state["potential_f"].shape
        return super().resumed(dict(given) | {"a": xp.ascontiguousarray(xp.broadcast_to(given["a"], rows))}, state)

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        result, wrong = self.resumed(given, state), overflowed(cotangents["applied"], 2)
        cotangent, out = finite_or_zero(cotangents["applied"]), {}
        if "values" in wanted:
            out["values"] = lost(_apply(result, cotangent, 0 if self.axis == 1 else 1), 2, wrong)
        rest = [name for name in wanted if name != "values"]
        if rest:
            thin = (cotangent, given["values"]) if self.axis == 1 else (given["values"], cotangent)
            grads = sinkhorn_adjoint(result, grad_plan=thin, tol=adjoint_tolerance(self.options))
            out |= self.chosen(grads, given, rest, wrong)
        return out

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the product along directions."""
        result, moves = self.resumed(given, state), dict(directions)
        problem, total = result.problem, 0
        if "values" in moves:
            total = _apply(result, moves.pop("values"), self.axis)
        if moves:
            inputs = {f"d{name}": moves.get(name) for name in ("a", "b", "eps")}
            along = checks_of_gradients.directions(
                problem, result.f, inputs, {f"d{name}": moves.get(name) for name in ("C", "x", "y")}
            )
            xp, v = problem.xp, given["values"].astype(np.float64)
            v = xp.broadcast_to(v, (len(problem.a), *v.shape[-2:]))
            how = LinearSolve(adjoint_tolerance(self.options), 1000)
            total = total + problem.to_user(applied_tangent(problem, along, v, self.axis, how))
        return {"applied": total}


def _apply(result: SinkhornResult, v: Array, axis: Axis) -> Array:
    """Return the plans times values (., d) or (B, ., d)."""
    columns = [result.apply(v[..., k], axis) for k in range(v.shape[-1])]
    return result.problem.xp.stack(columns, axis=-1)


def named(directions: Inputs, result: SinkhornResult) -> dict[str, Any]:
    """Return directions under the names of `cusink.sinkhorn_jvp`, in the dtype of the result."""
    return {f"d{name}": x.astype(result.f.dtype) for name, x in directions.items()}
