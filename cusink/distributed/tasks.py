"""What the tasks of `cusink.distributed` do: blocks of a matrix, and neighbours among a part of a collection."""

import socket

import numpy as np

from cusink.backends.devices import device_error, to_device
from cusink.checks.arrays import arrays
from cusink.costs.kinds import kind_of, with_arrays
from cusink.errors import warn_unconverged
from cusink.retrieval.nearest import nearest
from cusink.retrieval.pairs import pairs_of
from cusink.retrieval.storage.memory import Arrays
from cusink.retrieval.tiles import PairValues, pair_count, solve_tiles

__all__ = [
    "first_mass",
    "look",
    "merge",
    "self_terms",
    "solve_block",
    "stitch",
]


def first_mass(a):
    """The mass of the first row of a chunk, to which all others are brought."""
    (a,), _, _ = arrays(A=a)
    return float(a[0].sum(dtype=np.float64))


def solve_block(a, b, C, mass, ours, theirs, at, skip=0, diagonal=False, *, names, width, value, options, **task):
    """Solve a chunk of A against one of B without its first `skip` rows: a dict of arrays.

    `at` are the first row and column of the block, `ours` and `theirs` the terms of a divergence. On the diagonal of a
    symmetric matrix the block is a tile, of which one triangle is solved.
    """
    pairs = _pairs(a, b[skip:], C, mass, at, **task)
    pairs.symmetric = diagonal
    values = PairValues(pairs, value, options, width)
    if value == "divergence":
        values.selves = tuple(
            {"distances": pairs.ops.xp.asarray(x[:, 0]), "error": x[:, 1], "converged": x[:, 2] > 0}
            for x in (ours, theirs[skip:])
        )
    if diagonal:
        found, missed, worst = values.tile(slice(0, len(a)), slice(0, len(b) - skip), names)
    else:
        sink = Arrays(pairs, None, len(names) > 1, {})
        solve_tiles(values, (len(a), width), sink)
        found = sink.results
        missed, worst = (sum(x[0] for x in sink.finished.values()), max(x[1] for x in sink.finished.values()))
    if missed:
        warn_unconverged(missed, pair_count(pairs), worst, options.tol, options.max_iter)
    return {name: _like(a, pairs.ops, x) for name, x in found.items()}


def stitch(mirrored, own):
    """A block of slices of columns of tiles, transposed, and of a tile of its own, if it has one."""
    return {
        name: np.concatenate(
            [tile[name][:, start:stop].T for tile, start, stop in mirrored] + ([] if own is None else [own[name]]),
            axis=1,
        )
        for name in mirrored[0][0]
    }


def self_terms(x, C, mass, *, side, width, value, options, **task):
    """Solve items of A (side 0) or B against themselves: (items, 3), the value, its error, and whether it converged."""
    other = np.full_like(x, mass / C.shape[1 - side], shape=(1, C.shape[1 - side]))
    pairs = _pairs(*((x, other) if side == 0 else (other, x)), C, mass, None, **task)
    solved = pairs.solve_selves(side, slice(0, len(x)), options)
    columns = pairs.ops.to_host(solved["distances"]), solved["error"], solved["converged"]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def look(a, b, C, mass, at, *, k, options, **task):
    """The k nearest in a chunk, or in `a` itself for None: a dict of arrays (rows, k), or fewer if the chunk has."""
    pairs = _pairs(a, a if b is None else b, C, mass, at, **task)
    k = min(k, pairs.shape[1] - (b is None))
    if k == 0:
        return {"distances": np.empty((len(a), 0), pairs.dtype), "indices": np.empty((len(a), 0), np.int64)}
    if task["device"] == "cuda":
        (C,) = to_device(C)
    C = _in_dtype(C, pairs.C)
    # Brought to one mass, so that it does not matter which chunks meet.
    A, B = pairs.A[:], None if b is None else pairs.B[:]
    limits = {name: task[name] for name in ("eps", "memory_limit")}
    distances, indices = nearest(A, B, C, k=k, check=False, **limits, **options)
    return {
        "distances": _like(a, pairs.ops, distances.astype(pairs.dtype)),
        "indices": _like(a, pairs.ops, indices) + at[1],
    }


def _in_dtype(C, costs):
    """A cost as a caller gives it, in the dtype of the computation, which the operand `costs` has."""
    if kind_of(C) == "dense":
        return costs.data
    return with_arrays(C, lambda points: points.astype(costs.dtype, copy=False))


def merge(parts, *, k):
    """The k nearest of the neighbours in all chunks; equal distances come in the order of their indices."""
    distances, indices = (np.concatenate([part[name] for part in parts], axis=1) for name in ("distances", "indices"))
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # chunks, and neighbours in them, come in order
    return {name: np.take_along_axis(x, order, axis=1) for name, x in (("distances", distances), ("indices", indices))}


def _pairs(a, b, C, mass, at, *, eps, memory_limit, check, device):
    """The pairs of two chunks, on the device that is wanted; all brought to `mass`."""
    if device == "cuda":
        problem = device_error()
        if problem is not None:
            raise RuntimeError(
                f"device='cuda': a worker on {socket.gethostname()} cannot use a GPU: {problem}. Give every worker an "
                "environment with CuPy and a GPU, or pass device='cpu'"
            )
        a, b, C = to_device(a, b, C)
    try:
        return pairs_of(a, b, C, eps=eps, check=check, memory_limit=memory_limit, mass=mass)
    except (TypeError, ValueError) as error:
        if at is not None:
            error.add_note(f"In a block of the matrix: rows count from {at[0]} of 'A' and from {at[1]} of 'B'.")
        raise


def _like(a, ops, result):
    """A result in the library of the chunks."""
    return ops.to_host(result) if isinstance(a, np.ndarray) else result
