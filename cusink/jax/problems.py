"""Checked arrays of a call, and what turns results back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cusink.bridges.options import (
    CostKind,
    mass_ratio,
    of_sum_one,
    reach_parts,
    unbalanced,
    values_in_bins,
    values_of,
    with_reach_given,
)
from cusink.bridges.relative import EpsOfCosts, eps_of_grid
from cusink.checks.arrays import HALF
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.checks.weights import batch_size
from cusink.costs.images import in_bins
from cusink.jax.arrays import array, floating, in_one_dtype, regularisation
from cusink.jax.costs import as_the_metric_sees, cost_arrays
from cusink.jax.primitives import outputs_of
from cusink.operand import check_shape


class LossProblem:
    """Checked arrays of a call, all in the dtype of the computation, by name; and what turns results back."""

    def __init__(
        self,
        a: Any,
        b: Any,
        C: Any,
        eps: Any,
        options: tuple[tuple[str, Any], ...],
        own: dict[str, Any],
        normalise: bool,
    ) -> None:
        flag("normalise", normalise)
        parts = reach_parts(options, (jax.Array, np.ndarray))
        self.options = with_reach_given(options) if parts else options
        balanced = not unbalanced(self.options)
        self.kind, costs = cost_arrays(C)
        named = {**costs, "a": a, "b": b, **own}
        single = any(str(getattr(x, "dtype", "")) == "float32" for x in (a, b))
        named = dict(zip(named, floating(**named), strict=True))
        cells = self.kind.image
        (named["a"], image_a), (named["b"], image_b) = (in_bins(name, named[name], cells) for name in "ab")
        self.images = (image_b if a is None else image_a, image_a if b is None else image_b)
        if named.get("values") is not None:
            named["values"], self.of_values = values_in_bins(named["values"], cells)
        if self.kind.kind == "dense":
            check_shape(named["C"])
        arrays = [x for x in named.values() if x is not None]
        self.dtype = arrays[0].dtype if arrays else jnp.result_type(float)
        self.bins = bins = self.kind.bins({name: named[name].shape for name in costs})
        if named.get("values") is not None:
            values_of(named["values"].shape, bins)
        for name, k in zip("ab", bins, strict=True):
            x = named[name] = jnp.full(k, 1 / k, self.dtype) if named[name] is None else named[name]
            if x.ndim not in (1, 2) or x.shape[-1] != k:
                whole = f"C of shape {named['C'].shape}" if "C" in named else f"the cost, of {bins[0]} x {bins[1]} bins"
                raise ValueError(f"'{name}' must have {k} bins to match {whole}; got shape {x.shape}")
        in_one_dtype(named)
        if self.dtype.name in HALF:
            named = {name: x if x is None else x.astype(jnp.float32) for name, x in named.items()}
        named = as_the_metric_sees(named)
        if normalise:
            named |= {name: of_sum_one(jnp, named[name]) for name in "ab"}
        elif balanced and (self.dtype.name in HALF or (single and self.dtype == jnp.float64)):
            of = "bfloat16" if self.dtype.name in HALF else "float32"
            named["b"] = named["b"] * jax.lax.stop_gradient(mass_ratio(jnp, named["a"], named["b"], of))
        if isinstance(eps, RelativeEps):
            eps = relative(eps, self.kind, named)
        number = regularisation(eps, named["a"].dtype)
        self.inputs = {name: x for name, x in named.items() if x is not None} | {"eps": number}
        if parts:
            self.inputs["reach"] = _prices(parts, named["a"].dtype)
        ranks = {"a": 1, "b": 1, "eps": 0, "reach": 1} | self.kind.ranks  # of one problem; new points and values have 2
        batch_size({name: len(x) for name, x in self.inputs.items() if x.ndim > ranks.get(name, 2)})

    def narrowed(self, out: jax.Array) -> jax.Array:
        """Return a result in the dtype of the inputs."""
        return out.astype(self.dtype)


def relative(eps: RelativeEps, kind: CostKind, named: dict[str, Any]) -> Any:
    """Return eps in the unit of the costs, through which no gradient goes."""
    if not kind.names:
        return eps_of_grid(eps, kind)
    costs = {name: jax.lax.stop_gradient(named[name]) for name in kind.names}
    (number,) = outputs_of(EpsOfCosts(kind, eps.share, eps.of), costs)
    return number


def _prices(parts: tuple[Any, ...], dtype: Any) -> jax.Array:
    """Return the prices of both marginals as an array (2,)."""
    for x in parts:
        if isinstance(x, (jax.Array, np.ndarray)) and not (
            jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
        ):
            raise TypeError(f"'reach' must be a real number; got an array of {x.dtype}")
    parts = tuple(array("reach", x) if isinstance(x, (jax.Array, np.ndarray)) else x for x in parts)
    arrays = [jnp.asarray(jnp.inf if x is None else x, dtype) for x in parts]
    if len(arrays) == 1:
        return jnp.broadcast_to(arrays[0].reshape(-1), 2)
    return jnp.stack([x.reshape(()) for x in arrays])
