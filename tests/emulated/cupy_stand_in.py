"""A stand-in for ``cupy`` with NumPy arrays as device arrays, so that ``backends.cupy`` runs on the emulated kernels.

Only what the backend uses, and stricter than NumPy: new memory is NaN and can run out, no allocation and no matrix
product may happen while a stream captures, and a captured graph replays exactly the launches it saw. What an engineer
would get wrong on a real device (argument order, dtypes, sizes, contiguity, scalars) fails here.
"""

import contextlib
import dataclasses
import functools
import importlib
import sys
import types
import weakref

import numpy as np

import emulated
from cusink.backends.cupy import launch, limits, loader

from . import order, streams
from .order import HERE, Work  # noqa: F401 - tests take them from here
from .streams import Graph, Stream  # noqa: F401

PACKAGE = "cusink.backends.cupy"
CUPY = ("cupy", "cupy._core", "cupy._core._routines_linalg")  # modules that the package imports
HOST = {"launch", "limits", "loader", "ragged_launch", "clouds"}  # without CuPy: they stay loaded
ATTRIBUTES = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 99 << 10}  # of CuPy's Device.attributes


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
    order.refuse("memory is allocated")
    if Memory.left == 0:
        raise OutOfMemoryError("Out of memory allocating 512 bytes (allocated so far: 1,024 bytes).")
    Memory.left = None if Memory.left is None else Memory.left - 1
    array = np.empty(shape, dtype)
    Memory.made.append(weakref.ref(array))
    order.made(array)
    array.view(np.uint8).reshape(-1)[:] = 0xFF if array.dtype.kind == "f" else 0x55
    return array


def product(function, a, b, out):
    order.refuse("cuBLAS is called")
    order.submit([a, b], [] if out is None else [out])
    with np.errstate(all="ignore"):
        return function(Linalg.rounded(a), Linalg.rounded(b), out=out)


def dot(a, b, out=None):
    return product(np.dot, a, b, out)


def matmul(a, b, out=None):
    return product(np.matmul, a, b, out)


class Device:
    """Device number `id`, which is the current one inside its context; with no number, the current one."""

    compute_capability = "80"
    count = 2  # devices of the machine; which of them is current stands in `Here`

    def __init__(self, device=None):
        self.id = HERE.device if device is None else int(device)
        if not 0 <= self.id < Device.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.attributes = ATTRIBUTES

    def __enter__(self):
        self._left, HERE.device = HERE.device, self.id
        return self

    def __exit__(self, *_):
        HERE.device = self._left

    def use(self):
        HERE.device = self.id

    def synchronize(self):
        order.wait_for_device(self.id)

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


class Linalg:
    """As ``cupy._core._routines_linalg``: how matrices of floats ("f") are multiplied."""

    COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 = 1, 7  # as CuPy numbers them
    set_to = COMPUTE_TYPE_DEFAULT

    @classmethod
    def get_compute_type(cls, dtype):
        assert dtype == "f"
        return cls.set_to

    @classmethod
    def set_compute_type(cls, dtype, compute_type):
        assert dtype == "f"
        cls.set_to = compute_type

    @classmethod
    def rounded(cls, array):
        """Return a matrix with the digits that a product sees of it."""
        if cls.set_to != cls.COMPUTE_TYPE_TF32 or array.dtype != np.float32:
            return array
        return (np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


class CapturingKernel:
    """A kernel that is noted down instead of run while a stream captures, and that has the limits of the device.

    `arguments` maps the kernel and its arguments to others: for tests that exchange them on purpose.
    """

    def __init__(self, kernel, log, arguments=None):
        object.__setattr__(self, "_parts", (kernel, log, arguments))
        kernel.max_dynamic_shared_size_bytes = emulated.PLAIN_SHARED_MEMORY - kernel.static_shared_size_bytes

    def __getattr__(self, name):
        return getattr(self._parts[0], name)

    def __setattr__(self, name, value):
        if name == "max_dynamic_shared_size_bytes" and value > ATTRIBUTES["MaxSharedMemoryPerBlockOptin"]:
            raise emulated.EmulationError(f"{self.name}: a block of this device cannot have {value} bytes")
        setattr(self._parts[0], name, value)

    def __call__(self, grid, block, args, *, shared_mem=0):
        kernel, log, arguments = self._parts
        log.append(kernel.name)
        # Every device gives a block 48 KiB; a test may take all of what more there is away.
        limit = max(ATTRIBUTES["MaxSharedMemoryPerBlockOptin"], emulated.PLAIN_SHARED_MEMORY)
        if shared_mem + kernel.static_shared_size_bytes > limit:
            raise emulated.EmulationError(f"{kernel.name}: a block of this device cannot have {shared_mem} bytes")
        args = arguments(kernel, args) if arguments else args

        def run(given):
            with np.errstate(all="ignore"):
                kernel(grid, block, given, shared_mem=shared_mem)

        arrays = [(place, x) for place, x in enumerate(args) if isinstance(x, np.ndarray)]
        written = {place for place, kind in enumerate(getattr(kernel, "parameters", ())) if kind[0] == "w"}
        reads, writes = ([x for place, x in arrays if (place in written) == wanted] for wanted in (False, True))
        order.add(lambda *given: run(given), args, reads, writes)


def module():
    """Return a module object to stand in for cupy."""
    runtime = types.SimpleNamespace(getDevice=lambda: HERE.device, getDeviceCount=lambda: Device.count)
    current = streams.get_current_stream
    cuda = types.SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream, get_current_stream=current)
    stand_in = types.ModuleType("cupy")
    stand_in.__getattr__ = functools.partial(getattr, np)
    stand_in.cuda, stand_in.empty, stand_in.dot, stand_in.matmul = cuda, empty, dot, matmul
    stand_in._core = types.SimpleNamespace(_routines_linalg=Linalg)
    stand_in.empty_like = lambda array: empty(array.shape, array.dtype)
    stand_in.asnumpy = np.array
    stand_in.shared_memory = lambda size: ATTRIBUTES.update(MaxSharedMemoryPerBlockOptin=size)
    return stand_in


