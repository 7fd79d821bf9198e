"""The Wasserstein loss for PyTorch, with explicit gradients; ``pip install 'cusink[torch]'``.

Tensors are shared with the solver, not copied: with NumPy on the CPU and, through DLPack, with CuPy on a GPU. The
backward pass is `cusink.sinkhorn_adjoint`: no iteration is recorded.
"""

from contextlib import contextmanager

import torch

from cusink.checks.arrays import kind
from cusink.checks.scalars import one_of
from cusink.costs.grid import Grid
from cusink.costs.clouds import PointCloud
from cusink.gradients.adjoint import sinkhorn_adjoint
from cusink.solver import checks as solver_checks
from cusink.solver import values
from cusink.solver.sinkhorn import sinkhorn

__all__ = [
    "SinkhornLoss",
    "sinkhorn_loss",
]


GRADIENTS = ("exact", "multiplier")
REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "none": lambda losses: losses}
HALF = (torch.float16, torch.bfloat16)
HALF_MASS_TOLERANCE = 1e-2  # 2.5 roundings of bfloat16


@torch.compiler.disable
def sinkhorn_loss(a, b, C, eps, *, value="cost", gradient="exact", reduction="mean", **options):
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
        Which value of `cusink.SinkhornResult` is the loss.
    gradient : {"exact", "multiplier"}
        "exact" is the gradient of the loss itself. "multiplier" takes the Lagrange multipliers of the marginals, which
        are the gradient of `reg_cost`, for the gradient of `cost` too, as Viehmann's report does: backward needs no
        solve, and is off by what the entropy weighs. The two differ for ``value="cost"`` alone.
    reduction : {"mean", "sum", "none"}
        What becomes of the losses of a batch.
    **options
        `max_iter`, `tol`, `method`, `reach` and the other options of `cusink.sinkhorn`. `tol` is also that of the
        linear system behind the exact gradient of `cost` (1e-6 if it is None).

    Returns
    -------
    tensor, shape () or, for ``reduction="none"`` and a batch, (B,)

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
    one_of("value", value, values.VALUES)
    one_of("gradient", gradient, GRADIENTS)
    one_of("reduction", reduction, REDUCTIONS)
    _tensors(a=a, b=b, C=C)
    autocast = torch.is_autocast_enabled(C.device.type)
    if not autocast:
        _one_dtype(a=a, b=b, C=C)
    dtype = C.dtype
    if any(x is not None and x.dtype in HALF for x in (a, b)):
        reach = solver_checks.reach(options.get("reach"), options.get("method", "auto"))
        a, b = _float_weights(a, b, C, balanced=reach is None)
    C = C.float() if dtype in HALF else C
    losses = REDUCTIONS[reduction](_Loss.apply(a, b, C, eps, value, gradient, options))
    return losses if autocast or dtype not in HALF else losses.to(dtype)


class SinkhornLoss(torch.nn.Module):
    """`sinkhorn_loss` as a module that holds the cost.

    Parameters
    ----------
    C : tensor, shape (n, m) or (B, n, m)
        Cost; a buffer, or learnt if it is a ``torch.nn.Parameter``.
    eps, value, gradient, reduction, **options
        As for `sinkhorn_loss`.

    Examples
    --------
    >>> import torch
    >>> from cusink.torch import SinkhornLoss
    >>> loss = SinkhornLoss(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), eps=0.05)
    >>> print(f"{loss(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])):.3f}")
    0.250
    """

    def __init__(self, C, eps, *, value="cost", gradient="exact", reduction="mean", **options):
        super().__init__()
        _tensor_given("C", C)
        if isinstance(C, torch.nn.Parameter):
            self.C = C
        else:
            self.register_buffer("C", C)
        self.options = {"eps": eps, "value": value, "gradient": gradient, "reduction": reduction, **options}

    def forward(self, a, b):
        """Return the loss between weights `a` (n,) or (B, n) and `b` (m,) or (B, m)."""
        return sinkhorn_loss(a, b, self.C, **self.options)

    def extra_repr(self):
        """Say what the loss is."""
        return ", ".join(f"{name}={option!r}" for name, option in self.options.items())


