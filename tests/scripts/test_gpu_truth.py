"""The script that measures a GPU in eight minutes runs whole on an emulated device: no minute is lost to a typo."""

import json
import sys
from pathlib import Path

import emulated
import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "gpu_truth.py").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

import gpu_truth  # noqa: E402
from benchmarks.gpu import training  # noqa: E402

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
    assert gpu_truth.main(["--tiny", "--output", str(tmp_path / "truth")]) == 0
    report = json.loads((tmp_path / "truth.json").read_text())
    assert list(report["steps"]) == list(gpu_truth.STEPS)
    assert sum(gpu_truth.STEPS.values()) <= 600
    for name, outcome in report["steps"].items():
        assert outcome["status"] == "ran", (name, outcome)
        wrong = [text for text in words(outcome["found"]) if "Error" in text or text == "wrong"]
        assert not wrong, (name, wrong)
    found = {name: outcome["found"] for name, outcome in report["steps"].items()}
    assert found["transcendental"]["float32"]["exp2_ulp"] < 3
    assert 0 < found["transcendental"]["short_log_absolute"] <= 2**-22
    assert {row["status"] for row in found["operators"]["rows"]} == {"measured"}
    assert any(row["what"] == "PyTorch loop" and row["ms"] > 0 for row in found["peers"])
    assert [row["B"] for row in found["calls"]] == [1, 2]
    assert "tests/solver/test_sinkhorn.py" in found["tests"]["files"]
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
    text = (tmp_path / "truth.md").read_text()
    assert "EMULATED: no number here is a measurement" in text and text.count("|---") > 4
    assert "calls: ran" in capsys.readouterr().out


def python(code):
    return [sys.executable, "-c", code]


def test_a_step_that_hangs_fails_or_says_nothing_costs_no_other():
    slow = gpu_truth.run_step("facts", 2, True, python("import time; time.sleep(60)"))
    assert slow["status"] == "took too long" and slow["limit_s"] == 2
    broken = gpu_truth.run_step("facts", 30, True, python("raise KeyError('ComputeCapabilityMajor')"))
    assert broken["status"] == "failed" and broken["code"] == 1 and "ComputeCapabilityMajor" in broken["said"]
    assert gpu_truth.run_step("facts", 30, True, python("pass"))["status"] == "failed"
    noisy = gpu_truth.run_step("facts", 30, True, python("print('a warning'); print('[1]')"))
    assert (noisy["status"], noisy["found"]) == ("ran", [1])


@needs_compiler
def test_a_step_runs_in_a_process_of_its_own():
    outcome = gpu_truth.run_step("facts", 60, True)
    assert outcome["status"] == "ran", outcome
    assert outcome["found"]["capability"] == "80"


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
    rows = training.measure(True)
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
