"""The benchmark of threads runs, and sees answers that differ."""

import sys
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import threads  # noqa: E402


def test_two_threads_are_timed_beside_one(capsys):
    assert threads.main(["--rounds", "1", "--queries", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    timed, told = lines[:3], [line for line in lines if line.startswith("| ") and "| >= 1.6 x faster |" in line]
    assert all("times faster" in line and line.endswith("same bytes") for line in timed)
    assert len(told) == 3 and all(line.endswith(("| met |", "| MISSED |")) for line in told)


def test_other_bytes_are_seen(monkeypatch, capsys):
    monkeypatch.setattr(threads, "works", lambda queries: {"a sum": lambda workers: (np.array(workers),)})
    assert threads.main(["--rounds", "1"]) == 1
    assert "WRONG" in capsys.readouterr().out
