"""Inner loops of the built kernels take no more instructions for a useful term than `speed_budget.json` says.

That is a count, not a time: nothing here has waited for memory. `scripts/benchmarks/gpu/predict.py` makes predictions
of it, and calls them so.
"""

import json

import pytest

from wheels import sass

CODE = """
.L_x_0:
IADD3 R1, R1, 0x1, RZ
.L_x_1:
LDS.128 R4, [R2]
@P0 BRA `(.L_x_2)
FMNMX R3, R3, R4, !PT
.L_x_2:
MUFU.EX2 R5, R4
@!P1 MUFU.EX2 R6, R4
MUFU.EX2 R7, R4
MUFU.EX2 R8, R4
FADD R9, R5, R6
HMMA.1688.F32.TF32 R4, R4, R5, R6
LDG.E R4, [R2.64]
SHFL.BFLY PT, R4, R4, 0x1, 0x1f
@P2 BRA `(.L_x_1)
@P3 BRA `(.L_x_0)
EXIT
""".strip().splitlines()


def test_loops_are_counted_without_those_inside_and_rare_paths():
    inner, outer = sorted(sass.loops(CODE), key=len, reverse=True)
    assert outer == ["IADD3", "BRA"]
    assert len(inner) == 11 and "FMNMX" not in inner
    (loop,) = sass.count("softmin_rows", CODE)
    assert (loop.terms, loop.instructions) == (4, 11)
    expected = {"control": 2, "exponential": 4, "float": 1, "global": 1, "shared": 1, "shuffle": 1, "tensor": 1}
    assert loop.units == expected


@pytest.fixture(scope="module")
def counted():
    return sass.count_all()


def over(counted, budget):
    """Return the loops that take more than 2 % above their budget, or that it has not: (kernel, per term, allowed)."""
    found = []
    for name, loops in counted.items():
        allowed = [loop.per_term for loop in budget[name]]
        for loop, most in zip(loops, allowed + [0] * (len(loops) - len(allowed)), strict=False):
            if loop.per_term > 1.02 * most:
                found.append((name, loop.per_term, most))
    return found


def test_inner_loops_keep_to_their_budget(counted):
    budget = sass.read_budget()
    rewrite = "if this is meant: python tests/wheels/sass.py --write-budget"
    assert set(counted) == set(budget), rewrite
    assert not over(counted, budget), rewrite


def test_a_loop_that_grows_is_found():
    budget = sass.read_budget()
    for name, loops in budget.items():
        for k, loop in enumerate(loops):
            longer = loop._replace(instructions=loop.instructions + 1 + loop.instructions // 50)
            grown = budget | {name: [*loops[:k], longer, *loops[k + 1 :]]}
            assert [found[0] for found in over(grown, budget)] == [name]


def test_the_loops_that_matter_most_are_the_ones_counted(counted):
    """What the README of the kernels promises, by count: see docs/gpu.md."""
    assert counted["softmin_rows_tiled"][0].per_term <= 6
    assert counted["softmin_rows_tiled_half"][0].per_term <= 6
    assert counted["plan_sum"][0].per_term <= 8
    for kernel, most in (("softmin_points", 8.2), ("apply_plan_points", 7.2)):  # of 3 coordinates
        three = [loop for loop in counted[kernel] if loop.units["float"] == 5 * loop.terms]
        assert three and min(loop.per_term for loop in three) <= most
    for kernel, most in (("iterate_1", 7.5), ("iterate_2", 6.2), ("iterate_4", 5.5)):
        assert counted[kernel][0].units["shared"] and 4 * counted[kernel][0].per_term <= most
        in_logs = [loop for loop in counted[kernel] if loop.units.get("exponential") == loop.terms]
        assert min(loop.per_term for loop in in_logs) <= 6
    assert json.loads(sass.BUDGET.read_text())["compiler"].startswith("NVRTC 13.")
