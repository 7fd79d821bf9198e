"""Tensors as arrays of NumPy or CuPy and back, without a copy, and checks of tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cusink.checks.arrays import kind
from cusink.checks.regularisation import RELATIVE
from cusink.checks.scalars import regularisation as number
from cusink.types import Array

HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float64, torch.float32, *HALF)


@contextmanager
def stream(like: torch.Tensor) -> Iterator[None]:
    """Make CuPy work on the device and in the stream of PyTorch, so that neither has to wait for the other."""
    if like.device.type == "cpu":
        yield
    else:
        import cupy

        current = torch.cuda.current_stream(like.device)
        with cupy.cuda.Device(like.device.index), cupy.cuda.ExternalStream(current.cuda_stream, like.device.index):
            yield


def array(x: torch.Tensor) -> Array:
    """Return the memory of a tensor as a NumPy or CuPy array."""
    x = x.detach().resolve_neg()
    if x.device.type == "cpu":
        return x.numpy()
    import cupy

    return cupy.from_dlpack(x)


def tensor(given: Array, like: torch.Tensor) -> torch.Tensor:
    """Return the memory of an array as a tensor on the device of `like`."""
    if like.device.type == "cuda":
        return torch.from_dlpack(given)
    given = np.asarray(given)
    return torch.from_numpy(given if given.flags.writeable else given.copy())


def checked(**named: Any) -> None:
    """Check that the inputs, None apart, are dense tensors of real numbers on one device that NumPy or CuPy can use."""
    given = {name: x for name, x in named.items() if x is not None}
    for name, x in given.items():
        one_tensor(name, x)
    last, like = next(reversed(given.items()))
    for name, x in given.items():
        if x.device != like.device:
            raise TypeError(
                f"all tensors must share one device; '{name}' is on {x.device} and '{last}' on {like.device}"
            )
    on_known_device(last, like)


def on_known_device(name: str, x: torch.Tensor) -> None:
    """Check that NumPy or CuPy can use the device of a tensor."""
    if x.device.type not in ("cpu", "cuda"):
        raise TypeError(f"'{name}' must be on the CPU or on a CUDA device; got {x.device}. Move it with .cpu()")


def one_tensor(name: str, x: Any) -> None:
    """Check that an input is a dense tensor of real numbers."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"'{name}' must be a tensor; got {kind(x)}. Convert it with torch.as_tensor")
    if x.is_nested:
        raise TypeError(f"'{name}' must be a dense tensor of real numbers; got a nested one. Pass Measures, or pad it")
    if x.is_quantized:
        raise TypeError(f"'{name}' must be a dense tensor of real numbers; got {x.dtype}. Convert it: .dequantize()")
    if x.layout != torch.strided or x.is_complex():
        raise TypeError(
            f"'{name}' must be a dense tensor of real numbers; got {x.layout} of {x.dtype}. Convert it with "
            ".to_dense() or .real"
        )
    if x.is_floating_point() and x.dtype not in FLOATS:
        raise TypeError(
            f"'{name}' must hold float64, float32 or numbers of half precision; got {x.dtype}. Convert it with .float()"
        )


def in_one_dtype(**named: Any) -> dict[str, Any]:
    """Return the tensors with those of floating-point numbers in one dtype, and None as it is.

    float32 beside float64 becomes that, and gradients come back in the dtype of each; others are to share one.
    """
    given = {name: x for name, x in named.items() if x is not None and x.is_floating_point()}
    if {x.dtype for x in given.values()} == {torch.float32, torch.float64}:
        return {name: x.double() if name in given else x for name, x in named.items()}
    if given:
        last, like = next(reversed(given.items()))
        for name, x in given.items():
            if x.dtype != like.dtype:
                raise TypeError(f"all tensors must share one dtype; '{name}' is {x.dtype} and '{last}' is {like.dtype}")
    return named


def in_floats(dtype: torch.dtype, **named: Any) -> dict[str, Any]:
    """Return the tensors with those of whole numbers in a dtype, and None as it is.

    They are to be in it before a call: what is compiled has the dtype of its inputs.
    """
    return {name: x if x is None or x.is_floating_point() else x.to(dtype) for name, x in named.items()}


def regularisation(eps: Any) -> torch.Tensor:
    """Return eps as a tensor: of one number, or of one for each problem (B,)."""
    if not isinstance(eps, torch.Tensor):
        wanted = f"a number, a tensor of one or of one per problem, {RELATIVE}"
        return torch.tensor(number(eps, wanted), dtype=torch.float64, device="cpu")
    if eps.is_complex() or eps.dtype == torch.bool:
        raise TypeError(f"'eps' must be a real number; got a tensor of {eps.dtype}")
    one_tensor("eps", eps)
    on_known_device("eps", eps)
    if eps.ndim > 1 or eps.numel() == 0:
        raise ValueError(
            f"'eps' must be a number, or a tensor of one or of one per problem; got shape {tuple(eps.shape)}"
        )
    eps = eps.float() if eps.dtype in HALF else eps  # NumPy has no bfloat16
    return eps.reshape(()) if eps.numel() == 1 else eps