@contextlib.contextmanager
def backend(cupy, kernel_of):
    """Within it ``cupy`` is the module `cupy`, `kernel_of` gives kernels, and the CuPy backend is loaded afresh."""
    saved = {name: sys.modules[name] for name in (*CUPY, *loaded_backend()) if name in sys.modules}
    for name in saved:
        put_back(name, None)
    function, configure, given = loader.function, launch.configure, limits.LIMITS
    attributes = dict(ATTRIBUTES)
    sys.modules.update(zip(CUPY, (cupy, cupy._core, cupy._core._routines_linalg), strict=True))
    loader.function = functools.cache(kernel_of)
    try:
        with order.bookkeeping():
            yield
    finally:
        loader.function, launch.configure, limits.LIMITS = function, configure, given
        ATTRIBUTES.update(attributes)
        Device.count, Linalg.set_to = 2, Linalg.COMPUTE_TYPE_DEFAULT
        Memory.left, Memory.made = None, []
        for name in {*CUPY, *loaded_backend(), *saved}:
            put_back(name, saved.get(name))


def loaded_backend():
    """Return the names of the loaded modules of the backend that hold the array module ``cupy``."""
    return [name for name in sys.modules if name.startswith(f"{PACKAGE}.") and name[len(PACKAGE) + 1 :] not in HOST]


def part(name):
    """Return a module of the backend, as it is loaded now."""
    return importlib.import_module(f"{PACKAGE}.{name}")


@contextlib.contextmanager
def operators(function=emulated.function, shared_memory=99 << 10, arguments=None, **lowered):
    """``backends.cupy.dense`` on emulated kernels; its attribute `launched` lists the kernels that have run.

    `function` is what kernels come from and `arguments` maps a kernel and its arguments to others: for tests that
    break either on purpose. `shared_memory` is what the device gives a block, `lowered` are fields of `limits.Limits`.
    """
    launched = []
    with backend(module(), lambda *args: CapturingKernel(function(*args), launched, arguments)):
        ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = shared_memory
        limits.LIMITS = dataclasses.replace(limits.LIMITS, **lowered)
        ops = part("dense")
        ops.launched = launched
        part("points")
        part("grid")
        yield ops


def changed(prefix, change):
    """Return `arguments` of `operators` that change those of kernels whose names begin with `prefix`.

    `change` maps the arguments by name to the new ones by name.
    """

    def arguments(kernel, args):
        if not kernel.name.startswith(prefix):
            return args
        given = dict(zip(kernel.names, args, strict=True))
        return tuple((given | change(given)).values())

    return arguments


def swapped(one, other):
    """Return a `change` that exchanges two arguments."""
    return lambda given: {one: given[other], other: given[one]}


def force(configure):
    """Let `configure` choose launches in place of `cusink.backends.cupy.launch.configure`, until the backend ends."""
    launch.configure = configure


def put_back(name, module):
    """Let `module` be the one of that name again, in its package too; None for none."""
    package, _, attribute = name.rpartition(".")
    sys.modules.pop(name, None)
    if module is not None:
        sys.modules[name] = module
    if name in CUPY:
        return
    if package and module is not None:
        setattr(sys.modules[package], attribute, module)
    elif package:
        vars(sys.modules[package]).pop(attribute, None)
