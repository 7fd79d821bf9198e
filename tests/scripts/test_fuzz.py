"""``scripts/fuzz`` holds on fixed seeds, finds and shrinks planted failures, and goes on where it was stopped."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import cusink

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "fuzzing").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from fuzzing import report, run, shrink, state  # noqa: E402
from fuzzing.case import Case, Finding  # noqa: E402


@pytest.fixture
def fuzz(capsys):
    """Run the command, return its exit status and its report."""

    def call(*arguments):
        status = run.main([*map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


def outcomes(found):
    return {name: {k: n for k, n in count.items() if k != "seconds"} for name, count in found["subjects"].items()}


# ---- a short run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "cases"), [("gradients", 19), ("grids", 25), ("documents", 9), ("barycenters", 25)]
)
def test_every_answer_holds_on_fixed_seeds(fuzz, subject, cases):
    status, found = fuzz("--only", subject, "--cases", cases)
    assert status == 0, found["failures"]
    count = outcomes(found)[subject]
    assert sum(count.values()) == cases
    assert count["right"] > cases / 2


def test_the_gradient_at_a_bin_with_hardly_any_weight(fuzz):
    status, found = fuzz("--only", "gradients", "--seed", 19, "--cases", 1)
    assert status == 0, found["failures"]


def test_the_price_of_mass_that_comes_where_next_to_none_is_met(fuzz):
    """With `reach`, 6e-10 of mass arrives where ``b exp(-g / rho)`` is 1e-465: the value of the plan counts it."""
    status, found = fuzz("--only", "clouds", "--seed", 79511436, "--cases", 1)
    assert status == 0, found["failures"]


@pytest.mark.parametrize("subject", run.NAMES)
def test_a_case_is_drawn_from_one_integer(subject):
    one, two, other = (run.drawn(subject, seed) for seed in (5, 5, 6))
    assert report.script(one, [], "") == report.script(two, [], "")
    assert report.script(one, [], "").partition("\n")[2] != report.script(other, [], "").partition("\n")[2]


def test_processes_find_what_one_finds(fuzz):
    one, two = (fuzz("--only", "grids", "--cases", 4, "--jobs", jobs) for jobs in (1, 2))
    assert one[0] == two[0] == 0
    assert outcomes(one[1]) == outcomes(two[1])


# ---- planted failures ----------------------------------------------------------------------------------------------


def wrong_cost(result):
    return dataclasses.replace(result, cost=result.cost * 1.01)


def wrong_error(result):
    return dataclasses.replace(
        result, f=result.f + 1, problem=dataclasses.replace(result.problem, f=result.problem.f + 1)
    )


def not_a_number(result):
    return dataclasses.replace(result, reg_cost=result.reg_cost * np.nan)


def nameless(result):
    raise ValueError("no solution")


def late(result):
    raise ZeroDivisionError("float division by zero")


PLANTED = [
    (wrong_cost, "WRONG", "cost is that of the plan"),
    (wrong_error, "WRONG", "column sums of the plan"),
    (not_a_number, "NaN", "reg_cost is finite"),
    (nameless, "unclear", "the message names a parameter"),
    (late, "unclear", "TypeError or ValueError, not ZeroDivisionError"),
]


@pytest.mark.parametrize(("plant", "verdict", "claim"), PLANTED)
def test_a_planted_failure_is_found_and_shrunk_to_one_pair(fuzz, monkeypatch, capsys, plant, verdict, claim):
    solve = cusink.sinkhorn
    monkeypatch.setattr(cusink, "sinkhorn", lambda *args, **options: plant(solve(*args, **options)))
    status, found = fuzz("--only", "grids", "--cases", 3, "--seed", 4, "--shrink", 5)
    assert status == 1
    assert outcomes(found)["grids"][verdict] == 3
    (failure,) = (x for x in found["failures"] if (x["verdict"], x["claim"]) == (verdict, claim))
    assert failure["count"] == 3
    namespace = {}
    if verdict == "unclear":
        with pytest.raises((ValueError, ZeroDivisionError)):
            exec(failure["script"], namespace)
    else:
        exec(failure["script"], namespace)
        assert "claimed" in capsys.readouterr().out
    assert namespace["a"].size == namespace["b"].size <= 2
    assert namespace["a"].dtype == np.float64
    assert not namespace["options"]


def test_an_input_that_is_written_to_is_found(fuzz, monkeypatch):
    solve = cusink.sinkhorn

    def careless(a, b, C, **options):
        result = solve(a, b, C, **options)
        a[...] = 0
        return result

    monkeypatch.setattr(cusink, "sinkhorn", careless)
    status, found = fuzz("--only", "grids", "--cases", 1, "--seed", 4, "--shrink", 2)
    assert status == 1
    assert "inputs unchanged" in {failure["claim"] for failure in found["failures"]}


def test_shrinking_keeps_what_fails_and_drops_the_rest():
    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(6), size=4), rng.dirichlet(np.ones(5), size=4)
    arrays, axes = {"a": a, "b": b, "C": rng.random((6, 5))}, {"a": "Bn", "b": "Bm", "C": "nm"}
    arrays["C"][3, 2] = 7e8
    options = {"eps": 0.01234, "tol": 1e-3, "max_iter": 7}
    case = Case("solver", 0, arrays, axes, "float32", options, {"apply": True}, ("a", "b"))
    small = shrink.shrunk(case, lambda x: bool((x.arrays["C"] > 1e8).any() and x.options.get("max_iter") == 7), 10)
    assert small.arrays["a"].tolist() == small.arrays["b"].tolist() == [1.0]
    assert small.arrays["C"].tolist() == [[7e8]]
    assert (small.dtype, small.options, small.extra) == ("float64", {"eps": 0.01, "max_iter": 7}, {})


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_numbers_in_a_script_are_those_of_the_case(dtype):
    x = np.random.default_rng(1).random((2, 3)).astype(dtype)
    x[0, 0] = np.inf
    case = Case("solver", 0, {"C": x.astype(float)}, {"C": "nm"}, dtype, {"eps": 1.0})
    namespace = {}
    exec(report.script(case, [Finding("WRONG", "a", "b", "c")], ""), namespace)
    assert namespace["C"].tobytes() == x.tobytes()


# ---- stopped and taken up again ------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_stopped(fuzz, monkeypatch, tmp_path):
    path, check, seen = tmp_path / "state", run.one, []

    def interrupted(name, seed):
        seen.append(seed)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return check(name, seed)

    monkeypatch.setattr(run, "one", interrupted)
    arguments = ("--only", "grids", "--cases", 7, "--seed", 100, "--state", path)
    assert fuzz(*arguments)[0] == 130
    with path.open("a") as file:
        file.write('{"subject": "gri')  # torn by a kill
    status, found = fuzz(*arguments)
    assert status == 0
    assert seen == [100, 101, 102, 103, 103, 104, 105, 106]
    monkeypatch.setattr(run, "one", check)
    assert outcomes(found) == outcomes(fuzz(*arguments[:-2])[1])


def test_a_run_that_is_ended_leaves_no_process(tmp_path):
    """Ended by the system and not by Ctrl-C, its processes stayed, with a gigabyte each."""
    kept = tmp_path / "state"
    command = [sys.executable, run.__file__, "--only", "input", "--jobs", "2", "--minutes", "5", "--state", str(kept)]
    running = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (kept.exists() and kept.stat().st_size > 1000):
        assert time.monotonic() < until and running.poll() is None
        time.sleep(0.05)
    running.terminate()
    _, said = running.communicate(timeout=60)  # the others hold its standard error while they are there
    assert running.returncode == 130 and b"the same command goes on" in said


def test_a_state_of_other_sources_is_refused(fuzz, monkeypatch, tmp_path):
    path = tmp_path / "state"
    fuzz("--only", "input", "--cases", 1, "--state", path)
    monkeypatch.setattr(state, "code", lambda: "another")
    with pytest.raises(SystemExit, match="other sources"):
        fuzz("--only", "input", "--cases", 1, "--state", path)


@pytest.mark.parametrize(("limit", "pause"), [("LIMIT", 0.0), ("LONGEST", 0.1)])
def test_a_case_without_an_end_is_a_failure(fuzz, monkeypatch, limit, pause):
    monkeypatch.setattr(run, limit, 0.05)

    def forever(a, b, C, **options):
        while True:
            time.sleep(pause)

    monkeypatch.setattr(cusink, "sinkhorn", forever)
    status, found = fuzz("--only", "grids", "--cases", 1, "--shrink", 0)
    assert status == 1
    assert found["failures"][0]["claim"] == "an end"


def test_a_subject_that_is_not_there_is_named():
    with pytest.raises(SystemExit) as error:
        run.main(["--only", "solver,nothing"])
    assert error.value.code == 2
