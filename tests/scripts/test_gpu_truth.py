"""The script that measures a GPU in eight minutes runs whole on an emulated device: no minute is lost to a typo."""

import json
import os
import sys
import time
from pathlib import Path

import emulated
import numpy as np
import pytest

from cusink.backends.cupy import loader

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "gpu_truth.py").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

import gpu_truth  # noqa: E402
from benchmarks.gpu import kernels, large, training, verdicts  # noqa: E402

needs_compiler = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")


def words(found):
    """Yield every text in an outcome."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, (dict, list)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from words(part)


@needs_compiler
def test_every_step_runs_on_the_emulated_device(tmp_path, capsys):
    assert gpu_truth.main(["--tiny", "--commit", "0123abc", "--output", str(tmp_path / "truth.of.a.day")]) == 0
    report = json.loads((tmp_path / "truth.of.a.day.json").read_text())
    assert list(report["steps"]) == list(gpu_truth.STEPS)
    for name, outcome in report["steps"].items():
        assert outcome["status"] == "ran" and outcome["verdict"] == "passed", (name, outcome)
        wrong = [text for text in words(outcome["rows"]) if "Error" in text or text == "wrong"]
        assert not wrong, (name, wrong)
    found = {name: outcome["rows"] for name, outcome in report["steps"].items()}
    assert found["facts"][0]["commit"] == "0123abc"
    assert found["transcendental"][0]["exp2_ulp"] < 2.5
    assert 0 < found["transcendental"][-1]["short_log_absolute"] <= 2**-22
    operators = {row["operator"]: row for row in found["operators"] if "operator" in row}
    assert {row["status"] for row in found["operators"] if "operator" in row} == {"measured"}
    assert {"split_step", "plan_sum", "softmin_points"} <= operators.keys()
    for name in ("split_step", "plan_sum", "softmin", "softmin_points"):
        assert operators[name]["predicted_ms"] > 0
    assert any(row["what"] == "PyTorch loop" and row["ms"] > 0 for row in found["peers"])
    assert [row["B"] for row in found["calls"]] == [1, 2]
    for name in ("forward", "reg_cost", "cost", "forward_and_cost"):
        assert all(row[f"{name}_ms"] > 0 and row[f"{name}_device_ms"] > 0 for row in found["calls"])
    assert [row["tensor_cores"] for row in found["large"]] == [True, False]
    assert "tests/solver/test_sinkhorn.py" in found["tests"][0]["files"]
    assert {row["status"] for row in found["training"]} == {"measured"}
    works = (
        "divergence, f",
        "divergence of clouds",
        "gradient of cost",
        "gradient of reg_cost",
        "Hessian of",
        "vmap of",
    )
    for work in works:
        assert any(row["what"].startswith(work) for row in found["training"]), work
    # What goes under the sanitizers is every kernel that there is.
    launched = {kernel for row in found["sanitizers"] for kernel in row["kernels"]}
    assert launched == {kernel for file in loader.kernel_files() for kernel in loader.names(file)}
    text = (tmp_path / "truth.of.a.day.md").read_text()
    assert "EMULATED: no number here is a measurement" in text and "| commit | 0123abc |" in text
    for title in (
        "Verdicts",
        "Errors of exp2",
        "Operators",
        "Large",
        "GPU tests, by process",
        "Sanitizers",
        "Counters",
    ):
        assert f"## {title}" in text, title
    assert "calls: ran" in capsys.readouterr().out
    assert kernels.commit() == "0123abc"
    del os.environ[kernels.COMMIT]


def test_all_steps_together_take_eight_minutes():
    assert sum(max(phase.values()) for phase in gpu_truth.PHASES) <= gpu_truth.TOTAL == 480
    assert gpu_truth.STEPS.keys() == gpu_truth.truth.STEPS.keys()


def python(code):
    """Return a command that is told the file of its rows, and may write `row`."""
    begin = "import json, os, subprocess, sys, time\n"
    begin += "def row(**found):\n    print(json.dumps(found), file=open(sys.argv[1], 'a'), flush=True)\n"
    return [sys.executable, "-c", begin + code]


def run_step(limit, code, seconds=60):
    return gpu_truth.run_phase({"calls": limit}, time.perf_counter() + seconds, python(code))["calls"]


def test_a_step_that_is_killed_keeps_its_rows_and_leaves_no_process(tmp_path):
    child = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(subprocess.Popen(['sleep', '100']).pid))\n"
    slow = run_step(8, f"{child}row(B=1)\nrow(B=10)\nopen(sys.argv[1], 'a').write('{{\"B\": 1')\ntime.sleep(100)")
    assert slow["status"] == "took too long" and slow["rows"] == [{"B": 1}, {"B": 10}]
    assert verdicts.judge("calls", slow) == "FAILED: took too long"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the step goes on")


def test_a_step_that_fails_or_says_nothing_is_no_success():
    broken = run_step(30, "row(B=1)\nraise KeyError('ComputeCapabilityMajor')")
    assert broken["status"] == "failed" and broken["code"] == 1 and "ComputeCapabilityMajor" in broken["said"]
    assert broken["rows"] == [{"B": 1}]
    silent = run_step(30, "print('a warning')")
    assert silent["status"] == "ran" and verdicts.judge("calls", silent) == "FAILED: nothing was found"


def test_no_step_goes_beyond_the_deadline():
    late = run_step(30, "row(B=1)\ntime.sleep(60)", seconds=3)
    assert late["status"] == "took too long" and late["seconds"] < 10
    assert run_step(30, "row(B=1)", seconds=0.5)["status"] == "no time left"


def test_steps_of_a_phase_run_at_once():
    started = time.perf_counter()
    code = python("row(B=os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])\ntime.sleep(3)")
    outcomes = gpu_truth.run_phase({"tests": 60, "sanitizers": 60, "calls": 60}, started + 60, code)
    assert time.perf_counter() - started < 9
    # JAX takes no memory that it does not need.
    assert [outcome["rows"] for outcome in outcomes.values()] == [[{"B": "false"}]] * 3


def test_a_row_is_written_when_it_is_found(tmp_path, monkeypatch):
    rows = tmp_path / "rows"

    def step(tiny):
        yield {"B": np.int64(1)}
        assert json.loads(rows.read_text()) == {"B": 1}
        yield {"B": 2, "ms": np.float32(0.5)}

    monkeypatch.setitem(gpu_truth.truth.STEPS, "calls", step)
    assert gpu_truth.main(["--step", "calls", "--rows", str(rows)]) == 0
    assert rows.read_text().splitlines() == ['{"B": 1}', '{"B": 2, "ms": 0.5}']


@needs_compiler
def test_a_step_runs_in_a_process_of_its_own():
    command = [sys.executable, str(SCRIPTS / "gpu_truth.py"), "--tiny", "--step", "facts", "--rows"]
    outcome = gpu_truth.run_phase({"facts": 60}, time.perf_counter() + 60, command)["facts"]
    assert outcome["status"] == "ran", outcome
    assert outcome["rows"][0]["capability"] == "80"


FAULTS = {
    "build": {"file": "plan.cu", "dtype": "float64", "kernels": {"plan": {"local_size_bytes": 8}}},
    "transcendental": {"dtype": "float32", "exp2_ulp": 3.0},
    "operators": {"operator": "softmin", "status": "wrong"},
    "peers": {"what": "here", "B": 1, "ms": "OutOfMemoryError"},
    "calls": {"B": 1, "status": "RuntimeError"},
    "large": {"products": "float", "status": "wrong"},
    "training": {"what": "divergence", "status": "wrong"},
    "tests": {"test": "tests/a.py::test_b", "outcome": "failed"},
    "sanitizers": {"tool": "racecheck", "parts": "small", "status": "errors"},
    "profile": {"part": "dense", "missing": ["plan_sum"], "status": "ERR_NVGPUCTRPERM"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_step_finds_wrong_is_in_the_exit_status_and_in_the_table(name, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_truth.truth.STEPS, name, lambda tiny: iter([FAULTS[name]]))
    assert gpu_truth.main(["--tiny", "--steps", name, "--output", str(tmp_path / "truth")]) == 1
    line = next(x for x in (tmp_path / "truth.md").read_text().splitlines() if x.startswith(f"| {name} |"))
    assert "FAILED" in line and {"build": "8 bytes", "tests": "test_b: failed"}.get(name, "") in line


def test_what_was_not_run_is_no_success():
    def verdict(name, *rows):
        return verdicts.judge(name, {"status": "ran", "rows": list(rows)})

    passed = {"process": 0, "tests": 2, "finished": True, "passed": 2}
    assert verdict("tests", passed) == "passed"
    assert "did not end, after 1 of 2" in verdict("tests", passed | {"finished": False, "passed": 1})
    assert verdict("tests", {"files": []}) == "FAILED: no test has passed"
    clean = {"tool": "memcheck", "parts": "small", "status": "clean"}
    assert verdict("sanitizers", *[clean] * 12) == "passed"
    assert verdict("sanitizers", clean) == "FAILED: 1 of 12 runs have ended"
    assert verdict("sanitizers", *[clean | {"status": "not installed"}] * 12).startswith("FAILED")
    assert verdict("profile", {"status": "not installed"}) == "FAILED: ncu is not installed"
    assert "dense was not profiled" in verdict("profile", {"part": "small", "kernel": "iterate_held"})
    assert verdict("operators", {"operator": "flash", "status": "not installed"}) == "passed"
    assert verdict("transcendental", {"dtype": "float32", "exp2_ulp": float("nan")}).startswith("FAILED")


@needs_compiler
def test_a_large_cost_whose_potentials_are_off_is_wrong(monkeypatch):
    right = large.potentials
    monkeypatch.setattr(large, "potentials", lambda *args: right(*args) * (1 + 1e-4))
    with gpu_truth.truth.device(True):
        assert [row["status"] for row in large.measure(True)] == ["wrong", "wrong"]


def test_goals_are_read_from_the_calls():
    rows = [
        {"B": B, "forward_and_reg_cost_device_ms": 0.2 * (1 + (B > 1)), "forward_and_cost_device_ms": 0.3}
        for B in (1, 1000)
    ]
    lines = verdicts.goals({"steps": {"calls": {"rows": rows}}})
    assert [line[2] for line in lines] == ["0.2 ms", "2 x", "0.3 ms", "1 x"]
    assert verdicts.goals({"steps": {}})[0][2] == "not measured"


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu_truth.truth, "missing_gpu", lambda: "no driver")
    assert gpu_truth.main([]) == 1
    assert capsys.readouterr().out == "nothing can be measured: no driver\n"


def test_works_of_training_that_are_wrong_or_cannot_run_are_rows_that_say_so(monkeypatch):
    def off(tiny, repeats):
        yield {"what": "off"} | training.judged(training.off(np.array([1.0, np.nan]), np.ones(2)))

    def torch_less(tiny, repeats):
        raise ModuleNotFoundError(name="torch")
        yield

    def broken(tiny, repeats):
        yield {"what": "first"} | training.judged(1e-9)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "WORKS", (off, torch_less, broken))
    rows = list(training.measure(True))
    assert [row["what"] for row in rows] == ["off", "torch_less", "first", "broken"]
    said = [row["status"] for row in rows]
    assert said == ["wrong", "not installed: torch", "measured", "RuntimeError: out of memory"]


def test_the_references_of_training_are_slopes():
    """Of values whose plans come from plain iterations."""
    x, y, move = np.random.default_rng(0).random((3, 5, 2))
    for value in ("cost", "reg_cost"):

        def of(points, value=value):
            C = ((points[:, None] - y) ** 2).sum(-1)
            P = training.optimal_plan(np.full(5, 0.2), np.full(5, 0.2), C, 0.1)
            return (P * C).sum() + (value == "reg_cost") * 0.1 * (P * np.log(25 * P)).sum()

        slope = (of(x + 1e-5 * move) - of(x - 1e-5 * move)) / 2e-5
        found = (training.by_points(x, y, 0.1, value) * move).sum()
        assert abs(found - slope) <= 1e-6 * abs(slope), value
