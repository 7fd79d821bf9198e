"""The suite calls wrong answers wrong, writes down who is missing, and its tables compare right answers alone."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import cusink

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("ot")
sys.path.insert(0, str(SCRIPTS))

from benchmarks import charts, suite, tables  # noqa: E402
from benchmarks.harness import rates, searches, spaces  # noqa: E402
from benchmarks.harness.peers import Competitor  # noqa: E402


def answering(value):
    return lambda problem: (lambda: value, lambda answer: answer)


def raising(error):
    def make(problem):
        raise error

    return make


def judged(competitor, answer):
    if answer is None:
        return True, None, "another distance"
    return answer == 2, abs(answer - 2) / 2, "right" if answer == 2 else "WRONG: off"


@pytest.fixture
def records():
    everyone = [
        Competitor("cusink", "ours", answering(2)),
        Competitor("NumPy loop", "plain", answering(3), share=0.5),
        Competitor("POT, exact", "exact", answering(None), rounds=1),
        Competitor("faiss", "plain", raising(ModuleNotFoundError("No module named 'faiss'"))),
        Competitor("OTT", "log", raising(ValueError("too\nbad"))),
    ]
    ticks = iter(range(1000))
    work = suite.Work("pairs", "3 x 4", "float64", None, everyone, judged)
    found = suite.run_work(work, rounds=2, clock=lambda: next(ticks))
    return [record | {"part": "pairs"} for record in found]


FACTS = {"machine": "a machine", "clock": "ticks", "python": "3", "date": "today", "commit": "abc"}


def test_each_outcome_is_recorded(records):
    said = {r["peer"]: (r["status"], r["error"], r["seconds"]) for r in records}
    assert said == {
        "cusink": ("right", 0, 1),
        "NumPy loop": ("wrong", 0.5, 2),  # it did half of the work
        "POT, exact": ("another answer", None, 1),
        "faiss": ("not installed", None, None),
        "OTT": ("failed", None, None),
    }
    assert [r.get("rounds") for r in records] == [2, 2, 1, None, None]
    assert records[0]["version"] == cusink.__version__ and records[4]["detail"] == "ValueError: too bad"


def test_a_wrong_answer_has_no_ratio_and_the_missing_are_named(records, tmp_path):
    path = tmp_path / "suite.jsonl"
    suite.write(path, [r | FACTS for r in records])
    text = tables.page(tables.read(path))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["NumPy loop"] == "| NumPy loop | WRONG: off | 5.0e-01 | 2 s | – |"
    assert rows["cusink"] == "| cusink | right | 0 | 1 s | 1 |"
    assert rows["POT, exact"].endswith("| 1 s | 1 |") and rows["faiss"].endswith("|  | – |")
    assert "- faiss: No module named 'faiss'" in text and "today" in text


def test_a_part_takes_the_place_of_itself_alone(tmp_path):
    path = tmp_path / "suite.jsonl"
    for part, value in (("one", 1), ("two", 2), ("one", 3)):
        suite.write(path, [{"part": part, "value": value}])
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"part": "two", "value": 2}, {"part": "one", "value": 3}]


def test_a_line_that_is_no_record_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"status": "right"}\n')
    assert tables.main(["--input", str(tmp_path / "bad.jsonl"), "--output", str(tmp_path / "page.md")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tables: bad.jsonl, line 1, is no record") and err.count("\n") == 1
    assert not (tmp_path / "page.md").exists()


def test_the_committed_page_is_made_of_the_committed_lines():
    page = tables.FOLDER / "suite-cpu.md"
    assert page.read_text() == tables.page(tables.read(tables.FOLDER / "suite-cpu.jsonl"))
    assert charts.CHARTS["speed"]


def test_the_page_on_performance_names_whatever_was_faster():
    text = (tables.FOLDER.parent / "performance.md").read_text()
    section = text.partition("## Where others are faster")[2].partition("\n## ")[0]
    found = tables.read(tables.FOLDER / "suite-cpu.jsonl")
    faster = []
    for work, dtype in {(r["work"], r.get("dtype")) for r in found} - {
        ("roofline", "float32"),
        ("roofline", "float64"),
    }:
        rows = [r for r in found if (r["work"], r.get("dtype")) == (work, dtype)]
        right = [r for r in rows if r["status"] == "right"]
        ratios = {r["peer"]: r["seconds"] / tables.ours(rows)["seconds"] for r in right if r["package"] != "cusink"}
        faster += [f"{ratio:.2f}" for ratio in ratios.values() if ratio < 0.95]
    assert len(faster) > 5
    # Two works with one ratio are two numbers on the page.
    assert not Counter(faster) - Counter(re.findall(r"\b0\.\d\d\b", section))


def test_a_neighbour_that_is_missed_counts():
    work = searches.Search(np.eye(2), np.eye(4), np.eye(4), 0.1, 2, 1e-6, np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]]))
    assert searches.judged(work, None, [[1, 0], [3, 2]])[:2] == (True, 0)
    assert searches.judged(work, None, [[1, 0], [0, 2]])[:2] == (False, 0.25)
    assert not searches.judged(work, None, [[1, 0]])[0]


def test_the_reference_of_clouds_is_what_the_package_converges_to():
    work = spaces.problem(40)
    found = cusink.sinkhorn(None, None, spaces.squares(work.x, work.y), eps=work.eps, tol=1e-10)
    np.testing.assert_allclose(spaces.value_of(40), found.reg_cost, rtol=1e-8)
    assert spaces.judged(work, None, found.reg_cost)[0] and not spaces.judged(work, None, 1.01 * found.reg_cost)[0]


@pytest.mark.parametrize("make", [suite.grids, suite.unbalanced, suite.barycenters])
def test_a_right_answer_is_right_and_one_beside_it_wrong(make):
    (work,) = make(True)
    for competitor in [x for x in work.competitors if x.name.split()[0] in ("cusink", "NumPy,", "POT")]:
        run, read = competitor.make(work.problem)
        answer = np.asarray(read(run()))
        assert work.judged(competitor, answer)[0], competitor.name
        assert not work.judged(competitor, 1.01 * answer)[0]
        assert not work.judged(competitor, np.full_like(answer, np.nan))[0]


def test_texts_are_held_to_a_linear_program():
    pytest.importorskip("gensim")
    pytest.importorskip("wordllama")
    (work,) = suite.documents(True)
    for competitor in work.competitors:
        run, read = competitor.make(work.problem)
        answer = np.asarray(read(run()))
        assert len(answer) == len(work.problem.some) and work.judged(competitor, answer)[0], competitor.name
        assert not work.judged(competitor, 1.03 * answer)[0] and not work.judged(competitor, 0.98 * answer)[0]


def test_operators_are_right_and_have_a_share_of_a_rate():
    records = rates.operator_records(quick=True)
    assert {r["dtype"] for r in records} == {"float32", "float64"} and len(records) == 14
    for record in records:
        assert record["status"] == "right", record
        assert 0 < record["share"] < 20 and record["limit"] in ("matrix product", "exp", "copy")
