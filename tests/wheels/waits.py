"""How long a warp takes to go round a loop in machine code, where it waits and no unit is busy.

A warp issues its instructions in order. The compiler has written into each how many clocks the next one has to wait
(which covers fixed latencies, and 4 clocks from one access of shared memory to the next, as four warps have it in
turns), and for which of six scoreboards it waits itself: those of loads and special functions, whose latencies it
cannot know. These are in `LATENCIES`, and are assumed. Left out are misses of the instruction cache, what a taken
branch costs beside its stall, and other blocks. So this is a count, not a time.

``python tests/wheels/waits.py`` prints an iteration of ``iterate_held`` in float32, and what a gradient is made of.
"""

import heapq
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import wheels
from wheels.builds import builds
from wheels.sass import opcode

# Clocks until a result can be used, by the beginning of an opcode; a barrier until a warp is past it. Not measured.
# What is read of global memory is in the L2 cache.
LATENCIES = {"LDG": 300, "LDS": 29, "MUFU": 20, "SHFL": 24, "S2": 20, "LDC": 30, "BAR": 30, "": 20}
OPERANDS = 8  # clocks until a store has read its registers
# What a usual half-step does not come to: it makes K, repairs a sum, or ends a round.
RARE = r"LDG|STG|MUFU\.(EX2|LG2)|CALL|ATOMS|REDUX|SHFL|EXIT|RET"
NEVER = r"CALL|EXIT|RET"  # what no loop of `adjoint_held` comes to
ROWS = 14  # of a thread, in each of its two loops over them


class Instruction(NamedTuple):
    """One instruction: the clocks before the next one, the scoreboards that it sets, and those that it waits for."""

    text: str
    stall: int
    sets: int | None = None  # until there is a result
    reads: int | None = None  # until its operands are read
    waits: tuple = ()


def decoded(text, word):
    """Return the `Instruction` with the upper 64 bits `word` of its encoding."""
    bits = word >> 41
    sets, reads = (None if bits >> shift & 7 == 7 else bits >> shift & 7 for shift in (5, 8))
    waits = tuple(board for board in range(6) if bits >> 11 + board & 1)
    return Instruction(text, bits & 15, sets, reads, waits)


def disassemble(binary, kernel):
    """Return the instructions of a kernel, and its labels as words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary + b"\0")  # the last byte, which CuPy takes for the end of a text
        command = [str(wheels.tool("nvdisasm")), "-hex", "-c", str(path)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code, inside = [], False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if found := re.match(r"\.text\.(\w+):", line):
            inside = found[1] == kernel
        elif inside and (found := re.match(r"(\.L_x_\d+):", line)):
            code.append(found[1])
        elif inside and (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]+ \*/", line)):
            code.append(decoded(found[1], int(re.search(r"/\* 0x([0-9a-f]+) \*/", following)[1], 16)))
    return code


def _target(instruction, places):
    return places[re.search(r"`\((\.L_x_\d+)\)", instruction.text)[1]]


def _is_barrier(instruction):
    return instruction.text.startswith("BAR")  # one with a predicate belongs to another way


def route(code, barriers, rare=RARE, holds=()):
    """Return the quickest way round a loop with so many barriers, by stalls alone: a list of instructions.

    Of all loops it is the shortest whose way has them, and the instructions that it `holds`. A way avoids what is
    `rare`, and `BRA.DIV`, for threads that are apart.
    """
    places = {line: index for index, line in enumerate(code) if isinstance(line, str)}
    jumps = {
        index: _target(line, places)
        for index, line in enumerate(code)
        if not isinstance(line, str) and opcode(line.text) == "BRA"
    }
    for start, end in sorted(((to, at) for at, to in jumps.items() if to < at), key=lambda loop: loop[1] - loop[0]):
        way = _quickest(code, jumps, start, end, barriers, rare)
        if way and all(any(opcode(line.text).startswith(name) for line in way) for name in holds):
            return way
    raise LookupError(f"no loop with {barriers} barriers")


def _quickest(code, jumps, start, end, barriers, rare):
    """Dijkstra's way from `start` to `end`; a node is an instruction with the barriers before it."""
    shortest, before, queue = {(start, 0): 0}, {}, [(0, start, 0)]
    while queue:
        clocks, at, passed = heapq.heappop(queue)
        if clocks > shortest[at, passed] or passed > barriers:
            continue
        if (at, passed) == (end, barriers):
            way, node = [], (at, passed)
            while node:
                way.append(code[node[0]])
                node = before.get(node)
            return [line for line in reversed(way) if not isinstance(line, str)]
        if at == end:
            continue
        line, following = code[at], [at + 1]
        if not isinstance(line, str):
            if re.match(rare, opcode(line.text)):
                continue
            passed_then, longer = passed + _is_barrier(line), clocks + line.stall
            if at in jumps:
                always = not re.match(r"@|BRA\s+!?U?P\d", line.text)
                following = [jumps[at]] if always else [at + 1, jumps[at]]
        else:
            passed_then, longer = passed, clocks
        for then in following:
            if start <= then and longer < shortest.get((then, passed_then), float("inf")):
                shortest[then, passed_then], before[then, passed_then] = longer, (at, passed)
                heapq.heappush(queue, (longer, then, passed_then))
    return None


