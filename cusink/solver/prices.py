"""What the prices of both marginals say of a divergence and of its self-terms."""

from cusink.types import Reach


def alike(reach: Reach | None) -> bool:
    """Whether both marginals have one price, or are met: then equal measures have the divergence 0."""
    return reach is None or reach[0] == reach[1]


def own_prices(reach: Reach | None, side: int) -> Reach | None:
    """Return the prices of a measure with itself: that of its side for both marginals."""
    return None if reach is None else (reach[side], reach[side])
