"""The benchmark of hard problems runs, and none of cusink's answers is wrong."""

import sys
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import hard  # noqa: E402


def test_every_problem_is_solved(capsys):
    hard.main(["--rounds", "1", "--eps", "0.01", "0.001", "--tol", "1e-8", "--only", "cusink"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and " eps " not in line]
    assert len(rows) == 2 * len(hard.problems()) == 30
    assert not [row for row in rows if "WRONG" in row]


def test_what_takes_too_long_is_left_out_where_it_is_harder(capsys, monkeypatch):
    monkeypatch.setattr(hard, "problems", lambda: {"easy": (hard.uniform(3), hard.uniform(3), 1 - np.eye(3))})
    hard.main(["--rounds", "1", "--eps", "0.1", "1", "--longest", "0", "--only", "cusink", "halving"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| easy")]
    assert [(float(row[2]), float(row[3])) for row in rows] == [(1, 1e-4), (0.1, 1e-4), (1, 1e-8), (0.1, 1e-8)]
    assert [row[5].strip() == "—" for row in rows] == [False, True, True, True]
    assert float(rows[0][6]) > 0 and rows[1][6].strip() == "—"


def test_a_wrong_plan_is_shown_as_wrong():
    problem = hard.uniform(3), hard.uniform(3), None
    for factor, text in ((1.01, "WRONG"), (1.0, "(7)")):
        found = hard.timed(lambda a, b, C, eps, tol, factor=factor: (a[:, None] * b * factor, 7), problem, 1.0, 1e-8, 1)
        assert text in hard.cell(*found, 1e-8)
