"""Arrays of other libraries: taken in without a copy where that can be, and given back as what they were.

No library is a dependency: an array proves that its own is there.
"""

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cusink.checks.naming import kind
from cusink.placement import array_module
from cusink.types import Array

P = ParamSpec("P")
R = TypeVar("R")

RETURNED = ("torch", "jax")  # whose users go on with them; all others get NumPy
OURS = ("builtins", "numpy", "cupy", "cupyx", "scipy", "cusink")  # libraries whose objects stay as they are
PLAIN = frozenset({type(None), bool, int, float, str, np.ndarray})  # of no library: what most calls are given
CPU, CUDA = (1, 3, 11, 13), (2,)  # kinds of devices in DLPack: memory that a CPU reads, and that of NVIDIA GPUs


def any_array(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arrays of any library; the first of torch or JAX decides what its result is made of."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        if PLAIN.issuperset(map(type, args)) and PLAIN.issuperset(map(type, keywords.values())):
            return function(*args, **keywords)
        library = library_of((*args, *keywords.values()))
        found: R = _called(function, names, args, keywords, library)
        return found

    return wrapped


def remembering(init: Callable[P, None]) -> Callable[P, None]:
    """Let an object remember of which library it was made: results of calls that are given it are of that, too."""

    @functools.wraps(init)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> None:
        init(*args, **keywords)
        made: Any = args[0]
        made.library = library_of((*args[1:], *keywords.values()))

    return wrapped


def library_of(values: Iterable[Any]) -> str:
    """Return torch or jax, whichever library the first value is of that is of one of them; "" where none is.

    Single numbers do not count: ``eps`` of a tensor beside NumPy's weights makes no tensors of the results.
    """
    return next((library for x in values if (library := _origin(x))), "")


def taken(name: str, x: Any) -> Any:
    """Return an array of another library as one of NumPy, or of CuPy if it is on a GPU; all else as it is."""
    if type(x) in PLAIN:
        return x
    if isinstance(x, InLibrary):
        return x.result
    if isinstance(x, (list, tuple)):
        return _with_parts(x, [taken(name, part) for part in x]) if _has_parts(x) else x
    library = _library(x)
    if library in ("", "cupy"):
        return x
    if getattr(x, "requires_grad", False) is True:
        raise TypeError(
            f"'{name}' must not require a gradient, which this function does not have; pass {name}.detach(), or take a "
            "loss of cusink.torch"
        )
    try:
        if library == "torch" and x.device.type == "cpu":
            return x.numpy()  # that may be written to, which DLPack does not promise
        device = x.__dlpack_device__()[0] if hasattr(x, "__dlpack__") and library != "dask" else None
        if device in CUDA:
            import cupy

            return cupy.from_dlpack(x)
        return np.asarray(x)
    except ImportError:
        raise TypeError(
            f"'{name}' is on a GPU, for which CuPy is needed: pip install 'cusink[cuda12]', or move it to the CPU"
        ) from None
    except Exception as error:  # by a class of the user, anything
        text = " ".join(str(error).split())
        raise TypeError(
            f"'{name}' must be an array of numbers; got {kind(x)}, of which none can be made: {text[:200]}"
            f"{_advice(name, x)}"
        ) from None


def _advice(name: str, x: Any) -> str:
    """Return what helps where that is known: NumPy has no bfloat16, and what JAX traces has no numbers."""
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        return f". Pass {name}.float()"
    if "Tracer" in type(x).__name__:
        return ". Call it outside of jit, vmap and grad, or take a function of cusink.jax"
    return ""


class InLibrary:
    """A result whose arrays are those of another library, however and whenever they are read.

    It is an instance of the class of the result, for `isinstance` and for every function that takes one.
    """

    result: Any
    library: str

    def __init__(self, result: Any, library: str) -> None:
        vars(self).update(result=result, library=library)

    @property  # type: ignore[misc]  # of a variable of `object`, which a class may replace
    def __class__(self) -> type:
        return type(self.result)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.result, name)
        if not inspect.ismethod(found):
            return _given_back(found, self.library)
        names = list(inspect.signature(found).parameters)

        @functools.wraps(found)
        def method(*args: Any, **keywords: Any) -> Any:
            return _called(found, names, args, keywords, self.library)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.result, name, taken(name, value))

    def __len__(self) -> int:
        return len(self.result)

    def __bool__(self) -> bool:
        return bool(self.result)

    def __getitem__(self, items: Any) -> Any:
        return _given_back(self.result[items], self.library)

    def __repr__(self) -> str:
        return repr(self.result)

    def __dir__(self) -> list[str]:
        return dir(self.result)

    def __reduce__(self) -> Any:
        return InLibrary, (self.result, self.library)


