"""The predictions of kernel times follow from the counts, and say that they are predictions."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmarks.gpu import predict  # noqa: E402


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
    assert found.kernel == "split_step" and found.blocks == 2
    # 27 x 32 tiles are 7 for the busiest of 132; each takes 125 times 4 warps with 96 products of 2048 multiply-adds.
    assert found.parts["tensor"] == pytest.approx(7 * 125 * 4 * 96 * 2048 / (0.62 * 2048 * 1.755e9))
    assert found.parts["shared"] < 1.1 * found.parts["tensor"] and found.parts["issue"] < found.parts["tensor"]
    assert found.seconds == max(found.parts.values()) and 0.4 < found.share < 0.62
    assert predict.predict("split_step", 1665, 4000, 4000, machine=predict.MACHINES["T4"]) is None


def test_the_table_calls_itself_predicted(capsys):
    predict.main([])
    text = capsys.readouterr().out
    assert text.startswith("PREDICTED by count for H100")
    assert text.count("not measured") == len(predict.ROWS)
    predict.main(["--device", "T4", "softmin", "8", "100", "100"])
    assert "softmin_rows_tiled" in capsys.readouterr().out


@pytest.mark.parametrize("operator", ["iterate", "softmin_products"])
def test_what_counts_do_not_tell_is_refused(operator):
    with pytest.raises(ValueError, match="only softmin, "):
        predict.predict(operator, 1, 100, 100, 64)
