"""Every public function takes arrays of any library: the answers are NumPy's, bit by bit, in what came."""

import copy
import inspect
import pickle
import subprocess
import sys

import numpy as np
import pytest

import cusink

jax, torch, pd, xr, _, _, _ = (
    pytest.importorskip(name) for name in ("jax", "torch", "pandas", "xarray", "dask", "matplotlib", "sklearn")
)

import jax.numpy as jnp  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from public_calls import CALLS, numbers_in  # noqa: E402

OWN = ("jax.", "torch.")  # functions of these take the arrays of one library alone
NUMPY = np.ndarray


def table(x):
    """Return an array with names: a column or a frame of pandas, or with more axes one of xarray."""
    return pd.Series(x, name="mass") if x.ndim == 1 else pd.DataFrame(x) if x.ndim == 2 else xr.DataArray(x)


LIBRARIES = {
    "torch": (lambda x: torch.from_numpy(x.copy()), torch.Tensor),
    "jax": (jnp.asarray, jax.Array),
    "pandas": (table, NUMPY),
}


def converted(x, make):
    """Return arrays, alone or in what holds them, as those of another library."""
    if isinstance(x, np.ndarray) and x.ndim:
        return make(x)
    if isinstance(x, list):
        return [converted(part, make) for part in x]
    if isinstance(x, cusink.Measures):
        return cusink.Measures(make(x.offsets), make(x.weights), make(x.points))
    return x


def arrays_in(found):
    """Yield the arrays with axes in what a call returned."""
    if isinstance(found, (tuple, list)):
        for part in found:
            yield from arrays_in(part)
    elif hasattr(found, "__dataclass_fields__"):
        for name in found.__dataclass_fields__:
            if name not in {"problem", "problems", "pruning", "bounded"} and not name.startswith("_"):
                yield from arrays_in(getattr(found, name))
    elif getattr(found, "ndim", 0):
        yield found


@pytest.fixture(autouse=True)
def with_64_bits():
    """Let JAX keep the digits of NumPy's float64."""
    with jax.enable_x64(True):
        yield
    pyplot.close("all")


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # few iterations will do
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("call", [name for name in CALLS if not name.startswith(OWN)])
def test_answers_are_numpy_s_in_the_library_of_the_input(call, library):
    (make, kind), (function, arguments) = LIBRARIES[library], CALLS[call]
    given = {name: converted(x, make) for name, x in arguments.items()}
    same = {name: converted(x, lambda part: np.asarray(make(part))) for name, x in arguments.items()}  # in its layout
    want, found = function(**same), function(**given)
    for one, other in zip(numbers_in(found), numbers_in(want), strict=True):
        np.testing.assert_array_equal(one, other)
    came = any(given[name] is not arguments[name] for name in given)
    lazy = call.startswith(("distributed.", "sklearn.")) and call != "distributed.Index.search"
    if not lazy:
        assert all(isinstance(x, kind if came else NUMPY) for x in arrays_in(found))


rng = np.random.default_rng(3)
A, B, X, Y = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(6), 3), rng.random((5, 2)), rng.random((6, 2))
C = ((X[:, None] - Y) ** 2).sum(axis=-1)
BOTH = pytest.mark.parametrize("library", ["torch", "jax"])


def cloud(of):
    return cusink.PointCloud(of(X), of(Y))


def measures(of, points):
    return cusink.Measures.of(
        [of(points), of(points[1:])], [of(np.full(len(x), 1 / len(x))) for x in (points, points[1:])]
    )


def by_points(of):
    return cusink.sinkhorn_adjoint(cusink.sinkhorn(of(A), of(B), cloud(of), eps=0.2), grad_cost=1.0)


def by_cost(of):
    return cusink.sinkhorn_adjoint(cusink.sinkhorn(of(A), of(B), of(C), eps=0.2), grad_f=of(A))


def divergence(of):
    return cusink.sinkhorn_divergence(of(A), of(A[::-1].copy()), cusink.PointCloud(of(X)), eps=0.2)


def barycenter(of):
    return cusink.barycenter(of(A), cusink.PointCloud(of(X)), eps=0.2)


