"""The benchmark of ragged pairs finds its three ways equal, and calls a wrong one wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks import pairs as bench  # noqa: E402


def test_all_ways_agree_and_a_wrong_one_is_found(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", (2, 9))

    def wrong(x, y, eps):
        return tuple(1.01 * part for part in bench.ours(x, y, eps))

    ways = {"ragged": bench.ours, "loop": bench.loop, "padded": bench.padded, "wrong": wrong}
    sizes = {"ragged": 6, "loop": 4, "padded": 5, "wrong": 6}
    bench.run_case(0.1, np.float64, sizes, 2, ways)
    rows = [line.split(" | ")[2:4] for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == list(ways)
    assert [verdict.split(",")[0] for _, verdict in rows] == ["right", "right", "right", "WRONG"]
