"""Bad input: each message names the parameter, states the rule, shows what came, and says what helps, if known."""

import re

import numpy as np
import problems
import pytest

import cusink

N, M, B = 4, 6, 3


def inputs(**change):
    """Good arguments of `cusink.sinkhorn`, but for the change."""
    rng = np.random.default_rng(0)
    good = {
        "a": problems.histograms(rng, B, N),
        "b": problems.histograms(rng, B, M),
        "C": rng.random((N, M)),
        "eps": 0.1,
    }
    return good | change


def matrix_inputs(**change):
    """Good arguments of `cusink.distance_matrix`, but for the change."""
    rng = np.random.default_rng(0)
    good = {
        "A": problems.histograms(rng, B, N),
        "B": problems.histograms(rng, 5, N),
        "C": problems.line_cost(N),
        "eps": 0.1,
    }
    return good | change


def call(arguments):
    options = {name: value for name, value in arguments.items() if name not in {"a", "b", "C"}}
    return cusink.sinkhorn(arguments["a"], arguments["b"], arguments["C"], **options)


def call_matrix(arguments):
    options = {name: value for name, value in arguments.items() if name not in {"A", "B", "C"}}
    return cusink.distance_matrix(arguments["A"], arguments["B"], arguments["C"], **options)


def poisoned(name, value, index=(1, 2), make=inputs):
    """One entry of one array replaced."""
    array = make()[name].copy()
    array[index] = value
    return {name: array}


