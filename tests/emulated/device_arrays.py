"""A stand-in for ``cupy`` whose arrays are no NumPy arrays, so that the whole public API can be run on them.

They refuse what CuPy's refuse, or would do by way of the host: NumPy's functions, NumPy arrays as operands, implicit
conversion to NumPy, the keywords that CuPy's methods lack. Whatever comes out is an array of the device, of no
dimension where NumPy gives a scalar. Kernels run in the emulator, as with `cupy_stand_in`.
"""

import contextlib
import importlib.util
import sys
import types

import numpy as np

import emulated
from emulated import cupy_stand_in

ATTRIBUTES = ("shape", "ndim", "dtype", "size", "nbytes", "itemsize", "strides")
METHODS = (
    "all any argmax argmin argpartition argsort astype clip copy cumsum diagonal dot fill item max mean min nonzero "
    "prod ravel repeat reshape round sort squeeze std sum swapaxes take tolist transpose var view"
).split()
FROM_ANY = {"copy", "item", "tolist"}  # methods that copy from any device, to the current one or to the host
TO_HOST = {"item", "tolist"}
# Those that hand out another view, and give the device nothing to do.
VIEWS = {"broadcast_to", "diagonal", "ravel", "reshape", "squeeze", "swapaxes", "transpose", "view"}
VIEWS |= {"isscalar", "may_share_memory"}
NOT_IN_CUPY = {"initial", "where"}  # keywords of NumPy's reductions
FROM_HOST = ("asarray", "array", "ascontiguousarray", "from_dlpack")


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """An array of the stand-in's device."""

    __array_priority__ = 100

    def __init__(self, host):
        self._host, self._number = host, cupy_stand_in.HERE.device

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            raise TypeError(f"np.{ufunc.__name__}.{method} of device arrays")
        if cupy_stand_in.HERE.launches is not None:
            raise emulated.EmulationError(f"{ufunc.__name__} allocates memory while a stream captures")
        cupy_stand_in.Work.count += 1
        with np.errstate(all="ignore"):
            return given_out(ufunc(*map(taken_in, inputs), **{key: taken_in(x) for key, x in options.items()}))

    def __array_function__(self, function, types, args, options):
        if function in (np.ndim, np.shape):
            return function(*map(taken_in, args), **options)
        raise TypeError(f"np.{function.__name__} of device arrays")

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            return getattr(self._host, name)
        if name not in METHODS:
            raise AttributeError(f"device arrays have no {name!r}")
        return on_device(name, getattr(self._host if name in FROM_ANY else taken_in(self), name))

    def __getitem__(self, key):
        parts = key if isinstance(key, tuple) else (key,)
        cupy_stand_in.Work.count += any(hasattr(part, "dtype") or isinstance(part, list) for part in parts)
        return given_out(taken_in(self)[index_of(key)])

    def __setitem__(self, key, value):
        cupy_stand_in.Work.count += 1
        taken_in(self)[index_of(key)] = taken_in(value)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return map(given_out, self._host)

    def __bool__(self):
        cupy_stand_in.Work.waits += 1
        return bool(self._host)

    def __int__(self):
        cupy_stand_in.Work.waits += 1
        return int(self._host)

    def __float__(self):
        cupy_stand_in.Work.waits += 1
        return float(self._host)

    def __format__(self, spec):
        return format(self._host if self.ndim else self._host.item(), spec)

    def __repr__(self):
        return f"device {self._host!r}"

    @property
    def T(self):  # noqa: N802
        return given_out(self._host.T)

    @property
    def flags(self):
        flags = self._host.flags
        return types.SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous)

    @property
    def device(self):
        return cupy_stand_in.Device(self._number)

    @property
    def __cuda_array_interface__(self):
        return self._host.__array_interface__

    def get(self):
        cupy_stand_in.Work.waits += 1
        return self._host.copy()


ndarray.__module__ = "cupy"


def index_of(key):
    """Return an index as CuPy takes it: arrays of either library."""
    if isinstance(key, tuple):
        return tuple(map(index_of, key))
    return key._host if isinstance(key, ndarray) else key


