"""Whether there is a GPU to use, and how the arrays of a call get there."""

import importlib.util
from typing import Any

import numpy as np

from cusink.costs.kinds import with_arrays
from cusink.placement import INSTALL_CUPY


def device_error() -> str | None:
    """Return why no GPU can be used, and what to do; None where one can."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL_CUPY}"
    try:
        import cupy

        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
        reason = "no device"
    except Exception as error:  # no single class covers a missing driver, missing libraries and an old driver
        reason = " ".join(str(error).split()) or type(error).__name__
    return f"CuPy cannot use a GPU ({reason}); see whether nvidia-smi lists one and whether CuPy fits its driver"


def cupy_module() -> Any:
    """Return CuPy, which `device_error` has found."""
    import cupy

    return cupy


def to_device(*things: Any) -> list[Any]:
    """Return NumPy arrays and costs of such on the GPU, and anything else as it is."""
    cupy = cupy_module()

    def move(array: Any) -> Any:
        return cupy.asarray(array) if isinstance(array, np.ndarray) else array

    return [with_arrays(thing, move) for thing in things]
