"""Launches for every size are legal, cover the work, and say what they are."""

import itertools

import numpy as np
import pytest

from cusink.backends.cupy import loader
from cusink.backends.cupy.fused_memory import HELD_THREADS, held_memory, shared_memory
from cusink.backends.cupy.launch import (
    FILE,
    GRID,
    H100,
    MOST_BLOCKS,
    MOST_ITERATE_THREADS,
    PAIR_STATE,
    STATE,
    Device,
    Launch,
    configure,
)

SIZES = (1, 2, 31, 32, 33, 100, 1000, 4097)
BATCHES = (1, 2, 7, 8, 9, 256, 70_000, 3_000_000)
DEVICES = (H100, Device(40, 64 << 10), Device(1, 48 << 10))  # an H100, a T4, the least there is
REDUCTIONS = tuple(STATE)
OTHERS = ("plan", "iterate", "scaled_kernel", "start_scalings", "balance_scalings", "scaling_update")
OTHERS += ("logit_update", "read_potentials", "read_logits", "plan_sum")
OTHERS += GRID
OTHERS += ("split_step", "split_kernel", "split_scalings")
OTHERS += ("damped_update", "translate", "begin_at_once", "end_at_once", "adjoint_at_once")

SUM_PRODUCTS = tuple(f"{name}_products" for name in PAIR_STATE if name.endswith("sums"))

MAY_NOT_FIT = ("iterate", "adjoint_at_once", "split_step")


def all_launches():
    """Every launch of a grid of sizes, with what it is for."""
    options = itertools.product((0, 1), (True, False), (np.float32, np.float64), DEVICES, BATCHES, SIZES, (1, 33, 1000))
    for axis, shared_cost, dtype, device, B, n, m in options:
        for operator in (*REDUCTIONS, *OTHERS):
            if operator == "transport_cost" and axis == 0:
                continue
            sizes = B, n, m, np.dtype(dtype).name, device
            yield operator, sizes, axis, configure(operator, *sizes, axis=axis, shared_cost=shared_cost)
        pairs = (*PAIR_STATE, *(f"{term}_points" for term in STATE), "cost_points")
        pairs += ("split_points", "softmin_products", "apply_plan_products", *SUM_PRODUCTS)
        for operator, d in itertools.product(pairs, (3, 100) if axis and shared_cost else ()):
            sizes = B, n, m, np.dtype(dtype).name, device
            yield operator, sizes, axis, configure(operator, *sizes, d=d)


def test_every_launch_is_legal_and_names_a_kernel():
    known = {(file, name) for file in loader.kernel_files() for name in loader.names(file)}
    seen = set()
    for operator, sizes, _, launch in all_launches():
        if launch is None:
            assert operator in MAY_NOT_FIT or operator.endswith(("_points", "_products"))
            continue
        seen.add(launch[:2])
        assert launch.grid in range(1, MOST_BLOCKS + 1), (operator, sizes)
        assert 32 <= launch.block <= (256 if operator.endswith("_products") else 512) and launch.block % 32 == 0, (
            operator,
            sizes,
        )
        # Without being asked for, a block has 48 KiB; the fused kernel, and points of many coordinates, ask for more.
        more = operator.endswith("_products") or operator in MAY_NOT_FIT
        more = more or (operator.endswith("_points") and launch.block == 32)
        assert 0 <= launch.shared <= (sizes[-1].shared_memory if more else 48 << 10), (operator, sizes)
    # What is left over is chosen by the storage of the cost; documents, pairs and large clouds have tests of their own.
    half = {name for name in known if name[1].endswith("_half")}
    ragged = {name for name in known if name[1].startswith("ragged")}
    large = {name for name in known if name[0] == "near_points.cu"}
    assert known - seen == half | ragged | large | {("documents.cu", "documents")}
    assert seen <= known