RESULTS = {
    "result": lambda of: cusink.sinkhorn(of(A), of(B), of(C), eps=0.2),
    "result of points alone": lambda of: cusink.sinkhorn(None, None, cloud(of), eps=0.2),
    "extension": lambda of: cusink.sinkhorn(of(A), of(B), cloud(of), eps=0.2).at(X),
    "pairs": lambda of: cusink.sinkhorn(measures(of, X), measures(of, Y), "euclidean", eps=0.2),
    "one of pairs": lambda of: cusink.sinkhorn(measures(of, X), measures(of, Y), "euclidean", eps=0.2)[1],
    "gradients by points": by_points,
    "gradients by the cost": by_cost,
    "tangents": lambda of: cusink.sinkhorn_jvp(cusink.sinkhorn(of(A), of(B), cloud(of), eps=0.2), dx=of(X)),
    "curvature": lambda of: cusink.sinkhorn_hvp(
        cusink.sinkhorn(of(A), of(B), cloud(of), eps=0.2), grad_cost=1.0, dx=of(X)
    ),
    "divergence": divergence,
    "gradients of the divergence": lambda of: cusink.sinkhorn_divergence_adjoint(divergence(of)),
    "divergences of pairs": lambda of: cusink.sinkhorn_divergence(
        measures(of, X), measures(of, Y), "sqeuclidean", eps=0.2
    ),
    "barycenter": barycenter,
    "gradients of the barycenter": lambda of: cusink.barycenter_adjoint(barycenter(of), grad_barycenter=of(A[0])),
    "free barycenter": lambda of: cusink.free_barycenter(measures(of, X), x=of(Y), eps=0.2),
    "flow": lambda of: cusink.gradient_flow(of(X), of(Y), eps=0.2, max_iter=3, tol=None),
    "neighbours": lambda of: cusink.nearest(of(A), None, cusink.PointCloud(X), k=1, eps=0.2, full_output=True),
    "matrix": lambda of: cusink.distance_matrix(of(A), None, cusink.PointCloud(X), eps=0.2, full_output=True),
}


def answers(result):
    """Return all arrays that a result has in public attributes and gives by methods without arguments."""
    found = {}
    for name in dir(result):
        if name.startswith("_") or name in ("problem", "problems", "solved", "from_potentials", "own_costs"):
            continue
        value = getattr(result, name)
        if callable(value):
            if inspect.signature(value).parameters:
                continue
            value = value()
        for part in value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else (value,):
            if getattr(part, "shape", None) is not None:
                found.setdefault(name, []).append(part)
    return found


@BOTH
@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_of_the_library_whatever_is_read_of_it(name, library):
    make, kind = LIBRARIES[library]
    want, found = RESULTS[name](np.asarray), RESULTS[name](make)
    assert isinstance(found, type(want)) and repr(found) == repr(want)
    ours, theirs = answers(want), answers(found)
    assert ours.keys() == theirs.keys() and len(ours) >= 2
    for one, other in zip(sum(theirs.values(), []), sum(ours.values(), []), strict=True):
        assert isinstance(one, kind)
        np.testing.assert_array_equal(np.asarray(one), other)


METHODS = {
    "apply": lambda result, of: result.apply(of(B), axis=1),
    "barycentric_map": lambda result, of: result.barycentric_map(of(Y), axis=1),
    "at, gradient": lambda result, of: result.at(y=of(Y)).gradient(),
    "at, barycentric_map": lambda result, of: result.at(of(X)).barycentric_map(of(Y)),
    "barycentric_map_adjoint": lambda result, of: (
        cusink.barycentric_map_adjoint(result, of(Y), of(np.ones((3, 5, 2)))).values
    ),
    "extension_adjoint": lambda result, of: (
        cusink.extension_adjoint(result.at(of(X)), grad_map=of(np.ones((3, 5, 2)))).points
    ),
    "a plan of low rank": lambda result, of: (
        cusink.sinkhorn_adjoint(result, grad_plan=(of(np.ones((3, 5, 1))), of(np.ones((3, 6, 1))))).x
    ),
}


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_methods_and_adjoints_take_and_give_the_library_even_of_a_numpy_result(method, library):
    make, kind = LIBRARIES[library]
    of_numpy, of_library = (cusink.sinkhorn(of(A), of(B), cloud(of), eps=0.2) for of in (np.asarray, make))
    want = METHODS[method](of_numpy, np.asarray)
    for result, of in ((of_library, make), (of_library, np.asarray), (of_numpy, make)):
        found = METHODS[method](result, of)
        assert isinstance(found, kind)
        np.testing.assert_array_equal(np.asarray(found), want)


def test_the_first_array_decides_and_a_number_does_not():
    tensor, jax_array = torch.from_numpy(A), jnp.asarray(B)
    assert isinstance(cusink.sinkhorn(tensor, jax_array, C, eps=0.2).cost, torch.Tensor)
    assert isinstance(cusink.sinkhorn(A, jax_array, torch.from_numpy(C), eps=0.2).cost, jax.Array)
    assert isinstance(cusink.sinkhorn(A, B, C, eps=torch.tensor(0.2)).cost, np.ndarray)
    assert isinstance(cusink.sinkhorn(A, B, C, eps=torch.full((3,), 0.2)).cost, torch.Tensor)
    assert isinstance(cusink.sinkhorn(table(A), B, table(C), eps=0.2).cost, np.ndarray)
    index = cusink.Index(torch.from_numpy(B), cusink.PointCloud(torch.from_numpy(Y)), eps=0.2)
    assert isinstance(index.search(B, 1)[0], np.ndarray) and isinstance(index.search(jax_array, 1)[0], jax.Array)


