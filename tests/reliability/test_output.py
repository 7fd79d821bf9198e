"""Standard output and standard error that take no more: a real full device, a real pipe that nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cusink
from cusink.cli import main

FULL = Path("/dev/full")
MATRIX = "distance-matrix A.npy --cost C.npy --eps 0.1 -o D.npy"
NEAREST = "nearest A.npy --cost C.npy --eps 0.1 -k 1"


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the command in a folder with A.npy and C.npy: its exit status, out, and err."""
    np.save(tmp_path / "A.npy", np.array([[0.5, 0.5], [0.25, 0.75]]))
    np.save(tmp_path / "C.npy", 1 - np.eye(2))
    environment = os.environ | {"PYTHONPATH": str(Path(cusink.__file__).parents[1])}

    def command(words, **streams):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "cusink", *words.split()],
            cwd=tmp_path,
            env=environment,
            text=True,
            **streams,
        )
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.mark.parametrize("words", ["info", "--help", MATRIX, f"{NEAREST} --json"])
def test_a_full_device_is_one_line_and_status_4(run, tmp_path, words):
    with FULL.open("w") as full:
        status, _, err = run(words, stdout=full)
    written = "; D.npy is written" if "D.npy" in words else ""
    assert (status, err) == (4, f"cusink: standard output cannot be written: No space left on device{written}\n")
    assert not written or np.load(tmp_path / "D.npy").shape == (2, 2)


@pytest.mark.parametrize("words", ["info", "--help", MATRIX])
def test_a_closed_pipe_is_quiet_and_status_141(run, tmp_path, words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, _, err = run(words, stdout=writing)
    finally:
        os.close(writing)
    assert (status, err) == (141, "")
    assert words != MATRIX or np.load(tmp_path / "D.npy").shape == (2, 2)


@pytest.mark.parametrize(("words", "expected"), [("nonsense", 2), (NEAREST, 0), (f"{NEAREST} --max-iter 1", 3)])
def test_standard_error_that_takes_nothing_changes_no_status(run, words, expected):
    with FULL.open("w") as full:
        status, out, _ = run(words, stderr=full)
    assert status == expected and (out != "") == (expected != 2)


def test_a_failure_keeps_its_status_where_json_cannot_be_told(run):
    with FULL.open("w") as full:
        status, _, err = run("nearest none.npy --cost C.npy --eps 0.1 -k 1 --json", stdout=full)
    assert (status, err) == (2, "cusink: none.npy: there is no such file\n")


@pytest.mark.parametrize("words", [MATRIX, f"{MATRIX} --force", f"{NEAREST} -o D.npz", f"{NEAREST} -o D.npz --force"])
@pytest.mark.usefixtures("run")
def test_a_link_is_followed_and_a_link_to_nothing_refused(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    name = "D.npz" if "npz" in words else "D.npy"
    (tmp_path / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there").mkdir()
    status, err = main(words.split()), capsys.readouterr().err
    assert status == 2 and "is a symbolic link" in err and "does not exist" in err and err.count("\n") == 1
    assert list((tmp_path / "there").iterdir()) == []
    (tmp_path / "there" / name).write_bytes(b"old")
    status, err = main(words.split()), capsys.readouterr().err
    if "--force" in words:
        assert (status, err) == (0, "")
        assert (tmp_path / name).is_symlink() and (tmp_path / "there" / name).read_bytes() != b"old"
    else:
        assert status == 2 and "exists" in err and (tmp_path / "there" / name).read_bytes() == b"old"
