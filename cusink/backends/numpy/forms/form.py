"""What every way to iterate problems offers, see `cusink.backends.numpy.iteration`."""

from typing import Any, Protocol

from cusink.types import HostArray

Finished = tuple[HostArray, HostArray, HostArray, HostArray]  # f (B, n), g (B, m), cost (B,), marginal error (B,)


class Form(Protocol):
    """Problems under way in one form. Problems are numbered in the order in which they came."""

    @property
    def C(self) -> Any:  # noqa: N802
        """The cost, of shape (n, m) or (B, n, m)."""

    def can_start(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> HostArray:
        """Return which problems (B,) can start here."""

    def append(self, a: HostArray, b: HostArray, f: HostArray, g: HostArray) -> None:
        """Add problems that start from the potentials f (B, n) and g (B, m)."""

    def advance(self, omega: HostArray, count: int) -> HostArray:
        """Take `count` iterations; return which problems (B,) left the range. These stay where they were."""

    def bound(self) -> HostArray:
        """Return bounds (B,) on the marginal errors after one more plain f-update, for omega = 1 the errors."""

    def finish(self, index: HostArray) -> Finished:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one plain f-update."""

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""

    def state(self, chosen: HostArray) -> Finished:
        """Return ``(a, b, f, g)`` of the problems `chosen`, to start another form with."""