def test_what_is_made_of_tensors_stays_numpy_s_inside_and_remembers():
    made = cusink.PointCloud(torch.from_numpy(X), labels=torch.arange(5) % 2, table=torch.eye(2, dtype=torch.float64))
    assert isinstance(made.x, np.ndarray) and isinstance(made.dense(), torch.Tensor) and made.library == "torch"
    np.testing.assert_array_equal(
        made.dense().numpy(), cusink.PointCloud(X, labels=np.arange(5) % 2, table=np.eye(2)).dense()
    )
    several = measures(torch.from_numpy, X)
    assert isinstance(several.points, np.ndarray)
    for each in (several, several[1:], several.normalised(), pickle.loads(pickle.dumps(several))):
        assert type(each) is cusink.Measures and each.library == "torch"
    gaps = torch.tensor([1.0, 2.0])
    assert cusink.Grid((3, 2), spacing=(gaps, 1.0)) == cusink.Grid((3, 2), spacing=((1.0, 2.0), 1.0))
    assert cusink.Grid((2, 3), spacing=(1.0, gaps)) == cusink.Grid((2, 3), spacing=(1.0, (1.0, 2.0)))


@BOTH
def test_functions_of_the_user_speak_his_library(library):
    make, kind = LIBRARIES[library]
    seen = []

    def metric(x, y):
        seen.append((type(x), type(y)))
        return abs(x[:, None] - y[None]).sum(-1)

    def gradient(x, y, grad):
        sign = (x[:, None] > y[None]) * 2.0 - 1.0
        return (grad[..., None] * sign).sum(1), -(grad[..., None] * sign).sum(0)

    want = cusink.sinkhorn(A, B, cusink.PointCloud(X, Y, metric, gradient=gradient), eps=0.2)
    assert not any(issubclass(each, kind) for both in seen for each in both)
    seen.clear()
    found = cusink.sinkhorn(A, B, cusink.PointCloud(make(X), make(Y), metric, gradient=gradient), eps=0.2)
    assert seen and all(issubclass(each, kind) for both in seen for each in both)
    assert repr(found.problem.C) and "metric=metric" in repr(cusink.PointCloud(make(X), None, metric))
    np.testing.assert_allclose(np.asarray(found.cost), want.cost, rtol=1e-12)  # its sums may round in another order
    pulled = cusink.sinkhorn_adjoint(found, grad_cost=1.0).x
    assert isinstance(pulled, kind)
    np.testing.assert_allclose(
        np.asarray(pulled), cusink.sinkhorn_adjoint(want, grad_cost=1.0).x, rtol=1e-9, atol=1e-12
    )
    seen.clear()
    of_points = np.asarray(cusink.cost_matrix(make(X), make(Y), metric))
    np.testing.assert_allclose(of_points, cusink.cost_matrix(X, Y, metric), rtol=1e-12)
    assert any(issubclass(each, kind) for both in seen for each in both)
    errors = []
    cusink.sinkhorn(make(A), make(B), cloud(make), eps=0.2, callback=lambda _, error: errors.append(error))
    assert errors and all(isinstance(error, kind) for error in errors)


@BOTH
@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_a_result_in_a_library_can_be_copied(again, library):
    make, kind = LIBRARIES[library]
    result = cusink.sinkhorn(make(A), make(B), cloud(make), eps=0.2)
    other = again(result)
    assert isinstance(other, cusink.SinkhornResult) and isinstance(other.plan(), kind)
    np.testing.assert_array_equal(np.asarray(other.plan()), np.asarray(result.plan()))


def test_a_pickle_brings_its_library_with_it():
    """A process that has not loaded PyTorch reads the result of one that had."""
    result = pickle.dumps(cusink.sinkhorn(torch.from_numpy(A), B, C, eps=0.2))
    code = "import pickle, sys; r = pickle.load(sys.stdin.buffer); print('torch' in sys.modules, type(r.cost))"
    answer = subprocess.run([sys.executable, "-c", code], input=result, capture_output=True, check=True)
    assert answer.stdout.strip() == b"False <class 'torch.Tensor'>"


def test_pictures_are_drawn_of_tensors():
    result = cusink.sinkhorn(torch.from_numpy(A[0]), torch.from_numpy(B[0]), cloud(torch.from_numpy), eps=0.2)
    drawn = cusink.plot.transport_lines(result, torch.from_numpy(X), torch.from_numpy(Y))
    assert drawn.collections
    image = cusink.plot.plan(result.plan()).collections[0]
    np.testing.assert_array_equal(image.get_array().ravel(), result.plan().numpy().ravel())


def test_what_has_no_numbers_says_what_helps():
    with pytest.raises(TypeError, match=r"'x' must be an array of numbers.*Pass x\.float\(\)"):
        cusink.PointCloud(torch.from_numpy(X).bfloat16())
    with pytest.raises(TypeError, match="'a' must be an array of numbers.*a function of cusink.jax"):
        jax.jit(lambda a: cusink.sinkhorn(a, B, C, eps=0.2).cost)(A)


def test_a_tensor_with_a_gradient_is_refused_wherever_it_comes():
    leaf = torch.tensor(A, requires_grad=True)
    for call in (
        lambda: cusink.sinkhorn(leaf, B, C, eps=0.2),
        lambda: cusink.PointCloud(leaf),
        lambda: cusink.Measures.of([leaf, A]),
        lambda: cusink.sinkhorn(A, B, C, eps=0.2).apply(leaf, axis=0),
    ):
        with pytest.raises(TypeError, match=r"must not require a gradient.*\.detach\(\)"):
            call()
