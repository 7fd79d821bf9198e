"""Which kernel runs, and how: a pure function of sizes, dtype and device, so that it can be printed and tested.

>>> configure("softmin", 256, 1000, 1000, "float32", H100, axis=0)
Launch(file='softmin.cu', kernel='softmin_columns_tiled', grid=512, block=128, shared=6272)
>>> configure("iterate", 256, 100, 100, "float32", H100).kernel
'iterate_2'
>>> configure("iterate", 256, 1000, 1000, "float32", H100) is None
True
"""

import functools
from typing import NamedTuple

import numpy as np

MOST_BLOCKS = 2**31 - 1
MOST_THREADS = 512  # __launch_bounds__ of every kernel but those of point_products.cu
MOST_PRODUCT_THREADS = 256
TILE, TILE_PROBLEMS, SUM_ROWS = 32, 4, 4  # as in cost_reduction.cuh and plan.cu
NEAR, CHUNK, GROUP = 4, 16, 4  # as in point_pairs.cuh and online_softmax.cuh
BAND, PAD, PRODUCTS_FROM = 32, 8, 16  # as in point_products.cuh; the coordinates from which on it is faster
POINTS = 64  # that a block keeps, as in point_reduction.cuh
DOCUMENT_CHUNK = 8  # coordinates at once, as in documents.cu
DOCUMENT_BLOCKS = 4  # for a multiprocessor, where each needs memory of its own
PLAIN_SHARED_MEMORY = 48 << 10  # beyond it a kernel has to be told
TILED_FROM = 8  # problems from which on it pays to read a shared cost once for several of them

# REALs of one thread's state, and of what is read per summed index.
STATE = {"softmin": 2, "apply_plan": 2, "c_transform": 1, "transport_cost": 2}
SUMMED = {"softmin": 1, "apply_plan": 2, "c_transform": 1, "transport_cost": 1}
FILE = {"softmin": "softmin.cu", "apply_plan": "apply_plan.cu", "c_transform": "c_transform.cu"}
FILE |= {"transport_cost": "apply_plan.cu", "plan": "plan.cu", "plan_sum": "plan.cu", "iterate": "iterate.cu"}
# REALs of one thread's state in a walk through pairs of points, without the slopes by coordinates.
PAIR_STATE = {"kernel_sums": 1, "kernel_log_sums": 2, "kernel_slopes": 1}


class Device(NamedTuple):
    """What of a device decides about a launch: its multiprocessors, the bytes of shared memory a block may have, and
    whether its tensor cores take tf32.
    """

    multiprocessors: int
    shared_memory: int
    tensor_cores: bool = False


H100 = Device(132, 232448, True)


class Launch(NamedTuple):
    """A kernel, its blocks, the threads of each, and the bytes of dynamic shared memory of each."""

    file: str
    kernel: str
    grid: int
    block: int
    shared: int


