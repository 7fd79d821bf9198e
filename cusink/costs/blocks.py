"""Cut the entries of a batch of plans into blocks."""

from collections.abc import Iterator


def blocks(problems: int, rows: int, columns: int, entries: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of problems and of rows such that one block holds at most `entries` entries, or one row."""
    row_step = max(1, min(rows, entries // columns))
    problem_step = max(1, entries // (row_step * columns))
    for start in range(0, problems, problem_step):
        for row in range(0, rows, row_step):
            yield slice(start, min(start + problem_step, problems)), slice(row, min(row + row_step, rows))
