"""`cusink.Index`: the answers of the whole matrix, however the items came; files; certificates; bad input."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import problems
import pytest
from retrieval.test_nearest import EPS, VALUES, K, best, blots, collection, rounding
from retrieval.test_search import topical, topics

import cusink
from cusink.retrieval import blocks, rows
from cusink.retrieval.storage import folder, replacing

TOPICAL = {"eps": 0.2, "tol": 1e-3}


def same(found, other):
    """Whether two answers have the same bytes."""
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(found, other, strict=True))


@pytest.fixture(scope="module")
def clouds():
    """Measures of unequal sizes: some to look for, and a collection."""
    rng = np.random.default_rng(3)

    def some(count):
        centres = rng.normal(size=(count, 1, 2)) * 3
        return [centre + 0.3 * rng.normal(size=(rng.integers(2, 6), 2)) for centre in centres]

    return cusink.Measures.of(some(4)), cusink.Measures.of(some(50))


def size_of(B):
    return len(B) if hasattr(B, "__len__") and not hasattr(B, "tocsr") else B.shape[0]


def kinds(clouds):
    """Yield queries, items, cost and options of every kind of collection."""
    A, B, C = collection(4, 60)
    cells = np.indices((6, 6)).reshape(2, -1).T / 10
    yield "dense", A, B, C, {"eps": EPS, "value": "reg_cost"}
    yield "float32", A.astype("f4"), B.astype("f4"), C.astype("f4"), {"eps": EPS, "value": "cost", "tol": 1e-4}
    yield "float16", A.astype("f2"), B.astype("f2"), C.astype("f2"), {"eps": 0.05, "value": "cost", "tol": 1e-4}
    yield "grid", A, B, cusink.Grid((6, 6), spacing=0.1, periodic=(False, True)), {"eps": EPS, "value": "divergence"}
    yield "distances", A, B, cusink.Grid((6, 6), "euclidean", spacing=((0.1,) * 4 + (0.2,), 0.1)), {"eps": EPS}
    yield "cloud", A, B, cusink.PointCloud(cells, metric="euclidean", power=1.5), {"eps": EPS, "value": "entropic_cost"}
    yield "two clouds", A, B, cusink.PointCloud(cells, cells + 0.01), {"eps": EPS, "value": "divergence"}
    yield "sparse", topical(4, 1), topical(60, 2), cusink.cost_matrix(topics(), metric="euclidean"), TOPICAL
    words = cusink.PointCloud(topics(), metric="euclidean")
    yield "words", topical(4, 1), topical(60, 2, empty=(7,)), words, TOPICAL | {"value": "divergence"}
    yield "measures", *clouds, "euclidean", {"eps": 0.05, "value": "reg_cost", "tol": 1e-4}


# The same answers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", VALUES)
def test_it_is_the_sorted_matrix(xp, value, dtype):
    A, B, C = (xp(x, dtype) for x in collection())
    tol = 1e-4 if dtype == np.float32 else 1e-6
    want, order = best(xp.numpy(cusink.distance_matrix(A, B, C, eps=EPS, value=value, tol=tol)))
    index = cusink.Index(B, C, eps=EPS, value=value, tol=tol)
    found = index.search(A, K, full_output=True)
    assert xp.owns(found.distances) and found.distances.dtype == dtype and len(index) == 90
    np.testing.assert_array_equal(xp.numpy(found.indices), order)
    scale = 10 if value == "divergence" else 1
    np.testing.assert_allclose(
        xp.numpy(found.distances), want, rtol=scale * rounding(dtype), atol=rounding(dtype) * EPS
    )
    assert found.pruning == "dual" and found.finished < found.bounded / 2
    assert found.proved.all() and not found.undercut.any()
    each = [index.search(A[row : row + 1], K)[1][0] for row in range(3)]  # queries one by one
    np.testing.assert_array_equal(np.array([xp.numpy(x) for x in each]), order[:3])


@pytest.mark.filterwarnings("ignore:Items without weight")
@pytest.mark.parametrize("at", range(10))
def test_nearest_additions_and_files_give_the_same_bytes(clouds, at, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROWS_PER_BLOCK", 25)  # small, so that parts stay parts
    name, A, B, C, options = list(kinds(clouds))[at]
    once = cusink.Index(B, C, check=name != "float16", **options)
    want = once.search(A, K, check=name != "float16")
    near = cusink.nearest(A, B, C, k=K, check=name != "float16", **options)
    np.testing.assert_array_equal(near[1], want[1])
    np.testing.assert_allclose(near[0], want[0], rtol=1e-3 if name == "float16" else 1e-5)
    grown = cusink.Index(B[:20], C, check=name != "float16", **options)
    grown.search(A, K, check=False)
    for start, stop in ((20, 24), (24, 45), (45, len(once))):
        grown.add(B[start:stop], check=name != "float16")
    assert len(grown) == len(once) and same(grown.search(A, K, check=False), want)
    grown.save(tmp_path / "index")
    for mmap in (True, False):
        loaded = cusink.Index.load(tmp_path / "index", mmap=mmap)
        assert same(loaded.search(A, K, check=False), want) and repr(loaded) == repr(once)
    loaded.add(B[:20], check=False)
    assert len(loaded) == len(once) + 20
    np.testing.assert_allclose(loaded.search(A, 1, check=False)[0], want[0][:, :1], rtol=1e-2)
    assert same(pickle.loads(pickle.dumps(once)).search(A, K, check=False), want)


@pytest.mark.parametrize("kind", ["dense", "sparse", "measures"])
def test_items_are_no_neighbours_of_themselves(clouds, kind):
    B, C, options = next((B, C, options) for name, _, B, C, options in kinds(clouds) if name == kind)
    D = cusink.distance_matrix(B, None, C, **options)
    np.fill_diagonal(D, np.inf)
    index = cusink.Index(B, C, **options)
    found = index.search(None, K, full_output=True)
    np.testing.assert_array_equal(found.indices, best(D)[1])
    assert found.pruning != "none" and found.bounded == size_of(B) * (size_of(B) - 1)


def test_equal_items_that_come_later_tie_as_if_they_had_come_at_once():
    A, B, C = collection(4, 40)
    index = cusink.Index(B, C, eps=EPS, value="divergence")
    index.add(np.concatenate([B[:5], A[:1]]))
    distances, indices = index.search(A, 3)
    assert indices[0, 0] == 45 and distances[0, 0] == 0
    every = index.search(B[:5], 2)
    np.testing.assert_array_equal(every[1], np.stack([np.arange(5), np.arange(40, 45)], axis=1))
    assert not every[0].any()


def test_small_additions_become_one_part():
    A, B, C = collection(2, 60)
    index = cusink.Index(B[:1], C, eps=EPS)
    for row in range(1, 60):
        index.add(B[row : row + 1])
    assert isinstance(index._corpus.B, rows.NormalisedRows) and len(index) == 60
    assert same(index.search(A, K), cusink.Index(B, C, eps=EPS).search(A, K))


def test_joined_rows_are_read_as_one_array():
    rng = np.random.default_rng(0)
    weights, factors = rng.random((10, 4)), rng.random(10)
    parts = tuple(rows.NormalisedRows(weights[part], factors[part]) for part in blocks.blocks(10, 4))
    every, whole = rows.JoinedRows(parts, np.array([0, 4, 8, 10])), rows.NormalisedRows(weights, factors)
    for items in (slice(0, 10), slice(3, 9), slice(4, 8), slice(9, 10), slice(2, 2), np.array([9, 0, 4, 4]), 7):
        if isinstance(items, slice) and items.stop == items.start:
            continue
        np.testing.assert_array_equal(every[items], whole[items])
    vectors = rng.random((3, 4))
    np.testing.assert_allclose(every.products(vectors, slice(2, 9)), vectors @ whole[2:9].T, rtol=1e-14)


def test_the_caller_may_change_his_arrays():
    A, B, C = collection(3, 40)
    more = B.copy()
    index, other = cusink.Index(B, C, eps=EPS), cusink.Index(B.copy(), C.copy(), eps=EPS)
    index.add(more)
    other.add(B.copy())
    B[:], C[:], more[:] = 1 / 36, 1, 1 / 36
    B[0, :] = 0
    assert same(index.search(A, 1), other.search(A, 1))


def test_a_collection_on_the_disk_is_not_copied(tmp_path):
    A, B, C = collection(3, 40)
    np.save(tmp_path / "B.npy", B)
    mapped = np.load(tmp_path / "B.npy", mmap_mode="r")
    index = cusink.Index(mapped, C, eps=EPS)
    assert np.shares_memory(index._corpus.B.weights, mapped)
    assert same(index.search(A, K), cusink.Index(B, C, eps=EPS).search(A, K))
    index.save(tmp_path / "index")
    loaded = cusink.Index.load(tmp_path / "index")
    assert not loaded._corpus.B.weights.flags.owndata and type(loaded._corpus.B.weights) is np.ndarray


# Limits and certificates


@pytest.mark.parametrize("kind", ["dense", "float32", "grid", "cloud", "sparse", "measures"])
def test_a_certificate_is_true(clouds, kind):
    """Proved rows are right, and no true neighbour is nearer than the certificate says."""
    A, B, C, options = next(rest for name, *rest in kinds(clouds) if name == kind)
    want, order = best(cusink.distance_matrix(A, B, C, **options).astype(float))
    index, proofs = cusink.Index(B, C, **options), []
    for most in (K, 6, 12, 30, size_of(B)):
        found = index.search(A, K, solve_at_most=most, full_output=True)
        assert found.finished <= most * size_of(A)
        right = (found.indices == order).all(axis=1)
        assert right[found.proved].all() and not found.undercut[found.proved].any()
        near = 1e-5 * np.abs(want[:, -1])
        assert (found.distances[:, -1] - found.undercut <= want[:, -1] + near).all()
        assert (found.distances[:, -1] >= want[:, -1] - near).all()
        proofs.append(found.proved.sum())
    assert proofs[0] < proofs[-1] == size_of(A) and proofs == sorted(proofs)


@pytest.mark.parametrize("kind", ["dense", "grid", "sparse", "measures"])
def test_candidates_are_ranked_and_no_others_are_returned(clouds, kind):
    A, B, C, options = next(rest for name, *rest in kinds(clouds) if name == kind)
    D = cusink.distance_matrix(A, B, C, **options)
    rng = np.random.default_rng(0)
    given = np.array([rng.choice(size_of(B), 15, replace=False) for _ in D])
    inside = np.full(D.shape, np.inf)
    np.put_along_axis(inside, given, np.take_along_axis(D, given, axis=1), axis=1)
    index = cusink.Index(B, C, **options)
    for prune in (True, False):
        found = index.search(A, K, candidates=given, prune=prune, full_output=True)
        np.testing.assert_array_equal(found.indices, best(inside)[1])
        np.testing.assert_allclose(found.distances, best(inside)[0], rtol=1e-5)
        assert found.finished <= 15 * size_of(A)
    assert not found.proved.any() and np.isinf(found.undercut).all()  # nothing was bounded
    # Candidates that hold the neighbours are proved to, and what they lack is found if there is room.
    right = np.argsort(D, axis=1, kind="stable")[:, :12]
    found = index.search(A, K, candidates=right, solve_at_most=size_of(B), full_output=True)
    np.testing.assert_array_equal(found.indices, right[:, :K])
    assert found.proved.all()
    found = index.search(A, K, candidates=given, solve_at_most=size_of(B), full_output=True)
    np.testing.assert_array_equal(found.indices, right[:, :K])
    assert found.proved.all()


def test_candidates_of_items_among_each_other_and_equal_ones():
    A, C = blots(40), problems.grid_cost(6, 6)
    A = np.concatenate([A, A[:5]])
    index = cusink.Index(A, C, eps=EPS, tol=1e-9)  # other batches end at other errors
    given = np.argsort(np.linalg.norm(A[:, None] - A, axis=2), axis=1)[:, :9]  # with each item itself
    D = cusink.distance_matrix(A, None, C, eps=EPS, tol=1e-9)
    np.fill_diagonal(D, np.inf)
    inside = np.full_like(D, np.inf)
    np.put_along_axis(inside, given, np.take_along_axis(D, given, axis=1), axis=1)
    found = index.search(None, K, candidates=given)
    np.testing.assert_allclose(found[0], best(inside)[0], rtol=1e-6)
    assert (found[1] != np.arange(45)[:, None]).all()
    # An equal item is no candidate unless it was proposed.
    alone = index.search(A[:1], 2, candidates=[[0, 7, 9]])
    assert 40 not in alone[1] and 0 in alone[1]


@pytest.mark.parametrize("value", VALUES)
def test_items_equal_to_candidates_are_returned_once(value):
    # What is solved beyond the candidates may equal one of them, and had it returned a second time.
    A, C = blots(41), problems.grid_cost(6, 6)
    A, B = A[:1], np.concatenate([A[1:], A[1:]])
    options = {"eps": EPS, "value": value, "tol": 1e-9}
    D = cusink.distance_matrix(A, B[:40], C, **options)[0]
    order = np.argsort(D, kind="stable")
    given = np.concatenate([order[[1, 0]], order[-3:]])[None]
    right = [order[0], order[0] + 40, order[1], order[1] + 40]
    for most in (5, 8, 80):
        found = cusink.nearest(A, B, C, k=4, candidates=given, solve_at_most=most, full_output=True, **options)
        np.testing.assert_array_equal(found.indices, [right])
        np.testing.assert_allclose(found.distances, [np.repeat(D[order[:2]], 2)], rtol=1e-6)
    assert found.proved.all() and not found.undercut.any()


def test_limits_without_bounds_are_refused_or_need_none():
    A, B, C = collection(2, 40)
    index = cusink.Index(B, C, eps=EPS, tol=None, max_iter=30)
    with pytest.raises(ValueError, match="'solve_at_most' must leave room .*: 40 for each row; got 9.*tol=None"):
        index.search(A, K, solve_at_most=9)
    assert index.search(A, K, solve_at_most=40, full_output=True).proved.all()
    found = index.search(A, K, candidates=[[1, 2, 3, 4]] * 2, full_output=True)
    assert np.isinf(found.undercut).all() and np.isin(found.indices, [1, 2, 3, 4]).all()
    few = cusink.Index(B[:9], C, eps=EPS)  # too few for an exact search to prune
    D = cusink.distance_matrix(A, B[:9], C, eps=EPS)
    for most in (3, 9):
        found = few.search(A, K, solve_at_most=most, full_output=True)
        assert found.pruning == "dual" and found.finished <= 2 * most
    np.testing.assert_array_equal(found.indices, best(D)[1])


# Files


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    A, B, C = collection(2, 40)
    path = tmp_path_factory.mktemp("stored") / "index"
    cusink.Index(B, C, eps=EPS, value="divergence").save(path)
    return path


@pytest.fixture
def copied(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def test_settings_may_be_scalars_of_numpy(tmp_path):
    A, B, C = collection(2, 40)
    options = {"tol": np.float32(1e-5), "max_iter": np.int64(900), "overrelaxation": np.array(1.5)}
    for number, eps in enumerate((np.float32(EPS), np.array(EPS))):
        index = cusink.Index(B, C, eps=eps, **options)
        path = tmp_path / str(number)
        index.save(path)
        for again in (cusink.Index.load(path), pickle.loads(pickle.dumps(index))):
            assert same(again.search(A, K), index.search(A, K))


def test_files_are_plain(stored):
    """Arrays that any reader of .npy takes, and a description that anyone can read."""
    description = json.loads((stored / "index.json").read_text())
    assert description["version"] == 2 and description["items"] == 40 and description["value"] == "divergence"
    assert {path.name for path in stored.iterdir()} == {"index.json", *description["files"]}
    for name, entry in description["files"].items():
        array = np.load(stored / name, allow_pickle=False)
        assert list(array.shape) == entry["shape"] and (stored / name).stat().st_size == entry["bytes"]


def test_damage_is_told(copied):
    weights = copied / "weights.npy"
    whole = weights.read_bytes()
    for damage, message in (
        (whole[:-9] + b"\x07" + whole[-8:], "weights.npy are not those that were written"),
        (whole[:-8], "weights.npy has .* bytes, not"),
        (b"\x93NUMPZ" + whole[6:], "weights.npy is no array"),
    ):
        weights.write_bytes(damage)
        for mmap in (True, False):
            with pytest.raises(ValueError, match=f"is damaged: .*{message}.*Save the index again"):
                cusink.Index.load(copied, mmap=mmap)
    weights.write_bytes(whole[:-9] + b"\x07" + whole[-8:])
    cusink.Index.load(copied, verify=False)  # which is what was asked for
    weights.unlink()
    with pytest.raises(ValueError, match="weights.npy is missing"):
        cusink.Index.load(copied)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 2', '"version": 7', "must be an index of version 2; .* is one of version 7"),
        ('"eps": 0.01', '"eps": 0.02', "index.json is not what was written"),
        ("{", "", "index.json cannot be read"),
        ('"cusink index"', '"other"', "index.json cannot be read"),
    ],
)
def test_a_description_that_was_changed_is_told(copied, old, new, message):
    path = copied / "index.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        cusink.Index.load(copied)


def test_brackets_without_end_are_damage(copied):
    (copied / "index.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index.json cannot be read"):
        cusink.Index.load(copied)


def test_the_cost_of_another_index_is_damage(copied, tmp_path):
    A, B, C = collection(2, 40)
    cusink.Index(B, 2 * C, eps=EPS, value="divergence").save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "C.npy", copied / "C.npy")
    with pytest.raises(ValueError, match="the numbers in C.npy are not those"):
        cusink.Index.load(copied)


def test_a_save_replaces_an_index_alone(copied, tmp_path):
    index = cusink.Index.load(copied)
    A = collection(2, 40)[0]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        index.save(copied)
    index.add(A)
    index.save(copied, overwrite=True)  # over the files that it reads from
    assert len(cusink.Index.load(copied)) == 42
    assert same(index.search(A, 1), [np.zeros((2, 1)), np.array([[40], [41]])])
    other = tmp_path / "folder"
    other.mkdir()
    with pytest.raises(FileExistsError, match="is something else"):
        index.save(other, overwrite=True)
    with pytest.raises(FileNotFoundError, match="no 'index.json'|there is no"):
        cusink.Index.load(other)
    with pytest.raises(FileNotFoundError, match="Make it first"):
        index.save(tmp_path / "no" / "where")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "folder"]  # no drafts


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.npz", "mine", "also holds 'results.npz'"),
        ("index.json", '{"name": "a project of another kind"}', "is something else, or its index.json is damaged"),
        ("index.json", "[]", "is something else"),
        ("index.json", "[" * 100_000, "is something else"),
    ],
)
def test_a_folder_with_files_that_are_of_no_index_is_not_replaced(copied, name, text, said):
    index = cusink.Index.load(copied)
    (copied / name).write_text(text)
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with pytest.raises(FileExistsError, match=said):
        index.save(copied, overwrite=True)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]  # no drafts


def test_an_index_that_lacks_a_file_is_replaced(copied):
    index = cusink.Index.load(copied, mmap=False)
    (copied / "weights.npy").unlink()
    index.save(copied, overwrite=True)
    assert len(cusink.Index.load(copied)) == 40


def test_an_interrupted_save_leaves_the_old_index(copied, monkeypatch):
    index = cusink.Index.load(copied)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        index.save(copied, overwrite=True)
    assert len(cusink.Index.load(copied)) == 40 and len(list(copied.parent.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no resource")
@pytest.mark.parametrize(
    "limit", [0, 3, 1000]
)  # bytes of a file: less than the name of the index has, less than arrays
def test_a_save_that_the_disk_does_not_take_says_where_and_leaves_nothing(copied, limit):
    import resource

    index = cusink.Index.load(copied, mmap=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="'path' cannot be written: .* What was there stays.*copy") as caught:
            index.save(copied, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert len(cusink.Index.load(copied)) == 40 and len(list(copied.parent.iterdir())) == 1


def test_a_save_interrupted_between_its_renames_leaves_the_old_index(copied, monkeypatch):
    index, rename = cusink.Index.load(copied), os.rename

    def interrupted(source, target):
        if Path(target) == copied and not Path(source).name.startswith("old"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.save(copied, overwrite=True)
    assert len(cusink.Index.load(copied)) == 40 and len(list(copied.parent.iterdir())) == 1


KILLED = """
import os, pathlib, signal, sys, cusink
path, rename = pathlib.Path(sys.argv[1]), os.rename

