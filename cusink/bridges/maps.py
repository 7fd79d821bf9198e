"""Works of maps: barycentric ones between the bins of a problem, and potentials and maps at new points."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from cusink.bridges.options import adjoint_tolerance, gradient_of
from cusink.bridges.overflow import finite_or_zero, lost, overflowed
from cusink.bridges.transport import Applied, Transport, named
from cusink.bridges.works import Arrays, Inputs, Shapes
from cusink.checks.arrays import array_module
from cusink.gradients import checks as checks_of_gradients
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.gradients.extension import extension_adjoint
from cusink.gradients.jvp import sinkhorn_jvp
from cusink.gradients.maps import barycentric_map_adjoint
from cusink.gradients.motion import solved
from cusink.gradients.parts import Directions
from cusink.gradients.shares import means_along, shares
from cusink.solver.extension import SinkhornExtension
from cusink.solver.problem import Problem
from cusink.solver.result import SinkhornResult
from cusink.types import Array, Axis


@dataclass(frozen=True)
class BarycentricMap(Applied):
    """Means of values under the rows of the plan (axis 1), or under its columns (axis 0)."""

    title: ClassVar[str] = "barycentric maps"

    def of(self, result: SinkhornResult, values: Array) -> Array:
        """Return the means."""
        return result.barycentric_map(values.astype(result.f.dtype), self.axis)

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        result, wrong = self.resumed(given, state), overflowed(cotangents["applied"], 2)
        grads = barycentric_map_adjoint(
            result,
            given["values"].astype(result.f.dtype),
            finite_or_zero(cotangents["applied"]),
            axis=self.axis,
            tol=adjoint_tolerance(self.options),
        )
        return self.chosen(grads, given, wanted, wrong)

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the means along directions."""
        result, moves, total = self.resumed(given, state), dict(directions), 0
        if "values" in moves:
            total = self.of(result, moves.pop("values"))
        if moves:
            along = _along(result, moves)
            moved, _ = _moved(result.problem, self.axis, given["values"], along, self._change(result, moves))
            total = total + result.problem.to_user(moved)
        return {"applied": total}

    def _change(self, result: SinkhornResult, moves: Inputs) -> Array:
        return potential_moved(result, moves, self.axis, adjoint_tolerance(self.options))


