"""The charts show what the measurement files say, and nothing that they do not."""

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


def test_the_charts_of_the_documentation_can_be_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert charts.main(["--output", str(tmp_path / "new")]) == 0
    for name in charts.CHARTS:
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (ROOT / "docs" / "images" / f"{name}.png").exists()
