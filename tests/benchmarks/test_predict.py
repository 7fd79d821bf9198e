"""The predictions of kernel times follow from the counts, and say that they are predictions."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks.gpu import machines, predict  # noqa: E402
from benchmarks.gpu.clouds import point_cases  # noqa: E402

from cusink.backends.cupy.launch import SUMS_FROM, split_tiles  # noqa: E402


def test_a_tiled_softmin_takes_what_its_exponentials_take():
    found = predict.predict("softmin", 256, 1000, 1000)
    terms, instructions, units = predict.hot_loop("softmin_rows_tiled", 1)
    assert found.kernel == "softmin_rows_tiled" and units["exponential"] == terms
    by_hand = 256e6 / 32 * instructions / terms / (4 * 132 * 1.755e9)
    assert found.parts["issue"] == pytest.approx(by_hand, rel=0.05)  # 512 blocks are not quite whole waves
    assert found.parts["exponential"] == pytest.approx(256e6 / (16 * 132 * 1.755e9), rel=0.05)
    assert found.seconds == max(found.parts.values()) and 0.5 < found.share <= 1


def test_time_grows_with_work_and_falls_with_the_machine():
    small, large = (predict.predict("softmin_points", 1, n, n, 3).seconds for n in (50_000, 100_000))
    assert 3.9 < large / small < 4.1
    machines = (predict.MACHINES[name] for name in ("H100", "A100", "T4"))
    seconds = [predict.predict("softmin_points", 1, 10**5, 10**5, 3, machine).seconds for machine in machines]
    assert seconds == sorted(seconds)
    assert predict.predict("softmin_points", 1, 10**4, 10**4, 2000) is None


def test_a_half_step_on_tensor_cores_takes_the_tiles_of_the_busiest_multiprocessor():
    found = predict.predict("split_step", 1665, 4000, 4000)
    assert found.kernel == "split_step" and found.blocks == 1 and found.bound == "tensor"
    # 250 + 13 tiles are 2 for the busiest of 132; each takes 125 times 8 warps with 150 products of 2048 multiply-adds.
    assert found.parts["tensor"] == pytest.approx(2 * 125 * 8 * 150 * 2048 / (0.629 * 2048 * 1.755e9))
    # Of a block of summed indices 320 rows of 132 bytes are copied for each multiprocessor.
    assert found.parts["cache"] == pytest.approx(2 * 125 * 320 * 132 * 132 / (4472 * 1.755e9))
    # An update of 800 times 32 entries has nothing beside it, and two tests of the sums of a tile.
    alone = (800 * predict.UPDATING + 2 * 8 * predict.TESTING) / (4 * 1.755e9)
    assert found.seconds == pytest.approx(found.parts["tensor"] + alone)
    assert 0.5 < found.share < 0.629


def test_a_wave_that_is_not_full_counts_in_full():
    full, more = (predict.predict("split_step", B, 4000, 4000).seconds for B in (1680, 1840))
    assert split_tiles(1680, 4000) == 263 and split_tiles(1840, 4000) > 264
    assert more > 1.4 * full
    assert predict.predict("split_step", 1665, 4000, 4000, machine=predict.MACHINES["T4"]) is None


def test_the_table_calls_itself_predicted(capsys):
    predict.main([])
    text = capsys.readouterr().out
    assert text.startswith("PREDICTED by count for H100")
    assert text.count("not measured") == len(predict.ROWS)
    predict.main(["--device", "T4", "softmin", "8", "100", "100"])
    assert "softmin_rows_tiled" in capsys.readouterr().out


def test_points_on_tensor_cores_take_the_strips_of_the_busiest_multiprocessor():
    loops = json.loads((predict.ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"]["softmin_products"]
    products, exponentials = loops[0][1], max(loops, key=lambda loop: loop[2].get("exponential", 0))[1]
    found = predict.predict("softmin_products", 1, 10_000, 10_000, 64)
    # 125 strips are one for each of 132; it has 32 tiles of 320, each of 2 blocks of 8 warps with 150 products.
    assert found.parts["tensor"] == pytest.approx(32 * 2 * 8 * 150 * 2048 / (0.629 * 2048 * 1.755e9))
    assert found.parts["issue"] == pytest.approx(32 * 2 * 8 * (products + predict.COPYING) / (4 * 1.755e9))
    assert found.parts["exponential"] == pytest.approx(32 * 8 * exponentials / (4 * 1.755e9))
    assert found.bound == "tensor" and found.seconds == pytest.approx(
        found.parts["tensor"] + found.parts["exponential"]
    )
    assert 20 * found.seconds < 4e-3  # ten iterations
    plain = predict.predict("softmin_products", 1, 10_000, 10_000, 64, products=1)
    assert plain.parts["tensor"] == pytest.approx(found.parts["tensor"] / 3) and 20 * plain.seconds < 2.5e-3
    more = predict.predict("softmin_products", 1, 10_640, 10_000, 64)  # 133 strips
    assert more.seconds == pytest.approx(2 * found.seconds)
    assert predict.predict("softmin_products", 1, 10_000, 10_000, 64, machine=predict.MACHINES["T4"]) is None


def test_sums_of_kernels_in_float_take_the_blocks_of_the_busiest_multiprocessor():
    loops = json.loads((predict.ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"]["kernel_sums_wide"]
    (terms, coordinates, _), (pairs, exponentials, _) = loops
    assert (terms, pairs) == (4 * 16, 4)
    found = predict.predict("kernel_sums", 1, 10_000, 10_000, 64)
    # 313 blocks are 3 for the busiest of 132; 8 warps take 32 points at a time, and 16 coordinates of them in a stage.
    each = 4 * (coordinates + predict.BRINGING * (16 * 32 + 16 * 32) / 256) + exponentials
    assert found.kernel == "kernel_sums_wide" and found.bound == "issue"
    assert found.seconds == pytest.approx(3 * 313 * 8 * each / 4 / 1.755e9)
    few = predict.predict("kernel_sums", 1, 10**5, 10**5, 3)
    assert few.kernel == "kernel_sums" and 2.7e-3 < few.seconds < 10e-3


@pytest.mark.parametrize("d", [32, 64, 128])
@pytest.mark.parametrize("machine", ["H100", "A100"])
def test_sums_on_tensor_cores_pay(machine, d):
    """By more than half, or they would not be there; from the size on from which they are taken."""
    machine = predict.MACHINES[machine]
    slow = predict.predict("kernel_sums", 1, 10**4, 10**4, d, machine)
    for name in predict.SUM_PRODUCTS:
        fast = predict.predict(name, 1, 10**4, 10**4, d, machine)
        assert slow.seconds > 1.5 * fast.seconds and fast.share < 1
    n = int((SUMS_FROM / d) ** 0.5) + 1
    least = [predict.predict(name, 1, n, n, d, machine).seconds for name in ("kernel_sums", "kernel_sums_products")]
    assert least[0] - least[1] > 1e-4  # what 20 operations on few numbers take
    assert predict.predict("kernel_sums_products", 1, n - 2, n - 2, d, machine) is None


def test_a_sum_of_plans_reads_the_cost_once_and_stages_logits():
    found = predict.predict("plan_sum", 256, 1000, 1000)
    terms, instructions, _ = predict.hot_loop("plan_sum", 1)
    by_hand = 256e6 / 32 * (instructions / terms + predict.STAGING / 64) / (4 * 132 * 1.755e9)
    assert found.bound == "issue" and found.seconds == pytest.approx(by_hand, rel=0.05) and found.seconds < 3e-4
    assert found.parts["bytes"] == pytest.approx((2 * 4e6 + 4 * 3 * 256 * 2000) / 3.35e12)


@pytest.mark.parametrize("operator", ["iterate", "documents"])
def test_what_counts_do_not_tell_is_refused(operator):
    with pytest.raises(ValueError, match="only softmin, "):
        predict.predict(operator, 1, 100, 100, 64)


# What CuPy says of an H200, but for what no prediction takes.
H200 = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448, "ClockRate": 1_980_000}
H200 |= {"MemoryClockRate": 3_201_000, "GlobalMemoryBusWidth": 6144, "MaxSharedMemoryPerMultiprocessor": 228 << 10}
RATES = {"bytes_per_s": 4.1e12, "exp_per_s": {"float32": 16 * 132 * 1.8e9, "float64": 1e11}}


def test_a_machine_is_made_of_attributes_and_measured_rates():
    known, peak = predict.MACHINES["H200"], machines.machine_of("90", H200)
    assert peak == known._replace(clock=1.98e9, bandwidth=peak.bandwidth)
    assert peak.bandwidth == pytest.approx(known.bandwidth, rel=0.03)
    here = machines.machine_of("90", H200, RATES)
    assert (here.bandwidth, here.clock) == (4.1e12, pytest.approx(1.8e9))
    assert machines.machine_of("90", H200, RATES | {"exp_per_s": {"float32": 1e15}}).clock == 1.98e9
    # A memory-bound work is faster by the bandwidth, another is not.
    plan, softmin = (
        [
            predict.predict(name, 256, 1000, 1000, machine=predict.MACHINES[device]).seconds
            for device in ("H100", "H200")
        ]
        for name in ("plan", "softmin")
    )
    assert plan[0] / plan[1] == pytest.approx(4.8 / 3.35) and softmin[0] == softmin[1]


@pytest.mark.parametrize(
    ("capability", "budget"), [("75", "sm_75"), ("86", "sm_80"), ("89", "sm_80"), ("103", "sm_100")]
)
def test_a_device_takes_the_registers_of_the_nearest_one_that_is_built(capability, budget):
    machine = machines.machine_of(capability, H200)
    assert machine.capability == budget and machine.device.fast_halves == (capability == "103")
    assert predict.predict("softmin", 256, 1000, 1000, machine=machine).seconds > 0


def test_fast_halves_are_those_of_the_backend():
    text = (predict.ROOT / "cusink/backends/cupy/run.py").read_text()
    assert f"FAST_HALVES = {machines.FAST_HALVES!r}".replace("'", '"') in text


def test_a_row_of_iterations_is_predicted_with_all_its_half_steps():
    """Ten iterations between points are twenty launches, of which one is predicted."""
    cases = {case.operator: case for case in point_cases() if case.dtype == "float32"}
    for name in ("softmin_products", "split_step"):
        case, machine = cases[name], predict.MACHINES["H100"]
        ms, one = predict.expected(case, machine)
        assert ms == pytest.approx(20e3 * one.seconds)
        assert one == predict.predict(name, case.B, case.n, case.m, case.d or 1, machine)
    assert predict.expected(cases["plan_sum"], machine)[0] == pytest.approx(0.109, rel=0.01)
    assert predict.expected(cases["documents"], machine) is None


def test_a_report_s_device_is_predicted_beside_what_it_measured(tmp_path, capsys):
    row = {"operator": "softmin_products", "cost": "points", "dtype": "float32", "B": 1, "n": 10_000, "m": 10_000}
    row |= {"d": 64, "launches": 20, "ms": 3.0}
    rows = [{"rates": RATES}, row, row | {"dtype": "float64", "ms": 9.0}, {"operator": "softmin", "status": "wrong"}]
    facts = {"capability": "90", "attributes": H200, "device": "NVIDIA H200"}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"steps": {"facts": {"rows": [facts]}, "operators": {"rows": rows}}}))
    predict.main(["--report", str(path)])
    text = capsys.readouterr().out
    assert text.startswith("PREDICTED by count for NVIDIA H200, in float32; beside what was measured")
    lines = [line for line in text.splitlines() if line.startswith("| softmin_products | 1 | 10000 ")]
    assert len(lines) == 1 and lines[0].endswith("| 0.15 |")
    assert text.count("not measured") == len(predict.ROWS) - 1
