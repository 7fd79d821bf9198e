"""Machine code of the kernels: inner loops, and what they ask of the units of a multiprocessor for each useful term.

A loop is what lies between a label and the last branch back to it, without the loops inside and without what a branch
can skip: that is a rare path, such as a new shift of a log-sum-exp. The numbers are those of one compiler for one
capability, and say nothing of waiting.

``python tests/wheels/sass.py`` prints them; with ``--write-budget`` it rewrites ``speed_budget.json``.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import wheels
from wheels.builds import CUDA13, builds

BUDGET = Path(__file__).parent / "speed_budget.json"
COMPILED = tuple(job for job in CUDA13 if job[1:] == ("float32", 90))
# The instructions that are each one useful term, by the beginning of the name of the kernel.
TERMS = {
    "iterate": ("FFMA",),
    "softmin_products": ("HMMA", "MUFU.EX2"),
    "apply_plan_products": ("HMMA", "MUFU.EX2"),
    "kernel_sums_products": ("HMMA", "MUFU.EX2"),
    "kernel_log_sums_products": ("HMMA", "MUFU.EX2"),
    "distance_sums_products": ("HMMA", "MUFU.RSQ"),
    "kernel_sums_wide": ("FFMA", "MUFU.EX2"),
    "kernel_log_sums_wide": ("FFMA", "MUFU.EX2"),
    "kernel_slopes_wide": ("FFMA",),
    "distance": ("FFMA",),
    "split_step": ("HMMA",),
    "c_transform": ("FMNMX",),
    "grid_product": ("FFMA",),
    "grid_half_step": ("FFMA",),
    "grid_log_product": ("FFMA",),
    "grid_log_step": ("FFMA",),
    "grid_damped_step": ("FFMA",),
    "": ("MUFU.EX2",),
}
UNITS = {
    "exponential": r"MUFU",
    "tensor": r"HMMA|HGMMA",
    "float": r"FFMA|FADD|FMUL",
    "shared": r"LDS|STS|ATOMS|LD\b|ST\b|LD\.E(?!\.CONST)",
    "global": r"LDG|STG|LDC\b",
    "shuffle": r"SHFL|VOTE",
    "control": r"BRA|BSSY|BSYNC|WARPSYNC|BAR|NOP|EXIT|CALL|RET|BREAK|BMOV",
}
MOST_LOOPS, LEAST_TERMS = 4, 4  # that are kept of a kernel, and terms in a loop that is more than an edge
BRANCHED = ("HMMA",)  # terms that a branch can skip, as those of rows without problems


class Loop(NamedTuple):
    """One loop of a kernel: useful terms, instructions, and these by unit."""

    terms: int
    instructions: int
    units: dict

    @property
    def per_term(self):
        """Instructions for each useful term."""
        return self.instructions / self.terms


def disassemble(binary):
    """Return {kernel: list of instructions and of labels (ending in a colon)} of a binary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(binary + b"\0")  # the last byte, which CuPy takes for the end of a text
        command = [str(wheels.tool("nvdisasm")), "-c", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels, at = {}, None
    for line in text.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            at = kernels.setdefault(found[1], [])
        elif (found := re.match(r"(\.L_x_\d+:)", line)) and at is not None:
            at.append(found[1])
        elif (found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line)) and at is not None:
            at.append(found[1])
        elif line.startswith("\t.section"):
            at = None
    return kernels


def opcode(instruction):
    """Return the name of an instruction without its predicate: ``MUFU.EX2``."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def loops(code, term=None):
    """Return the opcodes of each loop without those of the loops inside it, and of what a branch can skip.

    What holds a `term`, if one is given, counts all the same.
    """
    place = {line[:-1]: index for index, line in enumerate(code) if line.endswith(":")}
    names = [None if line.endswith(":") else opcode(line) for line in code]
    ends, skips = {}, []
    for index, line in enumerate(code):
        found = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
        to = place.get(found[1], index) if found else index
        if to < index:
            ends[to] = index
        elif line.startswith("@"):
            skips.append((index, to))
    bodies = []
    for start, end in ends.items():
        inside = [(s, e) for s, e in ends.items() if start <= s and e <= end and (s, e) != (start, end)]
        rare = [(s + 1, e - 1) for s, e in skips if start <= s and e <= end]
        if term is not None:
            rare = [(s, e) for s, e in rare if not any(name and name.startswith(term) for name in names[s : e + 1])]
        own = names[start : end + 1]
        for s, e in (*inside, *rare):
            own[s - start : e + 1 - start] = [None] * (e + 1 - s)
        bodies.append([name for name in own if name])
    return bodies


def count(name, code):
    """Return the loops of kernel `name` that hold useful terms, the cheapest first."""
    of_kernel = next(terms for start, terms in TERMS.items() if name.startswith(start))
    found = []
    bodies = [(term, body) for term in of_kernel for body in loops(code, term if term in BRANCHED else None)]
    for term, body in bodies:
        terms = sum(op.startswith(term) for op in body)
        if terms >= LEAST_TERMS:
            units = collections.Counter(
                next((u for u, p in UNITS.items() if re.match(p, op)), "integer") for op in body
            )
            loop = Loop(terms, len(body), dict(sorted(units.items())))
            if loop not in found:
                found.append(loop)
    return sorted(found, key=lambda loop: loop.per_term)[:MOST_LOOPS]


def count_all():
    """Return {kernel: its loops} of all kernels in float32."""
    found = {}
    for (_, _, _), build in builds("cuda13", COMPILED).items():
        for name, code in disassemble(build.binary).items():
            if counted := count(name, code):
                found[name] = counted
    return dict(sorted(found.items()))


def read_budget():
    """Return {kernel: its loops} as committed."""
    kernels = json.loads(BUDGET.read_text())["kernels"]
    return {name: [Loop(*loop) for loop in found] for name, found in kernels.items()}


def write_budget(counted):
    """Write the committed counts: a line for each kernel."""
    compiler = wheels.ask("cuda13", "compile.py", "[]")["version"]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in counted.items())
    head = f' "compiler": "NVRTC {compiler[0]}.{compiler[1]}, sm_90, float32",\n'
    values = ' "values": "loops: useful terms, instructions, instructions by unit",\n'
    BUDGET.write_text(f'{{\n{head}{values} "kernels": {{\n{lines}\n }}\n}}\n')


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--write-budget", action="store_true", help="rewrite speed_budget.json from what is counted now"
    )
    wanted, counted = parser.parse_args(arguments), count_all()
    for name, found in counted.items():
        for loop in found:
            print(f"{name:28} {loop.per_term:7.2f} of {loop.instructions:4} for {loop.terms:3}", loop.units)
    if wanted.write_budget:
        write_budget(counted)


if __name__ == "__main__":
    main()
