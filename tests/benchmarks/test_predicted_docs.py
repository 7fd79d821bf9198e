"""The tables of counts and predictions in docs/gpu.md are what the counts give, to their last digit."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "docs" / "gpu.md").exists():
    pytest.skip("the documents are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks.gpu import predict  # noqa: E402

TEXT = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
LOOPS = json.loads((ROOT / "tests/wheels/speed_budget.json").read_text())["kernels"]
BOUND = {"exponential": "exponentials", "issue": "issue slots", "tensor": "tensor cores"}
COPIES = predict.COPYING / 150  # of a block, for each of its products


def rows_of(head):
    """Return the rows of the table whose head begins so, as lists of cells."""
    lines = TEXT[TEXT.index(head) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def rounded(value, like):
    """Return a number with as many decimals as a text has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


def loop(kernel, k=0):
    """Return the instructions for each useful term of a loop."""
    terms, instructions, _ = LOOPS[kernel][k]
    return instructions / terms


def points(operator):
    return [predict.hot_loop(operator, d)[1] / predict.hot_loop(operator, d)[0] for d in (2, 3)]


def products(kernel):
    """Return the instructions for each product of the loop of products, and of the longest loop of exponentials."""
    tensor = next(loop for loop in LOOPS[kernel] if loop[0] == 150)
    last = max((loop for loop in LOOPS[kernel] if "exponential" in loop[2]), key=lambda loop: loop[0], default=None)
    return tensor[1] / tensor[0], last and last[1] / last[0]


# The beginning of the first cell, and the numbers of the second.
COUNTS = {
    "`softmin_..._tiled`": [loop("softmin_rows_tiled")],
    "`apply_plan_..._tiled`": [loop("apply_plan_rows_tiled")],
    "`softmin_points`": points("softmin_points"),
    "`apply_plan_points`": points("apply_plan_points"),
    "`plan_sum`": [loop("plan_sum")],
    "`documents`": [loop("documents")],
    "`grid_product`": [loop("grid_product")],
    "`iterate_1`, `_2`, `_4`": [*(4 * loop(f"iterate_{k}") for k in (1, 2, 4)), 4],
    "the same with `method": [loop("iterate_1", 1)],
    "`softmin_products`": [
        *(products(name)[0] for name in ("softmin_products", "apply_plan_products")),
        COPIES,
        products("softmin_products")[1],
        products("apply_plan_products")[1],
    ],
    "`split_step`": [products("split_step")[0], COPIES],
    "`kernel_sums_products`": [
        products("kernel_sums_products")[0],
        COPIES,
        *(products(f"kernel_{name}_products")[1] for name in ("sums", "log_sums")),
    ],
    "`distance_sums_products`": [
        *products("distance_sums_products")[:1],
        COPIES,
        products("distance_sums_products")[1],
    ],
    "`kernel_sums_wide`": [loop("kernel_sums_wide")],
    "`kernel_slopes_wide`": [loop("kernel_slopes_wide"), loop("kernel_slopes_wide", 1)],
}
COUNTED = rows_of("| loop | instructions for each useful term |")
PREDICTED = rows_of("| predicted for an H100 | ms | bound by |")


def test_the_tables_are_found():
    assert len(COUNTED) == len(COUNTS) and len(PREDICTED) == 12


@pytest.mark.parametrize("cells", COUNTED, ids=lambda cells: cells[0])
def test_counts_are_those_of_the_machine_code(cells):
    (expected,) = (numbers for name, numbers in COUNTS.items() if cells[0].startswith(name))
    said = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cells[1])
    assert said == [rounded(value, text) for value, text in zip(expected, said, strict=True)]


def test_kernels_of_one_row_have_one_count():
    assert loop("softmin_rows_tiled") == loop("softmin_columns_tiled") == loop("softmin_rows_tiled_half")
    assert loop("softmin_rows_tiled") == loop("softmin_columns_tiled_half")
    assert loop("apply_plan_rows_tiled") == loop("apply_plan_columns_tiled")
    assert len({loop(f"{name}_wide") for name in ("kernel_sums", "kernel_log_sums", "distance_sums")}) == 1
    assert len({f"{products(name)[0]:.1f}" for name in predict.SUM_PRODUCTS}) == 1
    grids = ("grid_product", "grid_half_step", "grid_log_product", "grid_log_step", "grid_damped_step")
    assert len({loop(name) for name in grids}) == len({loop(f"iterate_{k}", 1) for k in (1, 2, 4)}) == 1


def prediction(k):
    """Return the prediction that a row is about."""
    name = PREDICTED[k][0]
    if name.startswith("the same with `tf32=True`"):
        return predict.predict(*arguments(PREDICTED[k - 1][0]), products=1)
    return predict.predict(*arguments(name))


def arguments(name):
    operator = re.match(r"`(\w+)`", name)[1]
    if found := re.search(r"(\d+) problems of (\d+) x (\d+)", name):
        return operator, *map(int, found.groups()), 1
    exponent, d = map(int, re.search(r"10\^(\d) points, d = (\d+)", name).groups())
    return operator, 1, 10**exponent, 10**exponent, d


@pytest.mark.parametrize("k", range(len(PREDICTED)), ids=[cells[0] for cells in PREDICTED])
def test_predictions_are_what_the_counts_give(k):
    _, ms, bound, share, measured = PREDICTED[k]
    found = prediction(k)
    assert rounded(1e3 * found.seconds, ms) == ms
    assert bound.partition(",")[0] == BOUND[found.bound]
    assert re.match(r"(\d+) %", share)[1] == f"{100 * found.share:.0f}"
    assert measured == "not measured"


def test_what_is_said_of_whole_calls_follows():
    def said(pattern):
        return re.search(pattern, re.sub(r"\s+", " ", TEXT))[1]

    goal = said(r"bins are predicted to take ([\d.]+) s at the least")
    assert rounded(200 * predict.predict("split_step", 1665, 4000, 4000).seconds, goal) == goal
    for d, pattern in ((32, r"predicted to be (\d+) times as fast with 32"), (64, r"and (\d+) times with 64")):
        in_float, on_tensor_cores = (
            predict.predict(name, 1, 10**4, 10**4, d).seconds for name in ("kernel_sums", "kernel_sums_products")
        )
        assert said(pattern) == str(int(in_float / on_tensor_cores))
    for products, pattern in (
        (3, r"coordinates are predicted to take ([\d.]+) ms"),
        (1, r"and ([\d.]+) ms with `tf32="),
    ):
        ms = said(pattern)
        found = predict.predict("softmin_products", 1, 10**4, 10**4, 64, products=products)
        assert rounded(2e4 * found.seconds, ms) == ms
