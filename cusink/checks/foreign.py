"""Arrays of other libraries: taken in without a copy where that can be, and given back as what they were.

No library is a dependency: an array proves that its own is there.
"""

import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cusink.checks.naming import kind
from cusink.placement import array_module, undisturbed
from cusink.types import Array

P = ParamSpec("P")
R = TypeVar("R")

RETURNED = ("torch", "jax")  # whose users go on with them; all others get NumPy
OURS = ("builtins", "numpy", "cupy", "cupyx", "scipy", "cusink")  # libraries whose objects stay as they are
PLAIN = frozenset({type(None), bool, int, float, str, np.ndarray})  # of no library: what most calls are given
CUDA = (2,)  # kinds of devices in DLPack: NVIDIA GPUs
WRITTEN = ("out",)  # arguments that are to be written to
UNREAD = ("callback",)  # functions of the user that return nothing


def any_array(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arrays of any library; the first of torch or JAX decides what its result is made of."""
    names = list(inspect.signature(function).parameters)
    own = names[:1] in (["self"], ["cls"])  # a method, whose object is none of another library

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        if not (own and _remembered(args[0])) and _all_plain(args[own:], keywords.values()):
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
        if not _all_plain(args[1:], keywords.values()):
            made.library = library_of((*args[1:], *keywords.values()))

    return wrapped


def library_of(values: Iterable[Any]) -> str:
    """Return torch or jax, whichever library the first value is of that is of one of them; "" where none is.

    Single numbers do not count: ``eps`` of a tensor beside NumPy's weights makes no tensors of the results.
    """
    return next((library for x in values if type(x) not in PLAIN and (library := _origin(x))), "")


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
        found = _read(x, library)
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
    if name in WRITTEN and isinstance(found, np.ndarray) and not np.may_share_memory(found, _read(x, library)):
        raise TypeError(f"'{name}' must be an array whose memory can be written to, or a path; got {kind(x)}")
    return found


def _read(x: Any, library: str) -> Array:
    """Return an array of another library, without a copy where its memory stays as it is."""
    if library == "torch" and x.device.type == "cpu":
        return x.numpy()  # that may be written to, which DLPack does not promise
    if library == "dask":
        x = x.compute()  # whose blocks may have masks, which are refused and must not get lost
    elif _device(x) in CUDA:
        import cupy

        return cupy.from_dlpack(x)
    found = np.asanyarray(x)
    # A frame of pandas changes by ways of its own what it lends to be read. JAX never does, nor does who maps a file.
    lent = not found.flags.writeable and library != "jax" and not isinstance(found, np.memmap)
    return found.copy() if lent else found


def _device(x: Any) -> int | None:
    """Return the kind of device that an array is on by DLPack; None where it does not say."""
    try:
        return int(x.__dlpack_device__()[0])
    except Exception:  # no such method, or an array on several devices
        return None


def _advice(name: str, x: Any) -> str:
    """Return what helps where that is known: NumPy has no bfloat16, and what JAX traces has no numbers."""
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        return f". Pass {name}.float()"
    if "Tracer" in type(x).__name__:
        return ". Call it outside of jit, vmap and grad, or take a function of cusink.jax"
    return ""


class InLibrary:
    """A result whose arrays are those of another library, however and whenever they are read.

    `in_library` makes it, of a class with the name, the fields and the special methods of the result's: an instance of
    the result's own class for `isinstance`, and for every function that takes one.
    """

    result: Any
    library: str

    def __init__(self, result: Any, library: str) -> None:
        vars(self).update(result=result, library=library)

    @property  # type: ignore[misc]  # of a variable of `object`, which a class may replace
    def __class__(self) -> type:
        return type(self.result)

    @undisturbed
    def __getattr__(self, name: str) -> Any:
        found = getattr(self.result, name)
        if inspect.ismethod(found):
            return _Method(self, name)
        made = _given_back(found, self.library)
        if not callable(made):
            vars(self)[name] = made  # the same when it is read again
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.result, name, taken(name, value))

    def __repr__(self) -> str:
        return repr(self.result)

    def __dir__(self) -> list[str]:
        return dir(self.result)

    def __reduce__(self) -> Any:
        return in_library, (self.result, self.library)


def in_library(result: Any, library: str) -> Any:
    """Return a result as one of another library."""
    return _class_like(type(result))(result, library)  # type: ignore[arg-type]  # classes are hashable


@functools.cache
def _class_like(kind: Any) -> type[InLibrary]:
    """Return the class of results in another library that are of a class in NumPy."""

    def length(self: InLibrary) -> int:
        return len(self.result)

    def item(self: InLibrary, items: Any) -> Any:
        return _given_back(self.result[items], self.library)

    special = {"__len__": undisturbed(length), "__getitem__": undisturbed(item)}
    shown = ("__doc__", "__module__", "__qualname__", "__dataclass_fields__", "__dataclass_params__")
    body = {name: method for name, method in special.items() if hasattr(kind, name)}
    body |= {name: getattr(kind, name) for name in shown if hasattr(kind, name)}
    return type(kind.__name__, (InLibrary,), body)


class _Method:
    """A method of a result in another library, which takes and returns arrays of that."""

    def __init__(self, owner: InLibrary, name: str) -> None:
        self._owner, self._name = owner, name
        functools.update_wrapper(self, getattr(owner.result, name))

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        method = getattr(self._owner.result, self._name)
        names = list(inspect.signature(method).parameters)
        return _called(method, names, args, keywords, self._owner.library)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Method) and (self._owner, self._name) == (other._owner, other._name)

    def __hash__(self) -> int:
        return hash((id(self._owner), self._name))

    def __reduce__(self) -> Any:
        return _Method, (self._owner, self._name)


@dataclasses.dataclass(frozen=True)
class InTheirWords:
    """A function of the user, who wrote it for arrays of the library that his others are of."""

    name: str
    function: Callable[..., Any]
    library: str
    settings: Callable[[], contextlib.AbstractContextManager[Any]]  # of the user's thread, for those that call it

    def __call__(self, *args: Any) -> Any:
        """Call it with arrays of its library, and return NumPy's or CuPy's."""
        with self.settings():
            found = self.function(*(_given_back(x, self.library) for x in args))
            return None if self.name in UNREAD else taken(self.name, found)

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", "function"))


def _settings_now(library: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return what lets PyTorch record gradients, or JAX have 64 bits, if it does so in this thread."""
    if library == "torch":
        import torch

        return functools.partial(torch.set_grad_enabled, torch.is_grad_enabled())
    import jax
    import jax.experimental as older

    enable: Any = getattr(jax if hasattr(jax, "enable_x64") else older, "enable_x64")  # noqa: B009, moved in 2025
    return functools.partial(enable, bool(jax.config.jax_enable_x64))


def _called(
    function: Callable[..., Any], names: list[str], args: Sequence[Any], keywords: Mapping[str, Any], library: str
) -> Any:
    """Call a function of NumPy's and CuPy's arrays with those of any library, and return what `library` has for it."""
    given = [_argument(name, x, library) for name, x in itertools.zip_longest(names[: len(args)], args)]
    named = {name: _argument(name, x, library) for name, x in keywords.items()}
    found = function(*given, **named)
    written = [name for name in WRITTEN if name in named and found is named[name] is not None]
    return keywords[written[0]] if written else _given_back(found, library) if library else found


def _argument(name: str, x: Any, library: str) -> Any:
    if library and callable(x) and not isinstance(x, (type, InTheirWords, InLibrary)):
        return InTheirWords(name, x, library, _settings_now(library))
    return taken(name, x)


def _all_plain(*several: Iterable[Any]) -> bool:
    return all(PLAIN.issuperset(map(type, values)) for values in several)


def _remembered(x: Any) -> str:
    """Return the library that an object of the package was made of, or a result is in."""
    ours = any(kind.__module__.startswith("cusink.") for kind in type(x).__mro__)
    return str(getattr(x, "library", "")) if ours else ""


def _origin(x: Any) -> str:
    """Return the library of `RETURNED` that a value is of, or one of its parts, or what it was made of; "" else."""
    if isinstance(x, (list, tuple)):
        return library_of(x) if _has_parts(x) else ""
    library = _library(x)
    return library if library in RETURNED and x.ndim else _remembered(x)


def _has_parts(x: Any) -> bool:
    """Return whether a list may hold arrays: one that begins with a number, in lists too, is read by NumPy."""
    if not x or isinstance(x, tuple):
        return bool(x)
    return _has_parts(x[0]) if isinstance(x[0], list) else not isinstance(x[0], (bool, int, float, str, np.generic))


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
    above = {kind.__module__.partition(".")[0] for kind in type(x).__mro__}  # of subclasses of other packages, too
    return "torch" if "torch" in above else "jax" if above & {"jax", "jaxlib"} else library


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
    if isinstance(found, (InLibrary, InTheirWords)) or not type(found).__module__.startswith("cusink."):
        return found
    if not hasattr(type(found), "library"):
        return in_library(found, library)
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
