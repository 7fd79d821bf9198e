"""Documents, point clouds and parts on a cluster of two processes: the answers of one machine."""

import numpy as np
import problems
import pytest
from scipy import sparse

import cusink

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("cusink.distributed")

C = problems.grid_cost(4, 4)
HOW = {"eps": 0.05, "tol": 1e-3}
LIMITS = {"documents": 160_000, "measures": 40_000}  # several tiles of rows and of columns


def histograms(count, seed):
    return problems.histograms(np.random.default_rng(seed), count, 16, 0.4)


def measures(count, seed):
    rng = np.random.default_rng(seed)
    return cusink.Measures.of([rng.random((rng.integers(2, 6), 2)) for _ in range(count)])


COLLECTIONS = {
    "documents": (sparse.csr_array(histograms(9, 1)), sparse.csr_array(histograms(37, 2)), C),
    "measures": (measures(9, 1), measures(37, 2), "euclidean"),
    "histograms": (histograms(9, 1), histograms(37, 2), C),
}
FIELDS = ("distances", "error", "n_iter", "converged")


@pytest.fixture(scope="module")
def client():
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def chunks(monkeypatch):
    """Cut collections that come without chunks into several."""
    from cusink.distributed import jobs

    monkeypatch.setitem(jobs.CHUNK_ROWS, "A", 4)
    monkeypatch.setitem(jobs.CHUNK_ROWS, "B", 15)


# Matrices


@pytest.mark.parametrize(("value", "cut"), [("cost", True), ("divergence", True), ("entropic_cost", False)])
@pytest.mark.parametrize("kind", ["documents", "measures"])
def test_matrices_have_the_bytes_of_one_machine(client, kind, value, cut):
    A, B, cost = COLLECTIONS[kind]
    options = HOW | {"value": value, "memory_limit": LIMITS[kind] if cut else None}
    for other in (A, None):
        want = cusink.distance_matrix(B, other, cost, full_output=True, **options)
        found = distributed.distance_matrix(B, other, cost, full_output=True, client=client, **options)
        for name in FIELDS:
            lazy, local = getattr(found, name), getattr(want, name)
            assert isinstance(lazy, da.Array) and lazy.shape == local.shape and lazy.dtype == local.dtype
        here = dask.compute(*(getattr(found, name) for name in FIELDS))
        for name, array in zip(FIELDS, here, strict=True):
            assert array.dtype == getattr(want, name).dtype and array.tobytes() == getattr(want, name).tobytes(), name


@pytest.mark.parametrize("kind", ["documents", "measures"])
def test_a_matrix_is_cut_into_rows_and_nothing_else_is_solved(kind, monkeypatch):
    from cusink.distributed import documents

    _, B, cost = COLLECTIONS[kind]
    limit = LIMITS[kind]
    lazy = distributed.distance_matrix(B, B, cost, memory_limit=limit, **HOW)
    assert len(lazy.chunks[0]) > 1 and sum(lazy.chunks[0]) == 37
    seen, tile = [], documents.PairValues.tile
    monkeypatch.setattr(documents.PairValues, "tile", lambda *given: seen.append(given[1]) or tile(*given))
    with dask.config.set(scheduler="synchronous"):
        rows = lazy[:1].compute()
    assert {(at.start, at.stop) for at in seen} == {(0, lazy.chunks[0][0])}
    assert rows.tobytes() == cusink.distance_matrix(B, B, cost, memory_limit=limit, **HOW)[:1].tobytes()


@pytest.mark.filterwarnings("ignore:Items without weight:UserWarning")
def test_items_of_other_masses_and_without_words():
    rows = 3 * histograms(6, 3)
    rows[2], rows[4] = 0, rows[4] / 7
    given = sparse.csr_array(rows)
    want = cusink.distance_matrix(given, None, C, normalise=True, **HOW)
    with pytest.raises(ValueError, match="row 4 has"):
        distributed.distance_matrix(given, None, C, **HOW)
    with pytest.raises(ValueError, match="every item must have a word"):
        distributed.distance_matrix(given, None, C, normalise=True, on_empty="raise", **HOW)
    assert distributed.distance_matrix(given, None, C, normalise=True, **HOW).compute().tobytes() == want.tobytes()
    near = cusink.nearest(given, None, C, k=2, normalise=True, **HOW)
    found = dask.compute(*distributed.nearest(given, None, C, k=2, normalise=True, **HOW))
    np.testing.assert_array_equal(found[1], near[1])
    np.testing.assert_allclose(found[0], near[0], rtol=1e-6)