@functools.lru_cache(maxsize=4096)
def configure(operator, B, n, m, dtype, device, *, axis=1, shared_cost=True, half=False, d=1):
    """Return the `Launch` of `operator`, or None where the device's shared memory cannot hold a tile.

    Parameters
    ----------
    operator : str
        An operator of `backends.operators`, ``"iterate"``, a kernel of ``scaling.cu`` or ``points.cu``, or a sum of
        ``kernel_product.cu``.
    B, n, m : int
        Problems, and rows and columns of each cost.
    dtype : str or dtype
        float32 or float64.
    device : Device
    axis : int
        Axis of the cost that is summed over.
    shared_cost : bool
        Whether all problems have one cost.
    half : bool
        Whether the cost is stored in half precision.
    d : int
        Coordinates of the points, where pairs of points are summed.
    """
    size = np.dtype(dtype).itemsize
    if operator == "iterate":
        return _iterate(B, n, m, size, device, shared_cost)
    if operator == "plan":
        return Launch("plan.cu", "plan", _blocks(B * n, 8), 256, 0)
    if operator == "plan_sum":
        warps = _clamp(B // 4, 1, 8)
        tiles = -(-n // SUM_ROWS) * -(-m // 32)
        return Launch("plan.cu", "plan_sum", _blocks(tiles), 32 * warps, 32 * warps * SUM_ROWS * size)
    if operator in STATE:
        return _reduction(operator, B, n, m, size, device, axis, shared_cost, half)
    if operator in PAIR_STATE:
        return _pairs(operator, B, n, m, d, size, device)
    if operator == "cost_points":
        return Launch("points.cu", operator, _blocks(B * n * m, 256), 256, 0)
    if operator.endswith("_points"):
        return _points(operator, B, n, m, d, size, device)
    if operator.endswith("_products"):
        return _products(operator, B, n, m, d, size, device)
    if operator in ("scaling_update", "logit_update"):
        return Launch("scaling.cu", operator, _blocks(B * -(-(n if axis else m) // 32), 4), 128, 0)
    if operator in ("start_scalings", "balance_scalings"):
        return Launch("scaling.cu", operator, _blocks(B, 4), 128, 0)
    if operator == "scaled_kernel":
        return Launch("scaling.cu", operator, _blocks(n * m, 256), 256, 0)
    if operator in ("read_potentials", "read_logits"):
        return Launch("scaling.cu", operator, _blocks(B * (n if axis else m), 256), 256, 0)
    raise ValueError(f"no kernel for {operator!r}")


def shared_memory(problems, n, m, warps, itemsize):
    """Bytes of dynamic shared memory of ``iterate.cu``: K | u | p | v | q | parts | deviations."""
    rows, columns, row_chunks, column_chunks = -(-n // 4) * 4, -(-m // 4) * 4, -(-n // 32), -(-m // 32)
    kernel = rows * (columns + 1)
    state = 2 * problems * (rows + columns)
    parts = problems * 32 * max(warps, row_chunks, column_chunks)
    return itemsize * (kernel + state + parts + problems * (row_chunks + column_chunks))


def document_memory(n, m, itemsize):
    """Bytes of dynamic shared memory of ``documents.cu``: p | q | a | b | chunk, and REALs of its tile of costs."""
    return itemsize * (n + m) * (2 + DOCUMENT_CHUNK + 1), n * (m | 1)


def configure_documents(pairs, n, m, dtype, device):
    """Return the `Launch` of ``documents`` for items of up to `n` and `m` points, and the REALs of a block's tile.

    The second is 0 where the tile lies in shared memory, else each block has it in memory of its own.
    """
    size = np.dtype(dtype).itemsize
    shared, tile = document_memory(n, m, size)
    block = 256 if max(n, m) > 32 else 128
    if shared + tile * size <= device.shared_memory - 1024:
        return Launch("documents.cu", "documents", _blocks(pairs), block, shared + tile * size), 0
    grid = _clamp(pairs, 1, DOCUMENT_BLOCKS * device.multiprocessors)
    return Launch("documents.cu", "documents", grid, block, shared), tile


def _reduction(operator, B, n, m, size, device, axis, shared_cost, half):
    kept, summed = (n, m) if axis else (m, n)
    name, end = operator + ("_rows" if axis else "_columns"), "_half" if half else ""
    if shared_cost and B >= TILED_FROM:
        warps = 4 if B > 2 * TILE_PROBLEMS else 2
        shared = size * (TILE * (TILE + 1) + warps * TILE_PROBLEMS * TILE * SUMMED[operator])
        tiles = -(-kept // TILE) * -(-B // (warps * TILE_PROBLEMS))
        return Launch(FILE[operator], f"{name}_tiled{end}", _blocks(tiles), 32 * warps, shared)
    name += end
    if axis:
        # About 8 entries per thread: enough loads in flight, and little to merge.
        return Launch(FILE[operator], name, _blocks(B * n), 32 * _power_of_two(-(-summed // 256), 16), 0)
    tiles = B * -(-m // 32)
    few = tiles < 4 * device.multiprocessors
    warps = _power_of_two(-(-summed // 16), 16 if few else 4)
    return Launch(FILE[operator], name, _blocks(tiles), 32 * warps, 32 * warps * STATE[operator] * size)


def _pairs(operator, B, n, m, d, size, device):
    slopes = operator == "kernel_slopes"
    units = B * -(-n // 32) * (-(-d // CHUNK) if slopes and d > NEAR else 1)
    few = units < 8 * device.multiprocessors
    if d <= NEAR:
        warps = _power_of_two(-(-m // 32), 16 if few else 4)
        return Launch("kernel_product.cu", operator, _blocks(units), 32 * warps, 32 * warps * -(-6 * size // 16) * 16)
    warps = _power_of_two(-(-m // GROUP), 8 if few else 4)
    shared = size * wide_shared(warps, PAIR_STATE[operator] + CHUNK * slopes)
    return Launch("kernel_product.cu", operator + "_wide", _blocks(units), 32 * warps, shared)


def wide_shared(warps, state):
    """REALs of dynamic shared memory of ``walk_wide``: y | x | values | logits, or a state per thread."""
    sources = GROUP * warps
    return max(CHUNK * sources + 32 * (CHUNK + 1) + 2 * sources, 32 * warps * state)


def _points(operator, B, kept, summed, d, size, device):
    """The most warps, up to 16, for which work and shared memory are there; None where not even one has the memory."""
    term = operator.removesuffix("_points")
    most = _power_of_two(-(-summed // 32), 16 if B * -(-kept // POINTS) < 4 * device.multiprocessors else 8)
    for warps in (16, 8, 4, 2, 1):
        points = d * (POINTS + 32 * warps) + 32 * warps * SUMMED[term]
        shared = size * max(points, POINTS * warps * STATE[term])
        # One warp may take what has to be asked for; more of them leave room for other blocks.
        limit = device.shared_memory - 1024
        limit = limit if warps == 1 else min(limit, PLAIN_SHARED_MEMORY)
        if warps <= most and shared <= limit:
            return Launch("points.cu", operator, _blocks(B * -(-kept // POINTS)), 32 * warps, shared)
    return None


def _products(operator, B, kept, summed, d, size, device):
    """None too where the device, the dtype or so few coordinates do not ask for tensor cores."""
    if not device.tensor_cores or size != 4 or d < PRODUCTS_FROM:
        return None
    term, d8 = operator.removesuffix("_products"), -(-d // 8) * 8
    for warps in (MOST_PRODUCT_THREADS // 32, 4, 2, 1):
        points = d8 * (BAND + PAD + BAND * warps + PAD) + BAND * warps * (1 + SUMMED[term])
        shared = size * max(points, 4 * 32 * warps * STATE[term])
        limit = device.shared_memory - 1024
        limit = limit if warps == 1 else min(limit, PLAIN_SHARED_MEMORY)
        if warps <= _power_of_two(-(-summed // BAND), 8) and shared <= limit:
            return Launch("point_products.cu", operator, _blocks(B * -(-kept // BAND)), 32 * warps, shared)
    return None


def _iterate(B, n, m, size, device, shared_cost):
    warps = _clamp(4 * -(-max(n, m) // 32), 4, MOST_THREADS // 32)
    # As many problems per block as leave no multiprocessor without one; each entry of K is read once for all of them.
    wanted = -(-B // device.multiprocessors) if shared_cost else 1
    for problems in (4, 2, 1):
        shared = shared_memory(problems, n, m, warps, size)
        # 1 KiB is the kernel's own static shared memory and what the system keeps.
        if (problems <= wanted or problems == 1) and shared <= device.shared_memory - 1024:
            return Launch("iterate.cu", f"iterate_{problems}", _blocks(B, problems), 32 * warps, shared)
    return None


def _blocks(units, per_block=1):
    """Blocks for `units`; kernels walk on by the grid's size, so that fewer are right as well."""
    return _clamp(-(-units // per_block), 1, MOST_BLOCKS)


def _clamp(value, least, most):
    return max(least, min(value, most))


def _power_of_two(value, most):
    """The power of two that is at least `value`, between 1 and `most`."""
    return min(1 << max(value - 1, 0).bit_length(), most)
