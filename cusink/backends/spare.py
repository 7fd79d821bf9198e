"""Workspaces that calls leave to later calls: to fetch memory takes about as long as to fill it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Spare(Generic[T]):
    """Workspaces not in use. While a call has one, no other call and no other thread gets it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._free = make, list[T]()

    @contextmanager
    def borrow(self) -> Iterator[T]:
        """Lend a workspace, a new one if all are in use."""
        try:
            workspace = self._free.pop()
        except IndexError:
            workspace = self._make()
        try:
            yield workspace
        finally:
            self._free.append(workspace)
