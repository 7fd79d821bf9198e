"""Blocks of the pairs of bins of many problems, for work whose memory must not grow with their number."""

from collections.abc import Iterator


def blocks(problems: int, rows: int, columns: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Iterate over slices of problems and of rows so that a block has at most `entries` pairs, or is one row."""
    row_step = max(1, min(rows, entries // max(columns, 1)))
    problem_step = max(1, entries // max(row_step * columns, 1))
    for start in range(0, problems, problem_step):
        for row in range(0, rows, row_step):
            yield slice(start, min(start + problem_step, problems)), slice(row, min(row + row_step, rows))