def says(error, *parts):
    """All parts stand in the message, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(f"(?:{part})" for part in parts))


def test_good_input_is_good():
    assert call(inputs()).converged.all()
    assert np.isfinite(call_matrix(matrix_inputs())).all()


# Shapes


def test_the_message_of_the_contract_to_the_letter():
    a, b, C = np.full((4, 32), 1 / 32), np.full((4, 16), 1 / 16), np.zeros((4, 16, 32))
    message = "'a' must have shape (4, 16) to match C of shape (4, 16, 32); got (4, 32). Did you swap 'a' and 'b'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        cusink.sinkhorn(a, b, C, eps=0.1)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"a": np.full(5, 0.2)}, ["'a'", r"\(4,\)|, 4\)", r"C of shape \(4, 6\)", r"got \(5,\)"]),
        ({"b": np.full((B, 7), 1 / 7)}, ["'b'", r"\(6,\)|, 6\)", r"C of shape \(4, 6\)", r"got \(3, 7\)"]),
        ({"a": np.full((B, 2, N), 1 / N)}, ["'a'", r"got \(3, 2, 4\)"]),
        ({"a": 1.0}, ["'a'", r"got \(\)"]),
        ({"C": np.zeros(N)}, ["'C'", r"\(n, m\)", r"\(B, n, m\)", r"got \(4,\)"]),
        ({"C": np.zeros((2, B, N, M))}, ["'C'", r"\(n, m\)", r"\(B, n, m\)", r"got \(2, 3, 4, 6\)"]),
        ({"C": np.zeros((2, N, M))}, [r"[Bb]atch|broadcast|problems", "3", "2"]),
        ({"a": np.full((2, N), 1 / N)}, [r"[Bb]atch|broadcast|problems|'a'", r"\b[23]\b"]),
        ({"C": np.zeros((0, M)), "a": None}, ["'C'", "empty|at least one", r"got .*\(0, 6\)"]),
        ({"C": np.zeros((N, 0)), "b": None}, ["'C'", "empty|at least one", r"got .*\(4, 0\)"]),
        ({"a": np.zeros((0, N))}, ["batch", "equal", "got 'a' 0, 'b' 3"]),
        ({"a": np.zeros((0, N)), "b": None}, ["'a'", "at least one", "got a batch of 0"]),
    ],
)
def test_shapes(change, parts):
    with says(ValueError, *parts):
        call(inputs(**change))


@pytest.mark.parametrize("batched", [False, True])
def test_swapped_weights_are_recognised(batched):
    good = inputs()
    a, b = (good["b"], good["a"]) if batched else (good["b"][0], good["a"][0])
    with says(ValueError, "'a'", r"4\)|4,\)", "got", r"Did you swap 'a' and 'b'\?"):
        call(inputs(a=a, b=b))


def test_no_swap_is_suggested_where_it_would_not_help():
    with pytest.raises(ValueError, match="'a'") as caught:
        call(inputs(a=np.full(5, 0.2)))
    assert "swap" not in str(caught.value)


def test_a_missing_cost_is_named():
    with says((TypeError, ValueError), "'C'", "got None"):
        call(inputs(C=None))


def test_a_ragged_list_is_an_error_that_names_the_argument():
    with pytest.raises((TypeError, ValueError), match="'C'"):
        cusink.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0]], eps=0.1)


# Kinds, dtypes, libraries


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"a": np.array(["x", "y", "z", "w"])}, ["'a'", "real|float|number", "<U1|str"]),
        ({"C": np.zeros((N, M), dtype=complex)}, ["'C'", "real|float|number", "complex128"]),
        ({"b": np.full(M, None)}, ["'b'", "real|float|number", "object"]),
        ({"a": inputs()["a"].astype(np.float16)}, ["dtype", "float16.*float64|float64.*float16"]),
        ({"C": inputs()["C"].astype(np.float16)}, ["dtype", "float16.*float64|float64.*float16"]),
        ({"C": inputs()["C"].astype(">f8")}, ["'C'", "byte order", r">f8|'>'|big"]),
        ({"C": {"a": 1}}, ["'C'", "dict|object"]),
        ({"a": "uniform"}, ["'a'", "str|<U7"]),
    ],
)
def test_kinds_and_dtypes(change, parts):
    with says(TypeError, *parts):
        call(inputs(**change))


def test_mixed_dtypes_name_both_arguments():
    with pytest.raises(TypeError) as caught:
        call(inputs(b=inputs()["b"].astype(np.float16)))
    for part in ("'b'", "float16", "float64"):
        assert part in str(caught.value)


class FromAnotherLibrary:
    """An array of a library that cannot be read: it has neither `__array__` nor `__dlpack__`."""

    __module__ = "torch"
    shape, ndim, dtype = (N, M), 2, "torch.float32"


def test_arrays_that_cannot_be_read_are_refused_by_name():
    with says(TypeError, "'C'", "must be an array", "torch"):
        call(inputs(C=FromAnotherLibrary()))


@pytest.mark.gpu
def test_mixed_libraries_are_named():
    import cupy

    with pytest.raises(TypeError) as caught:
        call(inputs(C=cupy.asarray(inputs()["C"])))
    for part in ("'C'", "numpy", "cupy"):
        assert part.lower() in str(caught.value).lower()


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(inputs()["a"], mask=inputs()["a"] > 0.5)
    with says(TypeError, "'a'", "mask"):
        call(inputs(a=masked))


# Values


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a", "b"])
def test_weights_must_be_finite(name, bad):
    with says(ValueError, f"'{name}'", "finite", "got", r"nan|inf"):
        call(inputs(**poisoned(name, bad)))


@pytest.mark.parametrize("name", ["a", "b"])
def test_weights_must_not_be_negative(name):
    with says(ValueError, f"'{name}'", "non-negative", r"got .*-0\.25"):
        call(inputs(**poisoned(name, -0.25)))


def test_a_histogram_must_have_mass():
    a, b = inputs()["a"].copy(), inputs()["b"].copy()
    a[1] = b[1] = 0
    with says(ValueError, r"'a'", "positive|zero|mass", r"\b1\b"):
        call(inputs(a=a, b=b))


def test_unequal_masses_offer_to_normalise():
    with says(ValueError, "'a'.*'b'|'b'.*'a'", "equal|same", "mass", "got", r"a / a\.sum|normali[sz]e"):
        call(inputs(a=2 * inputs()["a"]))


def test_the_unequal_problem_is_named():
    b = inputs()["b"].copy()
    b[2] *= 1.5
    with says(ValueError, "mass", r"\b2\b"):
        call(inputs(b=b))


@pytest.mark.parametrize(("dtype", "fine", "bad"), [(np.float32, 3e-4, 3e-3), (np.float64, 3e-7, 3e-6)])
def test_masses_may_differ_by_rounding_only(dtype, fine, bad):
    good = inputs()
    a, b, C = (good[name].astype(dtype) for name in "abC")
    cusink.sinkhorn(a * dtype(1 + fine), b, C, eps=0.1, tol=1e-2)
    with says(ValueError, "mass"):
        cusink.sinkhorn(a * dtype(1 + bad), b, C, eps=0.1, tol=1e-2)


def test_uniform_weights_have_mass_one_and_refuse_another_mass():
    """None is uniform; with the other side of mass 5 it must not be a silent problem of unequal masses."""
    result = call(inputs(a=None))
    np.testing.assert_allclose(result.plan().sum(axis=2), np.full((B, N), 1 / N), rtol=1e-9)
    with says(ValueError, "mass"):
        call(inputs(a=None, b=5 * inputs()["b"]))


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "nan|NaN"), (-np.inf, "-inf")])
def test_costs_must_be_numbers_or_plus_infinity(bad, word):
    with says(ValueError, "'C'", "finite", rf"got ({word})"):
        call(inputs(**poisoned("C", bad)))


def test_a_row_with_weight_needs_a_partner():
    C = inputs()["C"].copy()
    C[2] = np.inf
    with says(ValueError, "'C'", "partner", "row 2", r"\+inf", "'a'"):
        call(inputs(C=C))
    a = inputs()["a"].copy()
    a[:, 2] = 0
    a /= a.sum(axis=1, keepdims=True)
    result = call(inputs(a=a, C=C))
    assert result.converged.all() and np.isfinite(result.cost).all()


def test_a_column_with_weight_needs_a_partner():
    C = inputs()["C"].copy()
    C[:, 5] = np.inf
    with says(ValueError, "'C'", "partner", "column 5", r"\+inf", "'b'"):
        call(inputs(C=C))


def test_a_partner_without_weight_is_no_partner():
    """Row 0 may only go to column 0, which is empty."""
    C, b = inputs()["C"].copy(), inputs()["b"].copy()
    C[0, 1:] = np.inf
    b[:, 0] = 0
    b /= b.sum(axis=1, keepdims=True)
    with says(ValueError, "'C'", "partner", "problem 0", "row 0", r"\+inf", "'a'"):
        call(inputs(C=C, b=b))
    b[0] = 1 / M  # the first problem is possible now: it is the second that is named
    with says(ValueError, "'C'", "problem 1", "row 0"):
        call(inputs(C=C, b=b))


# Options


@pytest.mark.parametrize("bad", [0, -0.1, np.nan, np.inf])
def test_eps_must_be_positive_and_finite(bad):
    with says(ValueError, "'eps'", "positive", "finite", f"got {bad}"):
        call(inputs(eps=bad))
    with says(ValueError, "'eps'", "positive", "finite", f"got {bad}"):
        call_matrix(matrix_inputs(eps=bad))


def test_eps_is_required_by_name():
    with pytest.raises(TypeError, match="eps"):
        cusink.sinkhorn(*(inputs()[name] for name in "abC"))
    with pytest.raises(TypeError):
        cusink.sinkhorn(*(inputs()[name] for name in "abC"), 0.1)


@pytest.mark.parametrize("checked", [call, call_matrix], ids=["sinkhorn", "distance_matrix"])
@pytest.mark.parametrize(
    ("option", "error", "parts"),
    [
        ({"eps": "0.1"}, TypeError, ["'eps'", "number", "got", "str|'0.1'"]),
        ({"eps": None}, TypeError, ["'eps'", "number", "got", "None"]),
        ({"max_iter": 0}, ValueError, ["'max_iter'", "1|positive", "got 0"]),
        ({"max_iter": 2.5}, TypeError, ["'max_iter'", "integer", "got", r"2\.5|float"]),
        ({"check_every": 0}, ValueError, ["'check_every'", "1|positive", "got 0"]),
        ({"check_every": "10"}, TypeError, ["'check_every'", "integer", "got", "str|'10'"]),
        ({"tol": -1e-6}, ValueError, ["'tol'", "positive|negative", r"None", "got -1e-06"]),
        ({"tol": np.nan}, ValueError, ["'tol'", "got nan"]),
        ({"tol": "small"}, TypeError, ["'tol'", "number", "got", "str|'small'"]),
        ({"method": "exact"}, ValueError, ["'method'", "auto", "log", "scaling", "got 'exact'"]),
        ({"overrelaxation": 2.0}, ValueError, ["'overrelaxation'", r"\[1, 2\)", r"got 2\.0"]),
        ({"overrelaxation": 0.5}, ValueError, ["'overrelaxation'", r"\[1, 2\)", r"got 0\.5"]),
        ({"overrelaxation": np.nan}, ValueError, ["'overrelaxation'", r"\[1, 2\)", "got nan"]),
        ({"overrelaxation": "fast"}, (TypeError, ValueError), ["'overrelaxation'", "auto", "got 'fast'"]),
    ],
)
def test_options(checked, option, error, parts):
    make = inputs if checked is call else matrix_inputs
    with says(error, *parts):
        checked(make(**option))


@pytest.mark.parametrize(
    ("init", "error", "parts"),
    [
        (np.zeros(N), (TypeError, ValueError), ["'init'", r"\(f, g\)|pair"]),
        ((np.zeros(N),), (TypeError, ValueError), ["'init'", r"\(f, g\)|pair"]),
        ((np.zeros(N + 1), np.zeros(M)), ValueError, ["'init", r"4", r"got \(5,\)"]),
        ((np.zeros(M), np.zeros(N)), ValueError, ["'init", r"4", r"got \(6,\)"]),
        ((np.full(N, np.nan), np.zeros(M)), ValueError, [r"'init\[0\]'", "finite", "got nan"]),
        ((np.zeros(N), np.full(M, np.inf)), ValueError, [r"'init\[1\]'", "finite", "got inf"]),
        ((np.zeros(N, np.float16), np.zeros(M, np.float16)), TypeError, ["float64", r"'init\[0\]'", "float16"]),
    ],
)
def test_init(init, error, parts):
    with says(error, *parts):
        call(inputs(init=init))


def test_callback_must_be_callable():
    with says(TypeError, "'callback'", "callable", "got"):
        call(inputs(callback=3))


def test_check_false_skips_the_values_and_not_the_shapes():
    call(inputs(a=2 * inputs()["a"], check=False, max_iter=2, tol=None))
    with says(ValueError, "'a'", r"got \(5,\)"):
        call(inputs(a=np.full(5, 0.2), check=False))


# The result's methods


@pytest.mark.parametrize(
    ("v", "axis", "error", "parts"),
    [
        (np.ones(M), 2, ValueError, ["'axis'", "0", "1", "got 2"]),
        (np.ones(N), 1, ValueError, ["'v'", "6", r"got \(4,\)"]),
        (np.ones(M), 0, ValueError, ["'v'", "4", r"got \(6,\)"]),
        (np.ones((2, M)), 1, ValueError, ["'v'", r"got \(2, 6\)"]),
        (np.ones(M, np.float16), 1, TypeError, ["'v'", "float16", "float64"]),
    ],
)
def test_apply(v, axis, error, parts):
    with says(error, *parts):
        call(inputs()).apply(v, axis)


# Costs


@pytest.mark.parametrize(
    ("x", "y", "metric", "error", "parts"),
    [
        (np.zeros((3, 2)), np.zeros((4, 5)), "euclidean", ValueError, ["'x' and 'y'", r"got \(3, 2\) and \(4, 5\)"]),
        (np.zeros((0, 2)), np.zeros((4, 2)), "euclidean", ValueError, ["'x'", "empty|at least one", r"got .*\(0, 2\)"]),
        (np.zeros((3, 2)), np.zeros((4, 2)), "manhatan", ValueError, ["'metric'", "sqeuclidean", "got 'manhatan'"]),
        (np.zeros((3, 2)), np.zeros((4, 2)), 2, (TypeError, ValueError), ["'metric'", "got", "2|int"]),
        (np.full((3, 2), np.nan), np.zeros((4, 2)), "euclidean", ValueError, ["'x'", "finite", "got NaN"]),
        (np.zeros((3, 2)), np.full((4, 2), np.inf), "euclidean", ValueError, ["'y'", "finite", "got .*infinity"]),
        (np.zeros((3, 2)), np.zeros((4, 2), np.float16), "euclidean", TypeError, ["'x' is float64", "'y' is float16"]),
        (np.zeros((3, 2)), np.ones((4, 2)), "cosine", ValueError, ["'x'", "zero"]),
    ],
)
def test_cost_matrix(x, y, metric, error, parts):
    with says(error, *parts):
        cusink.cost_matrix(x, y, metric)


# Distance matrices


@pytest.mark.parametrize(
    ("change", "error", "parts"),
    [
        ({"A": np.full(N, 0.25)}, ValueError, ["'A'", r"\(Q, 4\)", r"got \(4,\)", r"A\[None"]),
        ({"B": np.full((5, 7), 1 / 7)}, ValueError, ["'B'", r"C of shape \(4, 4\)", r"got \(5, 7\)"]),
        ({"C": np.zeros((B, N, N))}, ValueError, ["'C'", r"\(n, m\)", r"got \(3, 4, 4\)"]),
        ({"B": np.zeros((0, N))}, ValueError, ["'B'", "empty|at least one", r"got .*\(0, 4\)"]),
        ({"A": None}, TypeError, ["'A'", "None"]),
        ({"B": np.full((5, N), 0.25, np.float16)}, TypeError, ["'A' is float64", "'B' is float16"]),
        (
            {"A": 3 * matrix_inputs()["A"]},
            ValueError,
            ["same mass", "'A' row 0 has 3", "'B' row 0 has 1", "normalise=True divides each row by its sum"],
        ),
        (poisoned("A", np.nan, make=matrix_inputs), ValueError, ["'A'", "finite", "nan"]),
        (poisoned("B", -0.5, make=matrix_inputs), ValueError, ["'B'", "non-negative", r"got .*-0\.5"]),
        (poisoned("C", np.nan, make=matrix_inputs), ValueError, ["'C'", "nan|NaN"]),
        ({"value": "distance"}, ValueError, ["'value'", "cost", "reg_cost", "entropic_cost", "got 'distance'"]),
        ({"out": np.zeros((B, 6))}, ValueError, ["'out'", r"\(3, 5\)", r"got \(3, 6\)"]),
        ({"out": np.zeros((B, 5), np.float32)}, TypeError, ["'out'", "float64", "float32"]),
        ({"out": [[0.0] * 5] * 3}, TypeError, ["'out'", "list"]),
        ({"memory_limit": 0}, ValueError, ["'memory_limit'", "positive|at least", "got 0"]),
        ({"memory_limit": 10}, ValueError, ["'memory_limit'", "at least", "bytes", "got 10"]),
        ({"memory_limit": "1G"}, TypeError, ["'memory_limit'", "integer|bytes|number", "got", "str|'1G'"]),
    ],
)
def test_distance_matrix(change, error, parts):
    with says(error, *parts):
        call_matrix(matrix_inputs(**change))


def test_a_read_only_out_is_an_error():
    out = np.zeros((B, 5))
    out.flags.writeable = False
    with says(ValueError, "'out'", "read-only|writ"):
        call_matrix(matrix_inputs(out=out))


@pytest.mark.parametrize("strides", [(0, 8), (40, 0), (8, 8), (16, 8), (40, 4), (-24, 8), (40, -40)])
def test_an_out_that_overlaps_itself_is_an_error(strides):
    own = np.lib.stride_tricks.as_strided(np.zeros(99)[40:], (B, 5), strides)
    with says(ValueError, "'out'", "overlaps itself", "copy"):
        call_matrix(matrix_inputs(out=own))


@pytest.mark.parametrize("strides", [(40, 8), (-40, 8), (8, 24), (16, -48), (80, 16), (40, 24)])
def test_any_other_layout_of_out_is_written_to(strides):
    own = np.lib.stride_tricks.as_strided(np.zeros(99)[40:], (B, 5), strides)
    np.testing.assert_array_equal(call_matrix(matrix_inputs(out=own)), call_matrix(matrix_inputs()))


def test_the_row_without_mass_is_named():
    A, B = matrix_inputs()["A"].copy(), matrix_inputs()["B"]
    A[1] = 0
    with says(ValueError, "'A'", "positive|zero|mass", r"\b1\b"):
        call_matrix(matrix_inputs(A=A, B=B))


def test_failed_calls_leave_out_alone():
    out = np.full((B, 5), 7.0)
    with pytest.raises(ValueError, match="mass"):
        call_matrix(matrix_inputs(A=3 * matrix_inputs()["A"], out=out))
    assert (out == 7).all()


def test_missing_tqdm_is_an_error_that_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with says(ImportError, "progress", "tqdm", "install"):
        call_matrix(matrix_inputs(progress=True))