def taken_in(x):
    """Return the array that NumPy computes with; an array of NumPy's own is refused."""
    if isinstance(x, ndarray):
        if x._number != cupy_stand_in.HERE.device:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {x._number} while current = {cupy_stand_in.HERE.device}"
            )
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(x)(map(taken_in, x)) if type(x) in (list, tuple) else x


def given_out(x):
    """Return results of NumPy as arrays of the device."""
    if isinstance(x, (np.ndarray, np.generic)):
        return ndarray(np.asarray(x))
    return type(x)(map(given_out, x)) if type(x) in (list, tuple) else x


def on_device(name, function):
    """Return a function or method of NumPy as one of the device."""

    def call(*args, **options):
        if cupy_stand_in.HERE.launches is not None:
            raise emulated.EmulationError(f"{name} allocates memory while a stream captures")
        if wrong := NOT_IN_CUPY & options.keys():
            raise TypeError(f"CuPy's {name} takes no {', '.join(wrong)}")
        with np.errstate(all="ignore"):
            made = function(*map(taken_in, args), **{key: taken_in(x) for key, x in options.items()})
        source = getattr(function, "__self__", None)
        copied = name == "reshape" and isinstance(source, np.ndarray) and not np.may_share_memory(made, source)
        itself = made is source and source is not None  # as of astype(copy=False)
        cupy_stand_in.Work.count += (name not in VIEWS or copied) and not itself
        cupy_stand_in.Work.waits += name in TO_HOST
        return given_out(made)

    return call


def from_host(name):
    """Return a function that takes arrays of either library; it copies a list of device arrays one by one."""

    def call(x, *args, **options):
        if isinstance(x, ndarray):
            made = getattr(np, name)(x._host, *args, **options)
            cupy_stand_in.Work.count += made is not x._host
            return given_out(made)
        cupy_stand_in.Work.count += 1
        return given_out(np.array(getattr(np, name)(x, *args, **options)))

    return call


def solve(a, b):
    """Return ``a^-1 b``; of a singular matrix no number, and no error, as CuPy has it unless told otherwise."""
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        return np.full_like(b, np.nan)


def module(real):
    """Return a module object to stand in for cupy; `real`, if installed, says which names there are."""
    stand_in = types.ModuleType("cupy")
    base = cupy_stand_in.module()

    def missing(name):
        if name.startswith("__"):
            raise AttributeError(name)
        if real is not None and not hasattr(real, name):
            raise AttributeError(f"CuPy has no {name!r}")
        found = getattr(np, name)
        return on_device(name, found) if callable(found) and not isinstance(found, type) else found

    stand_in.__getattr__ = missing
    stand_in.ndarray, stand_in.cuda, stand_in._core = ndarray, base.cuda, base._core
    stand_in.empty = lambda *args, **options: ndarray(cupy_stand_in.empty(*args, **options))
    stand_in.empty_like = lambda array: stand_in.empty(array.shape, array.dtype)
    stand_in.dot, stand_in.matmul = (on_device(name, getattr(base, name)) for name in ("dot", "matmul"))
    stand_in.asnumpy = lambda array: array.get() if isinstance(array, ndarray) else np.asarray(array)
    stand_in.linalg = types.SimpleNamespace(solve=on_device("solve", solve))
    for name in FROM_HOST:
        setattr(stand_in, name, from_host(name))
    return stand_in


class Kernel:
    """A kernel that is handed arrays of the device only."""

    def __init__(self, kernel):
        object.__setattr__(self, "_kernel", kernel)

    def __getattr__(self, name):
        return getattr(self._kernel, name)

    def __setattr__(self, name, value):
        setattr(self._kernel, name, value)

    def __call__(self, grid, block, args, *, shared_mem=0):
        self._kernel(grid, block, tuple(map(taken_in, args)), shared_mem=shared_mem)


@contextlib.contextmanager
def device(shared_memory=166912, function=emulated.function):
    """Within it ``cupy`` is the stand-in, and cusink runs on its arrays; yields the module and the kernels launched."""
    real = sys.modules.get("cupy") or (importlib.util.find_spec("cupy") and importlib.import_module("cupy"))
    stand_in, launched = module(real), []

    def kernel_of(*args):
        return Kernel(cupy_stand_in.CapturingKernel(function(*args), launched))

    with cupy_stand_in.backend(stand_in, kernel_of):
        cupy_stand_in.ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = shared_memory
        yield stand_in, launched
