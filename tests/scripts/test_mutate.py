"""``scripts/mutate`` finds a planted weak test, kills what the tests see, and goes on where it was stopped."""

import ast
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "scripts" / "mutating").exists() or not (ROOT / "cusink").exists():
    pytest.skip("the scripts and the sources are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))

from mutating import areas, cuda, python, run, trial  # noqa: E402


def changes(make, text):
    """List the mutants of a source as what became of the lines."""
    return [(mutant.kind, mutant.of(text)) for mutant in make("area", "file", text)]


# ---- the mutants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mutants"),
    [
        ("x = a + b * 2", ["x = a - b * 2", "x = a + b / 2", "x = a + b * 3"]),
        ("x = -a if not b else 0.5", ["x = a if not b else 0.5", "x = -a if  b else 0.5", "x = -a if not b else 1.0"]),
        ("x = a < b <= c", ["x = a <= b <= c", "x = a < b < c"]),
        ("x = a and b and c", ["x = a or b or c"]),
        ("x = xp.minimum(a, b)", ["x = xp.maximum(a, b)"]),
        ("assert a < b\nx = zip(a, b, strict=True)", []),
        ("x = max(a, True)", ["x = min(a, True)", "x = max(a, False)"]),
        ("if ok:\n  x += 1", ["if not (ok):\n  x += 1", *(f"if ok:\n  {s}" for s in ("x -= 1", "pass", "x += 2"))]),
        ("x = [k for k in y if k]", ["x = [k for k in y if True]"]),
        ("def f(x: int = 0) -> 'y < 1':\n  'a + b'", ["def f(x: int = 1) -> 'y < 1':\n  'a + b'"]),
        ("def f():\n  raise E(1 + x)", ["def f():\n  pass"]),
        ("x[0] = y\nprint(f'{1 + 1}')", ["x[1] = y\nprint(f'{1 + 1}')", "pass\nprint(f'{1 + 1}')", "x[0] = y\npass"]),
    ],
)  # fmt: skip
def test_mutants_of_python(text, mutants):
    assert sorted(after for _, after in changes(python.mutants, text)) == sorted(mutants)


@pytest.mark.parametrize(
    ("text", "mutants"),
    [
        ("y = a + 2 * b;  // a + b", ["a - 2 * b", "a + 3 * b", "a + 2 / b"]),
        ("y = larger(-x, 1e-3f);", ["smaller(-x, 1e-3f)", "larger(x, 1e-3f)", "larger(-x, 0.002f)"]),
        ("y = i <= n && !(j == k);", ["i < n && !(j == k)", "i <= n || !(j == k)", "i <= n && !(j != k)"]),
    ],
)  # fmt: skip
def test_mutants_of_cuda(text, mutants):
    found = [
        after.partition(" = ")[2].partition(";")[0] for kind, after in changes(cuda.mutants, text) if kind != "left out"
    ]
    assert sorted(found) == sorted(mutants)
    assert sum(kind == "left out" for kind, _ in changes(cuda.mutants, text)) == 1


def test_types_and_comments_of_cuda_are_left_alone():
    text = (
        "#include <a>\ntemplate <class T>\n__global__ void f(const REAL* x, T& y) {\n    // 1 + 2\n    int k = x[y];\n}"
    )
    assert changes(cuda.mutants, text) == []
    text = "for (int r = w; r < n; r += 2)\n    x[r] = f<0>(y);"
    kinds = [kind for kind, _ in changes(cuda.mutants, text)]
    assert sorted(kinds) == ["arithmetic", "comparison", "constant"]  # nothing of f<0>


def test_every_source_has_mutants_that_parse_and_a_place_in_the_table():
    found = list(areas.mutants(ROOT, list(areas.AREAS)))
    assert len({mutant.name for mutant in found}) == len(found) > 3000
    texts = {path: (ROOT / path).read_text("utf-8") for path in {mutant.path for mutant in found}}
    for mutant in found[::29]:
        after = mutant.of(texts[mutant.path])
        assert after != texts[mutant.path] and mutant.diff
        if mutant.path.endswith(".py"):
            ast.parse(after)
    for path in texts:
        for argument in (x for step in areas.tests_of(path) for x in step if x.startswith("tests/")):
            assert (ROOT / argument).exists(), argument
    assert set(areas.TESTS) == set(texts)  # a file that is gone has no tests to be asked
    every = {(mutant.path, mutant.diff) for mutant in found}
    stale = set(run.explained(ROOT / run.EXPLAINED)) - every
    assert not stale, stale


