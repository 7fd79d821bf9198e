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
from cusink.checks.reading import advice, has_derivative, read, set_to, setting
from cusink.placement import INSTALL_CUPY, array_module, undisturbed
from cusink.types import Array

P = ParamSpec("P")
R = TypeVar("R")

RETURNED = ("torch", "jax")  # whose users go on with them; all others get NumPy
OURS = ("numpy", "cupy", "cupyx", "scipy")  # libraries whose arrays stay as they are
PLAIN = frozenset({type(None), bool, int, float, str, np.ndarray})  # of no other library: what most calls are given
class_of: Callable[[Any], Any] = type  # as mypy takes classes for unhashable
FUNCTIONS = ("metric", "gradient", "callback")  # arguments that are functions of the user
LEARNT = frozenset(  # by which losses of cusink.torch have gradients
    {"a", "b", "A", "C", "C_aa", "C_bb", "x", "y", "eps", "reach", "weights", "values", "points", "factor"}
)
SHORT = 16  # entries of a tuple that may hold numbers and arrays
DEEPEST = 64  # lists in lists: more axes NumPy has not


def any_array(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arrays of any library; the first of torch or JAX decides what its result is made of."""
    names = _names(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        if _all_plain(args) and _all_plain(keywords.values()):
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
        if not (_all_plain(args[1:]) and _all_plain(keywords.values())):
            made.origin = library_of((*args[1:], *keywords.values()))

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
    if _remembers(class_of(x)):
        return _forgetful(x)
    library = _library(x)
    if library in ("", "cupy"):
        return x
    if has_derivative(x, library):
        instead = ", or make a cusink.torch.Grid" if name == "spacing" else ""
        instead = ", or take a loss of cusink.torch" if name.rpartition(".")[0] or name in LEARNT else instead
        raise TypeError(
            f"'{name}' must not require a gradient, which this function does not have; pass {name}.detach(){instead}"
        )
    try:
        found = read(x, library)
    except ImportError:
        raise TypeError(
            f"'{name}' is on a GPU, for which CuPy is needed: {INSTALL_CUPY}; or move it to the CPU"
        ) from None
    except Exception as error:  # by a class of the user, anything
        text = " ".join(str(error).split())
        raise TypeError(
            f"'{name}' must be an array of numbers; got {kind(x)}, of which none can be made: {text[:200]}"
            f"{advice(name, x, text)}"
        ) from None
    if name == "out" and isinstance(found, np.ndarray):
        if not found.flags.writeable or not np.may_share_memory(found, np.asarray(x)):
            raise TypeError(f"'out' must be an array whose memory can be written to, or a path; got {kind(x)}")
    return found


def _forgetful(x: Any) -> Any:
    """Return an object without the library that it was made of: calls within a call are NumPy's or CuPy's."""
    if not x.origin:
        return x
    x = copy.copy(x)
    x.origin = ""
    return x


class InLibrary:
    """A result whose arrays are those of another library, however and whenever they are read.

    `in_library` makes it, of a class with the name and the special methods of the result's: an instance of the result's
    own class for `isinstance`, and for every function that takes one. Like that it cannot be written to.
    """

    result: Any
    origin: str = ""

    def __init__(self, result: Any, library: str) -> None:
        vars(self).update(result=result, origin=library)

    @property  # type: ignore[misc]  # of a variable of `object`, which a class may replace
    def __class__(self) -> type:
        return type(self.result)

    @undisturbed
    def __getattr__(self, name: str) -> Any:
        found = getattr(self.result, name)
        if inspect.ismethod(found):
            return _Method(self, name)
        made = given_back(found, self.origin)
        if not callable(made):
            vars(self)[name] = made  # the same when it is read again
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.result, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.result, name)

    def __repr__(self) -> str:
        return repr(self.result)

    def __dir__(self) -> list[str]:
        return dir(self.result)

    def __reduce__(self) -> Any:
        return in_library, (self.result, self.origin)


def in_library(result: Any, library: str) -> Any:
    """Return a result as one of another library."""
    return _class_like(class_of(result))(result, library)


@functools.cache
def _class_like(kind: Any) -> type[InLibrary]:
    """Return the class of results in another library that are of a class in NumPy."""

    def length(self: InLibrary) -> int:
        return len(self.result)

    def item(self: InLibrary, items: Any) -> Any:
        return given_back(self.result[items], self.origin)

    special = {"__len__": undisturbed(length), "__getitem__": undisturbed(item)}
    shown = ("__doc__", "__module__", "__qualname__")
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
        return _called(method, _names(method.__func__)[1:], args, keywords, self._owner.origin)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Method) and (self._owner, self._name) == (other._owner, other._name)

    def __hash__(self) -> int:
        return hash((id(self._owner), self._name))

    def __reduce__(self) -> Any:
        return _Method, (self._owner, self._name)


@dataclasses.dataclass(frozen=True)
class InTheirWords:
    """A function of the user, who wrote it for arrays of the library that his others are of.

    `setting` is that of his thread, for those that call it: whether PyTorch records gradients, or JAX has 64 bits.
    """

    name: str
    function: Callable[..., Any]
    origin: str
    setting: bool

    def __call__(self, *args: Any) -> Any:
        """Call it with arrays of its library, and return NumPy's or CuPy's."""
        with set_to(self.origin, self.setting):
            found = self.function(*(given_back(x, self.origin) for x in args))
            return None if self.name == "callback" else taken(self.name, found)

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", "function"))


@functools.cache
def _names(function: Any) -> list[str]:
    """Return the names of the parameters of a function."""
    return list(inspect.signature(function).parameters)


def _called(
    function: Callable[..., Any], names: list[str], args: Sequence[Any], keywords: Mapping[str, Any], library: str
) -> Any:
    """Call a function of NumPy's and CuPy's arrays with those of any library, and return what `library` has for it."""
    given = [_argument(name, x, library) for name, x in itertools.zip_longest(names[: len(args)], args)]
    named = {name: _argument(name, x, library) for name, x in keywords.items()}
    found = function(*given, **named)
    if "out" in named and found is named["out"] is not None:
        return keywords["out"]  # what was given to be written to
    return given_back(found, library) if library else found


def _argument(name: str, x: Any, library: str) -> Any:
    if library and name in FUNCTIONS and callable(x) and not isinstance(x, (type, InTheirWords)):
        return InTheirWords(name, x, library, setting(library))
    return taken(name, x)


def _all_plain(values: Iterable[Any]) -> bool:
    """Return whether no value is of another library, nor made of one, as in nearly all calls."""
    for x in values:
        remembers = _remembers(class_of(x))
        if remembers is None or (remembers and x.origin):
            return False
    return True


@functools.cache
def _remembers(kind: type) -> bool | None:
    """Return whether objects of a class remember a library; None if it is neither plain nor of this package."""
    if kind in PLAIN or kind.__module__.partition(".")[0] in OURS:
        return False
    return hasattr(kind, "origin") if any(c.__module__.startswith("cusink.") for c in kind.__mro__) else None


def _origin(x: Any) -> str:
    """Return the library of `RETURNED` that a value is of, or one of its parts, or what it was made of; "" else."""
    if isinstance(x, (list, tuple)):
        return library_of(x) if _has_parts(x) else ""
    if _remembers(class_of(x)):
        return str(x.origin)
    library = _library(x)
    return library if library in RETURNED and x.ndim else ""


def _has_parts(x: Any) -> bool:
    """Return whether a list may hold arrays: one that begins with a number, in lists too, is read by NumPy."""
    if isinstance(x, tuple) and len(x) <= SHORT:
        return bool(x)
    for _ in range(DEEPEST):
        if not (isinstance(x, (list, tuple)) and x):
            return not isinstance(x, (list, tuple, bool, int, float, str, np.generic))
        x = x[0]
    return False


def _with_parts(x: Any, parts: list[Any]) -> Any:
    if isinstance(x, list):
        return parts
    make = getattr(type(x), "_make", tuple)
    return make(parts)


def _library(x: object) -> str:
    """Return the name of the library that an array is of, "" for what is no array."""
    library = type(x).__module__.partition(".")[0]
    if library in ("builtins", "cusink", *OURS) or isinstance(
        x, (np.ndarray, str, int, float, list, tuple, dict, type)
    ):
        return ""
    if array_module(x) is not np:
        return "cupy"  # a subclass of its arrays
    if not (hasattr(type(x), "__array__") or hasattr(type(x), "__dlpack__")):
        return ""
    above = {kind.__module__.partition(".")[0] for kind in type(x).__mro__}  # of subclasses of other packages, too
    return "torch" if "torch" in above else "jax" if above & {"jax", "jaxlib"} else library


def given_back(found: Any, library: str) -> Any:
    """Return arrays, alone or in what holds them, as those of a library; files as they are."""
    if isinstance(found, (list, tuple)):
        return _with_parts(found, [given_back(part, library) for part in found])
    if isinstance(found, dict):
        return {name: given_back(part, library) for name, part in found.items()}
    if isinstance(found, np.memmap) and not found.flags.writeable:
        return found
    if isinstance(found, (np.ndarray, np.generic)) or array_module(found) is not np:
        return _as_array_of(found, library)
    if isinstance(found, (InLibrary, InTheirWords)) or not type(found).__module__.startswith("cusink."):
        return found
    if not hasattr(type(found), "origin"):
        return in_library(found, library)
    found = copy.copy(found)
    found.origin = library
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
