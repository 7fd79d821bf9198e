"""Checked tensors of a call, and what turns results back."""

import math
from typing import Any

import torch

from cusink.bridges.options import (
    mass_ratio,
    of_sum_one,
    reach_parts,
    unbalanced,
    values_in_bins,
    values_of,
    with_reach_as_numbers,
    with_reach_given,
)
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.costs.images import in_bins
from cusink.torch.arrays import HALF, checked, in_floats, in_one_dtype, one_tensor, regularisation
from cusink.torch.costs import as_the_metric_sees, cost_tensors


class LossProblem:
    """Checked tensors of a call, all in the dtype of the computation, by name; and what turns results back."""

    def __init__(
        self,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        C: Any,
        eps: Any,
        options: tuple[tuple[str, Any], ...],
        own: dict[str, Any],
        normalise: bool,
        values: Any = None,
    ) -> None:
        self.kind, costs = cost_tensors(C)
        self.options, prices = _prices(options)
        balanced = not unbalanced(self.options)
        named = {"a": a, "b": b, **own, "values": values, **costs}
        flag("normalise", normalise)
        if all(x is None for x in named.values()):
            raise TypeError("'a' and 'b' must not both be None for a Grid: they say on which device the loss is")
        checked(**named)
        device = next(x.device for x in reversed(named.values()) if x is not None)
        self.autocast = torch.is_autocast_enabled(device.type)
        single = any(x is not None and x.dtype == torch.float32 for x in (a, b))
        if not self.autocast or not any(x is not None and x.dtype in HALF for x in named.values()):
            named = in_one_dtype(**named)
        cells = self.kind.image
        (named["a"], image_a), (named["b"], image_b) = (in_bins(name, named[name], cells) for name in "ab")
        self.images = (image_b if a is None else image_a, image_a if b is None else image_b)
        if values is not None:
            named["values"], self.of_values = values_in_bins(named["values"], cells)
            values = named["values"]
        floats = [x.dtype for x in reversed(named.values()) if x is not None and x.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float64
        half = [x for x in named.values() if x is not None and x.dtype in HALF]
        computing = torch.float32 if self.dtype in HALF else self.dtype
        bins = self.kind.bins({name: tuple(x.shape) for name, x in costs.items()})
        if values is not None:
            values_of(tuple(values.shape), bins)
        for name, k in zip("ab", bins, strict=True):
            if named[name] is None:
                named[name] = torch.full((k,), 1 / k, dtype=computing, device=device)
        if half:
            named = {name: x if x is None else x.float() for name, x in named.items()}
        named = as_the_metric_sees(in_floats(computing, **named))
        if normalise:
            for name in "ab":
                named[name] = of_sum_one(torch, named[name])
        elif balanced and (half or (single and computing == torch.float64)):
            a, b = named["a"], named["b"]
            named["b"] = b * mass_ratio(torch, a.detach(), b.detach(), "bfloat16" if half else "float32")
        if isinstance(eps, RelativeEps):
            eps = self.in_units(eps, named)
        self.inputs = {name: x for name, x in named.items() if x is not None} | {"eps": regularisation(eps)} | prices

    def narrowed(self, out: torch.Tensor) -> torch.Tensor:
        """Return a result in the half precision of the inputs, outside autocast."""
        return out.to(self.dtype) if self.dtype in HALF and not self.autocast else out

    def in_units(self, eps: RelativeEps, named: dict[str, Any]) -> Any:
        """Return eps in the unit of the costs among named tensors."""
        raise NotImplementedError


def _prices(options: tuple[tuple[str, Any], ...]) -> tuple[tuple[tuple[str, Any], ...], dict[str, torch.Tensor]]:
    """Return options, and `reach` as an input if it has tensors: the prices of both marginals (2,)."""
    parts = reach_parts(options, torch.Tensor)
    if not parts:
        return with_reach_as_numbers(options), {}
    tensors = [x for x in parts if isinstance(x, torch.Tensor)]
    for x in tensors:
        one_tensor("reach", x)
        if x.dtype == torch.bool:
            raise TypeError(f"'reach' must be a real number; got a tensor of {x.dtype}")
    if len(parts) == 1:
        return with_reach_given(options), {"reach": tensors[0].double().reshape(-1).expand(2)}
    device = tensors[0].device
    sides = [math.inf if x is None else x for x in parts]
    prices = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=device).reshape(()) for x in sides])
    return with_reach_given(options), {"reach": prices}
