"""Sizes from which on the NumPy backend works in another way, in one place.

Speed and memory depend on them, results only by rounding. They are read when a call is made: a test replaces `LIMITS`
so that small problems meet every branch.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits by their unit and subject."""

    threads: int | None = None  # None for one per core
    threaded_pairs: int = 1 << 21  # pairs of points that take longer than starting threads

    dense_block_entries: int = 1 << 16  # of a block of exponents of a stored cost
    kernel_tile_bytes: int = 1 << 20  # of the kernels of a tile of problems: the second-level cache of a core
    own_kernel_bytes: int = 1 << 26  # of kernels of all problems, or of their costs, up to which they are kept
    grid_plan_bytes: int = 1 << 28  # of the plan between the cells of a grid, up to which means are taken with it

    grid_array_cells: int = 1 << 10  # up to which distances that are no sums over the axes are an array
    grid_window_problems: int = 8  # from which on a row of the kernel takes them at a time, not a problem all rows
    grid_shift_entries: int = 1 << 20  # of the sums of a problem's cells that are as far from one, made at a time

    cloud_array_pairs: int = 1 << 16  # pairs up to which the costs of a problem, or of a tile of problems, are an array
    cloud_block_entries: int = 1 << 18  # of a block of rows in the cache, and of a matrix that BLAS takes on one thread
    cloud_block_rows: tuple[int, int] = 64, 256  # least and most
    cloud_leaf_points: int = 64  # that may lie in any order
    cloud_shares: int = 16  # of the blocks, which threads take one by one; sums do not depend on who took which
    cloud_sparse_pairs: int = 1 << 21  # from which it pays to leave out columns without an entry that counts
    cloud_cell_pairs: int = 1 << 25  # from which columns are looked for in cells
    cloud_cells: int = 1 << 13  # at most twice, of all columns
    cloud_cell_points: int = 16  # at least; a power of two
    cloud_celled_rows: tuple[int, int] = (
        64,
        512,
    )  # of a block whose columns come in cells, thin and dense; powers of two
    cloud_dense_points: int = 1 << 9  # along each axis, from which on points lie densely
    cloud_least_run: int = 8  # of points that may lie in any order
    cloud_coarse_points: int = 1 << 11  # of a level that has no coarser one
    cloud_level_ratio: int = 8  # of the points of two levels; a power of two
    cloud_kernel_entries: int = 1 << 22  # of a shared kernel that are made at a time where it is not kept
    product_multiplications: int = 1 << 18  # up to which OpenBLAS leaves a product to the thread that calls it
    difference_coordinates: int = 1 << 18  # that are subtracted at a time where near points are repaired

    document_tile_bytes: int = 1 << 22  # of kernels that are multiplied in turn: they stay in the cache meanwhile
    document_tile_pairs: int = 32  # from which on a tile takes only pairs of like sizes
    document_size_ratio: float = 1.5  # between the largest and the smallest pair of such a tile

    sum_block_columns: int = 4096  # long rows
    sum_block_entries: int = 1 << 16  # two or three arrays that fit into the cache of a core


LIMITS = Limits()
