"""What the multiplicative forms share: the range check, and the repair of single entries.

A product ``S = K' U`` of non-negative arrays loses what underflows: an entry of K below `tiny`, which costs at most
``tiny * max U``; a product below `tiny`; an entry of U below `tiny` that should not be zero, at most ``tiny * max
K``. Where ``S`` exceeds the sum of these bounds over its n terms by ``1 / eps_machine``, it is right to rounding.
Problems are columns.
"""

from typing import Literal

import numpy as np

from cusink.backends.numpy.reductions import softmin_entries
from cusink.backends.ranges import UnderflowBound
from cusink.types import Axis, HostArray


def certified(
    bound: UnderflowBound, product: HostArray, factor: HostArray, weights: HostArray
) -> HostArray | Literal[True]:
    """Return which entries of ``product`` (m, B), made from ``factor`` (n, B), lost nothing beyond rounding.

    True stands for all of them. `weights` tells which entries of `factor` are meant to be zero.
    """
    info = np.finfo(product.dtype)
    tiny, limit = float(info.tiny), float(info.max) / bound.gain
    # First all at once, as if an entry had underflowed; then by column, as if all entries below tiny had; then by entry
    # in the columns that fail.
    most = float(factor.max(initial=0))
    if most <= limit and product.min(initial=np.inf) >= float(bound.floor(product.dtype, most, True)):
        return True
    lowest, smallest = product.min(axis=0, initial=np.inf), factor.min(axis=0, initial=np.inf)
    largest = factor.max(axis=0, initial=0).astype(np.float64)
    certain = (lowest >= bound.floor(product.dtype, largest, smallest < tiny)) & (largest <= limit)
    if certain.all():
        return True
    unclear = np.flatnonzero(~certain)
    flushed = ((factor[:, unclear] < tiny) & (weights[:, unclear] > 0)).any(axis=0)
    largest = largest[unclear]
    sound = np.ones(product.shape, bool)
    floor = bound.floor(product.dtype, largest, flushed)
    sound[:, unclear] = (product[:, unclear] >= floor) & (largest <= limit)
    return True if sound.all() else sound


def in_range(product: HostArray, sound: HostArray | Literal[True], weights: HostArray) -> HostArray | Literal[True]:
    """Return the columns (B,) in which all entries that carry weight are `sound`; True for all columns.

    An entry without weight only has to stay harmless: `product` is raised to `tiny`, so that 0 / product is 0.
    """
    if sound is True:
        return True
    np.maximum(product, np.finfo(product.dtype).tiny, out=product)
    inside: HostArray = (sound | (weights == 0)).all(axis=0)
    return True if inside.all() else inside


def repair(
    potential: HostArray,
    sound: HostArray | Literal[True],
    C: HostArray,
    logits: HostArray,
    eps: float,
    axis: Axis,
) -> None:
    """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin over `logits`."""
    if not np.all(sound):
        entries, problems = np.nonzero(~np.asarray(sound))
        potential[problems, entries] = softmin_entries(C, logits, eps, axis, problems, entries)
