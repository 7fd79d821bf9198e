"""Barycenters of histograms that are tensors."""

from typing import Any

import torch

from cusink.bridges.barycenters import BarycenterOf, check_shapes
from cusink.bridges.options import mass_ratio, of_sum_one
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag
from cusink.costs.images import as_images, in_bins
from cusink.operand import check_shape
from cusink.torch.arrays import HALF, checked, in_floats, in_one_dtype, one_tensor, regularisation
from cusink.torch.clouds import PointCloud
from cusink.torch.costs import as_the_metric_sees, cost_tensors
from cusink.torch.grids import Grids
from cusink.torch.holding import Holding
from cusink.torch.operators import apply, eps_in_units

__all__ = ["Barycenter", "barycenter"]


def barycenter(
    A: torch.Tensor,
    C: "torch.Tensor | PointCloud | Grids",
    weights: torch.Tensor | None = None,
    *,
    eps: float | torch.Tensor | RelativeEps,
    debiased: bool = False,
    normalise: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Histogram that is nearest to K given ones, differentiable once, backwards, in `A`, `C`, `weights` and `eps`.

    Parameters
    ----------
    A : tensor, shape (K, n) or (B, K, n)
        Histograms, of one mass; beside a `cusink.Grid` also images, shape (K, H, W) or (B, K, H, W).
    C : tensor, shape (n, m), or PointCloud, or a Grid
        Cost. Of a `cusink.torch.PointCloud` the points are differentiable.
    weights : tensor, shape (K,) or (B, K), optional
        How much each histogram counts, such as the output of a softmax. If not given, all count the same.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`.
    debiased : bool
        As for `cusink.barycenter`.
    normalise : bool
        Divide each histogram by its sum; gradients are those by `A` as it is.
    **options
        `max_iter`, `tol` and the other options of `cusink.barycenter`. `tol` is also the tolerance of the linear system
        behind the gradients (1e-6 if it is None).

    Returns
    -------
    tensor, shape (m,) or (B, m)
        The barycenter, in the dtype of `A` or, under autocast, in float32.

    Raises
    ------
    TypeError, ValueError
        As `cusink.barycenter` does, and for tensors of different devices.
    RuntimeError
        If the gradient is differentiated again.
    NotImplementedError
        If it is differentiated forwards.

    Warns
    -----
    ConvergenceWarning
        If a barycenter did not reach `tol`.

    Notes
    -----
    The gradients are those of `cusink.barycenter_adjoint`: that by `A` has mean zero over the bins of a histogram.

    Examples
    --------
    >>> import torch
    >>> from cusink import Grid
    >>> from cusink.torch import barycenter
    >>> A = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    >>> w = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    >>> barycenter(A, Grid(3), w, eps=0.5, tol=1e-9).dot(torch.arange(3.0, dtype=torch.float64)).backward()
    """
    one_tensor("A", A)
    kind, costs = cost_tensors(C)
    if kind.kind == "dense":
        check_shape(C, batch=False)
    A, image = in_bins("A", A, kind.image, ("K, ", "B, K, "))
    single = A.dtype == torch.float32
    named: dict[str, Any] = {"A": A, "weights": weights, **costs}
    checked(**named)
    autocast = torch.is_autocast_enabled(A.device.type)
    if not autocast or not any(x is not None and x.dtype in HALF for x in named.values()):
        named = in_one_dtype(**named)
        A = named["A"]
    price = None if isinstance(eps, RelativeEps) else regularisation(eps)
    bins = kind.bins({name: tuple(x.shape) for name, x in costs.items()})
    given = None if weights is None else tuple(weights.shape)
    check_shapes(tuple(A.shape), given, () if price is None else tuple(price.shape), bins)
    dtype = A.dtype if A.is_floating_point() else torch.float64
    computing = torch.float32 if dtype in HALF else dtype
    half = any(x is not None and x.dtype in HALF for x in named.values())
    if weights is None:
        named["weights"] = torch.full(A.shape[-2:-1], 1 / A.shape[-2], dtype=computing, device=A.device)
    if half:
        named = {name: x.float() for name, x in named.items()}
    named = as_the_metric_sees(in_floats(computing, **named))
    A = named["A"]
    if flag("normalise", normalise):
        named["A"] = of_sum_one(torch, A)
    elif half or (single and A.dtype == torch.float64):
        of = "bfloat16" if half else "float32"
        named["A"] = A * mass_ratio(torch, A[..., :1, :].detach(), A.detach(), of)
    if isinstance(eps, RelativeEps):
        price = regularisation(eps_in_units(eps, kind, named))
    work = BarycenterOf(kind, tuple(options.items()), flag("debiased", debiased))
    (out,) = apply(work, named | {"eps": price})
    return as_images(out.to(dtype) if dtype in HALF and not autocast else out, image)


class Barycenter(Holding):
    """`barycenter` as a module that holds the cost, called as ``mean(A)`` or ``mean(A, weights)``.

    Parameters
    ----------
    C : tensor, shape (n, m), or a Grid
        Cost; a buffer, or learnt if it is a ``torch.nn.Parameter``.
    eps : float or tensor, shape () or (B,), or cusink.RelativeEps
        Regularisation in the unit of `C`; a tensor is a buffer, or learnt if it is a ``torch.nn.Parameter``.
    debiased : bool
        As for `cusink.barycenter`.
    **options
        Options of `cusink.barycenter`.

    Examples
    --------
    >>> import torch
    >>> from cusink import Grid
    >>> from cusink.torch import Barycenter
    >>> mean = Barycenter(Grid(5), eps=0.2, debiased=True)
    >>> mean(torch.eye(5)[[0, 4]]).argmax()
    tensor(2)
    """

    def __init__(
        self,
        C: torch.Tensor | Grids,
        eps: float | torch.Tensor | RelativeEps,
        *,
        debiased: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self._hold_cost(C, "the points to cusink.torch.barycenter")
        self.debiased, self.options = debiased, options
        self._hold(eps=eps)

    def forward(self, A: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return the barycenter.

        Parameters
        ----------
        A : tensor, shape (K, n) or (B, K, n)
            Histograms, of one mass; beside a `cusink.Grid` also images, shape (K, H, W) or (B, K, H, W).
        weights : tensor, shape (K,) or (B, K), optional
            How much each histogram counts.

        Returns
        -------
        tensor, shape (m,) or (B, m)
            The barycenter, as `barycenter` returns it.
        """
        return barycenter(A, self._cost(), weights, eps=self.eps, debiased=self.debiased, **self.options)