# Neighbours


def computed(lazy):
    """Return lazy neighbours as those of one machine."""
    return cusink.Neighbours(**dask.compute(vars(lazy))[0])


def equal(found, want):
    np.testing.assert_array_equal(found.indices, want.indices)
    np.testing.assert_allclose(found.distances, want.distances, rtol=1e-9)
    np.testing.assert_array_equal(found.converged, want.converged)


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_neighbours_in_one_chunk_have_the_bytes_of_one_machine(client, kind):
    A, B, cost = COLLECTIONS[kind]
    for more in ({}, {"solve_at_most": 6}, {"candidates": np.arange(9)[:, None] + np.arange(0, 28, 7)}):
        want = cusink.nearest(A, B, cost, k=3, full_output=True, **HOW, **more)
        lazy = distributed.nearest(A, B, cost, k=3, full_output=True, client=client, **HOW, **more)
        assert isinstance(lazy.distances, da.Array) and lazy.distances.shape == (9, 3)
        found = computed(lazy)
        for name, value in want.__dict__.items():
            got = getattr(found, name)
            same = got.tobytes() == value.tobytes() if isinstance(value, np.ndarray) else got == value
            assert same, (name, got, value)
        distances, indices = dask.compute(*distributed.nearest(A, B, cost, k=3, **HOW, **more))
        assert distances.tobytes() == want.distances.tobytes() and indices.tobytes() == want.indices.tobytes()


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_neighbours_in_several_chunks_are_those_of_one_machine(client, chunks, kind):
    A, B, cost = COLLECTIONS[kind]
    every = cusink.distance_matrix(A, B, cost, **HOW)
    for value in ("cost", "divergence"):
        how = HOW | {"value": value, "k": 4}
        want = cusink.nearest(A, B, cost, full_output=True, **how)
        found = computed(distributed.nearest(A, B, cost, full_output=True, client=client, **how))
        equal(found, want)
        assert found.proved.all() and not found.undercut.any() and found.finished >= 4 * 9
    among = cusink.nearest(B, None, cost, k=4, **HOW)
    distances, indices = dask.compute(*distributed.nearest(B, None, cost, k=4, client=client, **HOW))
    np.testing.assert_array_equal(indices, among[1])
    np.testing.assert_allclose(distances, among[0], rtol=0, atol=2e-3)  # a pair may be solved from the other side
    few = computed(distributed.nearest(A, B, cost, k=4, solve_at_most=5, full_output=True, **HOW))
    right = np.sort(every, axis=1)[:, 3]
    assert (few.distances[few.proved, -1] <= right[few.proved] * (1 + 1e-6)).all()
    assert (few.distances[:, -1] - few.undercut <= right * (1 + 1e-6)).all() and not few.proved.all()


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_candidates_are_looked_at_in_the_chunks_that_have_them(client, chunks, kind):
    A, B, cost = COLLECTIONS[kind]
    rng = np.random.default_rng(4)
    candidates = np.stack([rng.permutation(37)[:6] for _ in range(9)])
    candidates[2] = np.arange(6)  # all in the first chunk
    want = cusink.nearest(A, B, cost, k=4, candidates=candidates, full_output=True, **HOW)
    given = {"candidates": candidates, "k": 4, "full_output": True, "client": client}
    found = computed(distributed.nearest(A, B, cost, **given, **HOW))
    equal(found, want)
    every = np.sort(cusink.distance_matrix(A, B, cost, **HOW), axis=1)[:, 3]
    assert (found.distances[:, -1] - found.undercut <= every * (1 + 1e-6)).all()
    assert (np.abs(found.distances[found.proved, -1] / every[found.proved] - 1) < 1e-6).all()
    all_of_them = np.tile(np.arange(37), (9, 1))
    found = computed(distributed.nearest(A, B, cost, **given | {"candidates": all_of_them}, **HOW))
    equal(found, cusink.nearest(A, B, cost, k=4, full_output=True, **HOW))
    assert found.proved.all()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"candidates": [[0, 40]] * 9}, ValueError, "'candidates' must be numbers of items, from 0 to 36; got 40"),
        ({"candidates": [[0, 0]] * 9}, ValueError, "at least 'k', 2, different items"),
        ({"candidates": [[0, 1]] * 9, "B": None}, ValueError, "'candidates' must be None where 'B' is"),
        ({"solve_at_most": 1}, ValueError, "'solve_at_most' must be at least 'k', 2; got 1"),
        ({"k": 38}, ValueError, "the rows of 'B', 37; got 38"),
        ({"full_output": 1}, TypeError, "'full_output' must be"),
        ({"on_empty": "drop"}, ValueError, "'on_empty' must be one of"),
    ],
)
@pytest.mark.parametrize("kind", COLLECTIONS)
def test_what_can_be_told_at_once_is(kind, given, error, said):
    A, B, cost = COLLECTIONS[kind]
    with pytest.raises(error, match=said):
        distributed.nearest(**{"A": A, "B": B, "C": cost, "k": 2} | HOW | given)


