"""What is computed when somebody reads it for the first time: properties, and fields of dataclasses."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from cusink.placement import undisturbed

T = TypeVar("T")


class cached_property(functools.cached_property[T]):  # noqa: N801, a decorator as Python's is
    """Python's own, without the lock that Python 3.11 has for all instances together.

    Threads would compute one after the other, and a process that is forked meanwhile would wait for ever. Threads
    that read at once may each compute the value, and find the one that was there first.
    """

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Return the value that is kept in the dictionary of `instance`."""
        if instance is None:
            return self
        own, name = vars(instance), str(self.attrname)
        if name not in own:
            own.setdefault(name, self.func(instance))
        return own[name]


class Deferred:
    """Values of some fields, as a function returns them by name; in a field of `Deferring` it stands for its value."""

    def __init__(self, compute: Callable[[], dict[str, Any]]) -> None:
        self.compute = undisturbed(compute)


class Deferring:
    """Mixin for frozen dataclasses that may be made with `Deferred` values.

    Several threads may read at once: each finds the values that were there first. A pickle holds the values.
    """

    def __post_init__(self) -> None:
        waiting = {name: value for name, value in self.__dict__.items() if isinstance(value, Deferred)}
        if waiting:
            for name in waiting:
                del self.__dict__[name]
            self.__dict__["_waiting"] = waiting

    if not TYPE_CHECKING:  # fields alone, so that a type checker still knows every attribute

        def __getattr__(self, name: str) -> Any:  # of what is not in the dictionary
            own = self.__dict__
            waiting = own.get("_waiting", {})
            deferred = waiting.get(name)
            if deferred is not None:
                values = deferred.compute()
                for field, value in values.items():
                    own.setdefault(field, value)
                for field in values:
                    waiting.pop(field, None)
            if name in own:  # or another thread was faster
                return own[name]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.__dict__.get("_waiting", ())]

    def __getstate__(self) -> dict[str, Any]:
        for name in tuple(self.__dict__.get("_waiting", ())):
            getattr(self, name)
        return {name: value for name, value in self.__dict__.items() if name != "_waiting"}