def clocks(way, rounds=3):
    """Return the clocks of the last of some rounds along a way."""
    now, free, begun = 0, {}, 0
    for _ in range(rounds):
        begun = now
        for line in way:
            now = max([now, *(free.get(board, 0) for board in line.waits)])
            name = opcode(line.text)
            latency = next(value for start, value in LATENCIES.items() if name.startswith(start))
            if line.sets is not None:
                free[line.sets] = max(free.get(line.sets, 0), now + latency)
            if line.reads is not None:
                free[line.reads] = max(free.get(line.reads, 0), now + OPERANDS)
            now += max(line.stall, 1) + (latency if _is_barrier(line) else 0)
    return now - begun


def side_by_side(way, blocks, rounds=20):
    """Return the clocks of a round of each of several blocks on a multiprocessor, each with a warp on a scheduler.

    The scheduler issues one instruction in a clock, and has shared memory every fourth clock.
    """
    now, free, at, taken = (
        [37 * block for block in range(blocks)],
        [{} for _ in range(blocks)],
        [0] * blocks,
        [0] * blocks,
    )
    issued = accessed = 0
    while min(taken) < rounds:
        candidates = []
        for block in range(blocks):
            line = way[at[block]]
            shares = opcode(line.text).startswith(("LDS", "STS", "SHFL"))
            waits = (free[block].get(board, 0) for board in line.waits)
            candidates.append((max([now[block], issued, *waits, accessed * shares]), taken[block], at[block], block))
        clock, _, _, block = min(candidates)
        line = way[at[block]]
        name = opcode(line.text)
        latency = next(value for start, value in LATENCIES.items() if name.startswith(start))
        if line.sets is not None:
            free[block][line.sets] = max(free[block].get(line.sets, 0), clock + latency)
        if line.reads is not None:
            free[block][line.reads] = max(free[block].get(line.reads, 0), clock + OPERANDS)
        issued = clock + 1
        if name.startswith(("LDS", "STS", "SHFL")):
            accessed = clock + 4
        now[block] = clock + max(line.stall, 1) + (latency if _is_barrier(line) else 0)
        at[block] = (at[block] + 1) % len(way)
        taken[block] += at[block] == 0
    return max(now) / rounds


def _code(file, kernel):
    (build,) = builds("cuda13", ((file, "float32", 90),)).values()
    return disassemble(build.binary, kernel)


def iteration():
    """Return the way of an iteration of ``iterate_held``: two half-steps with two barriers each."""
    return route(_code("iterate.cu", "iterate_held"), 4)


class Gradient(NamedTuple):
    """Ways of ``adjoint_held`` for a problem, each a list of instructions.

    One without an iteration and without its loops over rows; such a row as it makes E, and as it makes the gradient by
    the cost; an iteration of conjugate gradients; and one with the residual before it, made anew.
    """

    alone: list
    density: list
    by_cost: list
    turn: list
    attempt: list

    def clocks(self, turns, blocks=1):
        """Return the clocks of a gradient with so many iterations: none for `reg_cost`."""

        def of(way):
            return clocks(way) if blocks == 1 else side_by_side(way, blocks)

        rows = ROWS * (of(self.density) + of(self.by_cost))
        again = of(self.attempt) - of(self.turn) if turns else 0  # the residual at the end
        return clocks(self.alone, rounds=1) + rows + turns * of(self.turn) + again


def gradient():
    """Return the ways of ``adjoint_held``: 6 barriers for an iteration and for a residual, and 9 for the rest."""
    code = _code("adjoint_held.cu", "adjoint_held")
    return Gradient(
        route(code, 15, NEVER, ("LDG",)),
        route(code, 0, NEVER, ("MUFU.EX2",)),
        route(code, 0, NEVER, ("DFMA", "STG")),
        route(code, 6, NEVER),
        route(code, 12, NEVER),
    )


def main():
    way, found = iteration(), gradient()
    print(f"{clocks(way)} clocks for {len(way)} instructions of an iteration")
    for line in way:
        print(f"{line.stall:3} {line.sets!s:>5} {line.waits!s:9} {line.text}")
    for name, part in found._asdict().items():
        print(f"{clocks(part, 1 if name == 'alone' else 3)} clocks for {len(part)} instructions of {name}")
    print(*(f"{found.clocks(turns)} clocks with {turns} iterations" for turns in (0, 24, 55, 213)), sep="\n")
    print(f"{side_by_side(way, 2)} and {found.clocks(24, 2)} clocks of two blocks on a multiprocessor")


if __name__ == "__main__":
    main()
