"""Where the operators of an array library come from: `cusink/__init__.py` says it, so that no room imports backends."""

from collections.abc import Callable, Mapping
from typing import Any

Doors = Callable[[], Mapping[Any, Any]]  # operators by kind of cost

_doors: dict[str, Doors] = {}  # by the name of the array module


def connect(library: str, doors: Doors) -> None:
    """Let arrays of a library have these operators."""
    _doors[library] = doors


def doors_of(library: str) -> Mapping[Any, Any]:
    """Return the operators of an array library by kind of cost; the first call loads them."""
    return _doors[library]()