def test_half_precision_has_kernels_of_its_own():
    for axis, side in ((0, "columns"), (1, "rows")):
        for shared_cost in (True, False):
            whole, half = (
                configure("softmin", 50, 64, 64, "float32", H100, axis=axis, shared_cost=shared_cost, half=half)
                for half in (False, True)
            )
            assert half == whole._replace(kernel=whole.kernel + "_half")
            assert half.kernel == f"softmin_{side}" + "_tiled" * shared_cost + "_half"
            assert half.kernel in loader.names(half.file)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_a_cost_is_read_once_for_many_problems_only_if_they_share_it(operator):
    few, many, own = (
        configure(operator, B, 100, 100, "float32", H100, shared_cost=shared)
        for B, shared in ((2, True), (256, True), (256, False))
    )
    assert many.kernel.endswith("_tiled")
    assert not few.kernel.endswith("_tiled") and not own.kernel.endswith("_tiled")
    assert few.file == many.file == FILE[operator]


def test_the_fused_kernel_takes_what_fits_and_fills_the_device():
    chosen = {B: configure("iterate", B, 100, 100, "float32", H100) for B in (1, 132, 133, 256, 264, 265, 10_000)}
    assert [launch.kernel.split("_")[1] for launch in chosen.values()] == ["held"] * 2 + ["2"] * 4 + ["4"]
    assert chosen[256] == Launch("iterate.cu", "iterate_2", 128, 256, shared_memory(2, 100, 100, 8, 4))
    own = {n: configure("iterate", 256, n, 20, "float32", H100, shared_cost=False).kernel for n in (32, 33, 112, 113)}
    assert own == {32: "iterate_1", 33: "iterate_held", 112: "iterate_held", 113: "iterate_1"}
    assert configure("iterate", 1, 81, 20, "float64", H100).kernel == "iterate_1"
    assert configure("iterate", 1, 20, 64, "float64", H100).kernel == "iterate_held"
    assert configure("iterate", 1, 64, 64, "float64", H100, log=True).kernel == "iterate_1"
    largest = {
        (dtype, device): max(n for n in range(1, 400) if configure("iterate", 8, n, n, dtype, device))
        for dtype in ("float32", "float64")
        for device in DEVICES
    }
    assert [largest["float32", device] for device in DEVICES] == [232, 116, 100]
    assert [largest["float64", device] for device in DEVICES] == [160, 76, 64]


def test_shared_memory_counts_what_the_fused_kernel_lays_out():
    # K 4 x 6; u, p, a 4 each; v, q, b 4 each; 8 absorbed; 2 tiles, padded; one slice of 4 sums.
    assert shared_memory(1, 3, 4, 2, 8) == 8 * (24 + 12 + 12 + 8 + 4 + 4)
    assert shared_memory(2, 3, 4, 2, 8) == 8 * (24 + 2 * (12 + 12 + 4) + 4)
    # In float32 rows of K are an odd number of wide loads; 10 columns are padded to 12.
    assert shared_memory(2, 20, 10, 2, 4) == 4 * (20 * 12 + 2 * 3 * (20 + 12) + 4 + 2 * 3 * 20)
    assert shared_memory(2, 20, 16, 2, 4, log=True) == 4 * (20 * 20 + 2 * 3 * (20 + 16) + 4 + 2 * 2 * 4 * 20)


def test_two_blocks_of_the_fused_kernel_are_on_a_multiprocessor_at_a_time():
    """Of 100 bins in float32, by registers (its launch bound, kept by the compiler) and by shared memory."""
    for problems, kilobytes in ((1, 164), (2, 164), (4, 164), (4, 228)):
        assert 2 * (shared_memory(problems, 100, 100, MOST_ITERATE_THREADS // 32, 4) + 1024) <= kilobytes << 10
    assert 2 * (held_memory(4) + 1024) <= 64 << 10 and 2 * HELD_THREADS * 255 <= 65536
    # A thousand problems are one wave on an H100.
    launch = configure("iterate", 1000, 100, 100, "float32", H100)
    assert launch.grid <= 2 * H100.multiprocessors


def test_a_launch_is_printable_and_pure():
    first, again = (configure("softmin", 256, 1000, 1000, "float32", H100, axis=0) for _ in range(2))
    assert first == again
    assert repr(first) == "Launch(file='softmin.cu', kernel='softmin_columns_tiled', grid=512, block=128, shared=6272)"


def test_what_has_no_kernel_is_refused():
    with pytest.raises(ValueError, match="no kernel for 'median'"):
        configure("median", 1, 1, 1, "float32", H100)
