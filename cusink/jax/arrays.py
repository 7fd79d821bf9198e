"""Inputs of losses as arrays of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cusink.checks.arrays import HALF, as_dtype, one_array
from cusink.checks.regularisation import RELATIVE
from cusink.checks.scalars import price_in_range
from cusink.checks.scalars import regularisation as number

FLOATS = ("float64", "float32", *HALF)


def floating(**named: Any) -> list[Any]:
    """Return the inputs as arrays of JAX of floating-point numbers; None stays None.

    Lists and integers follow the arrays that they come with, or have the default float of JAX. float32 beside float64
    becomes that, and gradients come back in the dtype of each.
    """
    converted = {name: array(name, x) for name, x in named.items() if x is not None}
    floats = [converted[name].dtype for name in converted if not isinstance(named[name], (list, tuple, int, float))]
    floats = [dtype for dtype in floats if jnp.issubdtype(dtype, jnp.floating)]
    default = floats[0] if floats else jnp.result_type(float)
    loose = {
        name: isinstance(named[name], (list, tuple, int, float)) or not jnp.issubdtype(x.dtype, jnp.floating)
        for name, x in converted.items()
    }
    if {dtype.name for dtype in floats} == {"float32", "float64"}:
        default = jnp.dtype("float64")
        loose = {name: loose[name] or x.dtype.name == "float32" for name, x in converted.items()}
    cast = {name: x.astype(default) if loose[name] and x.dtype != default else x for name, x in converted.items()}
    return [cast.get(name) for name in named]


def in_one_dtype(named: dict[str, Any]) -> Any:
    """Return the dtype that all arrays share, those that are None apart."""
    given = {name: x for name, x in named.items() if x is not None}
    first, like = next(iter(given.items()))
    for name, x in given.items():
        if x.dtype != like.dtype:
            raise TypeError(f"all arrays must share one dtype; '{name}' is {x.dtype} and '{first}' {like.dtype}")
    return like.dtype


def array(name: str, x: Any) -> jax.Array:
    """Return `x` as an array of real numbers of JAX, itself if it is one: under ``grad``, ``jnp.asarray`` copies."""
    if not isinstance(x, jax.Array):
        if not isinstance(x, (list, tuple)) or not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
            x = one_array(name, x)
            x = as_dtype(name, x, jax.dtypes.canonicalize_dtype(x.dtype))
        x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        raise TypeError(f"'{name}' must hold real numbers; got dtype {x.dtype}")
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.name not in FLOATS:
        raise TypeError(
            f"'{name}' must hold float64, float32 or numbers of half precision; got {x.dtype}. Convert it with .astype"
        )
    return x


def regularisation(eps: Any, dtype: Any) -> jax.Array:
    """Return eps as an array () or (B,) of `dtype`; its sign is checked when the solver is called."""
    if not isinstance(eps, (jax.Array, np.ndarray)):
        eps = number(eps, f"a number, an array of one or of one per problem, {RELATIVE}")
        price_in_range("eps", eps, dtype)
        return jnp.asarray(eps, dtype)
    eps = array("eps", eps)
    if eps.ndim > 1 or eps.size == 0:
        raise ValueError(f"'eps' must be a number, or an array of one or of one per problem; got shape {eps.shape}")
    if eps.dtype == jnp.bool_:
        raise TypeError(f"'eps' must be a real number; got an array of {eps.dtype}")
    return (jnp.reshape(eps, ()) if eps.size == 1 else eps).astype(dtype)
