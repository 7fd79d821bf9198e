"""The Wasserstein loss for PyTorch, with explicit gradients; ``pip install torch``.

Tensors are shared with the solver, not copied: with NumPy on the CPU and, through DLPack, with CuPy on a GPU. The
backward pass is `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Never

import torch

from cusink.bridge import Gradient, LossOptions, Reduction, lost, mass_ratio, stored_cost
from cusink.checks.arrays import kind
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.solver.result import SinkhornResult
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import Array, Value

__all__ = [
    "SinkhornLoss",
    "sinkhorn_loss",
]


HALF = (torch.float16, torch.bfloat16)


@torch.compiler.disable
def sinkhorn_loss(
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    C: torch.Tensor,
    eps: float | torch.Tensor,
    *,
    value: Value = "cost",
    gradient: Gradient = "exact",
    reduction: Reduction = "mean",
    **options: Any,
) -> torch.Tensor:
    """Wasserstein loss between pairs of histograms, differentiable in `a`, `b`, `C` and `eps`.

    Parameters
    ----------
    a : tensor, shape (n,) or (B, n), or None
        Source weights, such as the output of a softmax. None stands for uniform weights.
    b : tensor, shape (m,) or (B, m), or None
        Target weights, of the same sum as `a` unless `reach` is given.
    C : tensor, shape (n, m) or (B, n, m)
        Cost, shared by all pairs or one for each.
    eps : float or tensor of one number
        Regularisation in the unit of `C`.
    value : {"cost", "reg_cost", "entropic_cost"}
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does: backward needs no
        solve, and is off by what the entropy weighs. The two differ for ``value="cost"`` alone.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn`. `tol` is also the tolerance
        of the linear system behind the exact gradient of `cost` (1e-6 if it is None).

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)
        The loss, in the dtype of `C` or, under autocast, in float32.

    Raises
    ------
    TypeError, ValueError
        As `cusink.sinkhorn` does, and for tensors of different devices.
    RuntimeError
        If the gradient is differentiated once more.

    Warns
    -----
    ConvergenceWarning
        If a problem did not reach `tol`.

    Notes
    -----
    The gradients for `a` and `b` have mean zero: weights vary on the simplex. With `reach` masses may vary and nothing
    is projected; `entropic_cost` has no gradient there. float16 and bfloat16 are computed in float32; under autocast,
    where tensors may mix both, the loss is float32. ``torch.compile`` leaves the call alone.

    References
    ----------
    C. Frogner et al., Learning with a Wasserstein loss, NIPS 2015.
    T. Viehmann, Implementation of batched Sinkhorn iterations for entropy-regularized Wasserstein loss, 2019.
    G. Luise et al., Differential properties of Sinkhorn approximation for learning with Wasserstein distance, 2018.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import sinkhorn_loss
    >>> logits = torch.zeros(4, 3, requires_grad=True)
    >>> target, C = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([[0.0, 1, 4], [1, 0, 1], [4, 1, 0]])
    >>> sinkhorn_loss(logits.softmax(dim=1), target, C, eps=0.1).backward()
    >>> bool(logits.grad[0, 0] < 0 < logits.grad[0, 2])
    True
    """
    given = LossOptions(value, gradient, reduction, options)
    _tensors(a=a, b=b, C=C)
    _one_number(eps)
    autocast = torch.is_autocast_enabled(C.device.type)
    if not autocast:
        _one_dtype(a=a, b=b, C=C)
    dtype = C.dtype
    if any(x is not None and x.dtype in HALF for x in (a, b)):
        a, b = _float_weights(a, b, C, balanced=given.reach is None)
    C = C.float() if dtype in HALF else C
    losses = given.reduce(_Loss.apply(a, b, C, eps, given))
    return losses if autocast or dtype not in HALF else losses.to(dtype)


class SinkhornLoss(torch.nn.Module):
    """`sinkhorn_loss` as a module that holds the cost.

    Parameters
    ----------
    C : tensor, shape (n, m) or (B, n, m)
        Cost; a buffer, or learnt if it is a ``torch.nn.Parameter``.
    eps : float or tensor of one number
        Regularisation in the unit of `C`; a tensor is a buffer, or learnt if it is a ``torch.nn.Parameter``.
    value : {"cost", "reg_cost", "entropic_cost"}
        The value of `cusink.SinkhornResult` that is the loss.
    gradient : {"exact", "multiplier"}
        As for `sinkhorn_loss`.
    reduction : {"mean", "sum", "none"}
        Return the mean or the sum of the losses of a batch, or one loss for each pair.
    **options
        Options of `cusink.sinkhorn`.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import SinkhornLoss
    >>> loss = SinkhornLoss(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.05)
    >>> print(f"{loss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])):.3f}")
    0.250
    """

    def __init__(
        self,
        C: torch.Tensor,
        eps: float | torch.Tensor,
        *,
        value: Value = "cost",
        gradient: Gradient = "exact",
        reduction: Reduction = "mean",
        **options: Any,
    ) -> None:
        super().__init__()
        _tensor_given("C", C)
        if isinstance(C, torch.nn.Parameter):
            self.C = C
        else:
            self.register_buffer("C", C)
        self.eps: float | torch.Tensor
        if isinstance(eps, torch.Tensor) and not isinstance(eps, torch.nn.Parameter):
            self.register_buffer("eps", eps)
        else:
            self.eps = eps
        self.options = {"value": value, "gradient": gradient, "reduction": reduction, **options}

    def forward(self, a: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor:
        """Return the loss between two weights.

        Parameters
        ----------
        a : tensor, shape (n,) or (B, n), or None
            Source weights.
        b : tensor, shape (m,) or (B, m), or None
            Target weights.

        Returns
        -------
        tensor, shape () or (B,)
            The loss, as `sinkhorn_loss` returns it.
        """
        return sinkhorn_loss(a, b, self.C, self.eps, **self.options)

    def extra_repr(self) -> str:
        """Return the options for the module's ``repr``.

        Returns
        -------
        str
            Such as ``eps=0.05, value='cost'``.
        """
        eps = self.eps.item() if isinstance(self.eps, torch.Tensor) else self.eps
        shown = {"eps": eps, **self.options}
        return ", ".join(f"{name}={option!r}" for name, option in shown.items())


class _Loss(torch.autograd.Function):
    """The losses (B,) or () of checked tensors a, b, C and a regularisation that may be a tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        C: torch.Tensor,
        eps: float | torch.Tensor,
        options: LossOptions,
    ) -> torch.Tensor:
        number = eps.item() if isinstance(eps, torch.Tensor) else eps
        with _stream(C):
            ctx.result = sinkhorn(_array(a), _array(b), _array(C), eps=number, **options.solver)
            losses = _tensor(getattr(ctx.result, options.value), C)
        # Once these are saved, PyTorch notices if they change in place before backward, as for functions of its own.
        ctx.save_for_backward(a, b, C, eps if isinstance(eps, torch.Tensor) else None)
        ctx.options = options
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:4]
        return *_Gradient.apply(ctx.result, ctx.options, wanted, grad_losses, *ctx.saved_tensors), None


class _Gradient(torch.autograd.Function):
    """The gradients as a function of all that they depend on, which autograd may not differentiate.

    PyTorch's once_differentiable is silent where the cotangent is a constant, and a second derivative would be wrong.
    """

    @staticmethod
    def forward(
        _ctx: Any,
        result: SinkhornResult,
        options: LossOptions,
        wanted: tuple[bool, ...],
        grad_losses: torch.Tensor,
        *given: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, ...]:
        like = given[2]
        with _stream(like):
            cotangent = _array(grad_losses)
            grads = sinkhorn_adjoint(result, **options.cotangents(cotangent))
            return tuple(
                _shaped(_tensor(lost(name, getattr(grads, name), cotangent), like), x) if asked else None
                for name, x, asked in zip(("a", "b", "C", "eps"), given, wanted, strict=True)
            )

    @staticmethod
    def backward(_ctx: Any, *_: torch.Tensor) -> Never:
        raise RuntimeError("sinkhorn_loss can be differentiated once only: its gradient has no derivative")


def _tensors(**named: Any) -> None:
    """Check that the inputs are tensors, on one device that NumPy or CuPy can use."""
    C = named["C"]
    for name, x in named.items():
        if x is not None or name == "C":
            _tensor_given(name, x)
        if x is not None and isinstance(C, torch.Tensor) and x.device != C.device:
            raise TypeError(f"all tensors must share one device; '{name}' is on {x.device} and 'C' on {C.device}")
    if C.device.type not in ("cpu", "cuda"):
        raise TypeError(f"tensors must be on the CPU or on a CUDA device; got {C.device}. Move them with .cpu()")


def _tensor_given(name: str, x: Any) -> None:
    """Check that an input is a tensor."""
    stored_cost(name, x, "a tensor", "torch.as_tensor(C.dense())")
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"'{name}' must be a tensor; got {kind(x)}. Convert it with torch.as_tensor")
    if x.layout != torch.strided or x.is_complex() or x.is_quantized:
        raise TypeError(
            f"'{name}' must be a dense tensor of real numbers; got {x.layout} of {x.dtype}. Convert it with "
            ".to_dense() or .real"
        )


def _one_number(eps: Any) -> None:
    """Check a regularisation that is a tensor; others are checked by `cusink.sinkhorn`."""
    if isinstance(eps, torch.Tensor):
        if eps.numel() != 1:
            raise ValueError(f"'eps' must be a number, or a tensor of one; got shape {tuple(eps.shape)}")
        if eps.is_complex() or eps.dtype == torch.bool:
            raise TypeError(f"'eps' must be a real number; got a tensor of {eps.dtype}")


def _one_dtype(**named: Any) -> None:
    """Check that the tensors of floating-point numbers share one dtype."""
    C = named["C"]
    for name, x in named.items():
        if x is not None and x.is_floating_point() and C.is_floating_point() and x.dtype != C.dtype:
            raise TypeError(f"all tensors must share one dtype; '{name}' is {x.dtype} and 'C' is {C.dtype}")


def _float_weights(
    a: torch.Tensor | None, b: torch.Tensor | None, C: torch.Tensor, *, balanced: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights in float32, of balanced transport with equal masses if rounding is all that separates them."""
    a, b = (
        torch.full((k,), 1 / k, device=C.device) if x is None else x.float()
        for x, k in zip((a, b), C.shape[-2:], strict=True)
    )
    return a, b * mass_ratio(torch, a.detach(), b.detach()) if balanced else b


@contextmanager
def _stream(like: torch.Tensor) -> Iterator[None]:
    """Make CuPy work on the device and in the stream of PyTorch, so that neither has to wait for the other."""
    if like.device.type == "cpu":
        yield
    else:
        import cupy

        stream = torch.cuda.current_stream(like.device)
        with cupy.cuda.Device(like.device.index), cupy.cuda.ExternalStream(stream.cuda_stream, like.device.index):
            yield


def _array(x: torch.Tensor | None) -> Array:
    """Return the memory of a tensor as a NumPy or CuPy array; None stays None."""
    if x is None:
        return None
    x = x.detach()
    if x.device.type == "cpu":
        return x.numpy()
    import cupy

    return cupy.from_dlpack(x)


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    """Return the memory of an array as a tensor on the device of `like`."""
    return torch.from_dlpack(array) if like.device.type == "cuda" else torch.as_tensor(array)


def _shaped(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a batch summed over the axes that were broadcast, in the shape and dtype of `x`."""
    missing = max(x.ndim - grad.ndim, 0)
    return grad.reshape((1,) * missing + tuple(grad.shape)).sum_to_size(x.shape).to(x.device, x.dtype)
