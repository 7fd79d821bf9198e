"""Losses as modules."""

from typing import Any

import torch

from cusink.bridges.options import Gradient, LossOptions, Reduction, factor_shape, point_kind
from cusink.checks.arrays import kind
from cusink.checks.regularisation import RelativeEps
from cusink.torch.arrays import one_tensor, regularisation
from cusink.torch.clouds import PointCloud
from cusink.torch.grids import Grids
from cusink.torch.holding import Holding
from cusink.torch.kernels import kernel_distance
from cusink.torch.losses import sinkhorn_divergence, sinkhorn_loss
from cusink.torch.positions import histograms_at_points
from cusink.types import Value

__all__ = ["KernelDistance", "SinkhornDivergence", "SinkhornLoss"]

OWN_COSTS = ("C_aa", "C_bb")  # options that a module may learn, as it may its cost
CALLS = "(a, b) with a cost that the module holds, (a, b, C), (x, y), or (a, x, b, y)"


class _TransportLoss(Holding):
    """A loss that holds a cost, or the `ground` of clouds that come with each call: a metric and its parameters."""

    eps: Any
    factor: torch.Tensor | None

    def __init__(
        self, C: Any, eps: float | torch.Tensor | RelativeEps, ground: dict[str, Any], options: dict[str, Any]
    ) -> None:
        super().__init__()
        factor = ground.pop("factor")
        self.ground, self.options = ground, options
        self._hold_cost(C, "the points to each call")
        own = {name: options.pop(name) for name in OWN_COSTS if options.get(name) is not None}
        for name, x in own.items():
            one_tensor(name, x)
        self._own_costs = tuple(own)
        self._hold(eps=eps, factor=factor, **own)
        reach = options.get("reach")
        parts = {f"reach_{k}": x for k, x in enumerate(reach)} if isinstance(reach, (tuple, list)) else {"reach": reach}
        self._own_reach: tuple[str, ...] = ()
        if any(isinstance(x, torch.Tensor) for x in parts.values()):
            del options["reach"]
            self._own_reach = tuple(parts)
            self._hold(**parts)
        # What is wrong fails here, not in the first call.
        if not isinstance(eps, RelativeEps):
            regularisation(eps)
        if C is None:
            point_kind(alone=True, factor=factor, **ground)
            if factor is not None:
                one_tensor("factor", factor)
                factor_shape(tuple(factor.shape), {})

    def _options(self) -> dict[str, Any]:
        """Return the options of a call."""
        held: dict[str, Any] = {name: getattr(self, name) for name in self._own_costs}
        if self._own_reach:
            parts = tuple(getattr(self, name) for name in self._own_reach)
            held["reach"] = parts[0] if self._own_reach == ("reach",) else parts
        return self.options | held

    def _cloud(self, x: Any, y: Any) -> PointCloud:
        return PointCloud(x, y, factor=self.factor, **self.ground)

    def _inputs(self, given: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """Return weights and the cost of a call."""
        if len(given) == 2 and self.C is not None:
            return given[0], given[1], self._cost()
        if len(given) == 3:
            return given
        if len(given) == 2:
            return None, None, self._cloud(*given)
        if len(given) == 4 and self.C is None:
            a, x, b, y = given
            return a, b, self._cloud(x, y)
        raise TypeError(f"a {type(self).__name__} must be called as {CALLS}; got {len(given)} arguments")

    def extra_repr(self) -> str:
        """Return the options for the module's ``repr``.

        Returns
        -------
        str
            Such as ``eps=0.05, value='cost'``.
        """
        shown = {name: x for name, x in {"eps": self.eps, **self._options()}.items() if name not in OWN_COSTS}
        for name in ("eps", "reach"):
            if isinstance(x := shown.get(name), torch.Tensor):
                shown[name] = x.item() if x.numel() == 1 else x.tolist()
            elif isinstance(x, tuple):
                shown[name] = tuple(part.tolist() if isinstance(part, torch.Tensor) else part for part in x)
        return ", ".join(f"{name}={option!r}" for name, option in shown.items())


class SinkhornLoss(_TransportLoss):
    """`sinkhorn_loss` as a module.

    It is called as ``loss(a, b)`` if it holds a cost, and as ``loss(a, b, C)``, or with clouds as ``loss(x, y)`` or
    ``loss(a, x, b, y)``.

    Parameters
    ----------
    C : tensor, shape (n, m) or (B, n, m), or a Grid, or None
        Cost; a buffer, or learnt if it is a ``torch.nn.Parameter``, as is the spacing of a `cusink.torch.Grid`. None
        for costs or clouds that come with each call.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`; a tensor is a buffer, or learnt if it is a ``torch.nn.Parameter``.
    value : {"cost", "reg_cost", "entropic_cost"}
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        As for `sinkhorn_loss`.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    metric : str
        Between points of clouds, as for `cusink.torch.PointCloud`.
    power : float
        The cost between points is the metric to this power.
    p, radius : float, optional
        Of "minkowski", and of "haversine".
    factor : tensor, shape (d, k), optional
        Of "mahalanobis"; a buffer, or learnt if it is a ``torch.nn.Parameter``.
    **options
        Options of `cusink.sinkhorn`. `reach`, or a part of it, may be a tensor: a buffer, or learnt if it is a
        ``torch.nn.Parameter``.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import SinkhornLoss
    >>> loss = SinkhornLoss(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.05)
    >>> print(f"{loss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])):.3f}")
    0.250
    >>> of_clouds = SinkhornLoss(eps=0.05)
    >>> print(f"{of_clouds(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])):.3f}")
    4.000
    """

    def __init__(
        self,
        C: torch.Tensor | Grids | None = None,
        eps: float | torch.Tensor | RelativeEps = 0.05,
        *,
        value: Value = "cost",
        gradient: Gradient = "exact",
        reduction: Reduction = "mean",
        metric: str = "sqeuclidean",
        power: float = 1,
        p: float | None = None,
        radius: float | None = None,
        factor: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        LossOptions(value, gradient, reduction)
        chosen = {"value": value, "gradient": gradient, "reduction": reduction, **options}
        ground = {"metric": metric, "power": power, "p": p, "radius": radius, "factor": factor}
        super().__init__(C, eps, ground, chosen)

    def forward(self, *given: Any) -> torch.Tensor:
        """Return the loss.

        Parameters
        ----------
        *given
            ``a, b`` for a module that holds a cost; ``a, b, C``; ``x, y``; or ``a, x, b, y``. Weights may be None.

        Returns
        -------
        tensor, shape () or (B,)
            The loss, as `sinkhorn_loss` returns it.
        """
        return sinkhorn_loss(*self._inputs(given), self.eps, **self._options())


class SinkhornDivergence(_TransportLoss):
    """`sinkhorn_divergence` as a module, called as `SinkhornLoss` is.

    Parameters
    ----------
    C : tensor, shape (n, n) or (B, n, n), or a Grid, or None
        Cost between bins that both sides share; None for costs or clouds that come with each call.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of the cost.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the divergences of a batch, or one for each pair.
    metric : str
        Between points of clouds, as for `cusink.torch.PointCloud`.
    power : float
        The cost between points is the metric to this power.
    p, radius : float, optional
        Of "minkowski", and of "haversine".
    factor : tensor, shape (d, k), optional
        Of "mahalanobis"; a buffer, or learnt if it is a ``torch.nn.Parameter``.
    **options
        Options of `cusink.sinkhorn_divergence`; `reach` may be a tensor, as for `SinkhornLoss`. `C_aa` and `C_bb` are
        buffers, or learnt, as `C` is.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import SinkhornDivergence
    >>> loss = SinkhornDivergence(eps=0.1)
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> loss(x, torch.tensor([[2.0], [3.0]])).backward()
    >>> x.grad.squeeze().round(decimals=2)
    tensor([-2., -2.])
    """

    def __init__(
        self,
        C: torch.Tensor | Grids | None = None,
        eps: float | torch.Tensor | RelativeEps = 0.05,
        *,
        reduction: Reduction = "mean",
        metric: str = "sqeuclidean",
        power: float = 1,
        p: float | None = None,
        radius: float | None = None,
        factor: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        LossOptions("cost", "exact", reduction)
        ground = {"metric": metric, "power": power, "p": p, "radius": radius, "factor": factor}
        super().__init__(C, eps, ground, {"reduction": reduction, **options})

    def forward(self, *given: Any) -> torch.Tensor:
        """Return the divergence.

        Parameters
        ----------
        *given
            ``a, b`` for a module that holds a cost; ``a, b, C``; ``x, y``; or ``a, x, b, y``. Weights may be None.

        Returns
        -------
        tensor, shape () or (B,)
            The divergence, as `sinkhorn_divergence` returns it.
        """
        return sinkhorn_divergence(*self._inputs(given), self.eps, **self._options())


class KernelDistance(torch.nn.Module):
    """`kernel_distance` as a module, called as ``loss(x, y)``, ``loss(a, x, b, y)`` or ``loss(a, b, C)``.

    In the last form C is a `cusink.torch.PointCloud`, or a grid between whose cells histograms or images are compared;
    its points alone count, not its metric.

    Parameters
    ----------
    kernel : {"gaussian", "laplace", "energy", "exponential", "distance"}
        As for `cusink.kernel_distance`.
    scale : float
        Length in the units of the points.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the distances of a batch, or one for each pair.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import KernelDistance
    >>> loss = KernelDistance("energy")
    >>> loss(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0])).round(decimals=4)
    tensor(0.1656)
    """

    def __init__(self, kernel: str = "gaussian", scale: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        LossOptions("cost", "exact", reduction)
        self.options: dict[str, Any] = {"kernel": kernel, "scale": scale, "reduction": reduction}

    def forward(self, *given: Any) -> torch.Tensor:
        """Return the distance.

        Parameters
        ----------
        *given
            ``x, y``, or ``a, x, b, y`` with weights that may be None, or ``a, b, C``.

        Returns
        -------
        tensor, shape () or (B,)
            The distance, as `kernel_distance` returns it.
        """
        if len(given) not in (2, 3, 4):
            said = ", ".join(kind(x) for x in given)
            raise TypeError(f"a KernelDistance must be called as (x, y), (a, x, b, y) or (a, b, C); got ({said})")
        if len(given) == 3:
            (a, b), (x, y) = histograms_at_points(*given)
        else:
            a, x, b, y = given if len(given) == 4 else (None, given[0], None, given[1])
        return kernel_distance(x, a, y, b, **self.options)

    def extra_repr(self) -> str:
        """Return the options for the module's ``repr``.

        Returns
        -------
        str
            Such as ``kernel='energy', scale=1.0``.
        """
        return ", ".join(f"{name}={option!r}" for name, option in self.options.items())
