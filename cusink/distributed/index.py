"""An index whose parts lie with the workers of Dask."""

import json
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np

from cusink.calls import one_call
from cusink.checks.arrays import kind
from cusink.checks.scalars import flag, flags
from cusink.distributed.jobs import check_client, sent
from cusink.distributed.parts import How, facts_of, grown, is_index, items_of, merged, search_part, widened
from cusink.retrieval import checks
from cusink.retrieval.index import Index as OneIndex
from cusink.retrieval.neighbours import Neighbours
from cusink.retrieval.paths import is_path, usable_path
from cusink.types import Array, HostArray

LISTED = "parts.json"  # names the folders of the parts, in order
FORMAT = "cusink index in parts, 1"


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
            if not (is_index(part) or dask.is_dask_collection(part)):
                raise TypeError(
                    f"'parts' must be cusink.Index or delayed calls that return one; got {kind(part)} at {number}. "
                    "dask.delayed(cusink.Index.load)(path) loads one where it is used"
                )
        if not given:
            raise ValueError("'parts' must hold at least one index; got none")
        self._client = client
        if client is None:
            self._parts = list(dask.compute(*given))
            facts = [facts_of(part) for part in self._parts]
        else:
            self._parts = [client.compute(x) if dask.is_dask_collection(x) else sent(client, x) for x in given]
            facts = client.gather([client.submit(facts_of, part, pure=False) for part in self._parts])
        for number, (_, fact) in enumerate(facts):
            if fact != facts[0][1]:
                raise ValueError(
                    f"'parts' must be indexes of one cost, value, eps, tol, reach, normalise and dtype; part 0 has "
                    f"{facts[0][1]} and part {number} has {fact}"
                )
        self._sizes, self._common = [size for size, _ in facts], facts[0][1]

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
        candidates: Any = None,
        full_output: bool = False,
        check: bool = True,
    ) -> tuple[Array, Array] | Neighbours:
        """Return the k items at the smallest Sinkhorn distance from each row of A.

        Parameters
        ----------
        A : array, shape (Q, n), scipy.sparse matrix, Measures or None
            Queries, as for `cusink.Index.search`; each part gets all of them. None looks among the other items for each
            of them: each part gets the items of all.
        k : int
            Neighbours wanted of each row.
        prune : bool
            As for `cusink.nearest`.
        solve_at_most : int, optional
            Pairs of a row to be solved at most in each part.
        candidates : array of int, shape (Q, c), optional
            Items to be looked at for each row, numbered part after part, as for `cusink.nearest`. A part that has none
            of a row is not searched for it. Not for ``A=None``.
        full_output : bool
            Return `cusink.Neighbours`.
        check : bool
            False skips the checks of the values of A.

        Returns
        -------
        distances : array, shape (Q, k)
            Ascending in each row.
        indices : array of int, shape (Q, k)
            Items, numbered part after part. With `full_output`, `cusink.Neighbours` instead of both. Always in NumPy,
            for ``A=None`` too where the parts are of tensors of another library.

        Raises
        ------
        TypeError, ValueError
            As for `cusink.Index.search`.
        """
        flags(prune=prune, full_output=full_output, check=check)
        k = checks.neighbours(k, len(self), A is None, "the items of the index")
        how = How(k=k, prune=prune, solve_at_most=checks.solve_at_most(solve_at_most, k), check=check)
        check_client(self._client)
        if A is None:
            if candidates is not None:
                raise ValueError(
                    "'candidates' must be None where 'A' is: pass the items as 'A', and leave each one out of its own "
                    "candidates"
                )
            every = self._among_themselves(how)
        else:
            count = A.shape[0] if hasattr(A, "shape") else len(A)
            listed: list[HostArray | None] = [None] * len(self._sizes)
            if candidates is not None:
                named = checks.candidates(candidates, (count, len(self)), k, False)
                listed = [named - first for first in self._firsts()]
            queries = A if self._client is None else sent(self._client, A)
            calls = [
                (search_part, queries, part, size, how, own)
                for part, size, own in zip(self._parts, self._sizes, listed, strict=True)
            ]
            every = merged(self._done(calls), self._sizes, k)
        return every if full_output else (every.distances, every.indices)

    def _among_themselves(self, how: How) -> Neighbours:
        """Return the neighbours of all items among the others."""
        parts = list(zip(self._parts, self._sizes, strict=True))
        items = [self._begun(items_of, part) for part in self._parts]
        calls = [
            (search_part, None if own == other else items[own], part, size, how, None, own == other)
            for own in range(len(parts))
            for other, (part, size) in enumerate(parts)
        ]
        found, count = self._done(calls), len(parts)
        lines = [merged(found[row : row + count], self._sizes, how.k) for row in range(0, len(found), count)]
        fields: dict[str, Any] = {
            name: sum(getattr(line, name) for line in lines)
            if name in ("bounded", "started", "finished")
            else np.concatenate([getattr(line, name) for line in lines])
            for name in lines[0].__dict__
            if name != "pruning"
        }
        return Neighbours(**fields, pruning=lines[0].pruning)

    def add(self, B: Any, *, check: bool = True) -> None:
        """Add items to the last part; they come after all that are there.

        Parameters
        ----------
        B : array, shape (D, m), scipy.sparse matrix or Measures
            As for `cusink.Index.add`. float64 beside parts of float32 makes all parts ones of float64.
        check : bool
            False skips the checks of the values of B.

        Returns
        -------
        None
            The indexes that the parts were made of stay as they were. Many items are better another part.

        Raises
        ------
        TypeError, ValueError
            As for `cusink.Index.add`; the index stays as it was.
        """
        flag("check", check)
        check_client(self._client)
        given = B if self._client is None else sent(self._client, B)
        *others, last = self._parts
        last = self._begun(grown, last, self._sizes[-1], given, check)
        (size, fact), *_ = self._done([(facts_of, last)])
        if fact["dtype"] != self._common["dtype"]:
            others = [self._begun(widened, part, own) for part, own in zip(others, self._sizes[:-1], strict=True)]
            self._done([(facts_of, part) for part in others])
        self._parts, self._sizes, self._common = [*others, last], [*self._sizes[:-1], size], fact

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all parts into one folder, each by the worker that has it.

        Parameters
        ----------
        path : str or path
            The name of a folder that is not there yet, which this process and all workers can write to.

        Returns
        -------
        None
            The folder is complete, or it is not there.

        Raises
        ------
        FileExistsError
            If there is something of that name.
        FileNotFoundError
            If there is no folder to make it in, or a worker wrote where this process does not see it.
        TypeError
            As for `cusink.Index.save`.
        """
        folder = _folder(path)
        check_client(self._client)
        if folder.exists():
            raise FileExistsError(f"'path' must be a new folder; '{folder}' exists. Choose another, or delete it")
        draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            draft.mkdir()
            names = [f"part-{number:05d}" for number in range(len(self._parts))]
            self._done([(_save, part, str(draft / name)) for part, name in zip(self._parts, names, strict=True)])
            for name in names:
                if not (draft / name).is_dir():
                    raise FileNotFoundError(
                        f"'path' must be in a file system that this process shares with all workers; one wrote "
                        f"'{draft / name}', which is not here. Save cusink.Index of each part on its own machine"
                    )
            (draft / LISTED).write_text(json.dumps({"format": FORMAT, "parts": names}), encoding="utf-8")
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, client: Any = None) -> "Index":
        """Return an index that was saved; workers map the parts of it, as `cusink.Index.load` does.

        Parameters
        ----------
        path : str or path
            The name of the folder, which all workers can read.
        client : dask.distributed.Client, optional
            As for the index.

        Returns
        -------
        Index
            It gives the answers of the one that was saved.

        Raises
        ------
        FileNotFoundError
            If there is no index.
        ValueError
            If files are damaged, or of another version of the format.
        """
        folder = _folder(path)
        try:
            given = json.loads((folder / LISTED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            given = None
        if given is None and not (folder / LISTED).exists():
            raise FileNotFoundError(f"'path' must be a saved index in parts; there is no '{folder / LISTED}'")
        names = given.get("parts") if isinstance(given, dict) and given.get("format") == FORMAT else None
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"'{folder / LISTED}' must be of the format {FORMAT!r}; save the index again")
        load = dask.delayed(OneIndex.load, pure=False)
        return cls([load(str(folder / Path(name).name)) for name in names], client=client)

    def _firsts(self) -> list[int]:
        """Return the number of the first item of each part."""
        return [0, *np.cumsum(self._sizes[:-1]).tolist()]

    def _begun(self, function: Any, *arguments: Any) -> Any:
        """Return what a function gives, as soon as it is there: here, or with a worker."""
        if self._client is None:
            return function(*arguments)
        return self._client.submit(function, *arguments, pure=False)

    def _done(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Return what functions give of arguments."""
        if self._client is None:
            return list(dask.compute(*(dask.delayed(call[0], pure=False)(*call[1:]) for call in calls)))
        return list(self._client.gather([self._begun(*call) for call in calls]))


def _folder(path: object) -> Path:
    if not is_path(path):
        raise TypeError(f"'path' must be the name of a folder; got {kind(path)}")
    return usable_path("path", path)


def _save(part: Any, path: str) -> None:
    part.save(path)
