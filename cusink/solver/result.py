"""What a solve returns: potentials, values, and what can be made of them without solving again."""

from dataclasses import dataclass, field

import numpy as np

from cusink.errors import one_call
from cusink.placement import on_device
from cusink.solver import checks
from cusink.solver.bounds import bounds
from cusink.solver.problem import Problem
from cusink.summary import Summary
from cusink.types import Array, Axis, HostArray

__all__ = [
    "SinkhornResult",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkhornResult(Summary):
    """Solution of one problem, or of a batch.

    Attributes
    ----------
    f : array, shape (n,) or (B, n)
        Dual potential of the source, in the unit of the cost. Finite for empty bins too: the derivative of `reg_cost`
        with respect to their weight, up to a constant. Sums of f and g over the bins with weight are equal. Plans and
        gradients are computed from float64 potentials, which these are in the dtype of the inputs.
    g : array, shape (m,) or (B, m)
        Dual potential of the target.
    cost : array, shape () or (B,)
        Transport cost ``<P, C>``, also called E0 or the sharp Sinkhorn loss.
    reg_cost : array, shape () or (B,)
        ``<P, C> + eps KL(P | a b')``, which is ``<a, f> + <b, g>``; the value of GeomLoss and OTT. With `reach`, the
        whole objective of `cusink.sinkhorn`, prices of the marginals included.
    entropic_cost : array, shape () or (B,)
        ``<P, C> - eps H(P)``, Cuturi's and Viehmann's E-lambda.
    error : array, shape () or (B,)
        L1 error of the column marginal relative to the mass; the row marginal is met up to rounding, and for large
        clouds up to less than this error. With `reach`, the distance is that from ``b exp(-g / rho_b)``, the marginal
        of the optimum.
    n_iter : array of int, shape () or (B,)
        Iterations taken.
    converged : array of bool, shape () or (B,)
        Whether `error` reached the tolerance.
    """

    f: Array
    g: Array
    cost: Array
    reg_cost: Array
    entropic_cost: Array
    error: Array
    n_iter: Array
    converged: Array
    problem: Problem = field(repr=False)

    @property
    def eps(self) -> float | Array:
        """The regularisation: a number, or an array (B,) of one for each problem."""
        eps = self.problem.eps
        return self.problem.xp.asarray(eps) if isinstance(eps, np.ndarray) else eps

    @on_device
    def plan(self) -> Array:
        """Return the transport plan, shape (n, m) or (B, n, m): memory of that size.

        Returns
        -------
        array, shape (n, m) or (B, n, m)
            ``P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)``.
        """
        problem = self.problem.in_float64()
        return problem.to_user(problem.C.plan(*problem.logits(), problem.eps))

    @on_device
    def apply(self, v: Array, axis: Axis) -> Array:
        """Multiply the plan with vectors, without forming it.

        Parameters
        ----------
        v : array, shape (m,) or (B, m) for axis 1; (n,) or (B, n) for axis 0
            Vectors of any sign.
        axis : {0, 1}
            The axis of the plan to sum over: 1 gives ``P v``, 0 gives ``P' v``.

        Returns
        -------
        array, shape (n,) or (B, n) for axis 1; (m,) or (B, m) for axis 0
            The products.
        """
        problem = self.problem.in_float64()
        v = checks.vector(v, axis, problem).astype(np.float64)
        return problem.to_user(problem.C.apply_plan(*problem.logits(), v, problem.eps, axis))

    @one_call
    def bounds(self) -> tuple[Array, Array]:
        """Enclose the cost of the unregularised problem.

        Returns
        -------
        lower : array, shape () or (B,)
            A number below ``min <P, C>`` over all plans, converged or not; with `reach` the minimum is that of
            ``<P, C> + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)``.
        upper : array, shape () or (B,)
            A number above it.

        Notes
        -----
        The lower bound is the dual value of potentials made feasible by two c-transforms. The upper bound is the cost
        of the plan made feasible by the rounding of Altschuler, Weed and Rigollet (NIPS 2017). Both are widened by
        what rounding can have done to them.
        """
        return bounds(self.problem)


def make_result(problem: Problem, values: dict[str, Array], n_iter: HostArray, converged: HostArray) -> SinkhornResult:
    """Return the result of a problem, given its values (B,) by name, in the user's shape and library."""
    xp = problem.xp
    values = {name: problem.to_user(xp.asarray(value)) for name, value in values.items()}
    n_iter, converged = (xp.asarray(x) if problem.batched else xp.asarray(x)[0] for x in (n_iter, converged))
    f, g = (problem.to_user(x) for x in problem.shown_potentials())
    return SinkhornResult(f=f, g=g, n_iter=n_iter, converged=converged, problem=problem, **values)
