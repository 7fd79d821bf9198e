"""Which pairs of unequal sizes share a launch, and how: a pure function of sizes, dtype and device."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cusink.backends.cupy.launch import MOST_BLOCKS, OWN_SHARED_MEMORY, Device, Launch
from cusink.types import HostArray

SCRATCH = 1 << 30  # bytes of global memory that the costs of a launch take at most
# Threads of a block that has a multiprocessor for itself, as the kernels are bounded, and of one that shares it.
WIDE, NARROW = {"ragged": 512, "ragged_unbalanced": 256, "ragged_adjoint": 256}, 128
WIDE_FROM = 64  # points of a side from which on so many threads have work
SHARING = 4  # narrow blocks whose shared memory a multiprocessor is to hold; registers may be enough for three


class RaggedLaunch(NamedTuple):
    """The `pairs` (P,) of a launch, longest first."""

    pairs: HostArray
    tiles: HostArray  # (P,): where in global memory their costs begin, or -1 for shared memory
    scratch: int  # REALs of global memory
    launch: Launch


def ragged_launches(
    n: HostArray,
    m: HostArray,
    dtype: npt.DTypeLike,
    device: Device,
    largest: int,
    memory: int | None = None,
    kernel: str = "ragged",
) -> list[RaggedLaunch]:
    """Return the launches for pairs of n and m points (K,) each.

    Parameters
    ----------
    n, m : array, shape (K,)
        Points of both sides.
    dtype : str or dtype
        float32 or float64, of the iterations.
    device : Device
    largest : int
        Pairs of points of a pair from which on it is in no launch; nor are those that do not fit.
    memory : int, optional
        Bytes of global memory that may be taken.
    kernel : str
        ``"ragged"``, ``"ragged_unbalanced"`` or ``"ragged_adjoint"``.

    Returns
    -------
    list of RaggedLaunch
        One, if there are no more pairs than multiprocessors, and the costs that do not fit into shared memory fit into
        `SCRATCH`. Of more pairs, those of which a multiprocessor holds several at a time have a launch of their own.
    """
    size, most = np.dtype(dtype).itemsize, device.shared_memory - OWN_SHARED_MEMORY
    scratch = min(SCRATCH, SCRATCH if memory is None else memory) // size
    state, tile = (6 if kernel == "ragged_unbalanced" else 4) * (n + m), n * (m | 1)
    if kernel == "ragged_adjoint":
        state += 3 * np.minimum(n, m) + np.maximum(n, m)
    inside = size * (state + tile) <= most
    fits = (n * m < largest) & (size * state <= most) & (inside | (tile <= scratch))
    order = np.flatnonzero(fits)[np.argsort(-tile[fits], kind="stable")]
    shared = size * (state + np.where(inside, tile, 0))
    small = (shared * SHARING <= most) & (len(order) > device.multiprocessors)
    out = []
    for group, shares in ((order[~small[order]], False), (order[small[order]], True)):
        outside = np.where(inside[group], 0, tile[group])
        ends = np.cumsum(outside)
        while len(group):
            count = int(np.searchsorted(ends, scratch, side="right"))
            own, places = group[:count], np.where(inside[group[:count]], -1, ends[:count] - outside[:count])
            block = NARROW if shares or max(n[own].max(), m[own].max()) < WIDE_FROM else WIDE[kernel]
            launch = Launch(f"{kernel}.cu", kernel, min(count, MOST_BLOCKS), block, int(shared[own].max()))
            out.append(RaggedLaunch(own, places, int(ends[count - 1]), launch))
            group, outside, ends = group[count:], outside[count:], ends[count:] - ends[count - 1]
    return out
