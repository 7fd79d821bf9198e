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
import threading
import types
import weakref

import numpy as np

import emulated
from cusink.backends.cupy import launch, limits, loader

PACKAGE = "cusink.backends.cupy"
CUPY = ("cupy", "cupy._core", "cupy._core._routines_linalg")  # modules that the package imports
HOST = {"launch", "limits", "loader", "ragged_launch", "clouds"}  # without CuPy: they stay loaded
ATTRIBUTES = {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 99 << 10}  # of CuPy's Device.attributes


class Here(threading.local):
    """What each thread has for itself: the device that is current, and the launches of a stream that is capturing."""

    device, launches = 0, None


HERE = Here()


class Work:
    """How many things were given to a device to do: launches, graphs, operations on arrays, copies from the host.

    `waits` are the times that the host waited for a device: copies to the host, and numbers that it read.
    """

    count, waits = 0, 0


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
    if HERE.launches is not None:
        raise emulated.EmulationError("memory is allocated while a stream captures")
    if Memory.left == 0:
        raise OutOfMemoryError("Out of memory allocating 512 bytes (allocated so far: 1,024 bytes).")
    Memory.left = None if Memory.left is None else Memory.left - 1
    array = np.empty(shape, dtype)
    Memory.made.append(weakref.ref(array))
    array.view(np.uint8).reshape(-1)[:] = 0xFF if array.dtype.kind == "f" else 0x55
    return array


def dot(a, b, out=None):
    if HERE.launches is not None:
        raise emulated.EmulationError("cuBLAS is called while a stream captures")
    with np.errstate(all="ignore"):
        return np.dot(Linalg.rounded(a), Linalg.rounded(b), out=out)


def matmul(a, b, out=None):
    if HERE.launches is not None:
        raise emulated.EmulationError("cuBLAS is called while a stream captures")
    with np.errstate(all="ignore"):
        return np.matmul(Linalg.rounded(a), Linalg.rounded(b), out=out)


class Address:
    """What a captured launch knows of an array: where its memory is, which it does not keep alive."""

    def __init__(self, array):
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        self.owner = weakref.ref(owner)
        place = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        self.view = array.shape, array.dtype, place, array.strides

    def array(self):
        """Return the array, if its memory is still its own."""
        owner = self.owner()
        if owner is None:
            raise emulated.EmulationError("a graph writes or reads an array that has been freed")
        shape, dtype, place, strides = self.view
        return np.ndarray(shape, dtype, owner.data, place, strides)


class Graph:
    def __init__(self, launches):
        self.launches = launches

    def launch(self):
        Work.count += 1
        for run in self.launches:
            run()


class Stream:
    def __init__(self, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass

    def begin_capture(self):
        if not self.non_blocking:
            raise emulated.EmulationError("the default stream cannot capture")
        HERE.launches = []

    def end_capture(self):
        launches, HERE.launches = HERE.launches, None
        return Graph(launches)


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
        pass

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

        if HERE.launches is None:
            Work.count += 1
            run(args)
        else:
            held = [Address(x) if isinstance(x, np.ndarray) else x for x in args]
            HERE.launches.append(
                lambda: run(tuple(x.array() if isinstance(x, Address) else x for x in held))  # read when it is launched
            )


def module():
    """Return a module object to stand in for cupy."""
    runtime = types.SimpleNamespace(getDevice=lambda: HERE.device, getDeviceCount=lambda: Device.count)
    cuda = types.SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream)
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
        yield
    finally:
        loader.function, launch.configure, limits.LIMITS = function, configure, given
        ATTRIBUTES.update(attributes)
        HERE.launches = None
        Device.count, HERE.device, Linalg.set_to = 2, 0, Linalg.COMPUTE_TYPE_DEFAULT
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
