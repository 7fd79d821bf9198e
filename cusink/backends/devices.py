"""Whether there is a GPU to use, and how the arrays of a call get there."""

import importlib.util

import numpy as np

from cusink.costs.clouds import PointCloud, mapped

__all__ = [
    "device_error",
    "to_device",
]


def device_error():
    """Why no GPU can be used, and what to do; None where one can."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install 'cusink[cuda12]' (NVIDIA driver 580 or newer: 'cusink[cuda13]')"
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
        reason = "no device"
    except Exception as error:  # no one class covers a missing driver, missing libraries and a driver too old
        reason = " ".join(str(error).split()) or type(error).__name__
    return f"CuPy cannot use a GPU ({reason}); see whether nvidia-smi lists one and whether CuPy fits its driver"


def to_device(*things):
    """Arrays and costs on the GPU; None stays None."""
    import cupy

    moved = []
    for thing in things:
        if isinstance(thing, PointCloud):
            moved.append(mapped(thing, cupy.asarray))
        else:
            moved.append(cupy.asarray(thing) if isinstance(thing, np.ndarray) else thing)
    return moved