class _Loss(torch.autograd.Function):
    """The losses (B,) or () of checked tensors a, b, C and a regularisation that may be a tensor."""

    @staticmethod
    def forward(ctx, a, b, C, eps, value, gradient, options):
        with _stream(C):
            shared = (_array(x) for x in (a, b, C))
            ctx.result = sinkhorn(*shared, eps=eps.item() if isinstance(eps, torch.Tensor) else eps, **options)
            losses = _tensor(getattr(ctx.result, value), C)
        # What the result shares memory with: PyTorch notices if it is changed in place before backward.
        ctx.save_for_backward(a, b, C, eps if isinstance(eps, torch.Tensor) else None)
        ctx.cotangent = f"grad_{'reg_cost' if gradient == 'multiplier' and value == 'cost' else value}"
        ctx.tol = options.get("tol") or 1e-6
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        wanted = ctx.needs_input_grad[:4]
        return *_Gradient.apply(ctx.result, ctx.cotangent, ctx.tol, wanted, grad_losses, *ctx.saved_tensors), *(
            None,
        ) * 3


class _Gradient(torch.autograd.Function):
    """The gradients as a function of what they depend on, which autograd may not differentiate.

    PyTorch's once_differentiable is silent where the cotangent is a constant, and a second derivative would be wrong.
    """

    @staticmethod
    def forward(ctx, result, cotangent, tol, wanted, grad_losses, *given):
        like = given[2]
        with _stream(like):
            grads = sinkhorn_adjoint(result, **{cotangent: _array(grad_losses)}, tol=tol)
            return tuple(
                _shaped(_tensor(getattr(grads, name), like), x) if asked else None
                for name, x, asked in zip(("a", "b", "C", "eps"), given, wanted, strict=True)
            )

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("sinkhorn_loss can be differentiated once only: its gradient has no derivative")


def _tensors(**named):
    """Check that the inputs are tensors, on one device that NumPy or CuPy can use."""
    C = named["C"]
    for name, x in named.items():
        if x is not None or name == "C":
            _tensor_given(name, x)
        if x is not None and isinstance(C, torch.Tensor) and x.device != C.device:
            raise TypeError(f"all tensors must share one device; '{name}' is on {x.device} and 'C' on {C.device}")
    if C.device.type not in ("cpu", "cuda"):
        raise TypeError(f"tensors must be on the CPU or on a CUDA device; got {C.device}. Move them with .cpu()")


def _tensor_given(name, x):
    """Check that an input is a tensor."""
    if isinstance(x, (PointCloud, Grid)):
        raise TypeError(
            f"'{name}' must be a tensor; got {kind(x)}. Pass torch.as_tensor(C.dense()), or C itself to cusink.sinkhorn"
        )
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"'{name}' must be a tensor; got {kind(x)}. Convert it with torch.as_tensor")


def _one_dtype(**named):
    """Check that the tensors of floating-point numbers share one dtype."""
    C = named["C"]
    for name, x in named.items():
        if x is not None and x.is_floating_point() and C.is_floating_point() and x.dtype != C.dtype:
            raise TypeError(f"all tensors must share one dtype; '{name}' is {x.dtype} and 'C' is {C.dtype}")


def _float_weights(a, b, C, balanced):
    """Weights in float32. Rounding to half precision changes the mass: b gets that of a, if that explains it.

    Unless transport is unbalanced, where a difference of the masses has a meaning.
    """
    a, b = (
        torch.full((k,), 1 / k, device=C.device) if x is None else x.float()
        for x, k in zip((a, b), C.shape[-2:], strict=True)
    )
    if not balanced:
        return a, b
    with torch.no_grad():
        ratio = a.sum(dim=-1, keepdim=True) / b.sum(dim=-1, keepdim=True)
        ratio = torch.where(abs(ratio - 1) <= HALF_MASS_TOLERANCE, ratio, 1)
    return a, b * ratio


@contextmanager
def _stream(like):
    """Make CuPy work on the device and in the stream of PyTorch, so that neither has to wait for the other."""
    if like.device.type == "cpu":
        yield
    else:
        import cupy

        stream = torch.cuda.current_stream(like.device)
        with cupy.cuda.Device(like.device.index), cupy.cuda.ExternalStream(stream.cuda_stream, like.device.index):
            yield


def _array(x):
    """The memory of a tensor as a NumPy or CuPy array; None stays None."""
    if x is None:
        return None
    x = x.detach()
    if x.device.type == "cpu":
        return x.numpy()
    import cupy

    return cupy.from_dlpack(x)


def _tensor(array, like):
    """The memory of an array as a tensor beside `like`."""
    return torch.from_dlpack(array) if like.device.type == "cuda" else torch.as_tensor(array)


def _shaped(grad, x):
    """The gradient of a batch summed over what was broadcast, in the shape and dtype of `x`."""
    missing = max(x.ndim - grad.ndim, 0)
    return grad.reshape((1,) * missing + tuple(grad.shape)).sum_to_size(x.shape).to(x.device, x.dtype)
