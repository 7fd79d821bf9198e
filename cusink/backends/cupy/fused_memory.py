"""The dynamic shared memory of the kernels of small problems, counted as they lay it out."""

HELD_THREADS, HELD_BINS = 128, {4: 112, 8: 64}  # bins by the bytes of a REAL, as in held_matrix.cuh


def shared_memory(problems: int, n: int, m: int, warps: int, itemsize: int, log: bool = False) -> int:
    """Return the bytes of dynamic shared memory of ``iterate.cu``.

    It holds ``K | u | p | a | v | q | b | absorbed rows | absorbed columns | deviations | parts``.
    """
    rows, columns, row_tiles, column_tiles = -(-n // 4) * 4, -(-m // 4) * 4, -(-n // 32), -(-m // 32)
    stride = columns + 2 if itemsize == 8 else columns + (0 if columns // 4 % 2 else 4)
    state = (3 * problems + (problems == 1)) * (rows + columns)
    deviations = -(-problems * (row_tiles + column_tiles) // 4) * 4
    # A slice has its own sums; for method "log", a shift with each.
    parts = 0
    for kept, summed in ((rows, columns), (columns, rows)):
        slices = max(1, min(32 * warps // (kept // 4), summed // 4))
        parts = max(parts, (1 + log) * slices * problems * kept)
    return itemsize * (rows * stride + state + deviations + parts)


def held_memory(itemsize: int) -> int:
    """Return the bytes of dynamic shared memory of ``iterate_held``: as ``iterate.cu``, without K."""
    return itemsize * (8 * HELD_THREADS + 8 + 4 + _held_parts(itemsize))


def adjoint_memory(n: int, m: int, itemsize: int) -> int:
    """Return the bytes of dynamic shared memory of ``adjoint_at_once``: E and the vectors of the marginal system."""
    return itemsize * (n * (m | 1) + 4 * (n + m) + 3 * min(n, m) + max(n, m))


def held_adjoint_memory(itemsize: int) -> int:
    """Return the bytes of dynamic shared memory of ``adjoint_held``, in whole doubles."""
    doubles = 12 * HELD_THREADS + 2 * 2 * 4  # potentials and sums by thread, and two totals of each warp, twice
    return 8 * doubles + -(-itemsize * (3 * HELD_THREADS + _held_parts(itemsize)) // 8) * 8


def _held_parts(itemsize: int) -> int:
    """Return how many parts of sums 16 threads have for a side."""
    return 15 * (HELD_BINS[itemsize] + 2) + HELD_THREADS
