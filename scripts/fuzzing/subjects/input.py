"""Bad input: one parameter of a good call is replaced, and must be refused by its name before any work."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing.case import NAN, WRONG, Case, Finding, Seen, observe

C = np.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
A = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
WORDS: dict[str, Any] = {
    "a word": "abc",
    "bytes": b"log",
    "a number": 3.5,
    "an array": np.array(["log", "auto"]),
    "a list": ["log"],
    "two": np.zeros(2),
    "a set": {"log"},
}
NUMBERS: dict[str, Any] = {
    "nan": np.nan,
    "inf": np.inf,
    "-1": -1.0,
    "0": 0.0,
    "text": "0.1",
    "a list": [0.1],
    "two": np.array([0.1, 0.2]),
    "complex": 1j,
    "10**400": 10**400,
    "-10**400": -(10**400),
    "a dict": {},
    "an object": object(),
    "a function": len,
}
ARRAYS: dict[str, Any] = {
    "text": "abc",
    "words": np.array(["a", "b", "c"]),
    "objects": np.array([None, 1, 2], dtype=object),
    "complex": np.ones(3) * 1j,
    "a dict": {},
    "a set": {1.0, 2.0},
    "a generator": range(3),
    "ragged": [[1.0], [1.0, 2.0]],
    "dates": np.array(["2020-01-01"] * 3, "M8[D]"),
    "5 axes": np.ones((1, 1, 1, 1, 3)),
    "a number": 1.0,
    "an object": object(),
    "long": np.ones(3, np.longdouble),
    "nan": np.full((3, 3), np.nan),
    "a mask": np.ma.masked_array(np.ones(3), [0, 1, 0]),
    "empty": np.zeros((0,)),
    "none": np.zeros((0, 3)),
    "swapped": np.ones(3, ">f8"),
}
WEIGHTS: dict[str, Any] = ARRAYS | {
    "negative": np.array([0.5, 0.7, -0.2]),
    "inf": np.array([np.inf, 0.0, 0.0]),
    "zero": np.zeros(3),
    "wrong size": np.ones(4) / 4,
    "overflow": np.full(3, 1e308),
    "twice the mass": np.ones(3),
    "nan": np.array([np.nan, 0.5, 0.5]),
}
COUNTS = {k: v for k, v in NUMBERS.items() if k != "10**400"} | {"2.5": 2.5}


def _solver() -> dict[str, dict[str, Any]]:
    eps = NUMBERS
    return {
        "C": ARRAYS | {"-inf": np.full((3, 3), -np.inf), "wrong size": np.ones((3, 4)), "1 axis": np.ones(3)},
        "eps": eps,
        "max_iter": COUNTS,
        "tol": NUMBERS,
        "check_every": COUNTS,
        "method": WORDS,
        "overrelaxation": WORDS | {"2": 2.0, "0.5": 0.5, "nan": np.nan, "inf": np.inf, "10**400": 10**400},
        "memory_limit": {k: NUMBERS[k] for k in ("nan", "inf", "text", "a list", "two", "complex", "-1", "a dict")},
    }


def _histograms(*names: str) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names, WEIGHTS)


class _Call:
    """A function, the arguments of a good call, and the bad values of each parameter."""

    def __init__(self, function: Callable[..., Any], good: dict[str, Any], bad: dict[str, dict[str, Any]]) -> None:
        self.function, self.good = function, good
        self.bad = bad


def _result() -> cusink.SinkhornResult:
    return cusink.sinkhorn(A[0], A[1], C, eps=1.0)


def _adjoint(**arguments: Any) -> Any:
    return cusink.sinkhorn_adjoint(arguments.pop("result", None) or _result(), **arguments)


def _apply(**arguments: Any) -> Any:
    return _result().apply(**arguments)


POINTS = {k: v for k, v in ARRAYS.items() if k not in ("swapped", "long", "a number", "empty", "none")} | {
    "inf": np.array([[np.inf], [0.0]]),
    "swapped": np.ones((3, 1), ">f8"),
}
RETRIEVAL = _solver() | {"value": WORDS, "on_empty": WORDS}
GRADS = {k: v for k, v in ARRAYS.items() if k not in ("a number", "none", "nan")} | {
    "nan": np.array(np.nan),
    "inf": np.inf,
}
CALLS: dict[str, _Call] = {
    "sinkhorn": _Call(
        cusink.sinkhorn,
        {"a": A[0], "b": A[1], "C": C, "eps": 1.0},
        _solver()
        | _histograms("a", "b")
        | {
            "reach": {k: v for k, v in NUMBERS.items() if k not in ("inf", "a list", "two", "10**400")},
            "init": {
                "one": A[0],
                "text": "abc",
                "three": (A[0],) * 3,
                "nan": (np.full(3, np.nan), A[0]),
                "numbers": (1.0, 2.0),
            },
            "callback": {"a number": 1, "text": "abc"},
        },
    ),
    "distance_matrix": _Call(
        cusink.distance_matrix,
        {"A": A, "B": A, "C": C, "eps": 1.0},
        RETRIEVAL
        | _histograms("A", "B")
        | {"out": {"a number": 3, "text": "abc", "wrong size": np.zeros((3, 3)), "a list": [1]}},
    ),
    "nearest": _Call(
        cusink.nearest,
        {"A": A, "B": A, "C": C, "eps": 1.0, "k": 1},
        RETRIEVAL | _histograms("A", "B") | {"k": COUNTS | {"3": 3}},
    ),
    "sinkhorn_divergence": _Call(
        cusink.sinkhorn_divergence,
        {"a": A[0], "b": A[1], "C": C, "eps": 1.0},
        _solver()
        | _histograms("a", "b")
        | {"C_aa": ARRAYS, "reach": {k: v for k, v in NUMBERS.items() if k not in ("inf", "a list", "two", "10**400")}},
    ),
    "barycenter": _Call(
        cusink.barycenter,
        {"A": A, "C": C, "eps": 1.0},
        {k: v for k, v in _solver().items() if k != "method"}
        | {"C": ARRAYS | {"wrong size": np.ones((4, 3)), "inf": np.full((3, 3), np.inf)}}
        | _histograms("A")
        | {
            "weights": ARRAYS | {"negative": np.array([1.0, -1.0]), "wrong size": np.ones(3), "zero": np.zeros(2)},
            "eps": {k: v for k, v in NUMBERS.items() if k not in ("a list", "two")},  # one barycenter for each
        },
    ),
    "sinkhorn_adjoint": _Call(
        _adjoint,
        {"grad_cost": 1.0},
        {
            "grad_cost": GRADS,
            "grad_f": GRADS | {"a number": 1.0},
            "tol": NUMBERS | {"none": None},
            "max_iter": COUNTS,
            "result": {"text": "abc", "a number": 1},
        },
    ),
    "apply": _Call(
        _apply,
        {"v": A[0], "axis": 1},
        {
            "v": ARRAYS | {"none": None, "nan": np.full(3, np.nan)},
            "axis": {"2": 2, "text": "abc", "none": None, "two": np.zeros(2)},
        },
    ),
    "cost_matrix": _Call(
        cusink.cost_matrix,
        {"x": np.arange(3.0)},
        {"x": POINTS | {"none": None}, "y": POINTS | {"another dimension": np.ones((3, 2))}, "metric": WORDS},
    ),
    "PointCloud": _Call(
        cusink.PointCloud,
        {"x": np.arange(3.0)},
        {
            "x": POINTS | {"none": None},
            "y": POINTS | {"another dimension": np.ones((3, 2))},
            "metric": WORDS,
            "power": NUMBERS,
        },
    ),
    "Grid": _Call(
        cusink.Grid,
        {"shape": (2, 2)},
        {
            "shape": {
                "0": 0,
                "-1": (-1, 2),
                "four": (2, 2, 2, 2),
                "text": "abc",
                "half": (1.5, 2),
                "none": None,
                "huge": (2**32, 2**32),
                "nan": np.nan,
                "10**400": 10**400,
                "array": np.zeros(2),
            },
            "metric": WORDS,
            "spacing": {k: v for k, v in NUMBERS.items() if k != "a list"},
            "periodic": {"text": "abc", "2": 2, "two": np.zeros(2), "three": (True,) * 3},
        },
    ),
    "Measures": _Call(
        cusink.Measures,
        {"offsets": [0, 2, 3], "weights": np.ones(3), "points": np.arange(3.0)},
        {
            "offsets": {
                "falls": [0, 3, 2],
                "half": [0, 1.5, 3],
                "text": "abc",
                "none": None,
                "short": [0, 2],
                "a number": 3,
                "a set": {0, 3},
            },
            "weights": {
                k: WEIGHTS[k]
                for k in (
                    "text",
                    "words",
                    "objects",
                    "complex",
                    "a dict",
                    "negative",
                    "inf",
                    "nan",
                    "wrong size",
                    "ragged",
                )
            },
            "points": POINTS | {"none": None},
        },
    ),
    "Measures.of": _Call(
        cusink.Measures.of,
        {"clouds": [np.zeros((2, 1)), np.ones((1, 1))]},
        {
            "clouds": {
                "a number": 1.0,
                "none": None,
                "text": "abc",
                "empty": [],
                "array": np.zeros(3),
                "dims": [np.zeros((2, 1)), np.zeros((2, 2))],
                "generator": range(0),
                "words": ["a"],
            },
            "weights": {
                "short": [np.ones(2)],
                "a number": 1.0,
                "text": "abc",
                "negative": [np.array([1.0, -1]), np.ones(1)],
            },
        },
    ),
}
SHOW = """\
import sys
sys.path.insert(0, "scripts")
from fuzzing.subjects.input import CALLS, arguments
given = arguments(function, parameter, value, dtype)
print(function, parameter, repr(given[parameter]))
print(CALLS[function].function(**given))
"""
EVERY = [(f, p, v) for f, call in CALLS.items() for p, values in call.bad.items() for v in values]


def draw(rng: Generator, seed: int) -> Case:
    """Draw a call, a parameter and a bad value: each once, as seeds go on from a multiple of their number."""
    function, parameter, value = EVERY[seed % len(EVERY)]
    dtype = "float64" if seed < len(EVERY) else str(rng.choice(["float64", "float32"]))
    extra = {"function": function, "parameter": parameter, "value": value, "dtype": dtype}
    return Case("input", seed, {}, {}, "float64", {}, extra)


def arguments(function: str, parameter: str, value: str, dtype: str) -> dict[str, Any]:
    """Return the arguments of a good call in a dtype, one of them replaced by a bad value."""
    call = CALLS[function]
    good = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in call.good.items()}
    return good | {parameter: call.bad[parameter][value]}


def check(case: Case) -> Seen:
    """Call with one bad value."""
    function, parameter, value = (case.extra[k] for k in ("function", "parameter", "value"))
    call, given = CALLS[function], arguments(function, parameter, value, case.extra.get("dtype", "float64"))
    names = {parameter, *call.good, *inspect.signature(call.function).parameters}
    copied = {k: v for k, v in given.items() if isinstance(v, np.ndarray) and v.dtype != object}
    seen = observe(lambda: call.function(**given), copied, names)
    where = f"{function}({parameter}=<{value}>)"
    if seen.value is not None and seen.value.value is not None:
        said = repr(seen.value.value)[:200]
        return seen.having([Finding(NAN if "nan" in said else WRONG, f"{where} is refused", "an error", said)])
    return seen._replace(findings=[f._replace(claim=f"{where}: {f.claim}") for f in seen.findings])
