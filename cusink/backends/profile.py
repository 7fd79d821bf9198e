"""What the sums of a radial kernel need to know of it, in both libraries."""

from typing import Literal, NamedTuple


class Profile(NamedTuple):
    """A radial kernel as a function of ``q = |x - y|^2``.

    ``log k`` is ``rate * q`` ("linear"), ``rate * sqrt(q + shift)`` ("root") or ``rate * log(q + shift)`` ("log"). Its
    gradient with respect to x is ``slope * (x - y)``, divided by 1, ``sqrt(q + shift)`` or ``q + shift``. A kernel
    ("distance") that is no exponential is ``rate * sqrt(q)`` itself, of gradient ``slope * (x - y) / sqrt(q)``.
    """

    form: Literal["linear", "root", "log", "distance"]
    rate: float
    shift: float
    slope: float
