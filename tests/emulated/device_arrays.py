"""A stand-in for ``cupy`` whose arrays are no NumPy arrays, so that the whole public API can be run on them.

They refuse what CuPy's refuse, or would do by way of the host: NumPy's functions, NumPy arrays as operands, implicit
conversion to NumPy, the keywords that CuPy's methods lack. Whatever comes out is an array of the device, of no
dimension where NumPy gives a scalar. Kernels run in the emulator, as with `cupy_stand_in`.
"""

import contextlib
import importlib.machinery
import importlib.util
import sys
import types

import numpy as np

import emulated
from emulated import cupy_stand_in, order, promotion

ATTRIBUTES = ("shape", "ndim", "dtype", "size", "nbytes", "itemsize", "strides")
METHODS = (
    "all any argmax argmin argpartition argsort astype clip copy cumsum diagonal dot fill item max mean min nonzero "
    "prod ravel repeat reshape round sort squeeze std sum swapaxes take tolist transpose var view"
).split()
FROM_ANY = {"copy", "item", "tolist"}  # methods that copy from any device, to the current one or to the host
TO_HOST = {"item", "tolist"}
IN_PLACE = {"fill", "sort"}  # methods that write their array
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
        given = promotion.promoted([taken_in(x) for x in inputs])
        if out := options.pop("out", ()):
            write(lambda *arrays: ufunc(*arrays[len(out) :], out=arrays[: len(out)], **options), out, given)
            return out[0] if len(out) == 1 else out
        order.refuse(f"{ufunc.__name__} allocates memory")
        cupy_stand_in.Work.count += 1
        with np.errstate(all="ignore"):
            made = given_out(ufunc(*given, **options))
        order.submit(hosts(inputs), new=hosts([made]))
        return made

    def __array_function__(self, function, types, args, options):
        if function in (np.ndim, np.shape):
            return function(*map(taken_in, args), **options)
        raise TypeError(f"np.{function.__name__} of device arrays")

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            return getattr(self._host, name)
        if name not in METHODS:
            raise AttributeError(f"device arrays have no {name!r}")
        return on_device(name, getattr(self._host if name in FROM_ANY else taken_in(self), name), self)

    def __getitem__(self, key):
        parts = key if isinstance(key, tuple) else (key,)
        if not is_gather(parts):
            # With an ellipsis a single entry is a view too, as it is of CuPy's arrays.
            whole = () if any(part is Ellipsis for part in parts) else (Ellipsis,)
            return ndarray(taken_in(self)[(*parts, *whole)])
        order.refuse("an index by arrays allocates memory")
        cupy_stand_in.Work.count += 1
        made = given_out(taken_in(self)[index_of(key)])
        order.submit(hosts([self, *parts]), new=hosts([made]))
        return made

    def __setitem__(self, key, value):
        parts, index = key if isinstance(key, tuple) else (key,), index_of(key)
        if is_gather(parts):
            order.refuse("an index by arrays allocates memory")
        write(lambda into, given: into.__setitem__(index, given), [self], [taken_in(value)], hosts(parts))

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def _seen(self):
        """Return what the host sees of it, when it has waited for it."""
        cupy_stand_in.Work.waits += 1
        order.read(self._host, self._number)
        return self._host

    def __bool__(self):
        return bool(self._seen())

    def __int__(self):
        return int(self._seen())

    def __float__(self):
        return float(self._seen())

    def __format__(self, spec):
        return format(self._seen() if self.ndim else self._seen().item(), spec)

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
        return self._seen().copy()


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


def hosts(values):
    """Return the arrays of the device among values, as NumPy arrays, in lists and tuples too."""
    found = []
    for x in values:
        found += [x._host] if isinstance(x, ndarray) else hosts(x) if type(x) in (list, tuple) else []
    return found


def is_gather(parts):
    """Whether the parts of an index are more than numbers, slices and new axes: what it takes is a copy."""
    return any(isinstance(part, (ndarray, np.ndarray, np.bool_, list)) for part in parts)


