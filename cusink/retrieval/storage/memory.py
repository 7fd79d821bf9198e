"""A distance matrix in memory."""

from cusink.retrieval import checks as retrieval_checks

__all__ = [
    "Arrays",
]


class Arrays:
    """Takes tiles in, as `TileStore` does, into arrays in memory."""

    def __init__(self, pairs, out, full_output, inputs):
        xp = pairs.ops.xp
        self.symmetric, self.finished = pairs.symmetric, {}
        self.results = {"distances": retrieval_checks.output(out, pairs.shape, pairs.dtype, xp, inputs)}
        if full_output:
            for name, dtype in (("error", float), ("n_iter", int), ("converged", bool)):
                self.results[name] = xp.empty(pairs.shape, dtype)
        self.names = tuple(self.results)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, rows, columns, solved, missed, worst):
        for name, whole in self.results.items():
            whole[rows, columns] = solved[name]
            if self.symmetric:
                whole[columns, rows] = solved[name].T
        self.finished[rows.start, columns.start] = missed, worst

    def finish(self):
        return self.results
