"""A progress bar, or a no-op with the same methods."""

from typing import Protocol, Self


class Bar(Protocol):
    """The methods of a tqdm bar that are used."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> object: ...
    def update(self, n: int) -> object:
        """Count `n` more pairs."""


def progress_bar(total: int, done: int, progress: bool) -> Bar:
    """Return a tqdm bar over `total` pairs, or a no-op with the same methods."""
    if not progress:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "'progress=True' needs tqdm; install it with pip install tqdm, or leave 'progress' out"
        ) from None
    bar: Bar = tqdm(total=total, initial=done, unit=" pairs", unit_scale=True)
    return bar


class _NoBar:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass
