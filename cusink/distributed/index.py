"""An index whose parts lie with the workers of Dask."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import kind
from cusink.checks.scalars import flags, positive_integer, shown
from cusink.distributed.jobs import check_client, sent
from cusink.retrieval.checks import solve_at_most as limit_of_pairs
from cusink.retrieval.neighbours import Neighbours
from cusink.retrieval.stored_index import in_common
from cusink.types import Array
from cusink.workers import alone


class Index:
    """Several indexes of one cost, searched as one: each worker of a cluster keeps some of them.

    Parameters
    ----------
    parts : sequence of cusink.Index or dask.delayed
        Indexes of the same cost, `eps` and value, or delayed calls that return them:
        ``dask.delayed(cusink.Index.load)(path)`` has a worker map a folder that it can read.
    client : dask.distributed.Client, optional
        Keeps the parts on the workers of its cluster. Without one they are made and searched in this process.

    Raises
    ------
    TypeError
        For a part that is no index.
    ValueError
        If there is no part, or if parts are of different costs, values, `eps`, tolerances, prices or dtypes, or only
        some of them normalise. Of a metric that is a function nobody can tell.

    Notes
    -----
    If a worker is lost, another one loads its parts, or is sent them again: the scheduler keeps a copy of an index that
    is sent. Large ones are better loaded by the workers.

    Items are numbered part after part. Each part scales its items, and the queries, to the mass of its first item:
    masses that differ within the tolerance of the checks show in the distances as much.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink, cusink.distributed
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> parts = [cusink.Index(np.eye(4)[rows], C, eps=0.05) for rows in (slice(0, 2), slice(2, 4))]
    >>> index = cusink.distributed.Index(parts)
    >>> index.search(np.eye(4)[2:3], k=2)[1]
    array([[2, 1]])
    """

    def __init__(self, parts: Sequence[Any], *, client: Any = None) -> None:
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"'parts' must be a list or tuple of indexes; got {kind(parts)}")
        check_client(client)
        given = list(parts)
        for number, part in enumerate(given):
            if not (_is_index(part) or dask.is_dask_collection(part)):
                raise TypeError(
                    f"'parts' must be cusink.Index or delayed calls that return one; got {kind(part)} at {number}. "
                    "dask.delayed(cusink.Index.load)(path) loads one where it is used"
                )
        if not given:
            raise ValueError("'parts' must hold at least one index; got none")
        self._client = client
        if client is None:
            self._parts = list(dask.compute(*given))
            facts = [_facts(part) for part in self._parts]
        else:
            self._parts = [client.compute(x) if dask.is_dask_collection(x) else sent(client, x) for x in given]
            facts = client.gather([client.submit(_facts, part, pure=False) for part in self._parts])
        for number, (_, fact) in enumerate(facts):
            if fact != facts[0][1]:
                raise ValueError(
                    f"'parts' must be indexes of one cost, value, eps, tol, reach, normalise and dtype; part 0 has "
                    f"{facts[0][1]} and part {number} has {fact}"
                )
        self._sizes = [size for size, _ in facts]

    def __len__(self) -> int:
        return sum(self._sizes)

    def __repr__(self) -> str:
        return f"Index({len(self)} items in {len(self._sizes)} parts)"

    @one_call
    def search(
        self,
        A: Any,
        k: int,
        *,
        prune: bool = True,
        solve_at_most: int | None = None,
        full_output: bool = False,
        check: bool = True,
    ) -> tuple[Array, Array] | Neighbours:
        """Return the k items at the smallest Sinkhorn distance from each row of A.

        Parameters
        ----------
        A : array, shape (Q, n), scipy.sparse matrix or Measures
            Queries, as for `cusink.Index.search`; each part gets all of them.
        k : int
            Neighbours wanted of each row.
        prune : bool
            As for `cusink.nearest`.
        solve_at_most : int, optional
            Pairs of a row to be solved at most in each part.
        full_output : bool
            Return `cusink.Neighbours`.
        check : bool
            False skips the checks of the values of A.

        Returns
        -------
        distances : array, shape (Q, k)
            Ascending in each row.
        indices : array of int, shape (Q, k)
            Items, numbered part after part. With `full_output`, `cusink.Neighbours` instead of both.

        Raises
        ------
        TypeError, ValueError
            As for `cusink.Index.search`.
        """
        flags(prune=prune, full_output=full_output, check=check)
        k = positive_integer("k", k)
        if A is None:
            raise TypeError("'A' must be queries; got None. The items of parts are not looked for among each other")
        if k > len(self):
            raise ValueError(f"'k' must be at most the number of items, {len(self)}; got {shown(k)}. Ask for fewer")
        how = {"prune": prune, "check": check}
        solve_at_most = limit_of_pairs(solve_at_most, k)
        calls = [(part, size, solve_at_most) for part, size in zip(self._parts, self._sizes, strict=True)]
        check_client(self._client)
        if self._client is None:
            found = list(dask.compute(*(dask.delayed(_search)(A, k, *call, how) for call in calls)))
        else:
            queries = sent(self._client, A)
            search = partial(self._client.submit, _search, queries, k, pure=False)
            found = self._client.gather([search(*call, how) for call in calls])
        every = _merged(found, self._sizes, k)
        return every if full_output else (every.distances, every.indices)


def _is_index(part: object) -> bool:
    return all(hasattr(part, name) for name in ("search", "eps", "value", "tol", "reach", "dtype", "__len__"))


def _facts(part: Any) -> tuple[int, dict[str, object]]:
    """Return the items of a part, and what all parts must have in common."""
    if not _is_index(part):
        raise TypeError(f"'parts' must be cusink.Index or delayed calls that return one; got {kind(part)}")
    return len(part), in_common(part)


@alone
def _search(A: Any, k: int, part: Any, size: int, solve_at_most: int | None, how: dict[str, bool]) -> Neighbours:
    """Search one part, for fewer neighbours if it has fewer items."""
    if len(part) != size:
        raise ValueError(
            f"'parts' must stay as they were when the index was made; a part of {size} items has {len(part)} now. Make "
            "another cusink.distributed.Index of them"
        )
    found: Neighbours = part.search(A, min(k, size), solve_at_most=solve_at_most, full_output=True, **how)
    return found


def _merged(found: list[Neighbours], sizes: list[int], k: int) -> Neighbours:
    """Return the k nearest of the neighbours in all parts; equal distances come in the order of their indices."""
    firsts = np.cumsum([0, *sizes[:-1]])
    fields = {
        name: np.concatenate([np.asarray(getattr(part, name)) for part in found], axis=1)
        for name in ("distances", "error", "converged")
    }
    indices = np.concatenate([part.indices + first for part, first in zip(found, firsts, strict=True)], axis=1)
    order = np.argsort(fields["distances"], axis=1, kind="stable")[:, :k]  # parts, and neighbours in them, in order
    near = {name: np.take_along_axis(x, order, axis=1) for name, x in (fields | {"indices": indices}).items()}
    kth, proved, undercut = near["distances"][:, -1].astype(float), np.ones(len(order), bool), np.zeros(len(order))
    for part in found:
        # What a part has not solved is above its own k-th distance where that is proved.
        floor = part.distances[:, -1] - part.undercut
        sure = part.proved | (floor > kth)
        proved &= sure
        short = np.where(np.isnan(kth - floor), np.inf, kth - floor)  # of pairs without a distance nothing is known
        undercut = np.maximum(undercut, np.where(sure, 0, short))
    return Neighbours(
        **near,
        bounded=sum(part.bounded for part in found),
        started=sum(part.started for part in found),
        finished=sum(part.finished for part in found),
        pruning=found[0].pruning,
        proved=proved,
        undercut=undercut,
    )
