"""Matrices on disk that were changed, replaced or are somebody else's: refused in a sentence, never returned."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import problems
import pytest
import zarr

import cusink
from cusink.retrieval import tiles as retrieval_tiles
from cusink.retrieval.storage import ledger

C = problems.grid_cost(4, 4)
LIMIT = 60_004  # tiles of 10 x 10 pairs
FORMATS = ["npy", "zarr"]
A = problems.histograms(np.random.default_rng(0), 40, 16, 0.4)
B = problems.histograms(np.random.default_rng(1), 33, 16, 0.4)


def matrix(out, other=None, **options):
    """Make the matrix of A with itself or another collection, in tiles of 10 x 10 pairs."""
    return cusink.distance_matrix(A, other, C, out=out, **({"eps": 0.05, "tol": 1e-3, "memory_limit": LIMIT} | options))


def held(folder):
    """Every byte under a folder, by file, and what links lead to."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def stop_after(count, path, other=None):
    """Begin a matrix, and stop it before the tile after `count` others."""
    original, left = retrieval_tiles.PairValues.tile, [count]

    def solve(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval_tiles.PairValues, "tile", solve)
        with pytest.raises(KeyboardInterrupt):
            matrix(path, other)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a folder with a matrix in both formats: of A with itself and with B, unfinished and finished."""
    folder = tmp_path_factory.mktemp("made")
    for ending in FORMATS:
        for name, other in (("itself", None), ("other", B)):
            for state in ("finished", "unfinished"):
                (folder / ending / name / state).mkdir(parents=True)
                path = folder / ending / name / state / f"matrix.{ending}"
                if state == "finished":
                    matrix(path, other)
                else:
                    stop_after(6, path, other)
    return folder


@pytest.fixture
def begun(made, tmp_path):
    """Return a function that copies one of these to `tmp_path`, and returns its path and the file it is in so far."""

    def copy(ending, finished, other=None):
        name = "itself" if other is None else "other"
        shutil.copytree(made / ending / name / ("finished" if finished else "unfinished"), tmp_path, dirs_exist_ok=True)
        path = tmp_path / f"matrix.{ending}"
        return path, path if finished else path.with_name(path.name + ".part")

    return copy


def refused(path, other=None, said="is damaged", error=ValueError):
    """Check that a call is refused in one line that names a file to delete, and leaves every byte as it was."""
    before = held(path.parent)
    with pytest.raises(error, match=said) as caught:
        matrix(path, other)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and ("Delete" in message or "delete" in message), message
    assert held(path.parent) == before


def rewrite(path, change):
    """Replace a .npy file by what `change` makes of its array."""
    array = change(np.load(path))
    path.unlink()
    with open(path, "wb") as file:  # `numpy.save` would add an ending to the name
        np.save(file, array, allow_pickle=False)


CHANGES = {
    "another shape": lambda x: x[:-1],
    "zeros": np.zeros_like,
    "another dtype": lambda x: x.astype(np.float32),
    "Fortran order": np.asfortranarray,
    "the other byte order": lambda x: x.astype(">f8"),
    "one value": lambda x: x + 1e-13 * (np.arange(x.size).reshape(x.shape) == 7),
    "one value of a mirror image": lambda x: x + 1e-13 * (np.arange(x.size).reshape(x.shape) == 20 * x.shape[1] + 7),
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_npy_file_that_was_changed_is_refused(begun, change, finished):
    other = B if change == "Fortran order" else None
    path, where = begun("npy", finished, other)
    rewrite(where, CHANGES[change])
    refused(path, other)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY\x01\x00v\x00{'descr': ", b"PK\x03\x04", b"not a matrix", "cut", "longer"]
)
def test_a_file_that_is_no_npy_file_is_refused(begun, content, finished):
    path, where = begun("npy", finished)
    whole = where.read_bytes()
    where.write_bytes({"cut": whole[:-8], "longer": whole + b"0" * 8}.get(content, content))
    refused(path)


def test_pickled_objects_are_never_read(begun):
    path, _ = begun("npy", True)

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was read",)

    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)
    refused(path)


def zarr_changes(path, change):
    """Damage the Zarr array of a job at `path`."""
    chunk = path / "c" / "0" / "0"
    if change == "a chunk deleted":
        chunk.unlink()
    elif change == "a chunk cut":
        chunk.write_bytes(chunk.read_bytes()[:-8])
    elif change == "a chunk of zeros":
        chunk.write_bytes(bytes(chunk.stat().st_size))
    elif change == "a mirror image":
        chunk = path / "c" / "1" / "0"
        chunk.write_bytes(chunk.read_bytes()[::-1])
    elif change == "no metadata":
        (path / "zarr.json").unlink()
    elif change == "torn metadata":
        (path / "zarr.json").write_text('{"shape": ')
    elif change == "attributes":
        zarr.open_array(path).attrs["cusink"] = {}
    else:
        shape, chunks = ((40, 39), (10, 10)) if change == "another shape" else ((40, 40), (20, 10))
        zarr.create_array(path, shape=shape, chunks=chunks, dtype="f8", overwrite=True)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        "a chunk deleted",
        "a chunk cut",
        "a chunk of zeros",
        "a mirror image",
        "no metadata",
        "torn metadata",
        "attributes",
        "another shape",
        "other chunks",
    ],
)
def test_a_zarr_array_that_was_changed_is_refused(begun, change, finished):
    path, where = begun("zarr", finished)
    zarr_changes(where, change)
    refused(path)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_the_message_names_the_tile(begun, ending, finished):
    path, where = begun(ending, finished)
    array = np.load(where, mmap_mode="r+") if ending == "npy" else zarr.open_array(where)
    array[3, 15] = 0.5
    del array
    refused(path, said=r"rows 0 to 9 of columns 10 to 19 are not as they were written")


def test_a_record_that_was_changed_is_refused(begun):
    path, _ = begun("npy", True)
    record = path.with_name("matrix.npy.tiles")
    whole = record.read_text()
    first, second, *_ = whole.splitlines()
    for change in (
        whole.replace('"missed": 0', '"missed": 1', 1),
        whole.replace('"at": [0, 0]', '"at": [0, 5]'),
        whole.replace('"at": [0, 0]', '"at": null'),
        whole.replace(second, "[]"),
        whole.replace(second, second[:9]),
        whole.replace(first, first[:30]),
        whole.replace('"inputs": {', '"inputs": 0, "other": {'),
    ):
        assert change != whole
        record.write_text(change)
        refused(path)
    record.write_text(whole)
    np.testing.assert_array_equal(matrix(path), matrix(None))


@pytest.mark.parametrize("content", ["[]", "[]\n", "{}\n", "notes", "notes\nof mine\n", "\0\0\0"])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_record_that_is_somebody_else_s_is_not_touched(tmp_path, ending, content):
    path = tmp_path / f"matrix.{ending}"
    (tmp_path / f"matrix.{ending}.tiles").write_text(content)
    refused(path, said="would overwrite .* not the record", error=FileExistsError)


@pytest.mark.parametrize("name", ["matrix.npy", "matrix.npy.part", "matrix.npy.tiles"])
def test_nothing_is_written_through_a_link_to_nothing(tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    refused(tmp_path / "matrix.npy", said="symbolic link|would overwrite", error=(FileNotFoundError, FileExistsError))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("ending", FORMATS)
def test_a_link_to_a_matrix_is_the_matrix(tmp_path, ending):
    (tmp_path / "disk").mkdir()
    path, link = tmp_path / "disk" / f"matrix.{ending}", tmp_path / f"link.{ending}"
    want = matrix(path)[:]
    link.symlink_to(path)
    before = held(tmp_path)
    np.testing.assert_array_equal(matrix(link)[:], want)
    with pytest.raises(ValueError, match="holds another job"):
        matrix(link, eps=0.1)
    assert held(tmp_path) == before and link.is_symlink()


def test_a_foreign_file_that_takes_the_place_of_a_matrix_is_not_touched(begun):
    path, part = begun("npy", False)
    np.save(path, np.zeros((40, 40)))
    refused(path, said="would overwrite", error=FileExistsError)
    part.unlink()
    refused(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_run_that_was_killed_before_its_first_tile_begins_again(begun, ending):
    path, part = begun(ending, False)
    record = path.with_name(f"matrix.{ending}.tiles")
    record.write_text(record.read_text().splitlines()[0] + "\n")
    if ending == "npy":
        part.write_bytes(part.read_bytes()[:50])
    else:
        (part / "zarr.json").unlink()
    np.testing.assert_array_equal(matrix(path)[:], matrix(None))
    assert not part.exists()


def test_a_record_that_is_deleted_while_another_process_waits_is_no_lock(tmp_path, monkeypatch):
    """Or else two processes would hold one store, each its own file of one name."""
    path = tmp_path / "matrix.npy.tiles"
    flock, taken = ledger.fcntl.flock, []

    def give_up_first(file, how):
        if not taken:
            path.unlink()
        taken.append(file)
        flock(file, how)

    monkeypatch.setattr(ledger.fcntl, "flock", give_up_first)
    ours, theirs = ledger.Ledger(path), ledger.Ledger(path)
    ours.open()
    assert len(taken) == 2 and path.exists()
    with pytest.raises(BlockingIOError, match="another process"):
        theirs.open()
    ours.close()


WRITER = """
import sys, time
import numpy as np, cusink
A, C = np.load("A.npy"), np.load("C.npy")
while True:
    try:
        found = cusink.distance_matrix(A, None, C, eps=0.05, tol=1e-3, memory_limit=60_004, out=sys.argv[1])
        break
    except BlockingIOError:
        print("waited", flush=True)
        time.sleep(0.002)
