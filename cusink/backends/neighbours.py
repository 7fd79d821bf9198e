"""Orders of points, on the host, that put neighbours together."""

import numpy as np

from cusink.types import HostArray


def neighbours(x: HostArray, leaf: int) -> HostArray:
    """Return an order of the points x (n, d) that puts neighbours together: halved along the widest axis, recursively.

    Whole leaves come first; only the last one may have fewer points.
    """
    leaves, stack = [], [np.arange(len(x))]
    while stack:
        index = stack.pop()
        if len(index) <= leaf:
            leaves.append(index)
            continue
        points = x[index]
        along = points[:, np.argmax(points.max(axis=0) - points.min(axis=0))]
        half = -(-len(index) // (2 * leaf)) * leaf
        index = index[np.argpartition(along, half)]
        stack += [index[half:], index[:half]]
    return np.concatenate(leaves)


def nested(x: HostArray, least: int) -> HostArray:
    """Return an order of the points x (n, d) in which runs of every power of two lie together: halved as above.

    Runs of `least` points may lie in any order.
    """
    order = np.arange(len(x))
    size = 1 << max(0, len(x) - 1).bit_length()
    while size > least:
        whole = len(x) // size * size
        for index in (order[:whole].reshape(-1, size), order[whole:][None]):
            if index.shape[1] > size // 2 and len(index):
                points = x[index]
                widest = np.argmax(points.max(axis=1) - points.min(axis=1), axis=1)
                along = np.take_along_axis(points, widest[:, None, None], axis=2)[:, :, 0]
                cut = np.argpartition(along, size // 2 - 1, axis=1)
                index[...] = np.take_along_axis(index, cut, axis=1)
        size //= 2
    return order
