"""The commands of scripts/: what they compute, what they say of bad input, and that they never leave half a file."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import problems
import pytest
import reference

import cusink

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import distance_matrix  # noqa: E402
import retrieve_digits  # noqa: E402

EPS = 0.05


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with queries.npy (3, 12), corpus.npz (4, 12) and cost.npy for a grid of 3 x 4 cells."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("queries.npy", problems.histograms(rng, 3, 12, zeros=0.3))
    np.savez("corpus.npz", problems.histograms(rng, 4, 12, zeros=0.3))
    np.save("cost.npy", problems.grid_cost(3, 4))
    return tmp_path


def command(text):
    """Run ``distance_matrix.py`` in this process with the words of `text`, and return its exit status."""
    return distance_matrix.main(text.split())


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
    assert "distance_matrix: warning: " in capsys.readouterr().err
    assert np.isfinite(np.load("D.npy")).all()


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("500M", 500 * 10**6), ("1.5GB", 1_500_000_000), ("2KiB", 2048), ("2k", 2000), ("1TiB", 2**40)],
)
def test_sizes(text, size):
    assert distance_matrix._bytes(text) == size


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
        (f"empty_row.npy --normalise {GOOD_COST}", ["empty_row.npy", "some mass", "row 1 is 0", "Remove"]),
        (f"queries.npy heavy.npy {GOOD_COST}", ["heavy.npy", "one mass", "row 0 has 2", "has 1", "--normalise"]),
        # Cost
        ("queries.npy --eps 0.1 -o D.npy", ["--cost FILE", "--grid HxW"]),
        (f"queries.npy --grid 3x4 {GOOD_COST}", ["--cost FILE", "--grid HxW"]),
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
        ("queries.npy --cost cost.npy --eps 0.1 -o heavy.npy", ["--output", "heavy.npy exists", "--force"]),
        ("queries.npy --cost cost.npy --eps 0.1 --force -o cost.npy", ["--output", "one of the inputs"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, capsys, words, parts):
    bad_files()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert command(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("distance_matrix: ") and err.count("\n") == 1 and err.endswith("\n")
    position = 0
    for part in parts:
        position = err.find(part, position)
        assert position >= 0, f"{part!r} is not in its place in {err!r}"
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_every_name_of_the_messages_exists(capsys):
    with pytest.raises(SystemExit, match="0"):
        command("--help")
    text = capsys.readouterr().out
    for option in ["--cost", "--grid", "--metric", "--scale-cost", "--normalise", "--force", "--memory-limit"]:
        assert option in text


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
        assert distance_matrix.choose_device("auto") == "cpu"
    finally:
        sys.modules.pop("cupy", None)


def test_what_the_library_refuses_is_one_line_too(folder, capsys, monkeypatch):
    monkeypatch.setattr(cusink, "distance_matrix", refuse(ValueError("'memory_limit' must be\nat least 9")))
    assert command(f"queries.npy {GOOD_COST}") == 2
    assert capsys.readouterr().err == "distance_matrix: 'memory_limit' must be at least 9\n"
    monkeypatch.setattr(cusink, "distance_matrix", refuse(MemoryError()))
    assert command(f"queries.npy {GOOD_COST}") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "out of memory" in err and "--memory-limit" in err
    assert not list(folder.glob("*D.npy*"))


def refuse(error):
    def refusing(*arrays, **options):
        raise error

    return refusing


# Half a file


def test_force_overwrites(folder):
    Path("D.npy").write_text("old")
    assert command(f"queries.npy --force {GOOD_COST}") == 0
    assert np.load("D.npy").shape == (3, 3)


def test_permissions_are_those_of_any_new_file(folder):
    Path("other").touch()
    assert command(f"queries.npy {GOOD_COST}") == 0
    assert Path("D.npy").stat().st_mode == Path("other").stat().st_mode


def test_an_error_in_the_middle_leaves_nothing(folder, monkeypatch):
    def fail(A, B, C, out, **options):
        assert list(folder.glob(".D.npy.*.part"))
        out[0] = 1
        raise RuntimeError("in the middle")

    monkeypatch.setattr(cusink, "distance_matrix", fail)
    before = sorted(folder.iterdir())
    with pytest.raises(RuntimeError, match="in the middle"):
        command(f"queries.npy {GOOD_COST}")
    assert sorted(folder.iterdir()) == before


def test_what_appeared_meanwhile_is_not_overwritten(folder, capsys, monkeypatch):
    def appear(A, B, C, out, **options):
        Path("D.npy").write_text("someone else's")

    monkeypatch.setattr(cusink, "distance_matrix", appear)
    assert command(f"queries.npy {GOOD_COST}") == 2
    assert "meanwhile" in capsys.readouterr().err
    assert Path("D.npy").read_text() == "someone else's" and not list(folder.glob(".D.npy*"))


def test_a_full_disk_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", refuse(OSError(errno.ENOSPC, "No space left on device")), raising=False)
    assert command(f"queries.npy {GOOD_COST}") == 2
    assert capsys.readouterr().err == "distance_matrix: --output: D.npy cannot be written: No space left on device\n"
    assert not list(folder.glob("*D.npy*"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing_half_written(folder, name):
    rng = np.random.default_rng(0)
    np.save("many.npy", problems.histograms(rng, 3000, 64))
    Path("D.npy").write_text("old")
    before = sorted(folder.iterdir())
    line = "many.npy --grid 8x8 --scale-cost --eps 0.001 --tol 1e-9 --max-iter 100000 --force -o D.npy"
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "distance_matrix.py", *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cusink.__file__).parents[1])},
    )
    try:
        end = time.monotonic() + 60
        while not list(folder.glob(".D.npy.*.part")):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        time.sleep(0.5)  # into the solver
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + getattr(signal, name)
    assert out == "" and err == "distance_matrix: interrupted; nothing was written\n"
    assert sorted(folder.iterdir()) == before and Path("D.npy").read_text() == "old"


# The retrieval demonstration


def test_the_split_is_the_documented_one():
    queries, query_digits, corpus, corpus_digits = retrieve_digits.split_digits()
    assert queries.shape == (100, 64) and corpus.shape == (1697, 64)
    np.testing.assert_allclose(np.concatenate([queries, corpus]).sum(axis=1), 1, rtol=1e-12)
    assert len(np.unique(np.concatenate([queries, corpus]), axis=0)) == 1797
    assert set(query_digits) == set(corpus_digits) == set(range(10))


def test_the_distances_are_their_definitions():
    a, b = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
    got = retrieve_digits.cellwise_distances(a, b)
    assert got["L1"].tolist() == [[0.5, 0.0]]
    np.testing.assert_allclose(got["L2"], [[np.sqrt(2) / 4, 0.0]])
    np.testing.assert_allclose(got["chi-square"], [[0.0625 / 0.75 + 0.25, 0.0]])


def test_the_demonstration_tells_what_a_plain_search_finds(tmp_path, capsys, monkeypatch):
    ot = pytest.importorskip("ot")
    queries, query_digits, corpus, corpus_digits = retrieve_digits.split_digits()
    some = [np.flatnonzero(query_digits == digit)[0] for digit in range(10)]
    few = (queries[some], query_digits[some], corpus[:40], corpus_digits[:40])
    monkeypatch.setattr(retrieve_digits, "split_digits", lambda: few)
    picture = tmp_path / "new" / "sheet.png"
    arguments = ["--device", "cpu", "--dtype", "float64", "--tol", "1e-6", "--output", str(picture)]
    assert retrieve_digits.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Picture: {picture}" and picture.read_bytes().startswith(b"\x89PNG")
    assert "400 of 400 pairs converged" in "".join(lines) and any("per thousand pairs" in line for line in lines)
    printed = {line.split()[0]: [float(word) for word in line.split()[1:]] for line in lines[-6:-2]}

    cells = np.array([(i, j) for i in range(8) for j in range(8)])
    C = ((cells[:, None] - cells) ** 2).sum(axis=2) / 98

    def by_pot(a, b):
        # POT's plain iteration is right here, if it does not see the empty bins.
        inside = C[np.ix_(a > 0, b > 0)]
        return (ot.sinkhorn(a[a > 0], b[b > 0], inside, 0.01, stopThr=1e-9, numItermax=10000) * inside).sum()

    distances = {
        "Sinkhorn": by_pot,
        "L2": lambda a, b: ((a - b) ** 2).sum(),
        "L1": lambda a, b: abs(a - b).sum(),
        "chi-square": lambda a, b: sum((x - y) ** 2 / (x + y) for x, y in zip(a, b, strict=True) if x + y > 0),
    }
    assert list(printed) == list(distances)
    for name, distance in distances.items():
        hits = []
        for a, digit in zip(few[0], few[1], strict=True):
            order = sorted(range(40), key=lambda i: distance(a, few[2][i]))
            hits.append([corpus_digits[i] == digit for i in order[:10]])
        expected = [np.mean([row[:k] for row in hits]) for k in (1, 5, 10)]
        np.testing.assert_allclose(printed[name], expected, rtol=0, atol=5.1e-4, err_msg=name)


def test_the_demonstration_refuses_bad_input_in_one_line(capsys):
    assert retrieve_digits.main(["--eps", "-1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("retrieve_digits: argument --eps") and err.count("\n") == 1


def test_the_picture_counts_right_and_wrong_neighbours(tmp_path):
    queries, query_digits, corpus, corpus_digits = retrieve_digits.split_digits()
    paths = [tmp_path / "right.png", tmp_path / "wrong.png"]
    for path, digits in zip(
        paths, [query_digits[:2, None].repeat(3, 1), 9 - query_digits[:2, None].repeat(3, 1)], strict=True
    ):
        retrieve_digits.draw(path, queries[:2], query_digits[:2], corpus[[[0, 1, 2], [3, 4, 5]]], digits, 0.01)
    import matplotlib.image

    def share(path, colour):
        rgb = matplotlib.image.imread(path)[..., :3]
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return (abs(rgb - wanted).max(axis=2) < 0.02).mean()

    assert share(paths[0], retrieve_digits.RIGHT) > 0.003 and share(paths[0], retrieve_digits.WRONG) == 0
    assert share(paths[1], retrieve_digits.WRONG) > 0.003 and share(paths[1], retrieve_digits.RIGHT) == 0
