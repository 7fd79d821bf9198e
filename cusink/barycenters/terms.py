"""The terms of the gradients of a barycenter: what falls on weights, histograms, and on the pairs of each plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cusink.barycenters.solved import SolvedBarycenter
from cusink.barycenters.system import JointMeans, JointSystem
from cusink.checks.arrays import narrowed
from cusink.convergence.options import Options
from cusink.costs.blocks import blocks
from cusink.costs.cost import Cost, GradientBlock
from cusink.costs.logits import logits
from cusink.errors import warn_if_unconverged
from cusink.gradients.system import LinearSolve
from cusink.operand import dense_cost
from cusink.solver.loop import solve
from cusink.types import Array, HostArray

MEANS_BYTES = 1 << 28  # of the kernels of plans that are kept at a time
BLOCK_ENTRIES = 1 << 18  # of a block of plans
ZERO_WEIGHT = Options(max_iter=10_000, tol=1e-9)  # how plans that the barycenter does not need are solved


class Plans(NamedTuple):
    """Plans (N, n, m) as weights and potentials, as `cusink.sinkhorn` has them, with the means under them."""

    C: Cost[Any]
    a: Array
    b: Array
    f: Array
    g: Array
    eps: float

    @classmethod
    def of(cls, C: Cost[Any], a: Array, b: Array, v: Array, log_b: Array, eps: float) -> "Plans":
        """Return the plans of scalings with logarithms v (N, m) whose rows sum to a (N, n); b are their columns."""
        xp, reached = C.xp, C.xp.isfinite(log_b)  # no mass comes to the others, which +inf costs forbid
        g = eps * (xp.where(reached, v, 0) - xp.where(reached, log_b, 0))
        return cls(C, a, b, C.softmin(v, eps, 1), g, eps)

    def means(self, plans: int) -> JointMeans:
        """Return the means, for problems with so many plans each."""
        groups = list(self.C.plan_means(self.a, self.b, self.f, self.g, self.eps))
        n, m = self.C.shape
        return JointMeans(self.C.xp, groups, plans, (n, m))

    def blocks(self, rows: Array, columns: Array) -> Iterator[GradientBlock]:
        """Yield blocks of ``P_ij (rows_i + columns_j)`` for arrays (N, n) and (N, m)."""
        (size, n), m = self.a.shape, self.b.shape[1]
        p = logits(self.C.xp, self.a, self.f, self.eps)
        q = logits(self.C.xp, self.b, self.g, self.eps)
        for some, part in blocks(size, n, m, BLOCK_ENTRIES):
            C = dense_cost(self.C.block(some, part))
            P = C.plan(p[some, part], q[some], self.eps)
            P *= rows[some, part, None] + columns[some, None, :]
            yield some, part, P


@dataclass(frozen=True, eq=False)
class Pulled:
    """Gradients of problems: by each histogram (B, K, n), and what falls on the pairs of the plans.

    The gradient by the cost is the sum over plans of ``P_ij (rows_i + columns_j)``, with `rows` (B, K, n) and `columns`
    (B, K, m), and of ``P_ij own_i`` over the plans of ``OT(p, p)``, `own` (B, n). `slope` (B, m) is the gradient by
    ``sum_k w_k v_k``.
    """

    rows: Array
    columns: Array
    own: Array | None
    slope: Array
    of_eps: Array
    of_histograms: Array
    converged: HostArray


def pulled(given: SolvedBarycenter, r: Array, how: LinearSolve) -> Pulled:
    """Pull the gradient r (B, m) by barycenters back, some problems at a time."""
    step = max(1, MEANS_BYTES // max(1, given.C.row_bytes(given.A.shape[1])))
    order, parts = [], []
    for at, eps, some in given.of_one_eps():
        for start in range(0, len(at), step):
            part = slice(start, start + step)
            order.append(at[part])
            parts.append(_pulled(some.at(part), eps, r[at[part]], how))
    if len(parts) == 1:
        return parts[0]
    xp, back = given.xp, np.argsort(np.concatenate(order))
    joined: dict[str, Any] = {}
    for name in ("rows", "columns", "own", "slope", "of_eps", "of_histograms", "converged"):
        values = [getattr(part, name) for part in parts]
        join = np.concatenate if name == "converged" else xp.concatenate
        joined[name] = None if values[0] is None else join(values)[back]
    return Pulled(**joined)


def plans_of(given: SolvedBarycenter, eps: float) -> Plans:
    """Return the K plans of all problems, which have one eps, one after the other."""
    (size, K, n), m = given.A.shape, given.C.shape[1]
    xp = given.xp
    log_p = xp.broadcast_to(given.log_p[:, None], (size, K, m)).reshape(-1, m)
    return Plans.of(given.C, given.A.reshape(-1, n), xp.exp(log_p), given.v.reshape(-1, m), log_p, eps)


def own_plans_of(given: SolvedBarycenter, eps: float) -> Plans | None:
    """Return the plans of ``OT(p, p)``."""
    if given.d is None:
        return None
    p = given.xp.exp(given.log_p)
    return Plans.of(given.C, p, p, given.d, given.log_p, eps)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # of a plan that weighs nothing and is far off
def _pulled(given: SolvedBarycenter, eps: float, r: Array, how: LinearSolve) -> Pulled:
    xp, p = given.xp, given.xp.exp(given.log_p)[:, None]
    own = own_plans_of(given, eps)
    means, of_own = plans_of(given, eps).means(given.A.shape[1]), None if own is None else own.means(1)
    weights = given.weights[:, :, None]
    system = JointSystem(xp, given.C.to_host, means, of_own, weights, p)
    size = xp.abs(r).max(axis=1, keepdims=True)[:, None]
    unit = xp.ldexp(xp.ones_like(size), xp.frexp(xp.where(size > 0, size, 1))[1])  # squares of 1e-170 are no numbers
    r = r / unit[:, 0]
    r = r[:, None] - (p * r[:, None]).sum(axis=2, keepdims=True) / p.sum(axis=2, keepdims=True)
    every = xp.broadcast_to(r, (len(r), weights.shape[1], r.shape[2]))
    theta = None
    if own is None:
        image = system.unmixed(every)
        found, converged = system.solve(image - system.mean(image), every, how)
        fit = found - every
        slope = -system.mean(system.unmixed(fit))
    else:
        fit, converged = system.solve(xp.broadcast_to(system.blurred(r), every.shape), every, how)
        theta = -r - system.mean(fit)
        slope = system.blurred(theta)
    fit = xp.where(weights > 0, fit, 0)
    back = means.mean(fit, 1)
    rows, columns = -weights * back / eps, weights * fit / eps
    of_eps = -(means.mean_costs(rows, columns).sum(axis=1)) / eps
    of_own_rows = None
    if theta is not None and of_own is not None:
        of_own_rows = theta / eps
        of_eps -= of_own.mean_costs(of_own_rows, xp.zeros_like(theta))[:, 0] / eps
    of_histograms = -weights * back
    of_histograms -= of_histograms.mean(axis=2, keepdims=True)
    return Pulled(
        rows * unit,
        columns * unit,
        None if of_own_rows is None else (of_own_rows * unit)[:, 0],
        (slope * unit)[:, 0],
        of_eps * unit[:, 0, 0],
        of_histograms * unit,
        converged,
    )


@dataclass(frozen=True, eq=False)
class BarycenterTerms:
    """Solved problems in float64 and their gradients, of which those by weights and costs are made when asked for."""

    given: SolvedBarycenter
    pulled: Pulled

    def wrt_weights(self) -> Array:
        """Return the gradient (B, K) with respect to the weights as they came, of which only ratios matter."""
        xp, given = self.given.xp, self.given
        slope = (xp.exp(given.log_p) * self.pulled.slope)[:, None]
        out = -(slope * xp.where(slope != 0, self._scalings(), 0)).sum(axis=2)
        return (out - (given.weights * out).sum(axis=1, keepdims=True)) / given.total[:, None]

    def _scalings(self) -> Array:
        """Return logarithms (B, K, m) of scalings, also of plans that the barycenter does not need: these are solved.

        The weight of such a plan has a derivative all the same.
        """
        given = self.given
        unneeded = ~given.C.to_host(given.weights > 0)
        if not unneeded.any():
            return given.v
        v = given.v.copy()
        for at, eps, _ in given.of_one_eps():
            problems, plans = np.nonzero(unneeded[at])
            if len(problems):
                problems = at[problems]
                p = given.xp.exp(given.log_p[problems])
                found = solve(given.C, given.A[problems, plans], p, eps, ZERO_WEIGHT, costs_of=given.C.at)
                warn_if_unconverged(found.converged, found.error, ZERO_WEIGHT.tol or 0, ZERO_WEIGHT.max_iter)
                v[problems, plans] = found.g / eps + given.log_p[problems]
        return v

    def wrt_cost(self) -> Array | None:
        """Return the gradient (n, m) with respect to a stored cost, summed over the batch."""
        given = self.given
        if not given.C.stored:
            return None
        out = given.xp.zeros(given.C.shape)
        for plans, rows, columns in self._parts():
            for index, means in plans.C.plan_means(*plans[1:]):
                out += means.plan_sum(rows[index], columns[index], None)
        return narrowed(out, given.dtype, given.xp)

    def wrt_points(self) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to the points of a cloud, summed over the batch."""
        found = [plans.C.points_adjoint(plans.blocks(rows, columns)) for plans, rows, columns in self._parts()]
        (x, y), *more = found
        for own_x, own_y in more:
            x, y = (None if of is None else of + own for of, own in ((x, own_x), (y, own_y)))
        return x, y

    def wrt_axes(self) -> tuple[Array, ...] | None:
        """Return the gradients with respect to the positions of the cells of a grid, summed over the batch."""
        found = [plans.C.axes_adjoint(plans.blocks(rows, columns)) for plans, rows, columns in self._parts()]
        given, parts = self.given, [part for part in found if part is not None]
        return tuple(narrowed(sum(each), given.dtype, given.xp) for each in zip(*parts, strict=True)) or None

    def wrt_metric(self) -> dict[str, Array]:
        """Return the gradients with respect to the parameters of a metric, summed over the batch."""
        out: dict[str, Array] = {}
        for plans, rows, columns in self._parts():
            found = plans.C.metric_adjoint(plans.blocks(rows, columns))
            out |= {name: out.get(name, 0) + part for name, part in found.items()}
        return out

    def _parts(self) -> Iterator[tuple[Plans, Array, Array]]:
        """Yield plans, and the rows and columns of their gradients."""
        pulled = self.pulled
        for at, eps, given in self.given.of_one_eps():
            rows, columns = (x[at].reshape(-1, x.shape[-1]) for x in (pulled.rows, pulled.columns))
            yield plans_of(given, eps), rows, columns
            own = own_plans_of(given, eps)
            if own is not None and pulled.own is not None:
                of_own = pulled.own[at]
                yield own, of_own, given.xp.zeros_like(of_own)