@dataclasses.dataclass(frozen=True)
class _InTheirWords:
    """A function of the user, who wrote it for arrays of the library that his others are of."""

    name: str
    function: Callable[..., Any]
    library: str

    def __call__(self, *args: Any) -> Any:
        return taken(self.name, self.function(*(_given_back(x, self.library) for x in args)))

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", "function"))


def _called(
    function: Callable[..., Any], names: list[str], args: Sequence[Any], keywords: Mapping[str, Any], library: str
) -> Any:
    """Call a function of NumPy's and CuPy's arrays with those of any library, and return what `library` has for it."""
    given = [_argument(name, x, library) for name, x in itertools.zip_longest(names[: len(args)], args)]
    named = {name: _argument(name, x, library) for name, x in keywords.items()}
    found = function(*given, **named)
    return _given_back(found, library) if library else found


def _argument(name: str, x: Any, library: str) -> Any:
    if library and callable(x) and not isinstance(x, (type, _InTheirWords)):
        return _InTheirWords(name, x, library)
    return taken(name, x)


def _origin(x: Any) -> str:
    """Return the library of `RETURNED` that a value is of, or one of its parts, or what it was made of; "" else."""
    if isinstance(x, (list, tuple)):
        return library_of(x) if _has_parts(x) else ""
    if type(x).__module__.startswith("cusink."):
        return str(getattr(x, "library", ""))
    library = _library(x)
    return library if library in RETURNED and x.ndim else ""


def _has_parts(x: Any) -> bool:
    """Return whether a list may hold arrays: one that begins with a number may be long, and is read by NumPy."""
    return len(x) > 0 and (isinstance(x, tuple) or not isinstance(x[0], (bool, int, float, str, np.generic)))


def _with_parts(x: Any, parts: list[Any]) -> Any:
    if isinstance(x, list):
        return parts
    make = getattr(type(x), "_make", tuple)
    return make(parts)


def _library(x: object) -> str:
    """Return the name of the library that an array is of, "" for what is no array."""
    library = type(x).__module__.partition(".")[0]
    if library in OURS or isinstance(x, (np.ndarray, str, bytes, int, float, list, tuple, dict, type)):
        return ""
    if array_module(x) is not np:
        return "cupy"  # a subclass of its arrays
    if not (hasattr(type(x), "__array__") or hasattr(type(x), "__dlpack__")):
        return ""
    return "jax" if library == "jaxlib" else library


def _given_back(found: Any, library: str) -> Any:
    """Return arrays, alone or in what holds them, as those of a library; files as they are."""
    if isinstance(found, (list, tuple)):
        return _with_parts(found, [_given_back(part, library) for part in found])
    if isinstance(found, dict):
        return {name: _given_back(part, library) for name, part in found.items()}
    if isinstance(found, np.memmap) and not found.flags.writeable:
        return found
    if isinstance(found, (np.ndarray, np.generic)) or array_module(found) is not np:
        return _as_array_of(found, library)
    if type(found).__module__.startswith("cusink.") and not isinstance(found, InLibrary):
        if not hasattr(type(found), "library"):
            return InLibrary(found, library)
        found = copy.copy(found)
        found.library = library
    return found


def _as_array_of(array: Array, library: str) -> Any:
    # They are loaded already, except where a pickle has brought a result.
    on_host = array_module(array) is np
    if library == "torch":
        import torch

        if not on_host:
            return torch.from_dlpack(array)
        array = np.asarray(array)
        return torch.from_numpy(array if array.flags.writeable else array.copy())  # a tensor may be written to
    import jax

    if not on_host:
        return jax.dlpack.from_dlpack(array)
    # Without 64 bits in JAX the result has the 32 that its arrays have.
    return jax.numpy.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
