"""The Wasserstein loss for JAX, with explicit gradients; ``pip install 'cusink[jax]'``.

Outside ``jit`` arrays are shared with NumPy on the CPU and, through DLPack, with CuPy on a GPU; inside, JAX calls the
NumPy solver back. The gradient is `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cusink.checks.arrays import kind
from cusink.checks.scalars import one_of
from cusink.costs.grid import Grid
from cusink.costs.operand import cost_shape
from cusink.costs.clouds import PointCloud
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.solver import checks as solver_checks
from cusink.solver import values
from cusink.solver.problem import Problem
from cusink.solver.result import SinkhornResult
from cusink.solver.sinkhorn import sinkhorn

__all__ = [
    "sinkhorn_loss",
]


GRADIENTS = ("exact", "multiplier")
REDUCTIONS = {"mean": jnp.mean, "sum": jnp.sum, "none": lambda losses: losses}
NUMBERS = (*values.VALUES, "error")  # of a result, one for each problem
HALF = ("float16", "bfloat16")
HALF_MASS_TOLERANCE = 1e-2  # 2.5 roundings of bfloat16


def sinkhorn_loss(a, b, C, eps, *, value="cost", gradient="exact", reduction="mean", **options):
    """Wasserstein loss between pairs of histograms, differentiable in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a : array, shape (n,) or (B, n), or None
        Source weights, such as the output of a softmax. None stands for uniform weights.
    b : array, shape (m,) or (B, m), or None
        Target weights, of the same sum as `a` unless `reach` is given.
    C : array, shape (n, m) or (B, n, m)
        Cost, shared by all pairs or one for each.
    eps : float or array of one number
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost"}
        Which value of `cusink.SinkhornResult` is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does.
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of a batch.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn` but `init` and `callback`.
        `tol` is also that of the linear system behind the exact gradient of `cost` (1e-6 if it is None).

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does. Under ``jit`` JAX wraps those that depend on values.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    Pass a batch as one: ``vmap`` gives the same numbers but calls the solver once per element. Under ``jit`` on a GPU
    the arrays travel to the host and are solved there. The gradients for `a` and `b` have mean zero: weights vary on
    the simplex. With `reach` masses may vary and nothing is projected; `entropic_cost` has no gradient there. float16
    and bfloat16 are computed in float32.

    References
    ----------
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, 2018.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from cusink.jax import sinkhorn_loss
    >>> target, C = jnp.array([0.0, 0.0, 1.0]), jnp.array([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]])
    >>> slope = jax.grad(lambda logits: sinkhorn_loss(jax.nn.softmax(logits), target, C, eps=0.1))(jnp.zeros(3))
    >>> bool(slope[2] < 0 < slope[0])
    True
    """
    one_of("value", value, values.VALUES)
    one_of("gradient", gradient, GRADIENTS)
    one_of("reduction", reduction, REDUCTIONS)
    for name in ("init", "callback"):
        if name in options:
            raise TypeError(f"'{name}' is not taken here: JAX may call the solver at any time. Use cusink.sinkhorn")
    if isinstance(C, (PointCloud, Grid)):
        raise TypeError(f"'C' must be an array; got {kind(C)}. Pass C.dense(), or C itself to cusink.sinkhorn")
    reach = _reach(options)
    C = _array(C)
    cost_shape(C)
    n, m = C.shape[-2:]
    a, b = (jnp.full(k, 1 / k, C.dtype) if x is None else _array(x) for x, k in ((a, n), (b, m)))
    for name, x, bins in (("a", a, n), ("b", b, m)):
        if x.ndim not in (1, 2) or x.shape[-1] != bins:
            raise ValueError(f"'{name}' must have {bins} bins to match C of shape {C.shape}; got shape {x.shape}")
        if x.dtype != C.dtype:
            raise TypeError(f"all arrays must share one dtype; '{name}' is {x.dtype} and 'C' {C.dtype}")
    dtype = C.dtype if C.dtype.name in HALF else None
    if dtype is not None:
        a, b, C = (x.astype(jnp.float32) for x in (a, b, C))
        if reach is None:
            # Rounding to half precision changes the mass: b gets that of a, unless the difference is larger.
            ratio = jax.lax.stop_gradient(a.sum(axis=-1, keepdims=True) / b.sum(axis=-1, keepdims=True))
            b = b * jnp.where(abs(ratio - 1) <= HALF_MASS_TOLERANCE, ratio, 1)
    eps = jnp.reshape(jnp.asarray(eps, C.dtype), ())
    losses = REDUCTIONS[reduction](_loss(_Solver(value, gradient, options), a, b, C, eps))
    return losses if dtype is None else losses.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(solver, a, b, C, eps):
    """The losses (B,) or () of checked arrays."""
    return _forward(solver, a, b, C, eps)[0]


def _forward(solver, a, b, C, eps):
    batch = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1], C.shape[:-2])
    number = jax.ShapeDtypeStruct(batch, C.dtype)
    solved = dict.fromkeys((*NUMBERS, "shift"), number) | {
        "f": jax.ShapeDtypeStruct((*batch, C.shape[-2]), C.dtype),
        "g": jax.ShapeDtypeStruct((*batch, C.shape[-1]), C.dtype),
        "n_iter": jax.ShapeDtypeStruct(batch, jnp.int32),
        "converged": jax.ShapeDtypeStruct(batch, jnp.bool_),
    }
    solved = _call(solver.solve, solved, a, b, C, eps)
    return solved[solver.value], (a, b, C, eps, solved)


def _backward(solver, kept, cotangent):
    a, b, C, eps, _ = kept
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b, C, eps))
    return _call(solver.pull_back, shapes, *kept, cotangent)


_loss.defvjp(_forward, _backward)


@dataclass(frozen=True, eq=False)
class _Solver:
    """What the callbacks run, on NumPy or CuPy arrays."""

    value: str
    gradient: str
    options: dict

    def solve(self, a, b, C, eps):
        """The arrays of the result by name; f and g are without the shift, to which they could lose their digits."""
        result = sinkhorn(a, b, C, eps=float(eps), **self.options)
        problem = result.problem
        shift = result.error * 0 if problem.reach is None else problem.outward(problem.shift)
        potentials = {"f": problem.outward(problem.f), "g": problem.outward(problem.g), "shift": shift}
        return potentials | {name: getattr(result, name) for name in (*NUMBERS, "n_iter", "converged")}

    def pull_back(self, a, b, C, eps, solved, cotangent):
        """The gradients for a, b, C and eps, in their shapes."""
        reach, init = _reach(self.options), (solved["f"], solved["g"])
        given = solver_checks.sinkhorn(a, b, C, eps=float(eps), init=init, check=False, balanced=reach is None)
        shift = None if reach is None else solved["shift"].reshape(-1).astype(np.float64)
        problem = Problem.of(given, eps, *given.init, reach, shift)
        every = {name: solved[name].reshape(-1) for name in NUMBERS}
        result = SinkhornResult.of(problem, every, *(solved[name].reshape(-1) for name in ("n_iter", "converged")))
        value = "reg_cost" if self.gradient == "multiplier" and self.value == "cost" else self.value
        grads = sinkhorn_adjoint(result, **{f"grad_{value}": cotangent}, tol=self.options.get("tol") or 1e-6)
        return tuple(_shaped(getattr(grads, name), x) for name, x in (("a", a), ("b", b), ("C", C), ("eps", eps)))


def _reach(options):
    """The checked prices of the marginals, None for balanced transport."""
    return solver_checks.reach(options.get("reach"), options.get("method", "auto"))


def _array(x):
    """`x` as an array of JAX, itself if it is one: under ``grad``, ``jnp.asarray`` copies."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _call(function, shapes, *arguments):
    """Run `function` on NumPy or CuPy views of the arrays: at once, or as a callback where they are being traced."""

    def on_host(*arguments):
        results = function(*jax.tree.map(np.asarray, arguments))
        return jax.tree.map(lambda x, s: np.asarray(x, s.dtype), results, shapes)

    leaves = jax.tree.leaves(arguments)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return jax.pure_callback(on_host, shapes, *arguments, vmap_method="sequential")
    if next(iter(leaves[0].devices())).platform != "gpu":
        return jax.tree.map(jnp.asarray, on_host(*arguments))
    import cupy

    results = function(*jax.tree.map(cupy.from_dlpack, arguments))
    return jax.tree.map(lambda x, s: jnp.from_dlpack(cupy.asarray(x, s.dtype)), results, shapes)


def _shaped(grad, x):
    """The gradient of a batch summed over what was broadcast, in the shape of `x`."""
    grad = grad.reshape((1,) * max(x.ndim - grad.ndim, 0) + grad.shape)
    lead = grad.ndim - x.ndim
    axes = tuple(range(lead)) + tuple(lead + i for i, k in enumerate(x.shape) if k == 1 and grad.shape[lead + i] != 1)
    return grad.sum(axis=axes).reshape(x.shape)
