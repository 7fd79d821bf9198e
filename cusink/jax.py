"""The Wasserstein loss for JAX, with explicit gradients; ``pip install jax``.

Outside ``jit`` arrays are shared with NumPy on the CPU and, through DLPack, with CuPy on a GPU; inside, JAX calls the
NumPy solver back. The gradient is `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cusink.bridge import Gradient, LossOptions, Reduction, lost, mass_ratio, stored_cost
from cusink.checks.arrays import HALF, as_dtype, one_array
from cusink.checks.scalars import price_in_range, regularisation
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.operand import check_shape
from cusink.solver import checks
from cusink.solver.problem import Problem
from cusink.solver.result import make_result
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Array, Value

__all__ = [
    "sinkhorn_loss",
]


# Potentials are float64, which JAX may not hold: what an array lacks of them is a second one.
POTENTIALS = {"f": ("f", "f_rest"), "g": ("g", "g_rest")}
NUMBERS = (*get_args(Value), "error")  # of a result, one for each problem


def sinkhorn_loss(
    a: jax.Array | None,
    b: jax.Array | None,
    C: jax.Array,
    eps: float | jax.Array,
    *,
    value: Value = "cost",
    gradient: Gradient = "exact",
    reduction: Reduction = "mean",
    **options: Any,
) -> jax.Array:
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
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn` but `init` and `callback`.
        `tol` is also the tolerance of the linear system behind the exact gradient of `cost` (1e-6 if it is None).

    Returns
    -------
    array, shape () or, for ``reduction="none"`` and a batch, (B,)
        The loss, in the dtype of `C`.

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
    and bfloat16 are computed in float32. Lists and whole numbers follow the arrays that they come with, and have the
    default float of JAX where there are none.

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
    given = LossOptions(value, gradient, reduction, options)
    for name in ("init", "callback"):
        if name in options:
            raise TypeError(f"'{name}' is not taken here: JAX may call the solver at any time. Use cusink.sinkhorn")
    stored_cost("C", C, "an array", "C.dense()")
    reach = given.reach
    C, a, b = _floating(C=C, a=a, b=b)
    check_shape(C)
    n, m = C.shape[-2:]
    a, b = (jnp.full(k, 1 / k, C.dtype) if x is None else x for x, k in ((a, n), (b, m)))
    for name, x, bins in (("a", a, n), ("b", b, m)):
        if x.ndim not in (1, 2) or x.shape[-1] != bins:
            raise ValueError(f"'{name}' must have {bins} bins to match C of shape {C.shape}; got shape {x.shape}")
        if x.dtype != C.dtype:
            raise TypeError(f"all arrays must share one dtype; '{name}' is {x.dtype} and 'C' {C.dtype}")
    dtype = C.dtype if C.dtype.name in HALF else None
    if dtype is not None:
        a, b, C = (x.astype(jnp.float32) for x in (a, b, C))
        if reach is None:
            b = b * jax.lax.stop_gradient(mass_ratio(jnp, a, b))
    eps = _one_number(eps, C.dtype)
    losses = given.reduce(_loss(given, a, b, C, eps))
    return losses if dtype is None else losses.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options: LossOptions, a: jax.Array, b: jax.Array, C: jax.Array, eps: jax.Array) -> jax.Array:
    """Return the losses (B,) or () of checked arrays."""
    return _forward(options, a, b, C, eps)[0]


def _forward(
    options: LossOptions, a: jax.Array, b: jax.Array, C: jax.Array, eps: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Return the losses, and all that `_backward` needs."""
    batch = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1], C.shape[:-2])
    number = jax.ShapeDtypeStruct(batch, C.dtype)
    shapes = dict.fromkeys((*NUMBERS, "shift"), number) | {
        name: jax.ShapeDtypeStruct((*batch, bins), C.dtype)
        for parts, bins in zip(POTENTIALS.values(), C.shape[-2:], strict=True)
        for name in parts
    }
    shapes |= {
        "n_iter": jax.ShapeDtypeStruct(batch, jnp.int32),
        "converged": jax.ShapeDtypeStruct(batch, jnp.bool_),
    }
    solved = _call(partial(_solve, options), shapes, a, b, C, eps)
    return solved[options.value], (a, b, C, eps, solved)


def _backward(options: LossOptions, kept: tuple[Any, ...], grad_losses: jax.Array) -> tuple[jax.Array, ...]:
    """Return the gradients for a, b, C and eps, in their shapes."""
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept[:4])
    gradients: tuple[jax.Array, ...] = _call(partial(_pull_back, options), shapes, *kept, grad_losses)
    return gradients


_loss.defvjp(_forward, _backward)


# These two run on NumPy or CuPy arrays.


