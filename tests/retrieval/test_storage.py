"""Matrices on disk: what they hold, and what is left when the run is killed, the disk is full, or the job another."""

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import problems
import pytest

import cusink
from cusink.retrieval import tiles as retrieval_tiles
from cusink.retrieval.collections import check_collections
from cusink.retrieval.storage import ledger

C = problems.grid_cost(4, 4)
LIMIT = 60_004  # tiles of 10 x 10 pairs
FORMATS = ["npy", "zarr"]


def histograms(count=40, seed=0, dtype=np.float64):
    """Draw a collection on 16 bins, 40 % of them empty."""
    return problems.histograms(np.random.default_rng(seed), count, 16, 0.4).astype(dtype)


def matrix(A, B, out, **options):
    """Make the matrix on disk, every pair to a marginal error of 1e-3."""
    return cusink.distance_matrix(A, B, C.astype(A.dtype), out=out, **({"eps": 0.05, "tol": 1e-3} | options))


def held(path):
    """Every byte of a file, or of a store by file."""
    if path.is_file():
        return path.read_bytes()
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def marked(path):
    """How many tiles a store has marked as finished."""
    tiles = path.with_name(path.name + ".tiles")
    return max(tiles.read_bytes().count(b"\n") - 1, 0) if tiles.exists() else 0


@pytest.fixture
def solved(monkeypatch):
    """List the tiles that are solved from here on."""
    tiles, original = [], retrieval_tiles.PairValues.tile

    def solve(self, rows, columns, *args):
        tiles.append((rows.start, columns.start))
        return original(self, rows, columns, *args)

    monkeypatch.setattr(retrieval_tiles.PairValues, "tile", solve)
    return tiles


class Stopped(BaseException):
    """Raised in place of a tile."""


@contextlib.contextmanager
def stopping_after(monkeypatch, count):
    """Let the run end with the solution of the tile after `count` others."""
    original, left = retrieval_tiles.PairValues.tile, [count]

    def solve(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_tiles.PairValues, "tile", solve)
        with pytest.raises(Stopped):
            yield


# What is in it


@pytest.mark.parametrize("limit", [LIMIT, None])
@pytest.mark.parametrize(
    ("value", "symmetric", "dtype"),
    [("cost", True, np.float64), ("divergence", False, np.float32), ("entropic_cost", False, np.float16)],
)
def test_array_file_and_store_hold_the_same_bytes(tmp_path, value, symmetric, dtype, limit):
    A = histograms(40, dtype=dtype)
    B = None if symmetric else histograms(33, seed=1, dtype=dtype)
    options = {"value": value, "memory_limit": limit, "tol": 1e-3}
    want = matrix(A, B, None, **options)
    for ending in FORMATS:
        path = tmp_path / f"matrix.{ending}"
        found = matrix(A, B, path if ending == "npy" else str(path), **options)
        assert found.shape == want.shape and found.dtype == dtype
        np.testing.assert_array_equal(found[:], want)
        with pytest.raises((ValueError, PermissionError)):
            found[0, 0] = 1
        assert sorted(file.name for file in tmp_path.glob(f"*.{ending}*")) == [path.name, path.name + ".tiles"]


def test_any_reader_reads_them(tmp_path):
    import zarr

    A = histograms(40)
    want = matrix(A, None, None, memory_limit=LIMIT)
    for ending in FORMATS:
        matrix(A, None, tmp_path / f"matrix.{ending}", memory_limit=LIMIT)
    np.testing.assert_array_equal(np.load(tmp_path / "matrix.npy", allow_pickle=False), want)
    array = zarr.open_array(tmp_path / "matrix.zarr", mode="r")
    assert array.metadata.zarr_format == 3 and array.chunks == (10, 10)
    np.testing.assert_array_equal(array[5:20, 10:40], want[5:20, 10:40])
    assert array.attrs["cusink"]["arguments"]["eps"] == 0.05


def test_pairs_that_do_not_converge_are_warned_of_by_every_run(tmp_path, monkeypatch):
    """Those of the tiles that an earlier run finished count too."""
    A, options = histograms(40), {"memory_limit": LIMIT, "tol": 1e-13, "max_iter": 2}
    with stopping_after(monkeypatch, 4):
        matrix(A, None, tmp_path / "matrix.npy", **options)
    for _ in range(2):
        with pytest.warns(cusink.ConvergenceWarning, match=r"^820 of 820 problems") as caught:
            matrix(A, None, tmp_path / "matrix.npy", **options)
        assert len(caught) == 1


