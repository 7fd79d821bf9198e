"""Every public function takes arrays of any library: the answers are NumPy's, bit by bit, in what came."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys

import numpy as np
import pytest

import cusink
from cusink.checks.foreign import taken

jax, torch, pd, xr, zarr, _, _, _ = (
    pytest.importorskip(name) for name in ("jax", "torch", "pandas", "xarray", "zarr", "dask", "matplotlib", "sklearn")
)

import dask.array as da  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from public_calls import CALLS, numbers_in  # noqa: E402

OWN = ("jax.", "torch.")  # functions of these take the arrays of one library alone
NUMPY = np.ndarray


def table(x):
    """Return an array with names: a column or a frame of pandas, or with more axes one of xarray."""
    return pd.Series(x, name="mass") if x.ndim == 1 else pd.DataFrame(x) if x.ndim == 2 else xr.DataArray(x)


class Capsule:
    """An object with nothing but DLPack."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


LIBRARIES = {
    "torch": (lambda x: torch.from_numpy(x.copy()), torch.Tensor),
    "jax": (jnp.asarray, jax.Array),
    "pandas": (table, NUMPY),
    "DLPack": (lambda x: Capsule(x.copy()), NUMPY),  # NumPy lends nothing that is read-only
}


def plain(x):
    """Return an array as NumPy's, in the layout that it has."""
    return x.values if isinstance(x, Capsule) else np.asarray(x)


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
    same = {name: converted(x, lambda part: plain(make(part))) for name, x in arguments.items()}  # in its layout
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
    assert isinstance(made.x, np.ndarray) and isinstance(made.dense(), torch.Tensor) and made.origin == "torch"
    np.testing.assert_array_equal(
        made.dense().numpy(), cusink.PointCloud(X, labels=np.arange(5) % 2, table=np.eye(2)).dense()
    )
    several = measures(torch.from_numpy, X)
    assert isinstance(several.points, np.ndarray)
    for each in (several, several[1:], several.normalised(), pickle.loads(pickle.dumps(several))):
        assert type(each) is cusink.Measures and each.origin == "torch"
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
    assert cusink.PointCloud(make(X), None, metric).metric is metric
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


@dataclasses.dataclass(frozen=True)
class CityBlock:
    """A metric that is an object, whose class a pickle finds by name."""

    def __call__(self, x, y):
        return abs(x[:, None] - y[None]).sum(-1)


@BOTH
@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_a_cloud_with_a_function_can_be_copied(again, library):
    make, kind = LIBRARIES[library]
    other = again(cusink.PointCloud(make(X), make(Y), CityBlock()))
    assert other.origin == library and isinstance(other.dense(), kind)
    np.testing.assert_allclose(np.asarray(other.dense()), cusink.cost_matrix(X, Y, "cityblock"), rtol=1e-12)


def test_queries_of_tensors_meet_the_parts_of_an_index():
    points = rng.random((12, 2))
    items = cusink.Measures([0, 2, 5, 8, 12], None, points)
    parts = [cusink.Index(items[:2], "euclidean", eps=0.3), cusink.Index(items[2:], "euclidean", eps=0.3)]
    want = cusink.distributed.Index(parts).search(items, 2)
    for make, kind in (LIBRARIES["torch"], LIBRARIES["jax"]):
        found = cusink.distributed.Index(parts).search(cusink.Measures([0, 2, 5, 8, 12], None, make(points)), 2)
        for one, other in zip(found, want, strict=True):
            assert isinstance(one, kind)
            np.testing.assert_array_equal(np.asarray(one), other)


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


