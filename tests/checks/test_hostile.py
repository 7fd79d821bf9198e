"""Every parameter of every public function meets values that nobody should pass: one clear error, or a sound result."""

import inspect
import re
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse

import cusink

jax, torch, _, _, _ = (pytest.importorskip(name) for name in ("jax", "torch", "dask", "matplotlib", "sklearn"))

import jax.numpy as jnp  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from public_calls import CALLS, RESULT, N, numbers_in  # noqa: E402


class Odd:
    """An object that is nothing, and has no length or truth value either."""

    def __bool__(self):
        raise RuntimeError("no truth value")

    def __len__(self):
        raise RuntimeError("no length")


class NoArray:
    """An object that cannot be made into an array."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


def masked(shape):
    return np.ma.array(np.ones(shape), mask=np.eye(*((shape) if len(shape) == 2 else (1, shape[0]))).reshape(shape))


# Made afresh for each call, so that a change of one is seen and a generator is not used up.
NUMBERS = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1": lambda: 1,
    "2**32": lambda: 2**32,
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "10**5000": lambda: 10**5000,
    "1e308": lambda: 1e308,
    "-1e308": lambda: -1e308,
    "5e-324": lambda: 5e-324,
    "nan": lambda: np.nan,
    "inf": lambda: np.inf,
    "-inf": lambda: -np.inf,
    "1j": lambda: 1j,
    "Fraction": lambda: Fraction(1, 10),
    "tiny Fraction": lambda: Fraction(1, 10**400),
    "huge Fraction": lambda: Fraction(10**400),
    "Decimal": lambda: Decimal("0.1"),
    "Decimal NaN": lambda: Decimal("NaN"),
    "Decimal sNaN": lambda: Decimal("sNaN"),
    "float32": lambda: np.float32(0.1),
    "longdouble": lambda: np.longdouble("1e4000"),
    "int64": lambda: np.int64(2),
    "bool_": lambda: np.bool_(True),
    "complex128": lambda: np.complex128(1j),
    "datetime64": lambda: np.datetime64("2020-01-01"),
    "0-d float": lambda: np.array(0.1),
    "0-d int": lambda: np.array(2),
    "0-d bool": lambda: np.array(True),
    "0-d NaN": lambda: np.array(np.nan),
    "0-d complex": lambda: np.array(1j),
    "0-d object": lambda: np.array(Fraction(1, 10), object),
    "0-d masked": lambda: np.ma.masked,
}
WORDS = {
    "empty word": lambda: "",
    "word": lambda: "abc",
    "long word": lambda: "abc" * 100,
    "bytes": lambda: b"cost",
    "str_": lambda: np.str_("cost"),
    "0-d word": lambda: np.array("cost"),
    "array of words": lambda: np.array(["cost", "log", "auto", "nan"]),
    "list of words": lambda: ["cost", "log", "auto", "nan"],
}
CONTAINERS = {
    "[]": list,
    "()": tuple,
    "{}": dict,
    "[[]]": lambda: [[]],
    "dict": lambda: {"a": 1, "b": 2},
    "set": lambda: {1, 2},
    "range": lambda: range(N),
    "generator": lambda: (0.25 for _ in range(N)),
    "memoryview": lambda: memoryview(np.full(N, 0.25)),
    "bytearray": lambda: bytearray(b"\x01\x02\x03\x04"),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "Nones": lambda: [None] * N,
    "Fractions": lambda: [Fraction(1, 4)] * N,
    "huge integers": lambda: [10**400] * N,
    "huge rows": lambda: [[10**400] * N] * N,
    "list of masked": lambda: [masked((N,))] * N,
    "dicts": lambda: [{}] * N,
    "nested": lambda: [[[[[1.0]]]]],
    "pair": lambda: (0.1, 0.2),
    "pair of None": lambda: (None, None),
    "pair of arrays": lambda: (np.ones(2), np.ones(3)),
    "pair of words": lambda: ("a", "b"),
    "object": object,
    "odd object": Odd,
    "no array": NoArray,
    "class": lambda: float,
    "function": lambda: lambda: None,
}


def with_shapes(name, make):
    return {f"{name} {shape}": lambda shape=shape: make(shape) for shape in ((N,), (N, N))}


ARRAYS = {
    "rows": lambda: np.full((3, N), 0.25),
    "NaN rows": lambda: np.full((3, N), np.nan),
    "1e308 rows": lambda: np.full((3, N), 1e308),
    "no bins": lambda: np.ones(0),
    "no rows": lambda: np.ones((0, N)),
    "no columns": lambda: np.ones((N, 0)),
    "3-d": lambda: np.ones((2, N, N)),
    "4-d": lambda: np.ones((1, 1, N, N)),
    "matrix": lambda: np.ones((N, N)).view(np.matrix),
    "sparse": lambda: scipy.sparse.csr_array(np.eye(N)),
    "cloud": lambda: cusink.PointCloud(np.arange(float(N))),
    "grid": lambda: cusink.Grid(N),
    "measures": lambda: cusink.Measures([0, 2, 4], None, np.arange(4.0)),
    "result": lambda: RESULT,
    "tensor": lambda: torch.full((N,), 0.25, dtype=torch.float64),
    "tensor matrix": lambda: torch.full((N, N), 0.25, dtype=torch.float64),
    "sparse tensor": lambda: torch.eye(N).to_sparse(),
    "complex tensor": lambda: torch.full((N, N), 1j),
    "conjugate tensor": lambda: torch.full((N, N), 1j).conj(),
    "meta tensor": lambda: torch.ones((N, N), device="meta"),
    "0-d tensor": lambda: torch.tensor(0.5),
    "jax array": lambda: jnp.full(N, 0.25),
    **with_shapes("NaN", lambda shape: np.full(shape, np.nan)),
    **with_shapes("inf", lambda shape: np.full(shape, np.inf)),
    **with_shapes("-inf", lambda shape: np.full(shape, -np.inf)),
    **with_shapes("1e308", lambda shape: np.full(shape, 1e308)),
    **with_shapes("-1e308", lambda shape: np.full(shape, -1e308)),
    **with_shapes("5e-324", lambda shape: np.full(shape, 5e-324)),
    **with_shapes("zeros", np.zeros),
    **with_shapes("-1", lambda shape: np.full(shape, -1)),
    **with_shapes("bools", lambda shape: np.ones(shape, bool)),
    **with_shapes("float32", lambda shape: np.full(shape, 0.25, np.float32)),
    **with_shapes("float16", lambda shape: np.full(shape, 0.25, np.float16)),
    **with_shapes("longdouble", lambda shape: np.full(shape, 0.25, np.longdouble)),
    **with_shapes("big-endian", lambda shape: np.full(shape, 0.25, ">f8")),
    **with_shapes("complex", lambda shape: np.full(shape, 0.25 + 0j)),
    **with_shapes("object", lambda shape: np.full(shape, Fraction(1, 4), object)),
    **with_shapes("masked", masked),
    **with_shapes("words", lambda shape: np.full(shape, "a")),
    **with_shapes("dates", lambda shape: np.full(shape, "2020-01-01", "M8[D]")),
    **with_shapes("records", lambda shape: np.zeros(shape, [("x", float)])),
    **with_shapes("uint64", lambda shape: np.full(shape, 2**64 - 1, np.uint64)),
}
VALUES = NUMBERS | WORDS | CONTAINERS | ARRAYS

# A value that is sound by itself and does not fit the others: the error may name one of these.
OTHERS_TO_BLAME = {
    ("sinkhorn_divergence", "C"): "C_aa",
    ("sinkhorn_jvp between points", "result"): "dx",
    ("sinkhorn_hvp between points", "result"): "dx",
    ("jax.barycenter", "A"): "weights",
    ("torch.barycenter", "A"): "weights",
    ("jax.sinkhorn_divergence", "C"): "C_aa",
    ("torch.sinkhorn_divergence", "C"): "C_aa",
    ("distance_matrix of documents", "A"): "C",
    ("distance_matrix of measures", "A"): "C",
    ("Index", "B"): "C",
    ("Measures", "points"): "offsets",
    ("jax.Measures", "points"): "offsets",
    ("torch.Measures", "points"): "offsets",
    ("Measures.of", "clouds"): "points",
    ("sklearn.SinkhornTransport", "power"): "Xs",
    ("PointCloud", "labels"): "table",
    ("PointCloud", "table"): "labels",
    ("cost_matrix", "labels"): "table",
    ("cost_matrix", "table"): "labels",
    ("cost_matrix_adjoint", "labels"): "table",
    ("cost_matrix_adjoint", "table"): "labels",
    ("plot.transport_lines", "P"): "x",
    ("plot.contact_sheet", "queries"): "indices",
    ("plot.contact_sheet", "corpus"): "corpus_labels",
}
# What a callback that cannot be called so raises is its own affair.
OWN_ERRORS = {(call, "callback", label) for call in ("sinkhorn", "gradient_flow") for label in ("class", "function")}


def memory(value):
    """Return the bytes of an array, to compare; None for anything else."""
    known = isinstance(value, np.ndarray) and value is not np.ma.masked and value.dtype != object
    return value.tobytes() if known else None


def complaint(call, parameter, label):
    """Return how a call went wrong; None if it gave one clear error, or a result without NaN."""
    function, arguments = CALLS[call]
    value = VALUES[label]()
    before = memory(value)
    found = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = function(**(arguments | {parameter: value}))
    except (TypeError, ValueError) as error:
        names = [parameter, OTHERS_TO_BLAME.get((call, parameter), parameter)]
        clear = any(re.search(rf"'{name}['.\[]|\b{name}=|\b{name} of shape", str(error)) for name in names)
        if not clear and (call, parameter, label) not in OWN_ERRORS:
            return f"{type(error).__name__} names no parameter: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    pyplot.close("all")
    for warning in caught:
        if not issubclass(warning.category, cusink.ConvergenceWarning):
            return f"{warning.category.__name__}: {warning.message}"
    if any(np.isnan(array).any() for array in numbers_in(found)):
        return "NaN"
    return None if memory(value) == before else "changed its input"


def test_every_public_function_is_called():
    functions = {name for name in cusink.__all__ if inspect.isfunction(getattr(cusink, name))}
    assert functions <= set(CALLS)
    for module in (cusink.jax, cusink.torch, cusink.sklearn, cusink.plot, cusink.distributed):
        name = module.__name__.removeprefix("cusink.")
        public = module.__all__
        assert {f"{name}.{function}" for function in public} <= set(CALLS)


@pytest.mark.parametrize("call", sorted(set(cusink.__all__) & set(CALLS)))
def test_every_parameter_is_tried(call):
    function, arguments = CALLS[call]
    parameters = inspect.signature(function).parameters
    assert set(parameters) == set(arguments)


@pytest.mark.parametrize("call", CALLS)
def test_one_clear_error_or_a_sound_result(call):
    _, arguments = CALLS[call]
    wrong = []
    for parameter in arguments:
        for label in VALUES:
            if (said := complaint(call, parameter, label)) is not None:
                wrong.append(f"{parameter} = {label}: {said}")
    assert not wrong, "\n".join(wrong)
