"""Which CUDA kernel runs, and how: a pure function of sizes, dtype and device, so that it can be printed and tested.

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
import numpy.typing as npt

from cusink.backends.cupy.fused_memory import (
    HELD_BINS,
    HELD_THREADS,
    adjoint_memory,
    held_adjoint_memory,
    held_memory,
    shared_memory,
)
from cusink.types import Axis

MOST_BLOCKS = 2**31 - 1
MOST_THREADS = 512  # __launch_bounds__ of every kernel but those of iterate.cu and those with SPLIT_THREADS
MOST_ITERATE_THREADS = 256  # two blocks to a multiprocessor
TILE, TILE_PROBLEMS = 32, 4  # as in cost_reduction.cuh
NEAR, COORDINATES, GROUP = 4, 16, 4  # as in point_pairs.cuh and online_softmax.cuh
STRIP, TILE_COLUMNS, SPLIT_THREADS, STAGES, PARTS = 80, 320, 256, 3, 32  # as in strip_products.cuh and half_parts.cuh
STAGED = STAGES * (STRIP + TILE_COLUMNS) * (4 * PARTS + 4)  # bytes
PRODUCTS_FROM = 16  # coordinates of points from which on tensor cores are faster
# Multiply-adds of a single sum from which on they are: the operations before it, some 20, take as long as 2^30.
SUMS_FROM = 1 << 31
SPLIT_TILE, SPLIT_SHARE = STRIP * TILE_COLUMNS, 0.4  # its entries, and the share of them in use that makes it faster
GRID_THREADS = 64  # of a product along the axis of a grid, as in grid_tiles.cuh
PLAN_CHUNK, PLAN_ROWS = 8, 8  # problems at a time, and rows for each warp, as in plan.cu
PLAN_WARPS, PLAN_PARTS = 4, 16  # of a block, and at most into which the problems are divided
POINTS = {4: 64, 8: 32}  # that a block keeps, by the bytes of a REAL, as in point_reduction.cuh
DOCUMENT_COORDINATES = 8  # staged at once, as in documents.cu
DOCUMENT_BLOCKS = 4  # per multiprocessor, where each block needs global memory of its own
DOCUMENT_SCRATCH = 2 << 30  # bytes of that memory at most, as long as one block is left
PLAIN_SHARED_MEMORY = 48 << 10  # bytes of a block; a kernel has to opt in to more
OWN_SHARED_MEMORY = 1024  # bytes that cover the static shared memory of a kernel and what the system keeps
TILED_FROM = 8  # problems from which on a shared cost is read once for several of them

# REALs of the state of a thread, and REALs that it reads per summed index.
STATE = {"softmin": 2, "apply_plan": 2, "c_transform": 1, "transport_cost": 2}
SUMMED = {"softmin": 1, "apply_plan": 2, "c_transform": 1, "transport_cost": 1}
FILE = {"softmin": "softmin.cu", "apply_plan": "apply_plan.cu", "c_transform": "c_transform.cu"}
FILE |= {"transport_cost": "apply_plan.cu", "plan": "plan.cu", "iterate": "iterate.cu"}
GRID_PASSES = ("grid_product", "grid_half_step", "grid_log_product", "grid_log_step", "grid_damped_step")
GRID = (*GRID_PASSES, "start_grid", "grid_error", "grid_potentials", "grid_logits", "grid_log_error")
# REALs of the state of a thread that walks through pairs of points, without the slopes.
PAIR_STATE = {"kernel_sums": 1, "kernel_log_sums": 2, "kernel_slopes": 1, "distance_sums": 1, "distance_slopes": 1}


class Device(NamedTuple):
    """The properties of a device that launches depend on."""

    multiprocessors: int
    shared_memory: int  # bytes that a block may have
    fast_halves: bool = False  # whether tensor cores multiply halves so fast that three are faster than one in float


H100 = Device(132, 232448, True)


class Launch(NamedTuple):
    """A CUDA kernel, its blocks, the threads of each, and the bytes of dynamic shared memory of each."""

    file: str
    kernel: str
    grid: int
    block: int
    shared: int


class DocumentLaunch(NamedTuple):
    """The launch of ``documents``, and the global memory of its blocks."""

    launch: Launch
    scratch: int  # REALs of global memory of each block, 0 for none
    stage_outside: bool  # whether they hold coordinates too


@functools.lru_cache(maxsize=4096)
def configure(
    operator: str,
    B: int,
    n: int,
    m: int,
    dtype: npt.DTypeLike,
    device: Device,
    *,
    axis: Axis = 1,
    shared_cost: bool = True,
    half: bool = False,
    log: bool = False,
    d: int = 1,
) -> Launch | None:
    """Return the `Launch` of `operator`, or None where the device's shared memory cannot hold a tile.

    Parameters
    ----------
    operator : str
        An operator of `cusink.costs.operators`, ``"iterate"``, a kernel of ``scaling.cu``, ``points.cu`` or
        ``point_products.cu``, or a sum of ``kernel_product.cu``.
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
    log : bool
        Whether ``"iterate"`` is for method "log".
    d : int
        Coordinates of the points, where pairs of points are summed.

    Returns
    -------
    Launch or None
    """
    size = np.dtype(dtype).itemsize
    if operator == "iterate":
        return _iterate(B, n, m, size, device, shared_cost, log)
    if operator == "plan":
        return Launch("plan.cu", "plan", grid_of(B * n, 8), 256, 0)
    if operator == "plan_sum":
        high = PLAN_ROWS * PLAN_WARPS
        blocks = -(-n // high) * -(-m // 32) * plan_parts(B, n, m, device)
        shared = size * PLAN_CHUNK * (2 * high + 2 * 32 + 1)
        return Launch("plan.cu", operator, grid_of(blocks), 32 * PLAN_WARPS, shared)
    if operator in STATE:
        return _reduction(operator, B, n, m, size, device, axis, shared_cost, half)
    if operator in PAIR_STATE:
        return _pairs(operator, B, n, m, d, size, device)
    if operator == "cost_points":
        return Launch("points.cu", operator, grid_of(B * n * m, 256), 256, 0)
    if operator == "split_points":  # blocks of `m` coordinates of `n` points, in whole tiles
        return Launch("point_products.cu", operator, grid_of(B * padded(n) * -(-m // PARTS), 4), 128, 0)
    if operator.endswith("_points"):
        return _points(operator, B, n, m, d, size, device)
    if operator.endswith("_products"):
        return _products(operator, B, n, m, size, d, device)
    if operator in ("scaling_update", "logit_update"):
        return Launch("scaling.cu", operator, grid_of(B * -(-(n if axis else m) // 32), 4), 128, 0)
    if operator == "split_step":
        return _split_step(B, n if axis else m, size, device)
    if operator in ("split_kernel", "split_scalings"):  # blocks of a kernel, or of the scalings of a side
        rows, summed = (n, m) if axis else (m, n)
        rows = rows if operator == "split_kernel" else B
        return Launch("split_step.cu", operator, grid_of(rows * -(-summed // PARTS), 4), 128, 0)
    if operator in ("start_scalings", "balance_scalings"):
        return Launch("scaling.cu", operator, grid_of(B, 4), 128, 0)
    if operator in GRID:
        file = "grid_logs.cu" if operator.startswith(("grid_log", "grid_damped")) else "grid.cu"
        if operator in GRID_PASSES:  # `B` problems of `n` lines of `m` cells
            return Launch(file, operator, grid_of(B * -(-n // TILE) * -(-m // TILE)), GRID_THREADS, 0)
        if operator in ("grid_potentials", "grid_logits"):  # `n` cells
            return Launch(file, operator, grid_of(B * n, 256), 256, 0)
        return Launch(file, operator, grid_of(B), 32 * _power_of_two(-(-n // 128), 16), 0)
    if operator == "damped_update":
        return Launch("unbalanced.cu", operator, grid_of(B * n, 256), 256, 0)
    if operator == "translate":
        return Launch("unbalanced.cu", operator, grid_of(B), 32 * _power_of_two(-(-max(n, m) // 128), 16), 0)
    if operator in ("begin_at_once", "end_at_once"):
        # A warp waits for memory with each of its lines, so it has few.
        return Launch("at_once.cu", operator, grid_of(B), 32 * _power_of_two(-(-max(n, m) // 8), 16), 0)
    if operator == "adjoint_at_once":
        if 32 < max(n, m) <= HELD_BINS[size]:  # its loops take all rows that a block has
            return Launch("adjoint_held.cu", "adjoint_held", grid_of(B), HELD_THREADS, held_adjoint_memory(size))
        shared = adjoint_memory(n, m, size)
        fits = shared <= device.shared_memory - OWN_SHARED_MEMORY
        return Launch("at_once.cu", operator, grid_of(B), 256, shared) if fits else None
    if operator == "scaled_kernel":
        return Launch("scaling.cu", operator, grid_of(n * m, 256), 256, 0)
    if operator in ("read_potentials", "read_logits"):
        return Launch("scaling.cu", operator, grid_of(B * (n if axis else m), 256), 256, 0)
    raise ValueError(f"no kernel for {operator!r}")


def padded(rows: int) -> int:
    """Return the rows of arrays of parts, whole tiles of them."""
    return -(-rows // TILE_COLUMNS) * TILE_COLUMNS


def split_tiles(B: int, kept: int) -> int:
    """Return the tiles of ``split_step``: of two strips of problems, and of the last one where it is alone."""
    pairs = (B + STRIP - 1) // (2 * STRIP)
    return pairs * -(-kept // (TILE_COLUMNS // 2)) + (B > 2 * STRIP * pairs) * -(-kept // TILE_COLUMNS)


def plan_parts(B: int, n: int, m: int, device: Device) -> int:
    """Return into how many parts ``plan_sum`` divides the problems, so that small costs fill the device too."""
    tiles = -(-n // (PLAN_ROWS * PLAN_WARPS)) * -(-m // 32)
    return _clamp(-(-4 * device.multiprocessors // tiles), 1, min(PLAN_PARTS, -(-B // PLAN_CHUNK)))


def configure_documents(pairs: int, n: int, m: int, dtype: npt.DTypeLike, device: Device) -> DocumentLaunch:
    """Return the launch of ``documents`` for items of up to `n` and `m` points.

    Shared memory holds ``p | q | a | b | coordinates | tile of costs``. Where that is too much, the tile lies in global
    memory, and if need be the coordinates too.

    Raises
    ------
    ValueError
        If not even the potentials and weights fit.
    """
    size = np.dtype(dtype).itemsize
    state, coordinates, tile = 2 * (n + m), (DOCUMENT_COORDINATES + 1) * (n + m), n * (m | 1)
    block, limit = 256 if max(n, m) > 32 else 128, (device.shared_memory - OWN_SHARED_MEMORY) // size
    if state + coordinates + tile <= limit:
        shared = size * (state + coordinates + tile)
        return DocumentLaunch(Launch("documents.cu", "documents", grid_of(pairs), block, shared), 0, False)
    most = min(DOCUMENT_BLOCKS * device.multiprocessors, DOCUMENT_SCRATCH // (size * (tile + coordinates)))
    grid = _clamp(pairs, 1, max(most, 1))
    if state + coordinates <= limit:
        launch = Launch("documents.cu", "documents", grid, block, size * (state + coordinates))
        return DocumentLaunch(launch, tile, False)
    if state > limit:
        raise ValueError(
            f"items of {n} and {m} points do not fit into the shared memory of this device, which holds "
            f"{limit // 2} points of a pair in {np.dtype(dtype)}. Solve such pairs with cusink.sinkhorn"
        )
    return DocumentLaunch(Launch("documents.cu", "documents", grid, block, size * state), tile + coordinates, True)


def document_groups(
    n: npt.NDArray[np.int64], m: npt.NDArray[np.int64], dtype: npt.DTypeLike, device: Device
) -> list[npt.NDArray[np.intp]]:
    """Return the indices of pairs of n and m points (P,) in groups, each for a launch of its own.

    A launch lays out memory for the largest of its pairs. Pairs that fit into shared memory must not pay for one that
    does not; the others are together with those of about their sizes.
    """
    side = next(k for k in range(1, 1 << 20) if configure_documents(1, k + 1, k + 1, dtype, device).scratch)
    classes = [np.ceil(np.log2(sizes)).astype(np.int64) for sizes in (n, m)]
    group = np.where(np.maximum(n, m) <= side, -1, 64 * classes[0] + classes[1])
    return [np.flatnonzero(group == key) for key in np.unique(group)]


def _reduction(
    operator: str, B: int, n: int, m: int, size: int, device: Device, axis: Axis, shared_cost: bool, half: bool
) -> Launch:
    kept, summed = (n, m) if axis else (m, n)
    name, end = operator + ("_rows" if axis else "_columns"), "_half" if half else ""
    if shared_cost and B >= TILED_FROM:
        warps = 4 if B > 2 * TILE_PROBLEMS else 2
        shared = size * (TILE * (TILE + 1) + warps * TILE_PROBLEMS * TILE * SUMMED[operator])
        tiles = -(-kept // TILE) * -(-B // (warps * TILE_PROBLEMS))
        return Launch(FILE[operator], f"{name}_tiled{end}", grid_of(tiles), 32 * warps, shared)
    name += end
    if axis:
        # About 8 entries per thread: enough loads in flight, and few states to merge.
        return Launch(FILE[operator], name, grid_of(B * n), 32 * _power_of_two(-(-summed // 256), 16), 0)
    tiles = B * -(-m // 32)
    few = tiles < 4 * device.multiprocessors
    warps = _power_of_two(-(-summed // 16), 16 if few else 4)
    return Launch(FILE[operator], name, grid_of(tiles), 32 * warps, 32 * warps * STATE[operator] * size)


def _pairs(operator: str, B: int, n: int, m: int, d: int, size: int, device: Device) -> Launch:
    slopes = operator.endswith("slopes")
    units = B * -(-n // 32) * (-(-d // COORDINATES) if slopes and d > NEAR else 1)
    few = units < 8 * device.multiprocessors
    if d <= NEAR:
        warps = _power_of_two(-(-m // 32), 16 if few else 4)
        return Launch("kernel_product.cu", operator, grid_of(units), 32 * warps, 32 * warps * -(-6 * size // 16) * 16)
    warps = _power_of_two(-(-m // GROUP), 8 if few else 4)
    shared = size * wide_shared(warps, PAIR_STATE[operator] + COORDINATES * slopes)
    return Launch("kernel_product.cu", operator + "_wide", grid_of(units), 32 * warps, shared)


def wide_shared(warps: int, state: int) -> int:
    """Return the REALs of dynamic shared memory of ``walk_wide``: y | x | values | logits, or a state per thread."""
    sources = GROUP * warps
    return max(COORDINATES * sources + 32 * (COORDINATES + 1) + 2 * sources, 32 * warps * state)


def _points(operator: str, B: int, kept: int, summed: int, d: int, size: int, device: Device) -> Launch | None:
    """Return a launch with as many warps, up to 16, as have work and shared memory; None if not even one fits."""
    term, mine = operator.removesuffix("_points"), POINTS[size]
    most = _power_of_two(-(-summed // 32), 16 if B * -(-kept // mine) < 4 * device.multiprocessors else 8)
    for warps in (16, 8, 4, 2, 1):
        points = d * (mine + 32 * warps + 2 * GROUP) + 32 * warps * SUMMED[term]
        shared = size * max(points, mine * warps * STATE[term])
        # A single warp may opt in to more shared memory; larger blocks stay within the default, for occupancy.
        limit = device.shared_memory - OWN_SHARED_MEMORY
        limit = limit if warps == 1 else min(limit, PLAIN_SHARED_MEMORY)
        if warps <= most and shared <= limit:
            return Launch("points.cu", operator, grid_of(B * -(-kept // mine)), 32 * warps, shared)
    return None


def _products(operator: str, B: int, kept: int, summed: int, size: int, d: int, device: Device) -> Launch | None:
    """Return a launch on tensor cores; None where it does not fit, or where sums in float are faster."""
    term = operator.removesuffix("_products")
    shared = STAGED + size * (STRIP + TILE_COLUMNS * (1 + SUMMED.get(term, 1)))
    pays = device.fast_halves and size == 4 and d >= PRODUCTS_FROM
    pays = pays and (term not in PAIR_STATE or B * kept * summed * d >= SUMS_FROM)
    if not pays or shared > device.shared_memory - OWN_SHARED_MEMORY:
        return None
    file = "strip_sums.cu" if term in PAIR_STATE else "point_products.cu"
    return Launch(file, operator, grid_of(B * -(-kept // STRIP)), SPLIT_THREADS, shared)


def _split_step(B: int, kept: int, size: int, device: Device) -> Launch | None:
    """Return a launch on tensor cores; None where it does not fit, or where products in float are as fast or faster."""
    tiles = split_tiles(B, kept)
    at_once = -(-tiles // device.multiprocessors) * device.multiprocessors
    pays = device.fast_halves and size == 4 and B * kept >= SPLIT_SHARE * SPLIT_TILE * at_once
    if not pays or STAGED > device.shared_memory - OWN_SHARED_MEMORY:
        return None
    return Launch("split_step.cu", "split_step", grid_of(min(tiles, device.multiprocessors)), SPLIT_THREADS, STAGED)


def _iterate(B: int, n: int, m: int, size: int, device: Device, shared_cost: bool, log: bool) -> Launch | None:
    warps = _clamp(4 * -(-max(n, m) // 32), 4, MOST_ITERATE_THREADS // 32)
    # As many problems per block as leave no multiprocessor idle; each entry of K is read once for all of them.
    wanted = -(-B // device.multiprocessors) if shared_cost else 1
    for problems in (4, 2, 1):
        shared = shared_memory(problems, n, m, warps, size, log)
        if (problems <= wanted or problems == 1) and shared <= device.shared_memory - OWN_SHARED_MEMORY:
            if problems == 1 and not log and 32 < max(n, m) <= HELD_BINS[size]:
                return Launch("iterate.cu", "iterate_held", grid_of(B), HELD_THREADS, held_memory(size))
            return Launch("iterate.cu", f"iterate_{problems}", grid_of(B, problems), 32 * warps, shared)
    return None


def grid_of(units: int, per_block: int = 1) -> int:
    """Return the blocks for `units` of work. Kernels step by the size of the grid, so that fewer are right too."""
    return _clamp(-(-units // per_block), 1, MOST_BLOCKS)


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(value, most))


def _power_of_two(value: int, most: int) -> int:
    """Return the least power of two that is at least `value`, between 1 and `most`."""
    return min(1 << max(value - 1, 0).bit_length(), most)