def test_a_result_in_a_library_looks_like_one():
    result = cusink.sinkhorn(torch.from_numpy(A), torch.from_numpy(B), cloud(torch.from_numpy), eps=0.2)
    assert type(result).__name__ == "SinkhornResult" and type(result).__doc__ == cusink.SinkhornResult.__doc__
    assert not hasattr(result, "__len__") and bool(result)
    assert result.f is result.f and result.plan == result.plan and result.plan != result.bounds
    assert result.plan.__doc__ == cusink.SinkhornResult.plan.__doc__
    plan = pickle.loads(pickle.dumps(result.plan))
    np.testing.assert_array_equal(plan(), result.plan())
    with pytest.raises(TypeError, match="dataclass"):  # it would be NumPy's class with tensors inside
        dataclasses.replace(result, cost=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.cost = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        del result.cost
    with pytest.raises(TypeError, match="has no len"):
        len(result)
    with pytest.raises(AttributeError, match="'SinkhornResult' object has no attribute 'costs'"):
        result.costs  # noqa: B018


def test_subclasses_are_of_their_library():
    class Image(torch.Tensor):
        pass

    class Shape(cusink.PointCloud):
        pass

    assert isinstance(cusink.cost_matrix(torch.from_numpy(X).as_subclass(Image)), torch.Tensor)
    assert isinstance(cusink.sinkhorn(None, None, Shape(torch.from_numpy(X)), eps=0.2).cost, torch.Tensor)


def test_threads_have_the_settings_of_the_user():
    """JAX keeps 64 bits, and PyTorch what it records, for each thread apart."""
    narrow = []

    def metric(x, y):
        narrow.append(x.dtype != jnp.float64)
        return abs(x[:, None] - y[None]).sum(-1)

    rows, points = rng.dirichlet(np.ones(40), 12), rng.random((40, 2))
    of_jax = cusink.PointCloud(jnp.asarray(points), None, metric)
    found = cusink.distance_matrix(jnp.asarray(rows), None, of_jax, eps=0.2, tol=None, max_iter=5, workers=2)
    want = cusink.distance_matrix(jnp.asarray(rows), None, of_jax, eps=0.2, tol=None, max_iter=5, workers=1)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(want))
    result = cusink.sinkhorn(None, None, of_jax, eps=0.2)
    with jax.enable_x64(False):
        assert result.plan().dtype == jnp.float32  # of the arrays that are made now; the costs are as they were
    assert narrow and not any(narrow)
    scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    with torch.no_grad():
        learnt = cusink.PointCloud(torch.from_numpy(points), None, lambda x, y: scale * torch.cdist(x, y, p=1))
        found = cusink.distance_matrix(torch.from_numpy(rows), None, learnt, eps=0.2, tol=None, max_iter=5, workers=2)
    np.testing.assert_allclose(found, np.asarray(want), rtol=1e-9, atol=1e-12)
    assert np.isfinite(cusink.sinkhorn(None, None, learnt, eps=0.2).plan().numpy()).all()
    with pytest.raises(TypeError, match="'metric' must not require a gradient"):
        cusink.PointCloud(torch.from_numpy(points), None, lambda x, y: scale * torch.cdist(x, y))


def test_an_index_does_not_follow_a_frame_that_changes():
    frame, costs = pd.DataFrame(B.copy(), copy=False), pd.DataFrame(cusink.cost_matrix(Y), copy=False)
    points = pd.DataFrame(rng.random((6, 2)), copy=False)
    for index, queries, changed in (
        (cusink.Index(frame, cusink.PointCloud(Y), eps=0.2), B, frame),
        (cusink.Index(B, costs, eps=0.2), B, costs),
        (
            cusink.Index(cusink.Measures([0, 2, 4, 6], None, points), "euclidean", eps=0.2),
            cusink.Measures([0, 3, 6], None, X[:, ::-1].repeat(2, axis=0)[:6].copy()),
            points,
        ),
    ):
        before = index.search(queries, 1)[0].copy()
        changed.iloc[:, :] = 0.3
        np.testing.assert_array_equal(index.search(queries, 1)[0], before)


def test_masks_of_other_libraries_are_refused():
    class Masked:
        def __array__(self, dtype=None, copy=None):
            return np.ma.masked_array(C, mask=C > 1)

    lazy = da.from_array(np.ma.masked_array(C, mask=C > 1), chunks=3)
    for costs in (Masked(), lazy):
        with pytest.raises(TypeError, match="'C' must be an array without a mask"):
            cusink.sinkhorn(A, B, costs, eps=0.2)


