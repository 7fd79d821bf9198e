"""The kernel benchmark measures the right things: every row's call and check are run here on NumPy at small sizes.

The report's kernel, which is the baseline, runs as it is, in the emulator.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import emulated
import numpy as np
import pytest
from emulated import cupy_stand_in, device_arrays
from kernels import resources

from cusink.backends.numpy import dense

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks.gpu import cases, workload  # noqa: E402
from benchmarks.gpu import clouds as points  # noqa: E402
from benchmarks.gpu import kernels as bench  # noqa: E402
from benchmarks.gpu.verdicts import EXPECTED  # noqa: E402

SMALL = list(cases.all_cases(sizes=((6, 9, 7), (5, 33, 40), (3, 8, 8))))
EMULATED = [case for case in SMALL if case.n == 9 and not case.operator.startswith("report")]
POINTS = list(points.point_cases(70, 45, 3, 6, 5, 12, large=(34, 230)))
ITERATED = ("softmin_products", "split_step")  # judged by an object of their own
RATES = {"bytes_per_s": 1e9, "exp_per_s": {"float32": 1e9, "float64": 1e9}}


def words(case):
    return "-".join(map(str, dataclasses.astuple(case)))


def instant(xp, call, repeats=7, least=0.05):
    return 2e-3, 1e-3


@pytest.mark.parametrize("case", SMALL, ids=words)
def test_every_row_is_right_on_numpy(case):
    row = bench.measure(dataclasses.replace(case, count=min(case.count, 5)), np, dense, emulated, RATES, instant)
    assert row["status"] == "measured", row
    assert row["ms"] == 2
    assert row["of_copy"] == pytest.approx(case.bytes / 2e-3 / 1e9)


@pytest.mark.parametrize("case", EMULATED, ids=words)
def test_every_row_is_right_on_emulated_kernels(case):
    with cupy_stand_in.operators() as ops:
        case = dataclasses.replace(case, count=min(case.count, 5))
        row = bench.measure(case, ops.xp, ops, emulated, RATES, instant)
        assert ops.launched
    assert row["status"] == "measured", row


@pytest.mark.parametrize("case", POINTS, ids=words)
def test_every_row_of_points_is_right(case):
    rows = [bench.measure(case, np, None, None, RATES, instant)]
    with device_arrays.device() as (cupy, launched), workload.tensor_cores_always():
        rows.append(bench.measure(case, cupy, None, None, RATES, instant))
    if case.operator == points.FLASH:
        if importlib.util.find_spec("flash_sinkhorn") is None:
            assert rows == [{"status": "not installed"}] * 2
            assert bench.table([(case, rows[0])]).count("not installed") == 6
        return
    assert [row["status"] for row in rows] == ["measured"] * 2, rows
    expected = {"kernel_product": "kernel_sums", "solve": "iterate_1"}  # steep, so that a problem has a block
    assert expected.get(case.operator, case.operator) in launched


@pytest.mark.parametrize("case", [case for case in POINTS if case.operator in ITERATED], ids=words)
def test_iterations_that_are_off_are_called_wrong(case, monkeypatch):
    right = points.logsumexp
    for error, status in ((0, "measured"), (0.01, "wrong")):
        monkeypatch.setattr(points, "logsumexp", lambda *args, error=error: right(*args) + error)
        assert bench.measure(case, np, None, None, RATES, instant)["status"] == status


@pytest.mark.parametrize(("capability", "status"), [("75", "not on tensor cores"), ("80", "in float")])
def test_products_in_float_are_not_taken_for_split_step(capability, status, monkeypatch):
    """Where tensor cores are fast, that is a fault."""
    (case,) = (case for case in POINTS if case.operator == "split_step")
    with device_arrays.device() as (cupy, _):
        monkeypatch.setattr(type(cupy.cuda.Device()), "compute_capability", capability)
        assert bench.measure(case, cupy, None, None, RATES, instant) == {"status": status}
        assert (status in EXPECTED) == (capability == "75")


@pytest.mark.parametrize("case", [case for case in POINTS if case.operator not in (*ITERATED, points.FLASH)], ids=words)
def test_a_wrong_row_of_points_is_called_wrong(case):
    call, judge = points.prepare(case, np)
    result = call()
    worse = types.SimpleNamespace(f=result.f + 1e-4, g=result.g) if case.operator == "solve" else result * (1 + 1e-4)
    for found, right in ((result, True), (worse, False)):
        error, allowed = judge(found)
        assert (error <= allowed) == right


def test_a_wrong_answer_is_called_wrong_and_never_timed():
    case = cases.Case("softmin", "shared", 1, 6, 9, 7, "float64")
    for fault in (lambda x: x * (1 + 1e-9), lambda x: x * np.nan):
        ops = types.SimpleNamespace(softmin=lambda *args, fault=fault: fault(dense.softmin(*args)))
        row = bench.measure(case, np, ops, emulated, RATES, time=None)
        assert row["status"] == "wrong"
        assert "WRONG" in bench.table([(case, row)])
        assert "ms" not in row


def test_bytes_and_exponentials_of_a_row():
    softmin = cases.Case("softmin", "shared", 1, 2, 3, 5, "float32")
    assert (softmin.bytes, softmin.exps) == (4 * (15 + 2 * 8), 30)
    assert dataclasses.replace(softmin, cost="own", dtype="float64").bytes == 8 * (30 + 2 * 8)
    assert dataclasses.replace(softmin, operator="c_transform").exps is None
    assert dataclasses.replace(softmin, operator="iterations", detail="log", count=100).exps == 6000
    assert dataclasses.replace(softmin, operator="iterations", detail="auto", count=100).exps is None


def test_time_is_per_call():
    clock = {"now": 0.0}

    class Event:
        def record(self):
            self.at = clock["now"]

        def synchronize(self):
            pass

    def call():
        clock["now"] += 3e-3

    cuda = types.SimpleNamespace(Event=Event, get_elapsed_time=lambda begin, end: (end.at - begin.at) * 1e3)
    assert bench.device_time(types.SimpleNamespace(cuda=cuda), call) == pytest.approx((3e-3, 3e-3))


def test_floors_are_read_from_the_rows_they_name():
    rows = [
        (
            case,
            {"status": "measured", "ms": 1 / 8 if case.operator == "iterations" else 2, "of_exp": 0.61, "of_copy": 0.5},
        )
        for case in (*cases.all_cases(), *points.point_cases())
    ]
    text = bench.floors(rows)
    assert bench.NOT_MEASURED not in text
    assert [line.split("  ")[-1].strip() for line in text.splitlines()[1:]] == [
        *("61%", "50%") * 2,
        *("0.125 ms", "16.0 x") * 2,
        *("61%", "1.0 x"),
    ]


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--require-gpu"], 1), (["--only", "nothing"], 2)])
def test_without_a_gpu_nothing_is_measured_nor_estimated(arguments, status):
    run = subprocess.run(
        [sys.executable, str(cases.FOLDER / "kernels.py"), *arguments],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == status, run.stderr
    if status == 2:
        assert "no operator's name contains 'nothing'" in run.stderr
        return
    rows = [line for line in run.stdout.splitlines() if "float32" in line and " x " in line]
    assert len(rows) == sum(case.dtype == "float32" for case in (*cases.all_cases(), *points.point_cases()))
    assert all(line.count("not measured") == 6 for line in rows)
    assert "not measured: CuPy" in run.stdout
    assert "{" not in run.stdout


def test_the_static_budget_is_shown(tmp_path):
    path = tmp_path / "budget.json"
    path.write_text('{"compiler": "NVRTC 1.2", "kernels": {"a.cu kernel_a float32": {"sm_75": [40, 128]}}}')
    text = bench.static_budget(path)
    assert "NVRTC 1.2" in text
    assert text.splitlines()[-1].split() == ["a.cu", "kernel_a", "float32", "40,", "128"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("file", ["rates.cu", "report.cu"])
def test_the_benchmark_s_own_kernels_compile(file, dtype):
    if resources.compiler_path() is None:
        pytest.skip("no CUDA compiler (pip install nvidia-cuda-nvrtc-cu12)")
    for arch in resources.ARCHITECTURES:
        compiled = resources.compile_one(str(cases.FOLDER / file), dtype, arch)
        assert compiled.ok, compiled.log
        assert "warning" not in compiled.log
        assert all(used.spills == used.stack == 0 for used in compiled.kernels.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loop_of_exponentials_does_them_all(dtype):
    out = np.zeros(2 * 64, dtype)
    emulated.function(str(cases.FOLDER / "rates.cu"), "exp_rate", dtype)((2,), (64,), (out, np.int32(3)))
    x = ((np.arange(64)[:, None] + np.arange(8)) / 1024).astype(dtype)
    for _ in range(3):
        x = np.exp2(-x)
    np.testing.assert_allclose(out, np.tile(x.sum(axis=1), 2), rtol=8 * np.finfo(dtype).eps)
