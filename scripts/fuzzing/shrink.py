"""Make a failing case small: fewer problems and bins, default options, round numbers."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from fuzzing.case import Case, float_type

Move: TypeAlias = Callable[[Case], Case]


def shrunk(case: Case, fails: Callable[[Case], bool], seconds: float = 20.0) -> Case:
    """Return the smallest case found in `seconds` that still `fails`, in the way that the caller looks for."""
    until = time.monotonic() + seconds
    better = True
    while better:
        better = False
        for move in _moves(case):
            if time.monotonic() > until:
                return case
            candidate = move(case)
            if weight(candidate) < weight(case) and fails(candidate):
                case, better = candidate, True
    return case


def weight(case: Case) -> tuple[int, ...]:
    """Return how much there is to read: numbers, options, a dtype that is not the default, digits."""
    axes = sum(map(len, case.axes.values()))
    digits = sum(len(text(x, case.dtype)) for array in case.arrays.values() for x in array.flat)
    entries = sum(x.size for x in case.arrays.values())
    words = sum(len(str(v)) for v in (*case.options.values(), *case.extra.values()))
    return entries, axes, len(case.options) + len(case.extra), case.dtype != "float64", digits + words


def text(x: float, dtype: str) -> str:
    """Return the shortest decimal number that is `x` in a dtype."""
    return repr(float(str(float_type(dtype).type(x))))


def _moves(case: Case) -> Iterator[Move]:
    """Yield ways to make a case simpler, the boldest first; each is applied to what those before it left."""
    letters = sorted({letter for letters in case.axes.values() for letter in letters})
    for letter in letters:
        length = _length(case, letter)
        while length > 2:  # halves, quarters, ...
            yield partial(_cut, letter=letter, first=0, count=length // 2)
            yield partial(_cut, letter=letter, first=length // 2, count=length)
            length //= 2
    for letter in letters:
        for k in reversed(range(_length(case, letter))):
            yield partial(_cut, letter=letter, first=k, count=1)
    yield _unbatched
    for field in ("options", "extra"):
        for name in getattr(case, field):
            if name not in NEEDED:
                yield partial(_without, field=field, name=name)
    yield lambda case: case.but(dtype="float64")
    yield _unit_mass
    for name, value in case.options.items():
        if isinstance(value, float):
            for digits in (0, 1, 2):
                yield partial(_option, name=name, value=float(f"{value:.{digits}e}"))
            yield partial(_option, name=name, value=float(f"1e{round(np.log10(abs(value) or 1))}"))
    for name, x in case.arrays.items():
        if name in case.equal:
            for parts in (0, 2, 4, 10, 100):
                yield partial(_parted, name=name, parts=parts)
        else:
            yield from (partial(_mapped, name=name, rule=partial(_decimals, digits=digits)) for digits in (0, 1, 2))
            if x.size <= 100:
                for k in range(x.size):
                    yield from (partial(_entry, name=name, k=k, rule=rule) for rule in RULES)


def _decimals(v: float, digits: int) -> float:
    return float(f"{v:.{digits}e}")


NEEDED = ("eps", "k", "ending", "damage", "library", "function", "parameter", "value", "dtype")
RULES: tuple[Callable[[float], float], ...] = (
    lambda v: 0.0,  # noqa: ARG005
    lambda v: 1.0,  # noqa: ARG005
    partial(_decimals, digits=0),
    partial(_decimals, digits=1),
)


def _length(case: Case, letter: str) -> int:
    """Return the length of the axes of a letter; arrays that are broadcast have 1."""
    return max(x.shape[case.axes[name].index(letter)] for name, x in case.arrays.items() if letter in case.axes[name])


def _cut(case: Case, letter: str, first: int, count: int) -> Case:
    """Return the case without some entries of an axis; one is left."""
    length = _length(case, letter)
    cut = np.arange(first, min(first + count, length))
    if not 0 < len(cut) < length:
        return case
    arrays = {}
    for name, x in case.arrays.items():
        for axis, other in enumerate(case.axes[name]):
            if other == letter and x.shape[axis] == length:
                x = np.delete(x, cut, axis=axis)
        arrays[name] = x
    return _settled(case.but(arrays=arrays))


def _unbatched(case: Case) -> Case:
    """Return one problem instead of a batch of one."""
    batched = [name for name, axes in case.axes.items() if axes[:1] == "B"]
    if not batched or any(len(case.arrays[name]) != 1 for name in batched):
        return case
    arrays = {name: x[0] if name in batched else x for name, x in case.arrays.items()}
    return case.but(arrays=arrays, axes={name: axes.lstrip("B") for name, axes in case.axes.items()})


def _without(case: Case, field: str, name: str) -> Case:
    return case.but(**{field: {key: value for key, value in getattr(case, field).items() if key != name}})


def _option(case: Case, name: str, value: float) -> Case:
    return case.but(options=case.options | {name: value}) if name in case.options else case


def _mapped(case: Case, name: str, rule: Callable[[float], float]) -> Case:
    x = case.arrays[name]
    return _with(case, name, np.reshape([rule(v) for v in x.flat], x.shape))


def _entry(case: Case, name: str, k: int, rule: Callable[[float], float]) -> Case:
    x = case.arrays[name].copy()
    if k < x.size:
        x.flat[k] = rule(x.flat[k])
    return _with(case, name, x)


def _parted(case: Case, name: str, parts: int) -> Case:
    """Return the case with weights of one array in whole parts of their mass; 0 for as many as there are bins."""
    x, axes = case.arrays[name], case.axes[name]
    rows = x.reshape(*(len(x) if letter.isupper() else -1 for letter in axes[:1] if letter.isupper()), -1)
    rows = [parted(row, parts or rows.shape[-1]) for row in np.atleast_2d(rows)]
    return _with(case, name, np.reshape(rows, x.shape))


def _unit_mass(case: Case) -> Case:
    """Return the case with weights of sum 1."""
    if not case.equal:
        return case
    sums = {name: _sums(case.arrays[name], case.axes[name]) for name in case.equal}
    if not all((total > 0).all() for total in sums.values()):
        return case
    return case.but(arrays=case.arrays | {name: case.arrays[name] / total for name, total in sums.items()})


def parted(row: np.ndarray, parts: int) -> np.ndarray:
    """Return weights in whole parts of their mass, the nearest to `row`; its mass rounded to a power of ten."""
    mass = float(row.sum())
    if not 0 < mass < np.inf:
        return row
    wanted = row / mass * parts
    counts = np.floor(wanted)
    counts[np.argsort(counts - wanted, kind="stable")[: round(parts - counts.sum())]] += 1
    return counts / parts * 10.0 ** np.round(np.log10(mass))


def _settled(case: Case) -> Case:
    """Return the case with equal masses where `equal` asks for them: those of the first row of the first array."""
    if not case.equal:
        return case
    first = case.arrays[case.equal[0]]
    mass = float(_sums(first, case.axes[case.equal[0]]).flat[0]) or 1.0
    arrays = dict(case.arrays)
    for name in case.equal:
        sums = _sums(arrays[name], case.axes[name])
        if (sums > 0).all():
            arrays[name] = arrays[name] / sums * mass
    return case.but(arrays=arrays)


def _sums(x: np.ndarray, axes: str) -> np.ndarray:
    """Return sums over all axes of bins; capital letters are axes of items."""
    return x.sum(axis=tuple(k for k, letter in enumerate(axes) if letter.islower()), keepdims=True)


def _with(case: Case, name: str, x: np.ndarray) -> Case:
    return case.but(arrays=case.arrays | {name: x})
