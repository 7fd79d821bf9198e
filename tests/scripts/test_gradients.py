"""The scripts about gradients: right references, verdicts, the tables of the check, the training experiment."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference as oracle

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks import gradients as bench  # noqa: E402
from benchmarks.harness import works  # noqa: E402
from examples import gradients as check  # noqa: E402
from examples import training  # noqa: E402


def small_pairs(eps=0.05, iterations=9, count=3):
    """Return some of W4's pairs, cut to 5 x 5 bins."""
    work = works.dirichlet_pairs(eps, count=count)
    a, b = (x[:, :25] / x[:, :25].sum(axis=1, keepdims=True) for x in (work.a, work.b))
    return replace(work, a=a, b=b, C=works.squared_grid_cost(5, 5), iterations=iterations)


def along(reference, rng, n):
    """Random directions of mean zero for a and b, and the slopes that a gradient gives along them, per pair."""
    direction = rng.normal(size=reference.shape)
    direction = np.concatenate([bench.mean_zero(direction[:, :n]), bench.mean_zero(direction[:, n:])], axis=1)
    return direction, (reference * direction).sum(axis=1)


# ---- the benchmark's references ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["weights", "ones"])
def test_the_unrolled_reference_is_the_slope_of_the_cost_after_the_iterations(start):
    work = small_pairs()
    direction, slopes = along(bench.reference_gradients(work, "unrolled", start, block=2), np.random.default_rng(0), 25)
    direction *= 1e-3

    def costs(t):
        moved = replace(work, a=work.a + t * direction[:, :25], b=work.b + t * direction[:, 25:])
        return works.reference_pairs(moved, start)

    np.testing.assert_allclose(1e-3 * slopes, oracle.derivative(costs, step=1e-2), rtol=1e-6)


def test_the_exact_reference_is_converged_whatever_the_count_and_the_stopped_one_is_not():
    few, many = small_pairs(iterations=4), small_pairs(iterations=3000)
    exact = bench.reference_gradients(few, "exact")
    np.testing.assert_allclose(exact, bench.reference_gradients(many, "stopped"), atol=1e-9)
    assert np.abs(bench.reference_gradients(few, "stopped") - exact).max() > 1e-5
    for k in range(3):
        solution = oracle.solve(few.a[k], few.b[k], few.C, few.eps)
        jacobian = oracle.jacobian(few.a[k], few.b[k], few.C, few.eps, solution.f, solution.g)["cost"]
        wanted = [bench.mean_zero(jacobian[name][0]) for name in "ab"]
        np.testing.assert_allclose(exact[k], np.concatenate(wanted), atol=1e-9)


@pytest.mark.parametrize("start", ["weights", "ones"])
def test_the_envelope_reference_is_the_potentials(start):
    work = small_pairs(iterations=3000)
    reference = bench.reference_gradients(work, "envelope", start)
    for k in range(3):
        solution = oracle.solve(work.a[k], work.b[k], work.C, work.eps)
        wanted = np.concatenate([bench.mean_zero(solution.f), bench.mean_zero(solution.g)])
        np.testing.assert_allclose(reference[k], wanted, atol=1e-9)


@pytest.mark.parametrize("kind", ["envelope", "exact"])
@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_cusink_is_judged_right_and_a_spoilt_gradient_wrong(kind, dtype):
    work = small_pairs(eps=0.02, iterations=12)
    reference = partial(bench.reference_gradients, work.cast(dtype).cast("float64"))
    entrant = next(x for x in bench.entrants(False) if x.competitor.name == f"cusink, {kind}")
    run, entry = bench.first_call(entrant, work.cast(dtype), dtype, reference)
    assert entry["verdict"] == "right", entry
    tolerance = bench.tolerance_of(entrant, dtype, reference)
    by_a, by_b = run()
    spoilt = by_a * (1 + 3 * tolerance)
    assert bench.judge_gradient((spoilt, by_b), reference(kind), tolerance)[2].startswith("WRONG: off by")
    by_b = by_b.copy()
    by_b[1, 3] = np.nan
    assert bench.judge_gradient((by_a, by_b), reference(kind), tolerance)[2] == "WRONG: 1 of 3 pairs not finite"
    assert bench.judge_gradient((by_a[:2], by_b[:2]), reference(kind), tolerance)[2].startswith("WRONG: shape")


@pytest.mark.parametrize("costs", [works.torch_log_domain, bench.torch_unguarded])
def test_autograd_gives_the_unrolled_gradient(costs):
    pytest.importorskip("torch")
    work = small_pairs()
    answer = bench.torch_gradients(work, costs)()
    reference = bench.reference_gradients(work, "unrolled")
    assert bench.judge_gradient(answer, reference, 1e-11)[2] == "right"


def test_a_row_of_the_benchmark(capsys):
    work = small_pairs()
    here = [x for x in bench.entrants(True) if "cusink" in x.competitor.name]
    broken = bench.Entrant(bench.Competitor("broken", "log", lambda work: 1 / 0), "exact")
    outcome = bench.run_row("float64", work, [*here, broken], 2, 0.0, lambda function: function)
    outcome["targets"] += bench.share_targets(outcome)
    bench.print_row(outcome)
    printed = capsys.readouterr().out
    assert "| cusink, envelope | envelope | right |" in printed and "| cusink, exact | exact | right |" in printed
    assert "| broken | exact | FAILED: ZeroDivisionError" in printed
    assert [t["against"] for t in outcome["targets"][-2:]] == ["envelope adjoint / forward", "exact adjoint / forward"]


