"""An iteration of a small problem alone takes no more clocks than docs/gpu.md predicts its time from."""

import pytest

from wheels import waits
from wheels.waits import LATENCIES, Instruction

# Clocks at up to 112 x 112 bins in float32, of which an H100 has 1.755 a nanosecond: of an iteration, and of a gradient
# by its iterations of conjugate gradients; then of each where two blocks are on a multiprocessor.
ITERATION, GRADIENT = 972, {0: 34225, 24: 71969, 55: 118810, 213: 357548}
PAIR, GRADIENT_OF_A_PAIR = 1409, 88991

LOAD = Instruction("LDS R2, [R3]", 2, sets=0)
ADD = Instruction("FADD R4, R2, R4", 4, waits=(0,))
STORE = Instruction("STS [R3], R4", 1, reads=1)
BARRIER = Instruction("BAR.SYNC.DEFER_BLOCKING 0x0", 1)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ([LOAD], 2),
        ([LOAD, ADD], LATENCIES["LDS"] + 4),
        ([LOAD, LOAD, ADD], 2 + LATENCIES["LDS"] + 4),  # one scoreboard, and the last of both is waited for
        ([STORE, Instruction("MOV R4, R5", 1, waits=(1,))], waits.OPERANDS + 1),
        ([STORE, BARRIER], 2 + LATENCIES["BAR"]),
        ([Instruction("MUFU.RCP R2, R3", 1, sets=2), ADD], 5),  # another one's result
    ],
)
def test_a_warp_waits_for_stalls_scoreboards_and_barriers(way, expected):
    assert waits.clocks(way, rounds=1) == waits.clocks(way, rounds=3) == expected


def test_what_the_compiler_wrote_into_an_instruction_is_read():
    # A load whose result sets scoreboard 3, with no scoreboard for its operands.
    word = (2 | 3 << 5 | 7 << 8 | 0b100001 << 11) << 41
    assert waits.decoded("LDS R2, [R3]", word) == Instruction("LDS R2, [R3]", 2, 3, None, (0, 5))
    assert waits.decoded("NOP", (1 | 7 << 5 | 7 << 8) << 41) == Instruction("NOP", 1)


def test_the_quickest_way_round_a_loop_avoids_what_is_rare():
    def move(stall):
        return Instruction("MOV R1, R2", stall)

    rare, skip = Instruction("LDG.E R1, [R2]", 1), Instruction("@P0 BRA `(.L_x_2)", 5)
    back = Instruction("@P1 BRA `(.L_x_1)", 5)
    apart = Instruction("@!P2 BAR.SYNC.DEFER_BLOCKING 0x0", 1)
    code = [".L_x_1", BARRIER, skip, rare, ".L_x_2", move(3), Instruction("@P2 BRA `(.L_x_3)", 1), move(9)]
    code += [".L_x_3", apart, BARRIER, back, ".L_x_4", BARRIER, Instruction("BRA `(.L_x_4)", 5)]
    assert waits.route(code, 2) == [BARRIER, skip, move(3), code[6], apart, BARRIER, back]
    with pytest.raises(LookupError, match="3 barriers"):
        waits.route(code, 3)


def test_an_iteration_waits_no_longer_than_is_said():
    way = waits.iteration()
    names = [waits.opcode(line.text) for line in way]
    assert sum(name.startswith("FFMA") for name in names) >= 2 * 14 * 7  # both products
    assert sum(name.startswith("VOTE") for name in names) == 2  # both range checks
    assert waits.clocks(way) <= 1.02 * ITERATION


@pytest.fixture(scope="module")
def gradient():
    return waits.gradient()


def test_a_gradient_waits_no_longer_than_is_said(gradient):
    for turns, most in GRADIENT.items():
        assert gradient.clocks(turns) <= 1.02 * most
    assert gradient.clocks(24) - gradient.clocks(23) == waits.clocks(gradient.turn)


def test_the_ways_of_a_gradient_hold_its_work(gradient):
    def count(way, start):
        return sum(waits.opcode(line.text).startswith(start) for line in way)

    assert count(gradient.alone, "LDG") >= 98 and not count(gradient.alone, "MUFU.EX2")
    assert count(gradient.density, "MUFU.EX2") == count(gradient.by_cost, "STG") == 7
    assert count(gradient.turn, "FFMA") >= 2 * 98 and count(gradient.attempt, "FFMA") >= 4 * 98
    assert count(gradient.alone, "FFMA") >= 3 * 98  # a residual, and the rows at the end


def test_forward_and_gradient_of_one_problem_are_within_the_goal(gradient):
    """200 iterations and either gradient in 0.25 ms, without `begin_at_once`, `end_at_once` and the launches."""
    for turns in (0, 24, 55):
        assert 200 * waits.clocks(waits.iteration()) + gradient.clocks(turns) <= 0.225e-3 * 1.755e9


def test_blocks_on_a_multiprocessor_share_what_issues_and_shared_memory():
    alone = [Instruction("FFMA R1, R2, R3, R1", 1)] * 40
    assert waits.side_by_side(alone, 1) == pytest.approx(40)
    assert waits.side_by_side(alone, 2) == pytest.approx(80, abs=2)
    waiting = [Instruction("FFMA R1, R2, R3, R1", 4)] * 40  # as two have room beside each other
    assert waits.side_by_side(waiting, 2) == pytest.approx(160, abs=2)
    assert waits.side_by_side([LOAD] * 10, 3) == pytest.approx(120, abs=4)


def test_two_blocks_on_a_multiprocessor_wait_no_longer_than_is_said(gradient):
    assert waits.side_by_side(waits.iteration(), 2) <= 1.02 * PAIR
    assert gradient.clocks(24, blocks=2) <= 1.02 * GRADIENT_OF_A_PAIR