# An index in parts


def index_of(kind, **more):
    _, B, cost = COLLECTIONS[kind]
    cuts = (slice(0, 16), slice(16, 18), slice(18, 37))  # one is smaller than k
    return distributed.Index([cusink.Index(B[rows], cost, **HOW) for rows in cuts], **more)


@pytest.mark.parametrize("kind", COLLECTIONS)
@pytest.mark.parametrize("where", ["here", "with the workers"])
def test_an_index_takes_what_one_index_takes(request, tmp_path, kind, where):
    A, B, cost = COLLECTIONS[kind]
    more = {} if where == "here" else {"client": request.getfixturevalue("client")}
    one, parts = cusink.Index(B, cost, **HOW), index_of(kind, **more)
    candidates = np.stack([np.random.default_rng(k).permutation(37)[:6] for k in range(9)])
    equal(parts.search(A, 3, full_output=True), one.search(A, 3, full_output=True))
    named = {"candidates": candidates, "full_output": True}
    equal(parts.search(A, 3, **named), one.search(A, 3, **named))
    among, want = parts.search(None, 3, full_output=True), one.search(None, 3, full_output=True)
    np.testing.assert_array_equal(among.indices, want.indices)
    np.testing.assert_allclose(among.distances, want.distances, rtol=0, atol=2e-3)
    assert among.proved.all() and among.distances.shape == (37, 3)

    one.add(A)
    parts.add(A)
    assert len(parts) == len(one) == 46
    equal(parts.search(A, 3, full_output=True), one.search(A, 3, full_output=True))
    parts.save(tmp_path / "parts")
    again = distributed.Index.load(tmp_path / "parts", **more)
    assert len(again) == 46
    for found, right in zip(again.search(A, 3), parts.search(A, 3), strict=True):
        assert found.tobytes() == right.tobytes()


def test_adding_leaves_the_index_that_a_part_was_made_of():
    A, B, cost = COLLECTIONS["histograms"]
    part = cusink.Index(B, cost, **HOW)
    parts = distributed.Index([part])
    parts.add(A)
    assert len(part) == 37 and len(parts) == 46
    assert parts.search(A, 1)[1].ravel().tolist() == list(range(37, 46))


def test_folders_that_are_none(tmp_path, monkeypatch):
    parts = index_of("histograms")
    parts.save(tmp_path / "kept")
    for path, error, said in (
        (tmp_path / "kept", FileExistsError, "'path' must be a new folder"),
        (tmp_path / "none" / "kept", FileNotFoundError, "none"),
        (3, TypeError, "'path' must be the name of a folder; got int"),
    ):
        with pytest.raises(error, match=said):
            parts.save(path)
    from cusink.distributed import index

    monkeypatch.setattr(index, "_save", lambda part, path: None)  # a worker that writes to a disk of its own
    with pytest.raises(FileNotFoundError, match="shares with all workers"):
        parts.save(tmp_path / "elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]

    cusink.Index(COLLECTIONS["histograms"][1], C, **HOW).save(tmp_path / "one")
    for path, error, said in (
        (tmp_path / "nothing", FileNotFoundError, "must be a saved index in parts"),
        (tmp_path / "one", FileNotFoundError, "must be a saved index in parts"),
        (3, TypeError, "'path' must be the name of a folder; got int"),
    ):
        with pytest.raises(error, match=said):
            distributed.Index.load(path)
    for text in ("[]", "{", '{"format": "cusink index in parts, 2", "parts": ["part-00000"]}'):
        (tmp_path / "kept" / "parts.json").write_text(text)
        with pytest.raises(ValueError, match="must be of the format 'cusink index in parts, 1'"):
            distributed.Index.load(tmp_path / "kept")