def killed(source, target):
    if pathlib.Path(target) == path:
        if sys.argv[2] == "after":
            rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

index = cusink.Index.load(path)
os.rename = killed
index.save(path, overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fcntl")
@pytest.mark.parametrize("moment", ["between", "after"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_that_was_killed_at_its_renames_is_mended_by_the_next(copied, moment, overwrite):
    want = held_in(copied)
    other = cusink.Index.load(copied, mmap=False)
    run = subprocess.run([sys.executable, "-c", KILLED, copied, moment], check=False)
    assert run.returncode == -signal.SIGKILL and copied.exists() == (moment == "after")
    assert len(list(copied.parent.glob(".cusink-*"))) == 1
    other.save(copied.with_name("another"))  # which is not for it
    assert len(list(copied.parent.glob(".cusink-*"))) == 1
    if overwrite:
        other.save(copied, overwrite=True)
    else:
        with pytest.raises(FileExistsError, match="'path' must be new"):
            other.save(copied)
    assert len(cusink.Index.load(copied)) == 40
    assert overwrite or moment == "after" or held_in(copied) == want
    assert sorted(path.name for path in copied.parent.iterdir()) == ["another", "copy"]


def held_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fcntl")
def test_a_save_leaves_the_folder_of_one_that_goes_on(copied):
    index = cusink.Index.load(copied, mmap=False)
    with replacing.own_folder(copied) as own:
        os.rename(copied, own / "old-0")
        index.save(copied)
        assert (own / "old-0").is_dir() and len(cusink.Index.load(own / "old-0")) == 40
        shutil.rmtree(own / "old-0")
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_saves_to_one_name_at_once_do_not_meet(copied, tmp_path, monkeypatch, overwrite):
    index, write, together = cusink.Index.load(copied), folder._write, threading.Barrier(2, timeout=10)
    path = tmp_path / "new"
    if overwrite:
        shutil.copytree(copied, path)

    def at_once(file, parts):
        if file.stem == "weights":
            together.wait()
        return write(file, parts)

    def save(_):
        try:
            return index.save(path, overwrite=overwrite)
        except FileExistsError as error:
            return str(error)

    monkeypatch.setattr(folder, "_write", at_once)
    with ThreadPoolExecutor(2) as threads:
        said = list(threads.map(save, range(2)))
    assert said.count(None) == (2 if overwrite else 1)
    assert all(text is None or "'path' must be new" in text for text in said)
    assert len(cusink.Index.load(path)) == 40
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "new"]


def test_an_index_that_another_process_moves_meanwhile_is_none_to_replace(copied, monkeypatch):
    index, rename = cusink.Index.load(copied), os.rename

    def raced(source, target):
        if Path(source) == copied:
            shutil.rmtree(copied)
        rename(source, target)

    monkeypatch.setattr("os.rename", raced)
    index.save(copied, overwrite=True)
    assert len(cusink.Index.load(copied)) == 40 and len(list(copied.parent.iterdir())) == 1


def test_a_name_may_be_as_long_as_the_file_system_takes(copied):
    path = copied.with_name("n" * 255)
    cusink.Index.load(copied).save(path)
    assert len(cusink.Index.load(path)) == 40
    assert path.stat().st_mode == copied.stat().st_mode


@pytest.mark.parametrize(
    ("name", "said"),
    [("a\0b", "with a null character"), ("a\ud800", "with the character"), ("n" * 300, "File name too long")],
)
def test_names_that_cannot_be_are_told_before_any_work(copied, monkeypatch, name, said):
    index = cusink.Index.load(copied)
    monkeypatch.setattr(folder, "_write", None)
    for use in (index.save, cusink.Index.load):
        with pytest.raises(ValueError, match=f"'path' must be a path that the file system takes; got .*{said}"):
            use(copied.parent / name)


def test_additions_to_an_index_on_the_disk_leave_its_histograms_there(tmp_path):
    """All that an addition allocates, of digests and of the sample of which centres are made, is a part of them."""
    rng = np.random.default_rng(0)
    B = rng.dirichlet(np.ones(400), 20_000).astype("f4")
    C = cusink.cost_matrix(np.linspace(0, 1, 400)).astype("f4")
    cusink.Index(B, C, eps=0.1, value="reg_cost").save(tmp_path / "index")
    index = cusink.Index.load(tmp_path / "index")
    tracemalloc.start()
    try:
        index.add(B[:3])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 20_003 and peak < B.nbytes / 2


def test_a_metric_that_is_a_function_is_in_no_file(tmp_path):
    B = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    cloud = cusink.PointCloud(np.arange(5.0), metric=lambda x, y: abs(x - y.T))
    index = cusink.Index(B, cloud, eps=0.1)
    with pytest.raises(TypeError, match="'C' must have a metric with a name for an index that is saved"):
        index.save(tmp_path / "index")
    assert not list(tmp_path.iterdir())


# Bad input


def test_bad_input_says_what_to_change(clouds):
    A, B, C = collection(2, 40)
    index = cusink.Index(B, C, eps=EPS)
    for call, error, message in (
        (lambda: index.add(B[:, :-1]), ValueError, r"'B' must have shape \(Q, 36\)"),
        (lambda: index.add(2 * B), ValueError, "the index has 1 and 'B' row 0 has 2"),
        (lambda: index.add(-B), ValueError, "'B' must be non-negative"),
        (lambda: index.add(B.astype("f2")), TypeError, "'B' is float16 and 'the index' is float64"),
        (lambda: index.add(clouds[0]), TypeError, "'B' must be an array of histograms"),
        (lambda: index.search(A[0], 2), ValueError, r"A single histogram is A\[None, :\]"),
        (lambda: index.search(3 * A, 2), ValueError, "the index has 1 and 'A' row 0 has 3"),
        (lambda: index.search(topical(2, 1), 2), TypeError, "'A' must be an array of histograms"),
        (lambda: index.search(A, 41), ValueError, "the items of the index, 40; got 41"),
        (lambda: index.search(None, 40), ValueError, "the items of the index, 39; got 40"),
        (lambda: index.search(A, 3, solve_at_most=2), ValueError, "'solve_at_most' must be at least 'k', 3; got 2"),
        (lambda: index.search(A, 3, solve_at_most=2.5), TypeError, "'solve_at_most' must be an integer"),
        (lambda: index.search(A, 2, candidates=[[0, 40]] * 2), ValueError, r"from 0 to 39; got 40 at \[0, 1\]"),
        (lambda: index.search(A, 2, candidates=[[0, -1]] * 2), ValueError, "fill rows up with -1"),
        (lambda: index.search(A, 2, candidates=[[0, 1]]), ValueError, r"shape \(2, c\).*got \(1, 2\)"),
        (lambda: index.search(A, 2, candidates=[[3, 3]] * 2), ValueError, "at least 'k', 2, different items.*has 1"),
        (lambda: index.search(A, 2, candidates=[[0.0, 1.0]] * 2), TypeError, "'candidates' must hold integers"),
        (lambda: index.search(A, 2, prune=1), TypeError, "'prune' must be a bool"),
        (lambda: cusink.Index(None, C, eps=EPS), TypeError, "'B' must be an array of histograms; got None"),
        (lambda: cusink.Index(B, "euclidean", eps=EPS), TypeError, "'C' must be an array of costs"),
        (lambda: cusink.Index(B, C[:, :-1], eps=EPS), ValueError, r"'B' must have shape \(Q, 35\)"),
        (lambda: cusink.Index(B, C, eps=0), ValueError, "'eps' must be positive"),
        (lambda: cusink.Index(B, C, eps=EPS, value="emd"), ValueError, "'value' must be one of"),
        (lambda: cusink.Index(B, np.triu(C), eps=EPS, value="divergence"), ValueError, "symmetric"),
        (lambda: cusink.Index(B, C[:5], eps=EPS).search(None, 2), ValueError, "'C' that is not square"),
        (lambda: cusink.Index(clouds[1], "euclidean", eps=EPS).search(A, 1), TypeError, "'A' must be cusink.Measures"),
        (lambda: cusink.Index(topical(9, 1), np.ones((9, 9)), eps=1), ValueError, "column for each of the 9 words"),
        (lambda: cusink.Index.load(3), TypeError, "'path' must be the name of a folder"),
        (lambda: cusink.Index.load("x", device="tpu"), ValueError, "'device' must be one of"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert len(index) == 40  # what was refused changed nothing


def test_forbidden_pairs_are_checked_with_the_queries():
    A, B, C = np.eye(3), np.eye(3)[[0, 1] * 20], np.ones((3, 3))
    C[2, :2] = np.inf
    index = cusink.Index(B, C, eps=0.1, value="reg_cost")
    with pytest.raises(ValueError, match="'A' row 2 has weight where 'C' forbids"):
        index.search(A, 1)
    assert index.search(A[:2], 1, full_output=True).pruning == "dual"