def test_what_cannot_be_written_to_is_no_out():
    cost = cusink.PointCloud(X)
    with pytest.raises(TypeError, match="'out' must be an array whose memory can be written to, or a path; got zarr"):
        cusink.distance_matrix(A, None, cost, eps=0.2, out=zarr.zeros((3, 3), dtype="f8"))
    with pytest.raises(TypeError, match="'out' must be an array whose memory can be written to, or a path; got jax"):
        cusink.distance_matrix(A, None, cost, eps=0.2, out=jnp.zeros((3, 3)))
    out = torch.empty((3, 3), dtype=torch.float64)
    assert cusink.distance_matrix(torch.from_numpy(A), None, cost, eps=0.2, out=out) is out
    np.testing.assert_array_equal(out.numpy(), cusink.distance_matrix(A, None, cost, eps=0.2))
    labelled = xr.DataArray(np.empty((3, 3)))
    cusink.distance_matrix(A, None, cost, eps=0.2, out=labelled)
    np.testing.assert_array_equal(labelled, out.numpy())


def test_arrays_of_several_devices_are_gathered():
    class Sharded:
        def __dlpack__(self, **keywords):
            raise ValueError("only of one device")

        __dlpack_device__ = __dlpack__

        def __array__(self, dtype=None, copy=None):
            return C

    np.testing.assert_array_equal(cusink.sinkhorn(A, B, Sharded(), eps=0.2).f, cusink.sinkhorn(A, B, C, eps=0.2).f)


def test_a_mapped_file_behind_labels_is_not_read_whole(tmp_path):
    np.save(tmp_path / "rows.npy", rng.dirichlet(np.ones(5), 4))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.shares_memory(taken("A", xr.DataArray(rows)), rows)


def test_lists_without_end_are_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(TypeError, match="'a' must be"):
        cusink.sinkhorn(endless, B, C, eps=0.2)
    many = tuple(np.full(100, 0.01).tolist())
    assert taken("a", many) is many


def test_single_numbers_and_generators_of_tensors_are_taken():
    assert cusink.RelativeEps(torch.tensor(0.5)) == cusink.RelativeEps(0.5)
    reach = (1.0, torch.tensor(2.0))
    found = cusink.sinkhorn(A, B, C, eps=torch.tensor(0.2, dtype=torch.float64), reach=reach)
    np.testing.assert_array_equal(found.f, cusink.sinkhorn(A, B, C, eps=0.2, reach=(1.0, 2.0)).f)
    several = cusink.Measures.of(torch.from_numpy(x) for x in (X, Y))
    np.testing.assert_array_equal(several.points, np.concatenate([X, Y]))
    errors = []
    cusink.sinkhorn(
        torch.from_numpy(A), B, C, eps=0.2, callback=lambda k, e: errors.append((k, e.requires_grad_())) or e
    )
    assert cusink.plot.convergence(((k, e.detach()) for k, e in errors), tol=1e-6).lines
    lazy = cusink.distributed.distance_matrix(A, None, cusink.PointCloud(X), eps=torch.tensor(0.25), reach=reach[1])
    np.testing.assert_array_equal(
        lazy.compute(), cusink.distance_matrix(A, None, cusink.PointCloud(X), eps=0.25, reach=2.0)
    )


def test_what_has_no_numbers_says_what_helps():
    with pytest.raises(TypeError, match=r"'x' must be an array of numbers.*Pass x\.float\(\)"):
        cusink.PointCloud(torch.from_numpy(X).bfloat16())
    with pytest.raises(TypeError, match="'a' must be an array of numbers.*a function of cusink.jax"):
        jax.jit(lambda a: cusink.sinkhorn(a, B, C, eps=0.2).cost)(A)
    with pytest.raises(TypeError, match="'a' must be an array of numbers.*a function of cusink.torch"):
        torch.func.vmap(lambda a: cusink.sinkhorn(a, B[0], C, eps=0.2).cost)(torch.from_numpy(A))
    with pytest.raises(TypeError, match="'C' must be an array, or a list of numbers.*got function"):
        cusink.sinkhorn(torch.from_numpy(A), B, lambda x, y: 0, eps=0.2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, of make_dual
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
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.from_numpy(A), torch.ones(3, 5, dtype=torch.float64))
        with pytest.raises(TypeError, match="must not require a gradient"):
            cusink.sinkhorn(dual, B, C, eps=0.2)
