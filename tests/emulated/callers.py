"""Tell a device function of a CUDA source where it is called from, for checked builds.

A shuffle in a helper that two branches call is two places, though one line of the source. Return addresses would tell
them apart, if compilers neither copied nor merged code. So each device function that leads to a barrier or a warp
operation gets a last parameter, which callers leave out: its default is the line and the column of the call.
"""

import re

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# From the first parenthesis behind __device__ on: the parameters of a function.
DEFINED = re.compile(r"__device__\b[^(;{}=]*?\b(operator\s*\(\s*\)|\w+)\s*(?=\()")
COLLECTIVE = re.compile(r"__sync\w+|__shfl\w+|__ballot\w+|__any\w+|tensor_core\w+|load_matrices")
PARAMETER = "emulated::Caller = __builtin_source_location()"


def with_callers(text):
    """Return the CUDA source `text` in which each helper that reaches a collective takes its caller; lines stay."""
    plain = COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
    functions = []
    for defined in DEFINED.finditer(plain):
        end = closing(plain, defined.end())
        # What lies between two functions counts for the first: one too many is told its caller, never one too few.
        body = re.split(r"__device__|__global__", plain[end:], maxsplit=1)[0]
        functions.append((defined[1], end, plain[defined.end() + 1 : end].isspace() or end == defined.end() + 1, body))
    reaching, before = set(), None
    while reaching != before:
        before = frozenset(reaching)
        for name, _, _, body in functions:
            if COLLECTIVE.search(body) or not before.isdisjoint(re.findall(r"\w+", body)):
                reaching.add(name)
    for name, end, alone, _ in reversed(functions):
        if name in reaching:
            text = text[:end] + ("" if alone else ", ") + PARAMETER + text[end:]
    return text


def closing(text, at):
    """Place of the parenthesis that closes the one at `at`."""
    depth = 0
    for place in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"no ')' closes what begins with {text[at : at + 60]!r}")
