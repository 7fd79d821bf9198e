"""Mutants of Python: operators, comparisons, constants, conditions, extrema, and statements left out."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from mutating.mutant import Mutant, made

Edit = tuple[int, int, str]
Change = tuple[str, tuple[Edit, ...]]

ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*"}
BITWISE = {ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "|"}
WRITTEN = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.And: "and",
    ast.Or: "or",
    ast.Not: "not",
    ast.USub: "-",
    ast.Invert: "~",
}
COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
LOGIC = {ast.And: "or", ast.Or: "and"}
_PAIRS = ("min max", "minimum maximum", "fmin fmax", "amin amax", "argmin argmax", "any all", "floor ceil")
CALLS = {a: b for pair in _PAIRS for a, b in (pair.split(), reversed(pair.split()))}
CALLS |= {"expm1": "exp", "log1p": "log", "abs": "", "zeros": "ones", "zeros_like": "ones_like", "isfinite": "isinf"}


class _Source:
    """A source, and where its nodes lie in it."""

    def __init__(self, text: str) -> None:
        self.text, self.tree = text, ast.parse(text)
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = text.splitlines()

    def _at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())

    def start(self, node: ast.AST) -> int:
        return self._at(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        return self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def between(self, left: int, right: int, written: str, new: str) -> Edit:
        """Return the edit that replaces what is `written` between two places; comments do not hold operators here."""
        place = self.text.index(written, left, right)
        return place, place + len(written), new


def mutants(area: str, path: str, text: str) -> Iterator[Mutant]:
    """Yield every mutant of a source, in the order of its lines."""
    source = _Source(text)
    found = [change for node in _nodes(source.tree) for change in _changes(source, node)]
    found += [change for node in ast.walk(source.tree) for change in _left_out(source, node)]
    for kind, edits in sorted(found, key=lambda change: (min(change[1]), change[0])):
        yield made(area, path, text, kind, *edits)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the expressions that compute: no annotations, decorators, assertions, messages or docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.JoinedStr, ast.Raise, ast.Assert)):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # of zip, an assertion as well
            if isinstance(child, ast.Assign) and isinstance(child.value, ast.Subscript) and _is_type(child.value):
                continue
            yield child
            yield from _nodes(child)


def _is_type(node: ast.Subscript) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("Literal", "Callable", "TypeVar", "Union")


def _changes(source: _Source, node: ast.AST) -> Iterator[Change]:
    """Yield the changes of one node itself."""
    start, end = (source.start(node), source.end(node)) if hasattr(node, "lineno") else (0, 0)
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC | BITWISE:
            new = (ARITHMETIC | BITWISE)[type(op)]
            yield "arithmetic", (source.between(source.end(left), source.start(right), WRITTEN[type(op)], new),)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in ARITHMETIC | BITWISE:
            written, new = WRITTEN[type(op)] + "=", (ARITHMETIC | BITWISE)[type(op)] + "="
            yield "arithmetic", (source.between(source.end(target), source.start(value), written, new),)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in (ast.USub, ast.Not, ast.Invert):
            yield "sign", (source.between(start, source.start(operand), WRITTEN[type(op)], ""),)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for one, op, other in zip([left, *comparators], ops, comparators, strict=False):
                written, new = WRITTEN[type(op)], COMPARISONS[type(op)]
                yield "comparison", (source.between(source.end(one), source.start(other), written, new),)
        case ast.BoolOp(op=op, values=values):
            written, new = WRITTEN[type(op)], LOGIC[type(op)]
            places = [(source.end(a), source.start(b)) for a, b in pairwise(values)]
            yield "logic", tuple(source.between(*place, written, new) for place in places)
        case ast.Constant(value=bool() as value):
            yield "constant", ((start, end, str(not value)),)
        case ast.Constant(value=int() as value):
            yield "constant", ((start, end, str(value + 1)),)
        case ast.Constant(value=float() as value):
            yield "constant", ((start, end, repr(value * 2) if value else "1.0"),)
        case ast.Call(func=ast.Name(id=name) as function) if name in CALLS:
            yield "function", ((source.start(function), source.end(function), CALLS[name]),)
        case ast.Call(func=ast.Attribute(value=owner, attr=name) as function) if CALLS.get(name):
            yield "function", (source.between(source.end(owner), source.end(function), name, CALLS[name]),)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare):
            first, last = source.start(test), source.end(test)
            if not isinstance(test, ast.UnaryOp):
                yield "condition", ((first, first, "not ("), (last, last, ")"))
        case ast.comprehension(ifs=[test, *_]):
            yield "condition", ((source.start(test), source.end(test), "True"),)


def _left_out(source: _Source, node: ast.AST) -> Iterator[Change]:
    """Yield the statements of a body without which the rest still runs."""
    for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
                    pass
                case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
                    pass
                case ast.Assign(targets=[ast.Name(id=name)]) if name in _named_before(node, statement):
                    pass
                case _:
                    continue
            yield "left out", ((source.start(statement), source.end(statement), "pass"),)


def _named_before(node: ast.AST, statement: ast.stmt) -> set[str]:
    """Name what a branch assigns again: arguments of its function, and names its own assignment reads."""
    names = {x.id for x in ast.walk(statement) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
    if isinstance(node, ast.FunctionDef):
        names |= {x.arg for x in (*node.args.args, *node.args.kwonlyargs)}
    return names