def test_peak_memory_of_a_child():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")
    peak = bench.peak_of("cusink, envelope adjoint alone", "float64")
    assert peak["gradients"] == 2 * 256 * 100 * 8 and peak["traced"] >= peak["gradients"]


# ---- the check -----------------------------------------------------------------------------------------------------


def test_centred_differences_are_the_slopes_of_the_oracle():
    a, b, C = check.problem(12, seed=3)
    solution = oracle.solve(a, b, C, 0.05)
    jacobian = oracle.jacobian(a, b, C, 0.05, solution.f, solution.g)
    for value, slopes in check.centred_differences(a, b, C, 0.05).items():
        wanted = np.concatenate([bench.mean_zero(jacobian[value][name][0]) for name in "ab"])
        np.testing.assert_allclose(slopes, wanted, atol=1e-7 * np.abs(wanted).max())


def test_the_check_prints_that_only_the_multiplier_is_off(capsys):
    assert check.main(["--bins", "20", "--eps", "0.1", "0.01"]) == 0
    out = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| 0.")]
    assert [row[0] for row in rows] == ["0.1", "0.01"] * 2
    multiplier = [float(row[1].rstrip("%")) for row in rows[:2]]
    assert multiplier[0] > 50 > multiplier[1] > 1
    assert all(float(x) < 1e-6 for row in rows[:2] for x in row[2:])
    assert all("ms" in row[1] and "iB" in row[4] and int(row[5]) > 0 for row in rows[2:])


@pytest.mark.parametrize("arguments", [["--bins", "1"], ["--eps", "0"], ["--seed", "-1"], ["--nonsense"]])
def test_the_check_refuses_bad_arguments(arguments, capsys):
    assert check.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- the training experiment ---------------------------------------------------------------------------------------


def test_pictures_of_training_and_test_share_no_digit_and_labels_are_histograms():
    data = training.draw_data(0)
    (seen, read), (unseen, true) = data["training"], data["test"]
    assert seen.shape == (training.TRAINING, 129) and unseen.shape == (training.TESTING, 129)
    halves = [{half.tobytes() for x in (p[:, :64], p[:, 64:128]) for half in x} for p in (seen, unseen)]
    assert not halves[0] & halves[1]
    for labels in (read, true):
        np.testing.assert_allclose(labels.sum(axis=1), 1)
    np.testing.assert_array_equal(training.draw_data(0)["training"][1], read)
    assert np.abs(training.draw_data(1)["training"][1] - read).max() > 0


def test_the_gradient_of_the_training_loss_is_its_slope():
    rng = np.random.default_rng(0)
    given = SimpleNamespace(eps=0.05, tol=1e-11)
    a, labels = rng.dirichlet(np.ones(10), size=4), training.draw_data(0)["training"][1][:4]
    _, by_a = training.wasserstein_loss(a, labels, given)
    direction = a.min(axis=1, keepdims=True) * bench.mean_zero(rng.normal(size=a.shape))
    slope = oracle.derivative(lambda t: training.wasserstein_loss(a + t * direction, labels, given)[0], step=1e-2)
    np.testing.assert_allclose((by_a * direction).sum(axis=1), slope, rtol=1e-5, atol=1e-9)


def test_figures_are_the_exact_distance_and_the_share_found():
    pictures, labels = np.eye(2), np.zeros((2, 10))
    labels[0, [2, 5]], labels[1, 7] = 0.5, 1.0
    W = np.zeros((2, 10))
    W[0, [2, 8]] = 50.0  # one right, half a unit three classes off
    W[1, 6] = 50.0  # a whole unit one class off, and the second guess is another
    off_by, found = training.figures(W, pictures, labels)
    a = [np.eye(10)[[2, 8]].mean(axis=0), np.eye(10)[6]]
    C = 1.0 * np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    assert off_by == pytest.approx(np.mean([oracle.exact_cost(x, y, C) for x, y in zip(a, labels, strict=True)]))
    assert (off_by, found) == (pytest.approx(1.25), pytest.approx(1 / 3))


def test_training_lowers_the_distance_of_both_losses_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "TRAINING", 80)
    monkeypatch.setattr(training, "TESTING", 100)
    path = tmp_path / "new" / "picture.png"
    assert training.main(["--seeds", "1", "--steps", "12", "--output", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    off_by = {row[0]: float(row[1]) for row in rows if row and row[0] in training.LOSSES and "+-" in row}
    start = training.figures(np.zeros((129, 10)), *training.draw_data(0)["test"])[0]
    assert set(off_by) == set(training.LOSSES) and all(x < 0.95 * start for x in off_by.values())
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--eps", "-1"], ["--steps", "x"], ["--nonsense"]])
def test_training_refuses_bad_arguments(arguments, capsys):
    assert training.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_training_needs_no_framework():
    lines = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r})",
        "import numpy as np; from examples import training; from types import SimpleNamespace as Given",
        "training.wasserstein_loss(np.full((1, 10), 0.1), np.eye(10)[:1], Given(eps=1.0, tol=1e-3))",
        "print([name for name in ('torch', 'jax', 'cupy') if name in sys.modules])",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