@dataclass(frozen=True)
class AtNewPoints(Transport):
    """The potential, or the map, at new points of the side that is kept when `axis` of the plan is summed over.

    What is mapped to are the points of the other side or, if `valued`, values that are an input.
    """

    title: ClassVar[str] = "potentials and maps at new points"

    output: Literal["potential", "map"] = "map"
    axis: Axis = 1
    valued: bool = False

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.cost.made_of, self.options, self.output, self.axis, self.valued)

    @property
    def more(self) -> dict[str, int]:
        """Axes of the new points, and of the values."""
        return {"points": 2, "values": 2} if self.valued else {"points": 2}

    @property
    def outputs(self) -> dict[str, int]:
        """What is at the new points."""
        return {"there": 1 if self.output == "potential" else 2}

    @property
    def partners(self) -> str:
        """The name of the points of the other side."""
        return self.cost.names[-1] if self.axis == 1 else "x"

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        width = given["values" if self.valued else self.partners][-1]
        there = (given["points"][-2], width)[: self.outputs["there"]]
        return super().shapes(given) | {"there": (*self.batch(given), *there)}

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        result = self.solved(self._spread(given))
        return self.kept(result) | {"there": self._there(self._extension(result, given), given.get("values"))}

    def resumed(self, given: Inputs, state: Inputs) -> SinkhornResult:
        """Return the result that `run` had."""
        return super().resumed(self._spread(given), state)

    def _spread(self, given: Inputs) -> Inputs:
        """Return inputs in which the problems are as many as sets of new points, or of values, and have clouds each."""
        given, xp = dict(given), array_module(given["a"])
        sizes = [len(given[name]) for name in self.more if given[name].ndim > 2]
        names = ["a", *(self.cost.names if given["points"].ndim > 2 else ())]
        for name in names if sizes else ():
            x = given[name]
            if x.ndim == self.ranks[name]:
                given[name] = xp.ascontiguousarray(xp.broadcast_to(x, (max(sizes), *x.shape)))
        return given

    def _extension(self, result: SinkhornResult, given: Inputs) -> SinkhornExtension:
        return result.at(**{"x" if self.axis == 1 else "y": given["points"]})

    def _there(self, extension: SinkhornExtension, values: Array | None) -> Array:
        if self.output == "potential":
            return extension.potential
        return extension.map() if values is None else extension.barycentric_map(values)

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs: those at the new points, and the others through the potential of the solve."""
        result, wrong = self.resumed(given, state), overflowed(cotangents["there"], self.outputs["there"])
        cotangent: dict[str, Any] = {f"grad_{self.output}": finite_or_zero(cotangents["there"])}
        grads = extension_adjoint(self._extension(result, given), values=given.get("values"), **cotangent)
        out: Arrays = {name: getattr(grads, name) for name in wanted if name in ("points", "values")}
        rest = [name for name in wanted if name not in out]
        if rest:
            potential, weights = ("grad_g", "b") if self.axis == 1 else ("grad_f", "a")
            through: dict[str, Any] = {potential: grads.potential}
            of_solve = sinkhorn_adjoint(result, tol=adjoint_tolerance(self.options), **through)
            direct = {weights: grads.weights, "eps": grads.eps, "reach": grads.reach, self.partners: grads.partners}
            if result.problem.reach is None:  # weights vary on the simplex
                direct[weights] = grads.weights - grads.weights.mean(axis=-1, keepdims=True)
            for name in rest:
                x, more = gradient_of(of_solve, name, given), direct.get(name)
                out[name] = x if more is None else x + more
        return {name: lost(x, self.ranks[name], wrong) for name, x in out.items()}

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative along directions."""
        result, moves = self.resumed(given, state), dict(directions)
        extension, xp = self._extension(result, given), array_module(given["a"])
        problem, points = extension.problem, moves.pop("points", None)
        of_values = moves.pop("values", None) if self.valued else moves.get(self.partners)
        total = 0
        if of_values is not None and self.output == "map":
            total = extension.barycentric_map(of_values.astype(result.f.dtype))
        along, change = Directions(), xp.zeros((len(problem.a), problem.C.shape[-1 if self.axis == 1 else -2]))
        if moves:
            along, change = _along(result, moves), potential_moved(result, moves, self.axis, self._tol)
        own, other = ("dx", "dy") if self.axis == 1 else ("dy", "dx")
        cost = problem.C.direction({"dC": None, own: points, other: moves.get(self.partners)})
        values = given["values"] if self.valued else problem.C.user_points(self.axis)[0]
        moved, of_softmin = _moved(problem, self.axis, values, along._replace(cost=cost), change)
        if self.output == "map":
            return {"there": total + problem.to_user(moved)}
        return {"there": problem.to_user(_damped(extension, of_softmin, along.eps))}

    @property
    def _tol(self) -> float:
        return adjoint_tolerance(self.options)


def potential_moved(result: SinkhornResult, moves: Inputs, axis: Axis, tol: float) -> Array:
    """Return how the potential (B, bins) of the side that `axis` sums over moves with the inputs of a solve."""
    tangents = sinkhorn_jvp(result, **named(moves, result), tol=tol)
    found: Array = tangents.g if axis == 1 else tangents.f
    return found.reshape(len(result.problem.a), -1).astype(np.float64)


def _along(result: SinkhornResult, moves: Inputs) -> Directions:
    """Return the direction of checked moves, whose weights are projected as their gradients are."""
    inputs, costs = ({f"d{name}": moves.get(name) for name in names} for names in (("a", "b", "eps"), ("C", "x", "y")))
    return solved(result.problem).feasible(checks_of_gradients.directions(result.problem, result.f, inputs, costs))


def _moved(problem: Problem, axis: Axis, values: Array, along: Directions, change: Array) -> tuple[Array, Array]:
    """Return the derivatives of means of values, which stay, and of softmins."""
    v = values.astype(np.float64)
    v = v if v.ndim == 3 else v[None]
    nothing = problem.xp.zeros((len(problem.a), problem.C.shape[-1 - axis], v.shape[-1]))
    return means_along(shares(problem, axis, v, nothing), along, change)


def _damped(extension: SinkhornExtension, change: Array, deps: Array | None) -> Array:
    """Return how potentials move with their softmins: with `reach` they are kappa times these, as eps is too."""
    problem = extension.problem
    rho = np.inf if problem.reach is None else problem.reach[1 - extension.axis]
    if rho == np.inf:
        return change
    damped = rho + problem.eps_as(2)
    out = change * (rho / damped)
    if deps is not None:
        dual = extension.potential.reshape(change.shape).astype(np.float64)  # kappa times the softmin
        out = out - dual / damped * deps[:, None]
    return out