def test_a_new_source_without_tests_is_an_error_that_is_said(tmp_path):
    new = tmp_path / "cusink" / "solver" / "new.py"
    new.parent.mkdir(parents=True)
    new.write_text("")
    assert list(areas.mutants(tmp_path, ["solver"])) == []  # nothing in it can be wrong
    new.write_text("x = 1 + 1\n")
    with pytest.raises(LookupError, match=r"cusink/solver/new.py must have an entry in TESTS of .*areas\.py"):
        list(areas.mutants(tmp_path, ["solver"]))


def test_a_sample_holds_the_smaller_ones():
    found = list(areas.mutants(ROOT, ["certificate", "bounds"]))
    small, large, other = (run.sample(found, size, seed) for size, seed in ((5, 1), (9, 1), (5, 2)))
    assert len(small) == 10 and len(large) == 18
    assert set(small) < set(large) and set(small) != set(other)


# ---- a run ---------------------------------------------------------------------------------------------------------

SOURCE = """\
def clipped(x, low, high):
    if x < low:
        return low
    return min(x, high)


def weak(x):
    return x + 1
"""
TESTS = """\
from cusink.numbers import clipped, weak


def test_clipped():
    assert [clipped(x, 2, 4) for x in (1, 3, 5)] == [2, 3, 4]


def test_weak():
    assert weak(1) is not None
"""


@pytest.fixture
def mutate(tmp_path, monkeypatch, capsys):
    """Run the command on a small package with a weak test: its status, and the outcome of each mutant by its change."""
    root = tmp_path / "root"
    for name, text in (("cusink/__init__.py", ""), ("cusink/numbers.py", SOURCE), ("tests/test_numbers.py", TESTS)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(areas, "AREAS", {"numbers": ("cusink/numbers.py",)})
    monkeypatch.setattr(areas, "TESTS", {"cusink/numbers.py": areas.Tests(("tests/test_numbers.py",), ())})
    monkeypatch.setattr(run, "PRELOADED", ("pytest",))
    state = tmp_path / "state"

    def call(*arguments):
        status = run.main(["--root", str(root), "--state", str(state), "--only", "numbers", *arguments])
        lines = [json.loads(line) for line in state.read_text().splitlines()]
        return status, {line["diff"].partition("\n+ ")[2]: line["outcome"] for line in lines}, capsys.readouterr().out

    call.root, call.state = root, state
    return call


def test_a_weak_test_is_found_and_mended(mutate):
    before = (mutate.root / "cusink/numbers.py").read_bytes()
    status, outcomes, printed = mutate("--least", "80")
    # At low itself both branches are the same: that mutant is equivalent.
    survivors = {"if x <= low:", "return x - 1", "return x + 2"}
    assert {change for change, outcome in outcomes.items() if outcome == "survived"} == survivors
    assert outcomes["return max(x, high)"] == "killed" and len(outcomes) == 5 - 1
    assert status == 1 and "cusink/numbers.py:8: arithmetic" in printed and "25.0 %" in printed
    assert (mutate.root / "cusink/numbers.py").read_bytes() == before

    tests = mutate.root / "tests" / "test_numbers.py"
    tests.write_text(TESTS.replace("is not None", "== 2"))
    explained = mutate.root / run.EXPLAINED
    explained.parent.mkdir(parents=True)
    explained.write_text(
        '[[survivor]]\nfile = "cusink/numbers.py"\nreason = "both branches return low"\n'
        'diff = """\n- if x < low:\n+ if x <= low:"""\n'
    )
    lines = len(mutate.state.read_text().splitlines())
    status, outcomes, printed = mutate("--least", "100")
    assert status == 0 and "75.0 %" in printed and "100.0 %" in printed
    assert len(mutate.state.read_text().splitlines()) == lines + 3  # only survivors were tried again
    assert [change for change, outcome in outcomes.items() if outcome == "survived"] == ["if x <= low:"]


def test_files_are_asked_one_by_one():
    steps = (("a.py", "b.py"), ("b.py", "c.py", "-k", "x or y"), ())
    assert run._one_by_one(steps) == [("a.py",), ("b.py",), ("b.py", "-k", "x or y"), ("c.py", "-k", "x or y")]
    assert run._one_by_one((("a.py",), ("a.py",))) == [("a.py",)]


def test_what_g_plus_plus_refuses_is_no_survivor_and_no_success():
    assert trial.NO_SOURCE.search("kernels/softmin.cu:7:12: error: expected ';'")
    assert not trial.NO_SOURCE.search("E   AssertionError: kernels/softmin.cu")
    results = [
        {"outcome": outcome, "path": "x", "diff": ""} for outcome in ("killed", "timeout", "survived", "invalid")
    ]
    assert run.score(results) == (2 / 3, 2 / 3)
    assert run.score(results, {("x", "")}) == (2 / 3, 1.0)
    assert run.score([]) == (None, None)
