"""How many threads the NumPy backend may use, and from what size on they pay."""

import os

THREADED = 1 << 21  # entries from which threads pay


def threads():
    """A pool for `Side.for_parts`: NumPy lets go of the interpreter inside each operation."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(os.cpu_count())
