"""The charts show what the measurement files say, and nothing that they do not."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import charts  # noqa: E402

FILE = """# Times

### W1, small

Words.

| | answer | time / cusink's |
|---|---|---|
| cusink | right | 1 (1 to 1) |
| other | WRONG: off by 2 | 0.25 (0.2 to 0.3) |

### W2

No table.
"""


@pytest.fixture
def panel(tmp_path, monkeypatch):
    (tmp_path / "file.md").write_text(FILE)
    monkeypatch.setattr(charts, "MEASUREMENTS", tmp_path)
    return lambda heading, *rows: charts.Panel("title", "file.md", heading, {row: row for row in rows})


def test_rows_are_read_with_their_verdicts(panel):
    rows = charts.rows_of(panel("### W1", "cusink", "other"))
    assert rows == [charts.Row("cusink", 1.0, True), charts.Row("other", 0.25, False)]


@pytest.mark.parametrize(("heading", "row"), [("### W1", "third"), ("### W2", "cusink"), ("### W3", "cusink")])
def test_what_no_file_says_is_an_error(panel, heading, row, monkeypatch, capsys):
    monkeypatch.setattr(charts, "CHARTS", {"speed": [panel(heading, row)]})
    assert charts.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


RECORDS = [
    {"work": "pairs", "dtype": "float32", "package": "cusink", "peer": "cusink", "status": "right", "seconds": 2.0},
    {"work": "pairs", "dtype": "float32", "package": "POT", "peer": "fast", "status": "wrong", "seconds": 1.0},
    {"work": "pairs", "dtype": "float64", "package": "POT", "peer": "slow", "status": "right", "seconds": 6.0},
    {"work": "pairs", "dtype": "float32", "package": "POT", "peer": "slow", "status": "right", "seconds": 8.0},
    {"work": "pairs", "dtype": "float32", "package": "OTT", "peer": "gone", "status": "failed", "seconds": None},
]


def test_rows_of_records_are_those_of_their_work_and_dtype(tmp_path, monkeypatch):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    monkeypatch.setattr(charts, "MEASUREMENTS", tmp_path)

    def rows(*names):
        return charts.rows_of(charts.Panel("", "lines.jsonl", ("pairs", "float32"), {n: n for n in names}))

    assert rows("cusink", "fast", "slow") == [("cusink", 1, True), ("fast", 0.5, False), ("slow", 4, True)]
    for name, reason in (("gone", "no ratio"), ("absent", "no row")):
        with pytest.raises(ValueError, match=reason):
            rows(name)


def test_a_curve_has_one_unit(tmp_path, monkeypatch):
    table = "\n## Growth\n\n| items | time | pairs |\n|---|---|---|\n| 10 | 2.5 ms | 3 |\n| 100 | {} | 4 |\n"
    monkeypatch.setattr(charts, "MEASUREMENTS", tmp_path)
    (tmp_path / "file.md").write_text(table.format("4 ms"))
    assert charts.points_of("file.md", "## Growth", "time") == ([10, 100], [2.5, 4], "ms")
    assert charts.points_of("file.md", "## Growth", "pairs") == ([10, 100], [3, 4], "")
    (tmp_path / "file.md").write_text(table.format("4 s"))
    with pytest.raises(ValueError, match="one unit"):
        charts.points_of("file.md", "## Growth", "time")


def test_a_ratio_has_no_more_digits_than_a_measurement():
    assert [charts.two_digits(ratio) for ratio in (0.914, 1.44, 19.7, 246)] == ["0.91", "1.4", "20", "246"]


def test_a_chart_is_drawn_from_the_records_of_the_suite():
    assert any(panel.file == "suite-cpu.jsonl" for panels in charts.CHARTS.values() for panel in panels)


def test_the_charts_of_the_documentation_can_be_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert charts.main(["--output", str(tmp_path / "new")]) == 0
    for name in (*charts.CHARTS, *charts.GROWTH):
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / "images" / f"{name}.png").exists()
