"""An index: a collection that is searched again and again."""

import os
from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np

from cusink.backends.devices import cupy_module, device_error
from cusink.calls import memory_advice, one_call
from cusink.checks.foreign import given_back
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, flags, one_of, tolerance
from cusink.costs.metric import Metric, kept
from cusink.operand import eps_of_shared
from cusink.retrieval import checks
from cusink.retrieval.collected import AnyCorpus, check_settings, collect, grown, in_float64, is_wider, pairs_with
from cusink.retrieval.described import Described, of_library
from cusink.retrieval.devices import check_devices, chosen
from cusink.retrieval.engine import find_on_devices, prepare
from cusink.retrieval.facts import Settings
from cusink.retrieval.keywords import SearchKeywords
from cusink.retrieval.neighbours import Neighbours, neighbours
from cusink.retrieval.prices import prices_of
from cusink.retrieval.query import Query
from cusink.solver.checks import options as check_options
from cusink.types import Array, MatrixValue, Method, Overrelaxation, Tolerance
from cusink.workers import check_workers, working

ADVICE = "Build the index with a lower 'memory_limit', the bytes that may be used at a time"


class Index(Described):
    """A collection whose nearest neighbours are asked for again and again: what only depends on it is found once.

    Parameters
    ----------
    B : array, shape (D, m), scipy.sparse matrix or Measures
        Histograms of one mass, or documents and point clouds as for `cusink.distance_matrix`.
    C : array, shape (n, m), PointCloud or Grid, or str or Metric
        Cost between the bins of queries and those of B; for `Measures` the name of a metric, or a `Metric`.
    eps : float or RelativeEps
        Regularisation in the unit of `C`; of a `cusink.RelativeEps` for histograms.
    value : {"cost", "reg_cost", "entropic_cost", "divergence"}
        The distance, as for `cusink.distance_matrix`.
    max_iter : int
        Iterations at most, as for `cusink.sinkhorn`.
    tol : "auto", float or None
        L1 marginal error at which a pair stops, as for `cusink.sinkhorn`.
    check_every : int
        Iterations between checks.
    method : {"auto", "log", "scaling"}
        As for `cusink.sinkhorn`.
    overrelaxation : {"auto"} or float or None
        As for `cusink.sinkhorn`.
    reach : float, or pair of float or None, optional
        Price of marginals that differ, as for `cusink.distance_matrix`; items and queries may then have any masses.
    normalise : bool
        Divide each item, and each query, by its sum.
    memory_limit : int, optional
        Bytes that a search may use at a time beyond the index, its queries and its result.
    on_empty : {"nan", "raise"}
        What to do about documents without a word, as for `cusink.distance_matrix`.
    check : bool
        False skips the checks of the values of B.
    workers : int, optional
        Threads, as for `cusink.distance_matrix`, that solve the items of a divergence with themselves. Nothing else is
        shared out, and searches have `workers` of their own.

    Raises
    ------
    TypeError, ValueError
        As for `cusink.distance_matrix`.

    Notes
    -----
    Kept are the items, scaled to one mass unless `reach` is given; which of them are equal; centres of groups of them,
    from which all items are bounded at once; for a divergence the term of each item with itself, and for
    `entropic_cost` its entropy. Searches give what `cusink.nearest` gives, and `add` leads to what an index built at
    once would be, to the last bit.

    Arrays that can be written to are copied. A read-only one, such as ``numpy.load(path, mmap_mode="r")``, stays where
    it is, so that a collection may be larger than the memory.

    Examples
    --------
    >>> import numpy as np
    >>> import cusink
    >>> C = cusink.cost_matrix(np.arange(4.0)) / 9
    >>> B = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]])
    >>> index = cusink.Index(B, C, eps=0.05)
    >>> index.add([[0.0, 0.0, 0.5, 0.5]])
    >>> distances, indices = index.search([[0.0, 0.1, 0.5, 0.4]], k=2)
    >>> len(index), indices
    (3, array([[2, 1]]))
    """

    @of_library
    @one_call
    def __init__(
        self,
        B: Any,
        C: Any,
        *,
        eps: float | RelativeEps,
        value: MatrixValue = "cost",
        max_iter: int = 1000,
        tol: Tolerance = "auto",
        check_every: int = 10,
        method: Method = "auto",
        overrelaxation: Overrelaxation = "auto",
        reach: float | tuple[float | None, float | None] | None = None,
        normalise: bool = False,
        memory_limit: int | None = None,
        on_empty: Literal["nan", "raise"] = "nan",
        check: bool = True,
        workers: int | None = None,
    ) -> None:
        flag("check", check)
        options = check_options(max_iter, tolerance(tol, B, C), check_every, method, overrelaxation)
        prices, workers = prices_of(reach, method, value), check_workers(workers)
        auto = isinstance(tol, str)
        number = eps_of_shared(eps, C)
        settings = check_settings(number, value, options, memory_limit, on_empty, prices, normalise, auto)
        C = kept(C) if isinstance(C, Metric) else C
        self._settings, self._cost, self._corpus = settings, C, collect(B, C, settings, check)
        if value == "divergence":
            checks.divergence(self._corpus.template.C)
        prepare(self._corpus, workers)

    def __reduce__(self) -> Any:
        from cusink.retrieval.stored_index import in_memory, out_of_memory

        device = "cpu" if self._corpus.template.xp is np else "cuda"
        packed = in_memory(self._corpus, self._cost, self._settings)
        return out_of_memory, (Index._of, *packed, device, self._library)

    @overload
    def search(
        self, A: Any, k: int, *, full_output: Literal[False] = ..., **keywords: Unpack[SearchKeywords]
    ) -> tuple[Array, Array]: ...
    @overload
    def search(
        self, A: Any, k: int, *, full_output: Literal[True], **keywords: Unpack[SearchKeywords]
    ) -> Neighbours: ...
    @overload
    def search(
        self, A: Any, k: int, *, full_output: bool, **keywords: Unpack[SearchKeywords]
    ) -> tuple[Array, Array] | Neighbours: ...
    @memory_advice(ADVICE)
    def search(
        self,
        A: Any,
        k: int,
        *,
        prune: bool = True,
        solve_at_most: int | None = None,
        candidates: Any = None,
        progress: bool = False,
        full_output: bool = False,
        check: bool = True,
        workers: int | None = None,
        devices: Sequence[int] | Literal["all"] | None = None,
    ) -> tuple[Array, Array] | Neighbours:
        """Return the k items at the smallest Sinkhorn distance from each row of A.

        Parameters
        ----------
        A : array, shape (Q, n), scipy.sparse matrix, Measures or None
            Of the kind and the mass of the items. None looks among the other items for each of them. Queries of
            float64 beside items of float32 are looked for in float64, in a copy of the items that is kept.
        k : int
            Neighbours wanted of each row.
        prune : bool
            As for `cusink.nearest`.
        solve_at_most : int, optional
            Pairs of a row to be solved at most, as for `cusink.nearest`.
        candidates : array of int, shape (Q, c), optional
            Items to be looked at for each row, as for `cusink.nearest`.
        progress : bool
            Show a bar of the pairs decided (needs tqdm).
        full_output : bool
            Return `cusink.Neighbours`, which also says what is proved.
        check : bool
            False skips the checks of the values of A.
        workers : int, optional
            Threads, as for `cusink.distance_matrix`.
        devices : sequence of int, or "all", optional
            Numbers of the GPUs that share the rows of CuPy histograms, as for `cusink.distance_matrix`.

        Returns
        -------
        distances : array, shape (Q, k)
            Ascending in each row.
        indices : array of int, shape (Q, k)
            Items in the order in which they came. With `full_output`, `cusink.Neighbours` instead of both.

        Raises
        ------
        TypeError
            For arrays of another kind or library than the items, or of a dtype that does not go with theirs.
        ValueError
            As for `cusink.nearest`.

        Warns
        -----
        ConvergenceWarning
            If a pair that was solved did not reach `tol`.
        """
        flags(prune=prune, progress=progress, full_output=full_output, check=check)
        corpus, settings, workers = self._corpus, self._settings, check_workers(workers)
        if is_wider(A, corpus):
            corpus, _, settings = self._in_float64(workers)
        k = checks.neighbours(k, len(corpus), A is None, "the items of the index")
        solve_at_most = checks.solve_at_most(solve_at_most, k)
        shared = chosen(check_devices(devices), corpus.template.xp)
        pairs = pairs_with(corpus, A, settings, check)
        if candidates is not None:
            candidates = checks.candidates(candidates, pairs.shape, k, A is None)
        query = Query(
            k=k,
            value=settings.value,
            options=settings.options,
            excludes_self=A is None,
            memory_limit=settings.memory_limit,
            solve_at_most=solve_at_most,
            candidates=candidates,
        )
        with working(workers):
            found, pruning = find_on_devices(pairs, corpus, query, prune, progress, shared)
        result = neighbours(found, pairs, settings.options, pruning, full_output)
        return given_back(result, self._library) if A is None and self._library else result

    @memory_advice(ADVICE)
    def add(self, B: Any, *, check: bool = True, workers: int | None = None) -> None:
        """Add items, which come after those that are there.

        Parameters
        ----------
        B : array, shape (D, m), scipy.sparse matrix or Measures
            Of the kind and the mass of the items. float64 beside items of float32 makes an index of float64.
        check : bool
            False skips the checks of the values of B.
        workers : int, optional
            Threads that solve those of a divergence with themselves, as for the index.

        Returns
        -------
        None
            A search that runs in another thread meanwhile does not see them.

        Raises
        ------
        TypeError
            For arrays of another kind or library than the items, or of a dtype that does not go with theirs.
        ValueError
            As for `cusink.distance_matrix`; the index stays as it was.
        """
        flag("check", check)
        corpus, cost, settings, workers = self._corpus, self._cost, self._settings, check_workers(workers)
        if is_wider(B, corpus):
            corpus, cost, settings = self._in_float64(workers)
        corpus = grown(corpus, B, settings, check)
        prepare(corpus, workers)
        self._settings, self._cost, self._corpus, self._wide = settings, cost, corpus, None

    def _in_float64(self, workers: int | None = None) -> tuple[AnyCorpus, Any, Settings]:
        """Return the corpus, the cost and the settings in float64, which are kept until items come."""
        corpus, known = self._corpus, self._wide
        if known is None or known[0] is not corpus:
            wide = in_float64(corpus, self._cost, self._settings)
            prepare(wide[0], workers)
            self._wide = known = corpus, wide
        return known[1]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the index into a folder of ``.npy`` files and one of JSON, without pickle.

        Parameters
        ----------
        path : str or path
            The name of the folder.
        overwrite : bool
            Whether an index of that name is replaced; a folder that holds something else never is.

        Returns
        -------
        None
            The folder is complete, or it is not there.

        Raises
        ------
        FileExistsError
            If the folder exists, or is no index.
        FileNotFoundError
            If there is no folder to make it in.
        TypeError
            For an index of bfloat16, or of a `PointCloud` whose metric is a function: no file holds that.
        """
        from cusink.retrieval.stored_index import save  # json and shutil take milliseconds to load

        flag("overwrite", overwrite)
        save(path, self._corpus, self._cost, self._settings, overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, mmap: bool = True, verify: bool = True, device: str = "cpu"
    ) -> "Index":
        """Return an index that was saved.

        Parameters
        ----------
        path : str or path
            The name of the folder.
        mmap : bool
            Leave the items on the disk and read them as they are needed: the index may be larger than the memory.
        verify : bool
            Compare the checksums of all files, which reads them once. Sizes and kinds are always compared.
        device : {"cpu", "cuda"}
            "cuda" brings it to the GPU, for queries that are CuPy arrays.

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
        RuntimeError
            For ``device="cuda"`` where no GPU can be used.
        """
        from cusink.retrieval.stored_index import load

        flags(mmap=mmap, verify=verify)
        one_of("device", device, ("cpu", "cuda"))
        if device == "cuda" and (problem := device_error()) is not None:
            raise RuntimeError(f"device='cuda' needs a GPU: {problem}. Or pass device='cpu'")
        return cls._of(*load(path, mmap, verify, np if device == "cpu" else cupy_module()))

    @classmethod
    def _of(cls, corpus: AnyCorpus, C: Any, settings: Settings) -> "Index":
        index = cls.__new__(cls)
        index._corpus, index._cost, index._settings = corpus, C, settings
        prepare(corpus)
        return index
