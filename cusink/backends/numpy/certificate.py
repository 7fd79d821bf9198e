"""What the multiplicative forms share: the range check, the guarded over-relaxation, and the repair of single entries.

A product ``S = K' U`` of non-negative arrays loses what underflows: an entry of K below `tiny`, which costs at most
``tiny * max U``; a product below `tiny`; an entry of U below `tiny` that should not be zero, at most ``tiny * max
K``. Where ``S`` exceeds the sum of these bounds over its n terms by ``1 / eps_machine``, it is right to rounding.
Problems are columns.
"""

import numpy as np

from cusink.backends.numpy.reductions import softmin_entries
from cusink.backends.ranges import Loss


def certified(product, factor, weights, largest_K):
    """`certified_within` the loss of one matrix product; `largest_K` bounds the kernel."""
    return certified_within(Loss.of_product(len(factor), largest_K), product, factor, weights)


def certified_within(loss, product, factor, weights):
    """Entries of ``product`` (m, B), made from ``factor`` (n, B), that lost nothing beyond rounding; True for all of
    them.

    `weights` tells which entries of `factor` are meant to be zero.
    """
    info = np.finfo(product.dtype)
    tiny, limit = float(info.tiny), float(info.max) / loss.gain
    # First by column, as if all entries below tiny had underflowed; then by entry in the columns that fail.
    lowest, smallest = product.min(axis=0, initial=np.inf), factor.min(axis=0, initial=np.inf)
    largest = factor.max(axis=0, initial=0).astype(np.float64)
    certain = (lowest >= loss.floor(product.dtype, largest, smallest < tiny)) & (largest <= limit)
    if certain.all():
        return True
    unclear = np.flatnonzero(~certain)
    flushed = ((factor[:, unclear] < tiny) & (weights[:, unclear] > 0)).any(axis=0)
    largest = largest[unclear]
    sound = np.ones(product.shape, bool)
    floor = loss.floor(product.dtype, largest, flushed)
    sound[:, unclear] = (product[:, unclear] >= floor) & (largest <= limit)
    return True if sound.all() else sound


def in_range(product, sound, weights):
    """Columns in which all entries that carry weight are `sound`, or True for all columns.

    What carries no weight only has to stay harmless: `product` is raised to `tiny`, so that 0 / product is 0.
    """
    if sound is True:
        return True
    np.maximum(product, np.finfo(product.dtype).tiny, out=product)
    inside = (sound | (weights == 0)).all(axis=0)
    return True if inside.all() else inside


def relax(old, new, excess, buffer):
    """Overwrite `old` by the guarded over-relaxation towards the plain update `new`; `excess` is omega - 1.

    ``old <- excess * new + max(new - excess * old, 0)``: to first order ``old * (new / old) ** omega``, but each
    entry raises the dual objective for every omega in [1, 2), so that no omega makes the iteration diverge. See
    docs/method.md.
    """
    scratch = buffer[: old.size].reshape(old.shape)
    np.multiply(old, excess, out=scratch)
    np.subtract(new, scratch, out=scratch)
    np.maximum(scratch, 0, out=scratch)
    np.multiply(new, excess, out=old)
    old += scratch


def repair(potential, sound, C, logits, eps, axis):
    """Overwrite the entries of `potential` (B, rows) that are not `sound` (rows, B) by their softmin over `logits`."""
    if not np.all(sound):
        entries, problems = np.nonzero(~sound)
        potential[problems, entries] = softmin_entries(C, logits, eps, axis, problems, entries)
