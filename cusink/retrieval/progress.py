"""A progress bar, or a no-op with the same methods."""


def progress_bar(total, done, progress):
    """A progress bar over `total` pairs, some of them done, or nothing that answers to the same calls."""
    if not progress:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "'progress=True' needs tqdm; install it with pip install tqdm, or leave 'progress' out"
        ) from None
    return tqdm(total=total, initial=done, unit=" pairs", unit_scale=True)


class _NoBar:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, pairs):
        pass
