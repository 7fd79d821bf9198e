"""Mutants of CUDA C, token by token: operators, comparisons, constants, extrema, and statements left out."""

import re
from collections.abc import Iterator

from mutating.mutant import Mutant, made

# What is no code is taken as one token, and left alone.
TOKEN = re.compile(
    r"""(?P<none>//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|^[ \t]*\#[^\n]*)
    |(?P<number>0x[0-9a-fA-F]+[uUlL]*|(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?[fFuUlL]*)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<operator><<<|>>>|<<=|>>=|->|\+\+|--|::|\+=|-=|\*=|/=|%=|<=|>=|==|!=|&&|\|\||<<|>>|[-+*/%<>=!&|^~?:;,.(){}\[\]])
    |(?P<space>\s+)""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
OPERATORS = {
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "%": "/",
    "+=": "-=",
    "-=": "+=",
    "*=": "/=",
    "/=": "*=",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "&&": "||",
    "||": "&&",
}
_PAIRS = ("larger smaller", "fmaxf fminf", "fmax fmin", "warp_maximum warp_sum", "true false", "min max")
NAMES = {a: b for pair in _PAIRS for a, b in (pair.split(), reversed(pair.split()))}
VALUE = re.compile(r"[\w)\]]$")  # an operator after one of these takes two operands
TYPES = {
    "REAL",
    "T",
    "float",
    "double",
    "int",
    "long",
    "unsigned",
    "char",
    "bool",
    "const",
    "auto",
    "Half",
    "void",
    "State",
}


def mutants(area: str, path: str, text: str) -> Iterator[Mutant]:
    """Yield every mutant of a source, in the order of its lines; some do not compile, which is seen when they run."""
    tokens = [token for token in TOKEN.finditer(text) if token.lastgroup != "space"]
    for k, token in enumerate(tokens):
        for kind, new in _changes(tokens, k):
            yield made(area, path, text, kind, (token.start(), token.end(), new))
    for start, end in _statements(tokens):
        yield made(area, path, text, "left out", (start, end, ";"))


def _changes(tokens: list[re.Match[str]], k: int) -> Iterator[tuple[str, str]]:
    token, written = tokens[k], tokens[k].group()
    if "__launch_bounds__" in [t.group() for t in tokens[max(0, k - 4) : k]]:
        return  # registers, which tests/kernels/budget.json holds; to the emulator it is nothing
    before = tokens[k - 1].group() if k else ""
    after = tokens[k + 1].group() if k + 1 < len(tokens) else ""
    match token.lastgroup:
        case "number" if before not in ("<", "alignas", "__align__", "__launch_bounds__") and "x" not in written:
            digits, suffix = re.fullmatch(r"([\d.eE+-]+?)([fFuUlL]*)", written).groups()  # type: ignore[union-attr]
            whole = digits.isdigit()
            yield "constant", f"{int(digits) + 1 if whole else 2 * float(digits) or 1.0}{suffix}"
        case "name" if written in NAMES and (written in ("true", "false") or after == "("):
            if before not in TYPES:  # the function's own definition
                yield "function", NAMES[written]
        case "operator" if written in OPERATORS:
            if written in "*<>&" and (before in TYPES or after in TYPES or before in ("template", "static_cast")):
                return  # a pointer, or what a template takes
            if written in "<>" and _is_template([t.group() for t in tokens[max(0, k - 4) : k + 5]]):
                return
            if VALUE.search(before) and before != "return":
                yield ("comparison" if written[0] in "<>=!&|" else "arithmetic"), OPERATORS[written]
            elif written == "-" and before not in ("operator",):
                yield "sign", ""


def _is_template(words: list[str]) -> bool:
    """Return whether there is a short list of template arguments, before a call, in the middle of some tokens."""
    return re.search(r"\w <( [\w:,]+)+ > [({:]", " ".join(words)) is not None


def _statements(tokens: list[re.Match[str]]) -> Iterator[tuple[int, int]]:
    """Yield where statements lie that assign, call, or jump: those without which the rest still compiles."""
    first = depth = 0
    for k, token in enumerate(tokens):
        depth += (token.group() == "(") - (token.group() == ")")
        if token.group() in "{}" or token.lastgroup == "none":
            first = k + 1
        elif token.group() == ";" and depth == 0:
            words = [t.group() for t in tokens[first:k]]
            if words and _may_be_left_out(words):
                yield tokens[first].start(), token.end()
            first = k + 1


def _may_be_left_out(words: list[str]) -> bool:
    if words[0] in ("continue", "break") or words[0] == "__syncthreads":
        return True
    if words[0] in (
        *TYPES,
        "constexpr",
        "static",
        "extern",
        "struct",
        "return",
        "for",
        "if",
        "else",
        "template",
        "using",
    ):
        return False
    depth = 0
    for k, word in enumerate(words[1:], 1):
        depth += (word in "([") - (word in ")]")
        if depth == 0 and word in ("=", "+=", "-=", "*=", "/=", "++", "--") and words[k - 1] not in ("operator",):
            return not re.match(r"[A-Za-z_]", words[1])  # two names in a row declare
    return len(words) > 2 and words[1] in ("(", ".") and words[-1] == ")"
