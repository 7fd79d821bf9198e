"""The command line: what it computes, what it says of bad input, and that it never leaves half a file."""

import contextlib
import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import problems
import pytest
import reference
from scipy import sparse
from scipy.spatial.distance import cdist

import cusink
from cusink.cli import arguments, files
from cusink.cli import commands as cli
from cusink.retrieval import tiles as retrieval_tiles

EPS = 0.05


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a current folder with queries.npy (3, 12), corpus.npz (4, 12) and cost.npy for a grid of 3 x 4 cells."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("queries.npy", problems.histograms(rng, 3, 12, zeros=0.3))
    np.savez("corpus.npz", problems.histograms(rng, 4, 12, zeros=0.3))
    np.save("cost.npy", problems.grid_cost(3, 4))
    return tmp_path


def command(text, name="distance-matrix"):
    """Run a command in this process with the words of `text`, and return its exit status."""
    return cli.main([name, *text.split()])


def oracle(A, B, C, value=0):
    return [[reference.optimum(a, b, C, EPS)[value] for b in B] for a in A]


def inputs():
    with np.load("corpus.npz") as corpus:
        return np.load("queries.npy"), corpus["arr_0"], np.load("cost.npy")


# What it computes


@pytest.mark.parametrize(("value", "index"), [("cost", 0), ("reg_cost", 1), ("entropic_cost", 2)])
def test_the_values_are_the_oracles(folder, capsys, value, index):
    assert command(f"queries.npy corpus.npz --cost cost.npy --eps {EPS} --tol 1e-10 --value {value} -o D.npy") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"D.npy: 3 x 4 float64, {value}, eps 0.05, ") and err == ""
    np.testing.assert_allclose(np.load("D.npy"), oracle(*inputs(), index), rtol=0, atol=1e-8)


def test_one_file_is_compared_with_itself(folder):
    assert command(f"corpus.npz --cost cost.npy --eps {EPS} --tol 1e-10 -o D.npy") == 0
    _, B, C = inputs()
    np.testing.assert_allclose(np.load("D.npy"), oracle(B, B, C), rtol=0, atol=1e-8)


def test_a_grid_is_its_cells_scaled_by_the_largest_cost(folder):
    A, B, _ = inputs()
    np.save("images.npy", A.reshape(3, 3, 4))
    cells = [(i, j) for i in range(3) for j in range(4)]
    C = np.array([[abs(p[0] - q[0]) + abs(p[1] - q[1]) for q in cells] for p in cells]) / 5
    line = f"--grid 3x4 --metric cityblock --scale-cost --eps {EPS} --tol 1e-10"
    assert command(f"images.npy corpus.npz:arr_0 {line} -o D.npy") == 0
    np.testing.assert_allclose(np.load("D.npy"), oracle(A, B, C), rtol=0, atol=1e-8)


def test_normalising_divides_each_histogram_by_its_mass(folder):
    A, B, C = inputs()
    np.save("queries.npy", np.round(1000 * A).astype(int))
    assert command(f"queries.npy corpus.npz --cost cost.npy --normalise --eps {EPS} --tol 1e-10 -o D.npy") == 0
    A = np.round(1000 * A) / np.round(1000 * A).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.load("D.npy"), oracle(A, B, C), rtol=0, atol=1e-8)


def test_masses_may_differ_where_they_have_a_price(folder):
    A = np.random.default_rng(6).random((3, 4))
    np.save("unequal.npy", A)
    command("unequal.npy --grid 4 --eps 0.5 --reach 2 --value reg_cost -o d.npy")
    wanted = cusink.distance_matrix(A, None, cusink.Grid(4), eps=0.5, tol=1e-6, reach=2.0, value="reg_cost")
    np.testing.assert_allclose(np.load("d.npy"), wanted, rtol=1e-6)


def test_precision_memory_and_progress_change_the_way_not_the_answer(folder, capsys):
    line = f"queries.npy corpus.npz --cost cost.npy --eps {EPS} --tol 1e-5"
    assert command(f"{line} --dtype float32 --memory-limit 1M --progress --device cpu -o D.npy") == 0
    assert "%|" in capsys.readouterr().err
    assert np.load("D.npy").dtype == np.float32
    np.testing.assert_allclose(np.load("D.npy"), oracle(*inputs()), rtol=0, atol=2e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same(folder, capsys):
    assert command(f"queries.npy corpus.npz --cost cost.npy --eps {EPS} --tol 1e-10 --device cuda -o D.npy") == 0
    assert capsys.readouterr().out.endswith(" on cuda\n")
    np.testing.assert_allclose(np.load("D.npy"), oracle(*inputs()), rtol=0, atol=1e-8)


def test_pairs_that_did_not_converge_are_told_by_the_exit_status(folder, capsys):
    assert command("queries.npy corpus.npz --cost cost.npy --eps 0.001 --max-iter 2 -o D.npy") == 3
    assert "cusink: warning: " in capsys.readouterr().err
    assert np.isfinite(np.load("D.npy")).all()


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("500M", 500 * 10**6), ("1.5GB", 1_500_000_000), ("2KiB", 2048), ("2k", 2000), ("1TiB", 2**40)],
)
def test_sizes(text, size):
    assert arguments.size(text) == size


