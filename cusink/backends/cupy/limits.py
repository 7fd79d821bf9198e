"""Sizes above which the CuPy backend works in blocks, and from which it takes another path: tests lower them."""

from dataclasses import dataclass

from cusink.backends.coarse import Sizes


@dataclass(frozen=True)
class Limits:
    """Limits that are read at every call, as ``limits.LIMITS``."""

    block_entries: int = 1 << 24  # of a block of costs or of plans, where an operator has to form one
    stored_from: int = 4  # problems that share points, from which on a stored kernel beats recreated exponentials
    near_pairs: int = 1 << 28  # of points, from which it pays to look for those that count
    coarse: Sizes = Sizes(pairs=1 << 25, points=1 << 11, ratio=8, least_run=8)  # of the levels of large clouds


LIMITS = Limits()