def write(function, into, given, reads=()):
    """Let the current stream call a function of NumPy on the arrays of the device that it writes, and what it reads."""

    def run(*arrays):
        with np.errstate(all="ignore"):
            function(*arrays)

    targets = [taken_in(x) for x in into]
    order.add(run, (*targets, *given), [*reads, *(x for x in given if isinstance(x, np.ndarray))], targets)


def on_device(name, function, of=None):
    """Return a function of NumPy as one of the device, or a method of the array `of`."""
    source = getattr(function, "__self__", None)

    def call(*args, **options):
        if name not in VIEWS:
            order.refuse(f"{name} allocates memory")
        if wrong := NOT_IN_CUPY & options.keys():
            raise TypeError(f"CuPy's {name} takes no {', '.join(wrong)}")
        given = [taken_in(x) for x in args]
        if isinstance(function, np.ufunc) and name != "ldexp":  # whose exponents are of another kind
            given = promotion.promoted(given)
        elif name == "where":
            given[1:] = promotion.promoted(given[1:])
        elif name == "clip":
            given = promotion.promoted([source, *given])[1:] if of is not None else promotion.promoted(given)
        with np.errstate(all="ignore"):
            made = function(*given, **{key: taken_in(x) for key, x in options.items()})
        copied = name == "reshape" and isinstance(source, np.ndarray) and not np.may_share_memory(made, source)
        itself = made is source and source is not None  # as of astype(copy=False)
        result = given_out(made)
        if (name not in VIEWS or copied) and not itself:
            order.refuse(f"{name} allocates memory")
            cupy_stand_in.Work.count += 1
            out = hosts([options.pop("out", None)])
            reads = hosts([of, *args, *options.values()])
            if name in TO_HOST:
                cupy_stand_in.Work.waits += 1
                order.read(of._host, of._number)
            elif name == "copy" and of is not None and of._number != cupy_stand_in.HERE.device:
                bring(of, made)
            else:
                writes = [source] if name in IN_PLACE and of is not None else out
                order.submit(reads, writes, () if out else hosts([result]))
        return result

    return call


def bring(array, made):
    """Note a copy from another device, which CuPy makes contiguous there first if it has to."""
    host, flags = array._host, array._host.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        with cupy_stand_in.Device(array._number):
            host = host.copy()
            order.made(host)
            order.submit(hosts([array]), new=[host])
    order.submit([host], new=[made])


def from_host(name):
    """Return a function that takes arrays of either library; it copies a list of device arrays one by one."""

    def call(x, *args, **options):
        if isinstance(x, ndarray):
            made = getattr(np, name)(x._host, *args, **options)
            if made is not x._host:
                order.refuse(f"{name} allocates memory")
                cupy_stand_in.Work.count += 1
                order.submit([x._host], new=[] if np.may_share_memory(made, x._host) else [made])
            return given_out(made)
        order.refuse("an array comes from the host")
        cupy_stand_in.Work.count += 1
        made = given_out(np.array(getattr(np, name)(x, *args, **options)))
        order.submit(new=hosts([made]))
        return made

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
    stand_in.__spec__ = importlib.machinery.ModuleSpec("cupy", None)  # it is installed, as far as anybody looks
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
def device(shared_memory=166912, function=emulated.function, by_value=False):
    """Within it ``cupy`` is the stand-in, and cusink runs on its arrays; yields the module and the kernels launched.

    With `by_value` NumPy's scalars count by their value, see `promotion`.
    """
    real = sys.modules.get("cupy") or (importlib.util.find_spec("cupy") and importlib.import_module("cupy"))
    stand_in, launched = module(real), []

    def kernel_of(*args):
        return Kernel(cupy_stand_in.CapturingKernel(function(*args), launched))

    with cupy_stand_in.backend(stand_in, kernel_of):
        cupy_stand_in.ATTRIBUTES["MaxSharedMemoryPerBlockOptin"], promotion.Promotion.by_value = shared_memory, by_value
        try:
            yield stand_in, launched
        finally:
            promotion.Promotion.by_value = False
