"""A stand-in for ``cupy`` with NumPy arrays as device arrays, so that ``backends.cupy`` runs on the emulated kernels.

Only what the backend uses, and stricter than NumPy: new memory is NaN and can run out, no allocation and no matrix
product may happen while a stream captures, and a captured graph replays exactly the launches it saw. What an engineer
would get wrong on a real device (argument order, dtypes, sizes, contiguity, scalars) fails here.
"""

import contextlib
import functools
import importlib.util
import sys
import types
import weakref

import numpy as np

import emulated
from cusink.backends.cupy import loader

MODULES = (
    "cusink.backends.cupy.run",
    "cusink.backends.cupy.reductions",
    "cusink.backends.cupy.forms",
    "cusink.backends.cupy.iteration",
    "cusink.backends.cupy.means",
    "cusink.backends.cupy.dense",
    "cusink.backends.cupy.clouds.reductions",
    "cusink.backends.cupy.clouds.iteration",
    "cusink.backends.cupy.points",
    "cusink.backends.cupy.grid",
)
ATTRIBUTES = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 99 << 10, "ComputeCapabilityMajor": 8}


class Capture:
    """The launches of the stream that is capturing now, if one is."""

    launches = None


class OutOfMemoryError(MemoryError):
    """As ``cupy.cuda.memory.OutOfMemoryError``."""


class Memory:
    """How many more arrays `empty` may make (None: any number), and weak references to those that it has made."""

    left, made = None, []

    @classmethod
    def held(cls):
        """How many of the arrays are still alive."""
        return sum(reference() is not None for reference in cls.made)


def empty(shape, dtype=float):
    if Capture.launches is not None:
        raise emulated.EmulationError("memory is allocated while a stream captures")
    if Memory.left == 0:
        raise OutOfMemoryError("Out of memory allocating 512 bytes (allocated so far: 1,024 bytes).")
    Memory.left = None if Memory.left is None else Memory.left - 1
    array = np.empty(shape, dtype)
    Memory.made.append(weakref.ref(array))
    array.view(np.uint8).reshape(-1)[:] = 0xFF if array.dtype.kind == "f" else 0x55
    return array


def dot(a, b, out=None):
    if Capture.launches is not None:
        raise emulated.EmulationError("cuBLAS is called while a stream captures")
    with np.errstate(all="ignore"):
        return np.dot(a, b, out=out)


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        for launch in self.launches:
            launch()


class Stream:
    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        if not self.non_blocking:
            raise emulated.EmulationError("the default stream cannot capture")
        Capture.launches = []

    def end_capture(self):
        launches, Capture.launches = Capture.launches, None
        return Graph(launches)


class Device:
    def __init__(self, number):
        self.attributes = ATTRIBUTES


class CapturingKernel:
    """A kernel that is noted down instead of run while a stream captures."""

    def __init__(self, kernel, log):
        object.__setattr__(self, "_parts", (kernel, log))
        kernel.max_dynamic_shared_size_bytes = emulated.PLAIN_SHARED_MEMORY

    def __getattr__(self, name):
        return getattr(self._parts[0], name)

    def __setattr__(self, name, value):
        setattr(self._parts[0], name, value)

    def __call__(self, grid, block, args, *, shared_mem=0):
        kernel, log = self._parts
        log.append(kernel.name)

        def launch():
            with np.errstate(all="ignore"):
                kernel(grid, block, args, shared_mem=shared_mem)

        if Capture.launches is None:
            launch()
        else:
            Capture.launches.append(launch)


def module():
    """Return a module object to stand in for cupy."""
    runtime = types.SimpleNamespace(getDevice=lambda: 0)
    cuda = types.SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream)
    stand_in = types.ModuleType("cupy")
    stand_in.__getattr__ = functools.partial(getattr, np)
    stand_in.cuda, stand_in.empty, stand_in.dot = cuda, empty, dot
    stand_in.empty_like = lambda array: empty(array.shape, array.dtype)
    stand_in.asnumpy = np.array
    stand_in.shared_memory = lambda size: ATTRIBUTES.update(MaxSharedMemoryPerBlockOptin=size)
    return stand_in


@contextlib.contextmanager
def operators(change=None, function=emulated.function, shared_memory=99 << 10):
    """``backends.cupy.dense`` on emulated kernels; its attribute `launched` lists the kernels that have run.

    `change` maps the source text of a module of the backend to another one, and `function` is what kernels come from:
    for tests that break either on purpose. `shared_memory` is what the device gives a block.
    """
    names = ("cupy", *MODULES)
    saved = {name: sys.modules.pop(name, None) for name in names}
    real, launched = loader.function, []
    sys.modules["cupy"] = module()
    ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = shared_memory
    loader.function = functools.cache(lambda *args: CapturingKernel(function(*args), launched))
    try:
        for name in MODULES:
            _load(name, change)
        ops = sys.modules["cusink.backends.cupy.dense"]
        ops.launched = launched
        yield ops
    finally:
        loader.function = real
        Capture.launches = None
        Memory.left, Memory.made = None, []
        for name, old in saved.items():
            put_back(name, old)


def put_back(name, module):
    """Let `module` be the one of that name again, in its package too; None for none."""
    package, _, attribute = name.rpartition(".")
    sys.modules.pop(name, None)
    if module is not None:
        sys.modules[name] = module
    if package and module is not None:
        setattr(sys.modules[package], attribute, module)
    elif package:
        vars(sys.modules[package]).pop(attribute, None)


def _load(name, change):
    """Import module `name` anew, from its text as `change` leaves it."""
    spec = importlib.util.find_spec(name)
    loaded = importlib.util.module_from_spec(spec)
    text = spec.loader.get_source(name)
    changed = change(text) if change else text
    sys.modules[name] = loaded
    exec(compile(changed, spec.origin, "exec"), loaded.__dict__)
    package, _, attribute = name.rpartition(".")
    setattr(sys.modules[package], attribute, loaded)