sys.stdout.write(__import__("hashlib").sha256(np.ascontiguousarray(found[:])).hexdigest())
"""

# With a pause after each tile, so that there is a middle, however fast the work and busy the machine.
UNHURRIED = f"""
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is started without
from cusink.retrieval.storage.ledger import Ledger
add = Ledger.add
Ledger.add = lambda *tile: (add(*tile), time.sleep(0.1))
{WRITER}"""


def processes(folder, code, *arguments, count=1):
    """Start Python on `code` in a folder that holds A.npy and C.npy."""
    np.save(folder / "A.npy", A)
    np.save(folder / "C.npy", C)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(cusink.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_processes_that_write_one_store_write_it_once(tmp_path, ending):
    """All end with the same bytes, whichever of them was first; the others were told to wait, or found it complete."""
    answers = [process.communicate(timeout=60) for process in processes(tmp_path, WRITER, f"M.{ending}", count=3)]
    assert all(err == "" for _, err in answers), answers
    assert len({out.splitlines()[-1] for out, _ in answers}) == 1
    np.testing.assert_array_equal(matrix(tmp_path / f"M.{ending}")[:], matrix(None))
    record = (tmp_path / f"M.{ending}.tiles").read_text().splitlines()
    assert len({str(json.loads(line).get("at")) for line in record}) == len(record) == 11


@pytest.mark.parametrize("ending", FORMATS)
def test_an_interrupt_keeps_what_is_finished(tmp_path, ending):
    """Ctrl-C in the middle of the work, wherever that is: the same call goes on, to the same bytes."""
    record = tmp_path / f"M.{ending}.tiles"
    for count in (2, 5):  # lines of the record
        (process,) = processes(tmp_path, UNHURRIED, f"M.{ending}")
        end = time.monotonic() + 60
        while (record.read_bytes().count(b"\n") if record.exists() else 0) < count:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        assert record.read_bytes().count(b"\n") >= count
    np.testing.assert_array_equal(matrix(tmp_path / f"M.{ending}")[:], matrix(None))