# Bad input


def bad_files():
    rng = np.random.default_rng(1)
    good = problems.histograms(rng, 2, 12)
    np.save("bins.npy", good[:, :7])
    np.save("single.npy", good[0])
    np.save("none.npy", good[:0])
    np.save("heavy.npy", 2 * good)
    np.save("empty_row.npy", good * [[1], [0]])
    np.save("words.npy", np.array(["a", "b"]))
    np.save("complex.npy", good.astype(complex))
    np.save("objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    np.savez("objects.npz", np.array([{}, None], dtype=object))
    np.savez("several.npz", train=good, test=good)
    for name, value in {"negative": -0.5, "nan": np.nan, "infinite": np.inf}.items():
        changed = good.copy()
        changed[1, 3] = value
        np.save(f"{name}.npy", changed)
        changed[1, :3] = changed[1, 4:] = 0  # a sum that is no mass
        sparse.save_npz(f"{name}.npz", sparse.csr_array(changed))
    huge = good + [[0], [1e308]]
    np.save("huge.npy", huge)
    sparse.save_npz("huge.npz", sparse.csr_array(huge))
    Path("folder.zarr").mkdir()
    Path("text.npy").write_text("1 2 3\n")
    Path("cut.npy").write_bytes(Path("queries.npy").read_bytes()[:-9])
    Path("cut.npz").write_bytes(Path("corpus.npz").read_bytes()[:-9])
    Path("nothing.npy").touch()
    Path("folder.npy").mkdir()
    cost = problems.grid_cost(3, 4)
    np.save("zero_cost.npy", 0 * cost)
    np.save("oblong_cost.npy", cost[:, :7])
    cost[0, 1] = np.nan
    np.save("nan_cost.npy", cost)


GOOD_COST = "--cost cost.npy --eps 0.1 -o D.npy"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # Files
        (f"missing.npy {GOOD_COST}", ["missing.npy", "no such file"]),
        (f"queries.npy missing.npz:train {GOOD_COST}", ["missing.npz", "no such file"]),
        (f"folder.npy {GOOD_COST}", ["folder.npy", "cannot be read", "directory"]),
        (f"text.npy {GOOD_COST}", ["text.npy", "is not a .npy or .npz file", "numpy.save"]),
        (f"nothing.npy {GOOD_COST}", ["nothing.npy", "is not a .npy or .npz file"]),
        (f"cut.npy {GOOD_COST}", ["cut.npy", "is damaged"]),
        (f"cut.npz {GOOD_COST}", ["cut.npz", "is damaged"]),
        (f"objects.npy {GOOD_COST}", ["objects.npy", "pickled objects"]),
        (f"objects.npz {GOOD_COST}", ["objects.npz", "pickled objects"]),
        (f"several.npz {GOOD_COST}", ["several.npz", "must hold one array", "train, test"]),
        (f"several.npz:dev {GOOD_COST}", ["several.npz", "no array 'dev'", "train, test"]),
        (f"words.npy {GOOD_COST}", ["words.npy", "real numbers", "<U1"]),
        (f"complex.npy {GOOD_COST}", ["complex.npy", "real numbers", "complex128"]),
        # Histograms
        (f"bins.npy {GOOD_COST}", ["bins.npy", "(count, 12)", "the cost of shape (12, 12)", "got (2, 7)"]),
        (f"queries.npy bins.npy {GOOD_COST}", ["bins.npy", "(count, 12)", "got (2, 7)"]),
        (f"single.npy {GOOD_COST}", ["single.npy", "(count, 12)", "got (12,)"]),
        (f"none.npy {GOOD_COST}", ["none.npy", "(count, 12)", "got (0, 12)"]),
        ("queries.npy --grid 3x5 --eps 0.1 -o D.npy", ["queries.npy", "(count, 15)", "the grid 3x5", "got (3, 12)"]),
        (f"negative.npy {GOOD_COST}", ["negative.npy", "must not be negative", "-0.5 at row 1, bin 3", "Clip"]),
        (f"nan.npy {GOOD_COST}", ["nan.npy", "must be finite", "nan at row 1, bin 3"]),
        (f"infinite.npy {GOOD_COST}", ["infinite.npy", "must be finite", "inf at row 1, bin 3"]),
        (f"negative.npz --normalise {GOOD_COST}", ["negative.npz", "must not be negative", "-0.5 at row 1, bin 3"]),
        (f"nan.npz --normalise {GOOD_COST}", ["nan.npz", "must be finite", "nan at row 1, bin 3"]),
        (f"infinite.npz --normalise {GOOD_COST}", ["infinite.npz", "must be finite", "inf at row 1, bin 3"]),
        (f"huge.npy --normalise {GOOD_COST}", ["huge.npy", "weights must have a sum between", "got inf in row 1"]),
        (f"huge.npz --normalise {GOOD_COST}", ["huge.npz", "weights must have a sum between", "got inf in row 1"]),
        (f"empty_row.npy --normalise {GOOD_COST}", ["empty_row.npy", "some mass", "row 1 is 0", "Remove"]),
        (f"queries.npy heavy.npy {GOOD_COST}", ["heavy.npy", "one mass", "row 0 has 2", "has 1", "--normalise"]),
        # Cost
        ("queries.npy --eps 0.1 -o D.npy", ["--cost FILE", "--grid HxW"]),
        (f"queries.npy --grid 3x4 {GOOD_COST}", ["--cost FILE", "--grid HxW"]),
        (f"queries.npy --points cost.npy {GOOD_COST}", ["given once", "--points FILE"]),
        ("queries.npy --points cost.npy cost.npy --eps 0.1 -o D.npy", ["--points", "one collection", "one file"]),
        (f"queries.npy --metric euclidean {GOOD_COST}", ["--metric", "--grid", "leave it out"]),
        ("queries.npy --grid 3x4 --metric nearby --eps 0.1 -o D.npy", ["--metric", "nearby"]),
        ("queries.npy --grid 3,4 --eps 0.1 -o D.npy", ["--grid", "8x8", "got '3,4'"]),
        ("queries.npy --grid 0x4 --eps 0.1 -o D.npy", ["--grid", "positive", "got '0x4'"]),
        ("queries.npy --cost single.npy --eps 0.1 -o D.npy", ["single.npy", "(bins, bins)", "got (12,)"]),
        ("queries.npy --cost oblong_cost.npy --eps 0.1 -o D.npy", ["oblong_cost.npy", "(bins, bins)", "got (12, 7)"]),
        ("queries.npy --cost nan_cost.npy --eps 0.1 -o D.npy", ["nan_cost.npy", "+inf", "nan at (0, 1)"]),
        ("queries.npy --cost zero_cost.npy --scale-cost --eps 0.1 -o D.npy", ["--scale-cost", "positive entry"]),
        # Options
        ("queries.npy --cost cost.npy -o D.npy", ["required", "--eps"]),
        ("queries.npy --cost cost.npy --eps 0 -o D.npy", ["--eps", "positive number", "got '0'"]),
        ("queries.npy --cost cost.npy --eps inf -o D.npy", ["--eps", "positive number", "got 'inf'"]),
        (f"queries.npy --tol small {GOOD_COST}", ["--tol", "positive number", "got 'small'"]),
        (f"queries.npy --max-iter 2.5 {GOOD_COST}", ["--max-iter", "whole number", "got '2.5'"]),
        (f"queries.npy --memory-limit much {GOOD_COST}", ["--memory-limit", "500M", "got 'much'"]),
        (f"queries.npy --dtype float16 {GOOD_COST}", ["--dtype", "float16", "float32"]),
        (f"queries.npy --value emd {GOOD_COST}", ["--value", "emd", "reg_cost"]),
        (f"queries.npy --fast {GOOD_COST}", ["--fast"]),
        # Output
        ("queries.npy --cost cost.npy --eps 0.1 -o D.txt", ["--output", ".npy", "got 'D.txt'"]),
        ("queries.npy --cost cost.npy --eps 0.1 -o no/D.npy", ["--output", "no folder no", "make it"]),
        ("queries.npy --cost cost.npy --eps 0.1 -o folder.npy", ["--output", "folder.npy is a folder"]),
        ("queries.npy --cost cost.npy --eps 0.1 --force -o folder.zarr", ["--output", "folder.zarr", "no Zarr array"]),
        ("queries.npy --cost cost.npy --eps 0.1 -o heavy.npy", ["--output", "heavy.npy exists", "--force"]),
        (f"queries.npy --cost cost.npy --eps 0.1 -o {'n' * 300}.npy", ["--output", "file system", "too long"]),
        ("queries.npy --cost cost.npy --eps 0.1 --force -o cost.npy", ["--output", "one of the inputs"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, capsys, words, parts):
    bad_files()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert command(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cusink: ") and err.count("\n") == 1 and err.endswith("\n")
    position = 0
    for part in parts:
        position = err.find(part, position)
        assert position >= 0, f"{part!r} is not in its place in {err!r}"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_every_name_of_the_messages_exists(capsys):
    for name in ("distance-matrix", "nearest"):
        with pytest.raises(SystemExit, match="0"):
            command("--help", name)
        text = capsys.readouterr().out
        for option in ["--cost", "--grid", "--points", "--metric", "--scale-cost", "--normalise", "--memory-limit"]:
            assert option in text
        assert "Exit status" in text and "--force" in text


def test_cuda_without_cupy_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command(f"queries.npy --device cuda {GOOD_COST}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in ["--device cuda", "CuPy is not installed", "cuda12", "cuda13", "--device cpu"]:
        assert part in err
    assert command(f"queries.npy --device auto {GOOD_COST}") == 0
    assert capsys.readouterr().out.endswith(" on cpu\n")


def test_cuda_without_a_gpu_says_so(folder, capsys, monkeypatch):
    Path("cupy.py").write_text(
        "class cuda:\n    class runtime:\n        def getDeviceCount():\n"
        "            raise RuntimeError('no driver\\nat all')"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    try:
        assert command(f"queries.npy --device cuda {GOOD_COST}") == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "cannot use a GPU (no driver at all)" in err and "nvidia-smi" in err
        assert cli.choose_device("auto") == "cpu"
    finally:
        sys.modules.pop("cupy", None)


def test_what_the_library_refuses_is_one_line_too(folder, capsys, monkeypatch):
    assert command(f"queries.npy --memory-limit 9 {GOOD_COST}") == 2
    err = capsys.readouterr().err
    assert err.startswith("cusink: 'memory_limit' must be at least") and err.count("\n") == 1

    def refuse(*arrays, **options):
        raise MemoryError

    monkeypatch.setattr(cli, "distance_matrix", refuse)
    assert command(f"queries.npy {GOOD_COST}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "out of memory" in err and "--memory-limit" in err
    assert not list(folder.glob("*D.npy*"))


def test_errors_are_json_too(folder, capsys):
    assert command(f"missing.npy --json {GOOD_COST}") == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "missing.npy: there is no such file", "status": 2}
    assert err == "cusink: missing.npy: there is no such file\n"


# Half a file


def test_force_overwrites(folder):
    Path("D.npy").write_text("old")
    assert command(f"queries.npy --force {GOOD_COST}") == 0
    assert np.load("D.npy").shape == (3, 3)


KILLED = """
import os, pathlib, signal, sys
from cusink.cli.commands import main
left = [int(sys.argv.pop(1))]

def counted(move):
    def moved(source, target):
        if "cusink-" in f"{source}{target}" and pathlib.Path(target).name.startswith(("D.", "old")):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        move(source, target)
    return moved

os.rename, os.replace = counted(os.rename), counted(os.replace)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fcntl")
@pytest.mark.parametrize(("ending", "moves"), [("npy", 0), ("npy", 1), ("zarr", 0), ("zarr", 1), ("zarr", 2)])
def test_force_that_is_killed_at_any_rename_loses_no_matrix(folder, ending, moves):
    line = f"distance-matrix queries.npy --cost cost.npy --eps 0.1 -o D.{ending}".split()
    assert cli.main(line) == 0
    read = (lambda: np.load("D.npy")) if ending == "npy" else (lambda: zarr_array("D.zarr"))
    old = read()
    new = [word.replace("0.1", "0.2") for word in line]
    run = subprocess.run([sys.executable, "-c", KILLED, str(moves), *new, "--force"], check=False)
    assert run.returncode == -signal.SIGKILL and len(list(folder.glob(".cusink-*"))) == 1
    assert cli.main(new) == 2  # without --force: what there is, is looked at, and kept
    assert not list(folder.glob(".cusink-*"))
    replaced = moves == (1 if ending == "npy" else 2)
    assert (read() == old).all() == (not replaced)
    assert cli.main([*new, "--force"]) == 0 and not (read() == old).all()
    assert sorted(path.name for path in folder.iterdir() if "D." in path.name) == [f"D.{ending}", f"D.{ending}.tiles"]


def test_permissions_are_those_of_any_new_file(folder):
    Path("other").touch()
    assert command(f"queries.npy {GOOD_COST}") == 0
    assert Path("D.npy").stat().st_mode == Path("other").stat().st_mode


@contextlib.contextmanager
def fail_in_the_middle(monkeypatch, error, tiles):
    """Let the tile after `tiles` others end in `error`, within the real function."""
    original, left = retrieval_tiles.PairValues.tile, [tiles]

    def solve(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_tiles.PairValues, "tile", solve)
        yield


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("ending", ["npy", "zarr"])
def test_an_error_before_the_first_tile_leaves_nothing(folder, monkeypatch, ending, force):
    line = f"queries.npy --cost cost.npy --eps 0.1 -o D.{ending}"
    if force:
        assert command(line) == 0
    before = held(folder)
    with fail_in_the_middle(monkeypatch, RuntimeError("in the middle"), 0), pytest.raises(RuntimeError, match="middle"):
        command(f"{line} --force" if force else line)
    assert held(folder) == before


def held(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("ending", ["npy", "zarr"])
def test_the_same_command_goes_on_and_is_done_once(folder, monkeypatch, capsys, ending):
    line = f"corpus.npz --cost cost.npy --eps 0.1 --memory-limit 5k -o D.{ending}"  # tiles of 2 x 2
    with fail_in_the_middle(monkeypatch, cli.Interrupted(15), 1):
        assert command(line) == 143
    err = capsys.readouterr().err
    assert err == "cusink: interrupted; what is finished is kept, and the same command goes on\n"
    assert not Path(f"D.{ending}").exists() and len(Path(f"D.{ending}.tiles").read_text().splitlines()) == 2
    assert command(line) == 0
    with fail_in_the_middle(monkeypatch, RuntimeError, 0):
        assert command(line) == 0
    _, B, C = inputs()
    found = np.load("D.npy") if ending == "npy" else zarr_array(f"D.{ending}")
    np.testing.assert_array_equal(found, cusink.distance_matrix(B, None, C, eps=0.1, memory_limit=5000))
    capsys.readouterr()
    assert command(line.replace("0.1", "0.2")) == 2
    assert "another job" in capsys.readouterr().err
    assert command(line.replace("0.1", "0.2") + " --force") == 0
    found = np.load("D.npy") if ending == "npy" else zarr_array(f"D.{ending}")
    np.testing.assert_array_equal(found, cusink.distance_matrix(B, None, C, eps=0.2, memory_limit=5000))
    assert sorted(path.name for path in folder.glob("*D.*")) == [f"D.{ending}", f"D.{ending}.tiles"]


def zarr_array(name):
    import zarr

    return zarr.open_array(name, mode="r")[...]


def test_force_replaces_no_group_of_arrays(folder, capsys):
    zarr = pytest.importorskip("zarr")
    zarr.create_group("D.zarr").create_array("mine", data=np.arange(5.0))
    assert command("queries.npy --cost cost.npy --eps 0.1 -o D.zarr --force") == 2
    assert "no Zarr array" in capsys.readouterr().err
    np.testing.assert_array_equal(zarr.open_group("D.zarr", mode="r")["mine"][...], np.arange(5.0))


def test_what_appeared_meanwhile_is_not_overwritten(folder, capsys, monkeypatch):
    original = retrieval_tiles.PairValues.tile

    def appear(self, *args):
        Path("D.npy").write_text("someone else's")
        return original(self, *args)

    monkeypatch.setattr(retrieval_tiles.PairValues, "tile", appear)
    assert command(f"queries.npy {GOOD_COST}") == 2
    assert "would overwrite 'D.npy'" in capsys.readouterr().err
    assert Path("D.npy").read_text() == "someone else's"


def test_a_full_disk_is_one_line(folder, capsys):
    """No file may grow beyond 512 bytes: the kernel's own error."""
    np.save("many.npy", np.full((20, 12), 1 / 12))
    before = held(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        status = (
            command(f"many.npy {GOOD_COST}"),
            command("many.npy --cost cost.npy --eps 0.1 -k 9 -o N.npz", "nearest"),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == (4, 4)
    matrix, neighbours = capsys.readouterr().err.splitlines()
    assert matrix.startswith("cusink: --output: ") and "the disk is full or the file may not grow" in matrix
    assert neighbours == "cusink: --output: N.npz cannot be written: File too large"
    assert held(folder) == before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing_half_written(folder, name):
    rng = np.random.default_rng(0)
    np.save("many.npy", problems.histograms(rng, 3000, 64))
    Path("D.npy").write_text("old")
    before = sorted(folder.iterdir())
    line = "many.npy --grid 8x8 --scale-cost --eps 0.001 --tol 1e-9 --max-iter 100000 --force -o D.npy"
    process = subprocess.Popen(
        [sys.executable, "-m", "cusink", "distance-matrix", *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cusink.__file__).parents[1])},
    )
    try:
        end = time.monotonic() + 60
        while not list(folder.glob(".cusink-*/draft.npy.part")):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        time.sleep(0.5)  # into the solver
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + getattr(signal, name)
    assert out == "" and err == "cusink: interrupted; nothing was written\n"
    assert sorted(folder.iterdir()) == before and Path("D.npy").read_text() == "old"


# Other costs and files


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", ["points", "grid", "two clouds"])
def test_points_and_grids_stored_or_not(folder, monkeypatch, kind, stored, scale):
    """A cost too large to be stored is recreated, with the same distances."""
    monkeypatch.setattr(files, "STORED", 10**6 if stored else 1)
    cells = np.indices((3, 4)).reshape(2, -1).T.astype(float)
    other = cells if kind != "two clouds" else cells + 0.25
    np.save("x.npy", cells)
    np.save("y.npy", other)
    words = {"points": "--points x.npy", "grid": "--grid 3x4", "two clouds": "--points x.npy y.npy"}[kind]
    C = ((cells[:, None] - other) ** 2).sum(axis=-1)
    eps, C = (EPS, C / C.max()) if scale else (EPS * C.max(), C)
    line = f"queries.npy corpus.npz {words} {'--scale-cost' if scale else ''} --tol 1e-10 --eps {eps} -o D.npy"
    assert command(line) == 0
    A, B, _ = inputs()
    want = [[reference.optimum(a, b, C, eps)[0] for b in B] for a in A]
    np.testing.assert_allclose(np.load("D.npy"), want, rtol=1e-7)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_points_have_the_scaled_costs_and_store_none(folder, monkeypatch, metric, dtype):
    monkeypatch.setattr(files, "STORED", 20)  # blocks of two rows
    rng = np.random.default_rng(3)
    x, y = ((metric != "cosine") * 100 + rng.random((count, 3)) for count in (7, 9))
    np.save("x.npy", x)
    np.save("y.npy", y)
    for words, other in (("x.npy", x), ("x.npy y.npy", y)):
        line = f"distance-matrix A.npy B.npy --points {words} --metric {metric} --scale-cost --eps 1 -o D.npy"
        given = cli.make_parser().parse_args(line.split())
        C, _ = files.cost(given, np.dtype(dtype), sparse=False)
        assert isinstance(C, cusink.PointCloud)
        want = cdist(x, other, metric)
        error = 400 * np.finfo(dtype).eps  # that of coordinates near 100
        np.testing.assert_allclose(C.dense(), want / want.max(), rtol=0, atol=error)
        assert C.dense().dtype == dtype


def test_points_in_one_place_have_no_scale(folder, monkeypatch, capsys):
    monkeypatch.setattr(files, "STORED", 1)
    np.save("x.npy", np.ones((12, 2)))
    assert command("queries.npy --points x.npy --scale-cost --eps 1 -o D.npy") == 2
    assert "--scale-cost: the cost must have a positive entry" in capsys.readouterr().err


def test_a_metric_that_has_to_be_stored(folder, monkeypatch, capsys):
    """Stored whatever its size; where it does not fit, the message names the metrics that are not."""
    monkeypatch.setattr(files, "STORED", 1)
    line = f"queries.npy corpus.npz --grid 3x4 --metric chebyshev --eps {EPS} --tol 1e-10 -o D.npy"
    assert command(line) == 0
    A, B, _ = inputs()
    cells = np.indices((3, 4)).reshape(2, -1).T
    np.testing.assert_allclose(np.load("D.npy"), oracle(A, B, cdist(cells, cells, "chebyshev")), rtol=0, atol=1e-8)

    def refuse(*points, metric):
        raise MemoryError

    monkeypatch.setattr(files, "cost_matrix", refuse)
    assert command(f"{line} --force") == 2
    err = capsys.readouterr().err
    assert "12 x 12 costs do not fit into memory" in err and "--metric chebyshev" in err and "euclidean" in err


def test_zarr_is_read_and_written(folder, capsys):
    import zarr

    A, B, C = inputs()
    zarr.save_array("queries.zarr", A)
    zarr.create_group("sets.zarr").create_array("corpus", data=B)
    line = f"sets.zarr:corpus --cost cost.npy --eps {EPS} --tol 1e-10 -o D.zarr"
    assert command(f"queries.zarr {line}") == 0
    np.testing.assert_allclose(zarr_array("D.zarr"), oracle(A, B, C), rtol=0, atol=1e-8)
    capsys.readouterr()
    Path("empty.zarr").mkdir()
    for name, said in [
        ("sets.zarr", "is a Zarr group"),
        ("sets.zarr:none", "has no array 'none'"),
        ("empty.zarr", "is not a Zarr array"),
    ]:
        assert command(f"{name} {line.split(' ', 1)[1]} --force") == 2
        assert said in capsys.readouterr().err


def test_sparse_documents_over_words_at_points(folder, capsys):
    import scipy.sparse

    A, B, _ = inputs()
    words = np.random.default_rng(1).random((12, 3))
    np.save("words.npy", words)
    for name, x in (("A.npz", A), ("B.npz", 3 * B)):
        scipy.sparse.save_npz(name, scipy.sparse.csr_array(x))
    C = ((words[:, None] - words) ** 2).sum(axis=-1)
    assert command(f"A.npz B.npz --points words.npy --normalise --tol 1e-10 --eps {EPS} -o D.npy") == 0
    np.testing.assert_allclose(np.load("D.npy"), oracle(A, B, C), rtol=0, atol=1e-8)
    assert command(f"A.npz B.npz --points words.npy --eps {EPS} --force -o D.npy") == 2
    assert "B.npz: all histograms must have one mass" in capsys.readouterr().err
    assert command(f"A.npz --cost A.npz --eps {EPS} --force -o D.npy") == 2
    assert "A.npz: must be a dense array; got a sparse matrix" in capsys.readouterr().err


def test_empty_documents_have_no_distance(folder, capsys):
    import scipy.sparse

    A, B, C = inputs()
    A = np.vstack([0 * A[:1], A[:2]])
    for name, x in (("A.npz", A), ("B.npz", B), ("none.npz", 0 * A), ("heavy.npz", A * [[1], [1], [2]])):
        scipy.sparse.save_npz(name, scipy.sparse.csr_array(x))
    line = f"--cost cost.npy --tol 1e-10 --eps {EPS}"
    for normalise in ("", "--normalise"):
        assert command(f"A.npz B.npz {line} {normalise} --force -o D.npy") == 0
        assert "NaN for 'A' row 0" in capsys.readouterr().err
        found = np.load("D.npy")
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1:], oracle(A[1:], B, C), rtol=0, atol=1e-8)
    assert command(f"heavy.npz {line} -o E.npy") == 2
    assert "row 2 has 2, row 1 of heavy.npz has 1. Pass --normalise" in capsys.readouterr().err
    assert command(f"none.npz B.npz {line} -o E.npy") == 0
    assert np.isnan(np.load("E.npy")).all()
    capsys.readouterr()
    assert command(f"A.npz B.npz {line} --json -k 2", "nearest") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # NaN is not JSON
    assert told["distances"][0] == [None, None] and None not in told["distances"][1]


# Neighbours


def test_neighbours_are_those_of_the_matrix(folder, capsys):
    A, B, C = inputs()
    want = cusink.distance_matrix(A, B, C, eps=EPS)
    order = np.argsort(want, axis=1, kind="stable")[:, :2]
    line = f"queries.npy corpus.npz --cost cost.npy --eps {EPS} -k 2"
    assert command(f"{line} -o N.npz", "nearest") == 0
    assert capsys.readouterr().out.startswith("N.npz: 2 of 4 for 3, cost, eps 0.05, ")
    with np.load("N.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["indices"], order)
        np.testing.assert_allclose(found["distances"], np.take_along_axis(want, order, axis=1), rtol=1e-6)
    assert command(line, "nearest") == 0
    out, err = capsys.readouterr()
    first = ", ".join(f"{j} ({want[0, j]:.6g})" for j in order[0])
    assert out.splitlines()[0] == f"0: {first}" and len(out.splitlines()) == 3 and " on cpu" in err
    assert command(f"{line} --json --no-prune", "nearest") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["indices"] == order.tolist() and told["pairs_solved"] == 12 and told["converged"] is True
    assert command(f"{line} -o N.npz", "nearest") == 2
    assert "N.npz exists" in capsys.readouterr().err
    assert command(f"{line} -o N.npz --force", "nearest") == 0


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_queries_of_an_index_are_weights_before_they_are_normalised(folder, capsys, ending):
    bad_files()
    sparse.save_npz("good.npz", sparse.csr_array(np.load("queries.npy")))
    corpus = "queries.npy" if ending == "npy" else "good.npz"
    assert command(f"build {corpus} --cost cost.npy --eps 0.1 -o one.index", "index") == 0
    for name, said in (("negative", "not be negative; got -0.5"), ("infinite", "be finite"), ("huge", "have a sum")):
        assert command(f"search one.index {name}.{ending} --normalise -k 2", "index") == 2
        out, err = capsys.readouterr()
        assert f"{name}.{ending}: weights must {said}" in err and err.count("\n") == 1


def test_an_index_is_built_and_searched(folder, capsys):
    A, B, C = inputs()
    B = np.concatenate([B, np.random.default_rng(1).dirichlet(np.ones(12), 40)])
    np.save("many.npy", 3 * B)
    np.save("images.npy", 7 * A.reshape(3, 3, 4))
    want = cusink.nearest(A, B, C, k=2, eps=EPS, value="reg_cost")
    build = f"build many.npy --cost cost.npy --eps {EPS} --value reg_cost --normalise -o many.index"
    assert command(build, "index") == 0
    assert capsys.readouterr().out.startswith("many.index: an index of 44 items, float64, reg_cost, eps 0.05, ")
    np.testing.assert_array_equal(cusink.Index.load("many.index").search(A, 2)[1], want[1])
    search = "search many.index images.npy -k 2"  # an index of normalised items normalises queries
    assert command(f"{search} -o N.npz", "index") == 0
    with np.load("N.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["indices"], want[1])
        np.testing.assert_allclose(found["distances"], want[0], rtol=1e-9)
        assert set(found.files) == {"distances", "indices"}
    capsys.readouterr()
    assert command(f"{search} --solve-at-most 3 --json", "index") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs_solved"] <= 9 and told["shape"] == [3, 44] and told["value"] == "reg_cost" and told["eps"] == EPS
    assert len(told["proved"]) == len(told["undercut"]) == 3
    assert command("search many.index -k 1 --solve-at-most 9 -o own.npz", "index") == 0
    with np.load("own.npz", allow_pickle=False) as own:
        assert own["indices"].shape == (44, 1) and own["proved"].dtype == bool and own["undercut"].shape == (44,)
    capsys.readouterr()
    for line, message in (
        (build, "many.index exists"),
        (build.replace("many.index", "n" * 300), "File name too long"),
        (f"{build}.other --points cost.npy", "the cost must be given once"),
        ("search none.index queries.npy -k 2", "there is no"),
        ("search many.index queries.npy -k 45", "got 45"),
        ("search many.index cost.npy -k 2 -o N.npz", "N.npz exists"),
        ("search many.index none.npy -k 2", "none.npy: there is no such file"),
    ):
        assert command(line, "index") == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
    assert command(f"{build} --force", "index") == 0
    description = Path("many.index/index.json")
    description.write_text(description.read_text().replace('"eps": 0.05', '"eps": 0.06'))
    assert command(search, "index") == 2
    assert "is damaged" in capsys.readouterr().err


def test_more_neighbours_than_there_are(folder, capsys):
    assert command("queries.npy corpus.npz --cost cost.npy --eps 0.1 -k 9", "nearest") == 2
    assert "'k' must be" in capsys.readouterr().err


# For machines, and about the machine


def test_json_tells_the_outcome(folder, capsys):
    assert command("queries.npy corpus.npz --cost cost.npy --eps 0.001 --max-iter 2 --json -o D.npy") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["output"] == "D.npy" and told["shape"] == [3, 4] and told["converged"] is False
    assert len(told["warnings"]) == 1 and told["device"] == "cpu" and told["seconds"] > 0


def test_info_tells_versions_device_kernels_and_launches(capsys):
    import scipy

    from cusink.backends.cupy import loader
    from cusink.backends.cupy.launch import H100, configure

    assert command("--json --pairs 100x1697 --bins 64 --dtype float32", "info") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cusink"] == cusink.__version__ and told["packages"]["scipy"] == scipy.__version__
    assert set(told["kernels"]["files"]) == set(loader.kernel_files())
    problem = told["problem"]
    assert problem["tile"] == [128, 1024]
    if told["device"] is None:
        assert told["no_device"] and problem["launches_on"] == "an H100"
        assert problem["launches"]["softmin"] == configure("softmin", 1024, 64, 64, "float32", H100)._asdict()
    assert command("--pairs 100x1000", "info") == 0
    out = capsys.readouterr().out
    assert f"cusink {cusink.__version__}" in out and "softmin_rows" in out and "tiles of 128x1024 pairs" in out
    assert command("--bins 2000", "info") == 0
    assert "iterate: does not fit into shared memory" in capsys.readouterr().out


def test_info_tells_launches_where_a_problem_is_given(capsys):
    assert command("", "info") == 0
    out = capsys.readouterr().out
    assert f"cusink {cusink.__version__}" in out and "kernels:" in out
    assert "launches" not in out and "tiles" not in out
    assert "scikit-learn" in out and "POT" in out and "threadpoolctl" in out
    for words in ("--pairs 10x20", "--bins 30", "--dtype float64"):
        assert command(words, "info") == 0
        assert "launches of a row" in capsys.readouterr().out
    for words in ("--pairs 10", "--bins 1x2x3"):
        assert command(words, "info") == 2
        assert "--pairs must be two numbers" in capsys.readouterr().err


def test_info_where_cupy_cannot_be_imported(tmp_path):
    code = "import sys; sys.modules['cupy'] = None; from cusink.cli import main; sys.exit(main(['info']))"
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "the CPU. CuPy is not installed: pip install" in answer.stdout


def test_without_a_command_it_says_what_there_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([])
    out = capsys.readouterr().out
    assert all(name in out for name in ("distance-matrix", "nearest", "info", "--help"))
    assert cli.main(["distances"]) == 2
    assert capsys.readouterr().err.startswith("cusink: argument COMMAND: invalid choice: 'distances'")


def test_it_is_installed_as_a_command():
    installed = [
        entry
        for distribution in importlib.metadata.distributions(name="cusink")
        for entry in distribution.entry_points.select(group="console_scripts")
    ]
    assert {entry.name for entry in installed} == {"cusink"} and installed[0].load() is cli.main