# Killed


KILLER = """
import os, random, signal, sys, time
from pathlib import Path

import numpy as np, zarr

import cusink

A, C, folder = np.load("A.npy"), np.load("C.npy"), Path(sys.argv[1])
random.seed(0)
for name in ("matrix.npy", "matrix.zarr"):
    ledger, at = folder / f"{name}.tiles", []
    for attempt in range(9):
        lines = len(ledger.read_bytes().splitlines()) if ledger.exists() else 0
        child = os.fork()
        if child == 0:
            cusink.distance_matrix(A, None, C, eps=0.05, tol=1e-3, memory_limit=60_004, out=folder / name)
            os._exit(0)
        if attempt == 8:
            assert os.waitpid(child, 0)[1] == 0
            break
        # Three are killed as they begin, the others when a tile has been added; and a moment later, whatever they do.
        end = time.monotonic() + (60 if attempt > 2 else 0)
        while time.monotonic() < end and len(ledger.read_bytes().splitlines() if ledger.exists() else ()) <= lines:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it could be killed"
            time.sleep(0.0005)
        time.sleep(random.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert not (folder / name).exists()
        at.append(len(ledger.read_bytes().splitlines()) if ledger.exists() else 0)
    print(*at)
"""


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path):
    A = histograms(80)
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "C.npy", C)
    (tmp_path / "killed").mkdir()
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLER, tmp_path / "killed"],
        cwd=tmp_path,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(cusink.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    for ending, line in zip(FORMATS, answer.stdout.splitlines(), strict=True):
        counts = [int(word) for word in line.split()]
        assert counts == sorted(counts) and len(set(counts)) >= 6, counts  # no tile was ever lost
        matrix(A, None, tmp_path / f"matrix.{ending}", memory_limit=LIMIT)
        assert held(tmp_path / "killed" / f"matrix.{ending}") == held(tmp_path / f"matrix.{ending}")
        assert not list((tmp_path / "killed").rglob("*.part*"))


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_finished_is_not_solved_again(tmp_path, monkeypatch, solved, ending):
    A, path = histograms(), tmp_path / f"matrix.{ending}"
    with stopping_after(monkeypatch, 6):
        matrix(A, None, path, memory_limit=LIMIT)
    assert marked(path) == len(solved) == 6
    before = solved.copy()
    solved.clear()
    matrix(A, None, path, memory_limit=LIMIT)
    assert len(solved) == 10 - 6 and not set(before) & set(solved)
    solved.clear()
    found = matrix(A, None, path, memory_limit=LIMIT)
    assert solved == []
    np.testing.assert_array_equal(found[:], matrix(A, None, None, memory_limit=LIMIT))


def test_a_line_that_was_torn_is_as_good_as_none(tmp_path, monkeypatch, solved):
    """Power fails in the middle of a write."""
    A, path = histograms(), tmp_path / "matrix.npy"
    with stopping_after(monkeypatch, 3):
        matrix(A, None, path, memory_limit=LIMIT)
    tiles = tmp_path / "matrix.npy.tiles"
    tiles.write_bytes(tiles.read_bytes()[:-9])
    solved.clear()
    found = matrix(A, None, path, memory_limit=LIMIT)
    assert len(solved) == 10 - 2
    np.testing.assert_array_equal(found, matrix(A, None, None, memory_limit=LIMIT))
    assert [json.loads(line) for line in tiles.read_text().splitlines()][0]["tiles"] == 10


def test_a_matrix_that_was_deleted_is_made_again(tmp_path):
    A, path = histograms(20), tmp_path / "matrix.npy"
    matrix(A, None, path)
    path.unlink()
    found = matrix(2 * A, None, path, eps=0.1)  # and may be another
    np.testing.assert_array_equal(found, matrix(2 * A, None, None, eps=0.1))


# Another job


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("finished", [False, True])
def test_two_jobs_are_never_mixed(tmp_path, monkeypatch, ending, finished):
    A, B, path = histograms(40), histograms(40, seed=1), tmp_path / f"matrix.{ending}"
    if finished:
        matrix(A, B, path, memory_limit=LIMIT)
    else:
        with stopping_after(monkeypatch, 2):
            matrix(A, B, path, memory_limit=LIMIT)
    before = held(tmp_path)
    changed = A.copy()
    changed[[7, 8]] = changed[[8, 7]]
    for call, said in [
        (lambda: matrix(A, B, path, memory_limit=LIMIT, eps=0.06), "begun with eps = 0.05; this call has 0.06"),
        (lambda: matrix(A, B, path, memory_limit=LIMIT, tol=1e-5), "tol = 0.001; this call has 1e-05"),
        (lambda: matrix(A, B, path, memory_limit=LIMIT, value="reg_cost"), "value = cost; this call has reg_cost"),
        (lambda: matrix(A, B, path, memory_limit=2 * LIMIT), "'memory_limit' sets"),
        (lambda: matrix(changed, B, path, memory_limit=LIMIT), "another 'A'"),
        (lambda: matrix(A, None, path, memory_limit=LIMIT), "another 'B'"),
        (lambda: matrix(A, B[:, ::-1].copy(), path, memory_limit=LIMIT), "another 'B'"),
        (
            lambda: cusink.distance_matrix(A, B, C * (1 + 1e-15), eps=0.05, tol=1e-3, out=path, memory_limit=LIMIT),
            "another 'C'",
        ),
    ]:
        with pytest.raises(ValueError, match="^'out' holds another job") as caught:
            call()
        assert said in str(caught.value)
    assert held(tmp_path) == before


def test_another_version_or_library_is_another_job(tmp_path, monkeypatch):
    A, path = histograms(20), tmp_path / "matrix.npy"
    matrix(A, None, path)
    monkeypatch.setattr(ledger, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=r"version = \S+; this call has 0\.0\.1"):
        matrix(A, None, path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_record_of_another_layout_is_refused(tmp_path, ending):
    """As 0.1.0 wrote it; nothing is touched, and the message says what to delete."""
    path, digest = tmp_path / f"matrix.{ending}", "0" * 64
    job = {
        "format": 1,
        "shape": [40, 40],
        "dtype": "float64",
        "inputs": {"A": digest, "B": None, "C": digest},
        "arguments": {"eps": 0.05, "max_iter": 1000, "tol": 0.001, "value": "cost"},
        "tile": [10, 10],
        "tiles": 10,
        "symmetric": True,
        "library": "numpy",
        "version": "0.1.0",
    }
    tile = {"at": [0, 0], "missed": 0, "worst": 0.0}
    part, tiles = (tmp_path / (path.name + suffix) for suffix in (".part", ".tiles"))
    tiles.write_text("".join(json.dumps(line) + "\n" for line in (job, tile)))
    part.write_bytes(b"an unfinished matrix")
    before = held(tmp_path)
    for version, age in ((1, "an older"), (99, "a newer")):
        tiles.write_text(tiles.read_text().replace('"format": 1,', f'"format": {version},'))
        with pytest.raises(ValueError, match=rf"begun by {age} version of cusink \(0\.1\.0\)") as caught:
            matrix(histograms(40), None, path, memory_limit=LIMIT)
        for said in ("Finish it with that version", f"'{tiles}'", f"'{part}'"):
            assert said in str(caught.value)
        tiles.write_text(tiles.read_text().replace(f'"format": {version},', '"format": 1,'))
    assert held(tmp_path) == before


@pytest.mark.parametrize(
    ("cost", "fingerprints"),
    [
        (np.array([[0.0, 1.0], [1.0, 0.0]]), ("07ce919f8631", "b5876c3ed193")),
        (cusink.PointCloud([0.0, 1.0]), ("07ce919f8631", "3794babdbaaf")),
        (cusink.Grid((2,)), ("07ce919f8631", "064a82ba6fe4")),
        (cusink.Grid((2, 2), "euclidean"), ("709549e91bc3", "c6d3e8cc5233")),
    ],
    ids=["array", "points", "grid", "distances"],
)
def test_a_fingerprint_changes_with_the_format_alone(cost, fingerprints):
    """Or else unfinished stores would become those of another job: when one changes, `ledger.FORMAT` must too."""
    A = np.tile([[0.5, 0.5], [0.25, 0.75]], cost.shape[0] // 2) / (cost.shape[0] // 2)
    pairs = check_collections(A, None, cost, eps=0.1, check=True)
    inputs = ledger.manifest(pairs, (1, 1), 1)["inputs"]
    assert (inputs["A"][:12], inputs["C"][:12]) == fingerprints and ledger.FORMAT == 2


def test_costs_that_are_not_stored_have_fingerprints():
    points = np.random.default_rng(0).random((16, 2))
    prints = set()
    for cost in (
        cusink.PointCloud(points),
        cusink.PointCloud(points, power=2),
        cusink.PointCloud(points[::-1]),
        cusink.PointCloud(points, metric="euclidean"),
        cusink.Grid((4, 4)),
        cusink.Grid((4, 4), spacing=2.0),
        cusink.Grid((2, 8)),
        cusink.Grid((4, 4), "euclidean"),
        cusink.Grid((4, 4), "euclidean", spacing=2.0),
        C,
    ):
        pairs = _tiles_of(cost)
        prints.add(json.dumps(ledger.manifest(pairs, (1, 1), 1)["inputs"]))
    assert len(prints) == 10


def _tiles_of(cost):
    return check_collections(histograms(3), None, cost, eps=0.1, check=True)


@pytest.mark.parametrize("name", ["matrix.npy", "matrix.npy.part", "matrix.zarr"])
def test_what_no_job_accounts_for_is_not_touched(tmp_path, name):
    """Someone else's file, under the name to be written or the one used on the way."""
    (tmp_path / name).write_text("someone else's")
    with pytest.raises(FileExistsError, match="'out' would overwrite"):
        matrix(histograms(20), None, tmp_path / name.removesuffix(".part"))
    assert held(tmp_path) == {name: b"someone else's"}


def test_a_record_that_is_damaged_is_not_guessed_at(tmp_path, monkeypatch):
    path = tmp_path / "matrix.npy"
    with stopping_after(monkeypatch, 3):
        matrix(histograms(), None, path, memory_limit=LIMIT)
    tiles = tmp_path / "matrix.npy.tiles"
    lines = tiles.read_bytes().splitlines(keepends=True)
    for number, damaged in (
        (1, [lines[0].replace(b'"format": 2', b'"format": "x"', 1), *lines[1:]]),
        (2, [lines[0], lines[1][:5] + b"\n", *lines[2:]]),
        (3, [lines[0], lines[1], b"[" * 100_000 + b"\n", *lines[2:]]),
        (4, [lines[0], lines[1], lines[1], b"\n", *lines[2:]]),
    ):
        assert damaged != lines
        tiles.write_bytes(b"".join(damaged))
        with pytest.raises(ValueError, match=f"damaged in line {number};"):
            matrix(histograms(), None, path, memory_limit=LIMIT)
    with pytest.raises(ValueError, match="null character"):
        matrix(histograms(), None, "a\0.npy")


def test_one_process_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "matrix.npy"
    with stopping_after(monkeypatch, 3):
        matrix(histograms(), None, path, memory_limit=LIMIT)
    other = ledger.Ledger(tmp_path / "matrix.npy.tiles")
    other.open()
    with pytest.raises(BlockingIOError, match="another process"):
        matrix(histograms(), None, path, memory_limit=LIMIT)
    other.close()
    matrix(histograms(), None, path, memory_limit=LIMIT)


# The disk


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a disk of `size` bytes at `folder`, and yield a function to resize it; skip where none may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_for_a_file_is_found_before_any_work(tmp_path, solved):
    with small_disk(tmp_path, 8_192) as resize:
        with pytest.raises(OSError, match="disk is full") as caught:
            matrix(histograms(), None, tmp_path / "matrix.npy")
        assert caught.value.errno == errno.ENOSPC and solved == [] and list(tmp_path.iterdir()) == []
        resize(100_000)
        found = matrix(histograms(), None, tmp_path / "matrix.npy")
        np.testing.assert_array_equal(found, matrix(histograms(), None, None))
        del found


def test_a_disk_that_fills_up_loses_no_finished_tile(tmp_path, solved):
    A = histograms()
    with small_disk(tmp_path, 49_152) as resize:
        path = tmp_path / "matrix.zarr"
        with pytest.raises(OSError, match=r"disk is full .* finished tiles are kept") as caught:
            matrix(A, None, path, memory_limit=LIMIT)
        assert caught.value.errno == errno.ENOSPC and not path.exists()
        kept = marked(path)
        assert 2 <= kept == len(solved) - 1
        with pytest.raises(OSError, match="disk is full"):  # and still is
            matrix(A, None, path, memory_limit=LIMIT)
        assert marked(path) == kept
        solved.clear()
        resize("1m")
        found = matrix(A, None, path, memory_limit=LIMIT)
        assert len(solved) == 10 - kept
        np.testing.assert_array_equal(found[:], matrix(A, None, None, memory_limit=LIMIT))
        assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_record_that_may_not_grow_loses_no_finished_tile(tmp_path, solved, ending):
    """The tile is on the disk, its mark does not fit: it is solved again. The limit cuts the line in two."""
    A, path = histograms(), tmp_path / f"matrix.{ending}"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with stop_growth_at(path, 4, hard), pytest.raises(OSError, match="may not grow") as caught:
            matrix(A, None, path, memory_limit=LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert marked(path) == 4 == len(solved) - 1
    assert Path(f"{path}.tiles").read_bytes().endswith(b"\n")
    solved.clear()
    found = matrix(A, None, path, memory_limit=LIMIT)
    assert len(solved) == 10 - 4
    np.testing.assert_array_equal(found[:], matrix(A, None, None, memory_limit=LIMIT))


@contextlib.contextmanager
def stop_growth_at(path, count, hard):
    """Let no file of this process grow beyond the size of the record after `count` tiles, and a few bytes."""
    original = ledger.Ledger.add

    def add(self, *args):
        if len(self.path.read_bytes().splitlines()) == count + 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.path.stat().st_size + 7, hard))
        original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger.Ledger, "add", add)
        yield


@pytest.fixture
def locked_folder():
    """Make a folder that this process may read and not write; root steps down for it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_folder_without_write_permission(locked_folder, solved, ending):
    with pytest.raises(PermissionError, match="'out'"):
        matrix(histograms(20), None, locked_folder / f"matrix.{ending}")
    assert solved == []


# Wrong names


class Encoded(os.PathLike):
    """A path of bytes."""

    def __init__(self, name):
        self.name = name

    def __fspath__(self):
        return self.name


@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        ("matrix.csv", ValueError, "must end in .npy or .zarr; got 'matrix.csv'"),
        ("no/matrix.npy", FileNotFoundError, "there is no 'no'"),
        ("a\0b.npy", ValueError, "with a null character"),
        ("a\ud800b.npy", ValueError, r"got a\ud800b.npy with the character '\ud800'"),
        ("n" * 300 + ".npy", ValueError, "File name too long"),
        (Encoded(b"matrix.npy"), TypeError, "must be a path of text; got one of bytes"),
    ],
)
def test_names_that_cannot_be(tmp_path, monkeypatch, out, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        matrix(histograms(5), None, out)
    assert str(caught.value).startswith("'out'") and said in str(caught.value).replace(" to be written to disk", "")
    assert list(tmp_path.iterdir()) == []


def test_reports_are_for_arrays(tmp_path):
    with pytest.raises(ValueError, match="'full_output' must be False"):
        matrix(histograms(5), None, tmp_path / "matrix.npy", full_output=True)


def test_zarr_is_asked_for_when_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    matrix(histograms(5), None, tmp_path / "matrix.npy")
    with pytest.raises(ImportError, match="needs Zarr; install it with pip install zarr, or"):
        matrix(histograms(5), None, tmp_path / "matrix.zarr")


# Memory, seen from outside


PEAK = """
import sys
import numpy as np, cusink, zarr

def resident(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

C = np.load("C.npy")
for out in ("first.npy", "first.zarr"):
    cusink.distance_matrix(np.eye(64)[:3], None, C, eps=0.1, out=out)
print(resident("VmRSS"), flush=True)
sys.stdin.readline()
A, B = np.load("A.npy", mmap_mode="r"), np.load("B.npy", mmap_mode="r")
for out in ("matrix.npy", "matrix.zarr"):
    cusink.distance_matrix(A, B, C, eps=0.1, tol=None, max_iter=2, memory_limit=4_000_000, out=out)
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the peak")
def test_peak_memory_is_that_of_the_limit_and_the_input(tmp_path):
    """Read from the kernel's account of another process. The inputs are memory maps: each page counts once."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "C.npy", problems.grid_cost(8, 8))
    for name, count in (("A", 4), ("B", 12_000)):
        np.save(tmp_path / f"{name}.npy", problems.histograms(rng, count, 64))
    inputs = sum((tmp_path / f"{name}.npy").stat().st_size for name in "ABC")
    process = subprocess.Popen(
        [sys.executable, "-c", PEAK],
        cwd=tmp_path,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(cusink.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        before = int(process.stdout.readline())
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        process.stdin.write("\n")
    print(f"peak {peak - before} of {4_000_000 + inputs}")
    assert 0 < peak - before <= 4_000_000 + inputs
