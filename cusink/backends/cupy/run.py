"""Launch a kernel on the current device."""

import functools
import math

import cupy as cp
import numpy as np

from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import PLAIN_SHARED_MEMORY, Device

LOG2_E = 1 / math.log(2)
NO_INDEX = np.int64(0)  # a null pointer


def run(launch, dtype, *arguments):
    """Launch a kernel with arguments that already have their parameters' exact types."""
    kernel = loader.function(launch.file, launch.kernel, dtype)
    # What a kernel has of its own, less than 1 KiB, counts as well.
    if launch.shared > PLAIN_SHARED_MEMORY - 1024 and launch.shared > kernel.max_dynamic_shared_size_bytes:
        kernel.max_dynamic_shared_size_bytes = launch.shared
    kernel((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)


def device():
    """The current device as `cusink.backends.cupy.launch.Device`."""
    return _device(cp.cuda.runtime.getDevice())


@functools.cache
def _device(number):
    attributes = cp.cuda.Device(number).attributes
    capability = attributes["ComputeCapabilityMajor"]
    return Device(attributes["MultiProcessorCount"], attributes["MaxSharedMemoryPerBlockOptin"], capability >= 8)