def _solve(options: LossOptions, a: Array, b: Array, C: Array, eps: Array) -> dict[str, Array]:
    """Return the arrays of the result by name; f and g lack the shift, beside which they could lose their digits."""
    result = sinkhorn(a, b, C, eps=float(eps), **options.solver)
    problem = result.problem
    shift = result.error * 0 if problem.reach is None else problem.to_user(problem.shift)
    potentials = {"shift": shift}
    for name, parts in POTENTIALS.items():
        exact = getattr(problem, name)
        rounded = problem.to_user(exact)
        with np.errstate(invalid="ignore"):  # +inf has no rest
            rest = np.nan_to_num(exact - rounded.reshape(exact.shape))
        potentials |= dict(zip(parts, (rounded, problem.to_user(rest)), strict=True))
    return potentials | {name: getattr(result, name) for name in (*NUMBERS, "n_iter", "converged")}


def _pull_back(
    options: LossOptions, a: Array, b: Array, C: Array, eps: Array, solved: dict[str, Array], grad_losses: Array
) -> tuple[Array, ...]:
    """Return the gradients for a, b, C and eps, in their shapes."""
    reach = options.reach
    given = checks.problem(a, b, C, eps=float(eps), init=None, check=False, balanced=reach is None)
    f, g = (sum(solved[part].astype(np.float64) for part in parts) for parts in POTENTIALS.values())
    f, g = f.reshape(given.a.shape), g.reshape(given.b.shape)
    shift = None if reach is None else solved["shift"].reshape(-1).astype(np.float64)
    problem = Problem.of(given, float(eps), f, g, reach, shift)
    every = {name: solved[name].reshape(-1) for name in NUMBERS}
    result = make_result(problem, every, solved["n_iter"].reshape(-1), solved["converged"].reshape(-1))
    grads = sinkhorn_adjoint(result, **options.cotangents(grad_losses))
    inputs = (("a", a), ("b", b), ("C", C), ("eps", eps))
    return tuple(_shaped(lost(name, getattr(grads, name), grad_losses), x) for name, x in inputs)


def _floating(**named: Any) -> list[Any]:
    """Return the inputs as arrays of JAX of floating-point numbers; None stays None.

    Lists and integers follow the arrays that they come with, or have the default float of JAX.
    """
    converted = {name: _array(name, x) for name, x in named.items() if x is not None}
    floats = [converted[name].dtype for name in converted if not isinstance(named[name], (list, tuple, int, float))]
    floats = [dtype for dtype in floats if jnp.issubdtype(dtype, jnp.floating)]
    default = floats[0] if floats else jnp.result_type(float)
    loose = {
        name: isinstance(named[name], (list, tuple, int, float)) or not jnp.issubdtype(x.dtype, jnp.floating)
        for name, x in converted.items()
    }
    cast = {name: x.astype(default) if loose[name] and x.dtype != default else x for name, x in converted.items()}
    return [cast.get(name) for name in named]


def _array(name: str, x: Any) -> jax.Array:
    """Return `x` as an array of real numbers of JAX, itself if it is one: under ``grad``, ``jnp.asarray`` copies."""
    if not isinstance(x, jax.Array):
        if not isinstance(x, (list, tuple)) or not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
            x = one_array(name, x)
            x = as_dtype(name, x, jax.dtypes.canonicalize_dtype(x.dtype))
        x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"'{name}' must hold real numbers; got dtype {x.dtype}")
    return x


def _one_number(eps: Any, dtype: Any) -> jax.Array:
    """Return the regularisation as an array () of `dtype`; its sign is checked when the solver is called."""
    if not isinstance(eps, (jax.Array, np.ndarray)):
        eps = regularisation(eps)
        price_in_range("eps", eps, dtype)
        return jnp.asarray(eps, dtype)
    eps = _array("eps", eps)
    if eps.size != 1:
        raise ValueError(f"'eps' must be a number, or an array of one; got shape {eps.shape}")
    if eps.dtype == jnp.bool_:
        raise TypeError(f"'eps' must be a real number; got an array of {eps.dtype}")
    return jnp.reshape(eps, ()).astype(dtype)


def _call(function: Callable[..., Any], shapes: Any, *arguments: Any) -> Any:
    """Run `function` on NumPy or CuPy views of the arrays: at once, or as a callback where they are being traced."""

    def on_host(*arguments: Any) -> Any:
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


def _shaped(grad: Array, x: Array) -> Array:
    """Return the gradient of a batch summed over the axes that were broadcast, in the shape of `x`."""
    grad = grad.reshape((1,) * max(x.ndim - grad.ndim, 0) + grad.shape)
    lead = grad.ndim - x.ndim
    axes = tuple(range(lead)) + tuple(lead + i for i, k in enumerate(x.shape) if k == 1 and grad.shape[lead + i] != 1)
    return grad.sum(axis=axes).reshape(x.shape)
