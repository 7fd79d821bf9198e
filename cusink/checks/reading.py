"""What is particular to other array libraries: how their arrays are read, what stops that, and settings of threads.

They are imported by functions alone, which are called where an array proves that its library is there.
"""

import contextlib
from typing import Any

import numpy as np

CUDA = (2,)  # kinds of devices in DLPack: NVIDIA GPUs


def read(x: Any, library: str) -> Any:
    """Return an array of another library as one of NumPy or CuPy, without a copy where its memory stays as it is."""
    if library == "torch" and x.device.type == "cpu":
        return x.numpy()  # that may be written to, which DLPack does not promise
    if library == "dask":
        x = x.compute()  # whose blocks may have masks, which are refused and must not get lost
    elif _device(x) in CUDA:
        import cupy

        return cupy.from_dlpack(x)
    # Of what has DLPack alone, `numpy.asanyarray` would make one object.
    found = np.asanyarray(x) if library == "dask" or hasattr(type(x), "__array__") else np.from_dlpack(x)
    # What a frame lends to be read, it changes itself.
    return found.copy() if library == "pandas" and not found.flags.writeable else found


def _device(x: Any) -> int | None:
    """Return the kind of device that an array is on by DLPack; None where it does not say."""
    try:
        return int(x.__dlpack_device__()[0])
    except Exception:  # no such method, or an array on several devices
        return None


def has_derivative(x: Any, library: str) -> bool:
    """Return whether PyTorch differentiates an array, backward or forward: what is made of it would have none."""
    if getattr(x, "requires_grad", False) is True:
        return True
    if library != "torch":
        return False
    from torch.autograd import forward_ad

    return bool(forward_ad.unpack_dual(x).tangent is not None)


def advice(name: str, x: Any, error: str) -> str:
    """Return what helps where that is known: NumPy has no bfloat16, and what is traced has no numbers."""
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        return f". Pass {name}.float()"
    if "Tracer" in type(x).__name__:
        return ". Call it outside of jit, vmap and grad, or take a function of cusink.jax"
    if "doesn't have storage" in error:
        return ". Call it outside of vmap and jvp, or take a function of cusink.torch"
    return ""


def setting(library: str) -> bool:
    """Return whether PyTorch records gradients, or JAX has 64 bits, in this thread."""
    if library == "torch":
        import torch

        return bool(torch.is_grad_enabled())
    import jax

    return bool(jax.config.jax_enable_x64)


def set_to(library: str, value: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which `setting` has this value."""
    context: contextlib.AbstractContextManager[Any]
    if library == "torch":
        import torch

        context = torch.set_grad_enabled(value)
        return context
    import jax
    import jax.experimental as older

    enable: Any = getattr(jax if hasattr(jax, "enable_x64") else older, "enable_x64")  # noqa: B009, moved in 2025
    context = enable(value)
    return context
