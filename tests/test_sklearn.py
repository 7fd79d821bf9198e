"""Estimators keep the contract of scikit-learn, and give what the functions and POT give."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy.sparse import csr_array, issparse
from sklearn.base import clone  # noqa: E402
from sklearn.cluster import DBSCAN  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.manifold import TSNE  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import Pipeline, make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import cusink  # noqa: E402
from cusink.sklearn import SinkhornNeighborsTransformer, SinkhornTransport  # noqa: E402


class Halves(SinkhornTransport):
    """Transport to a target that is made of the samples: scikit-learn's checks pass labels, which are none."""

    def fit(self, X, y=None):
        Y = X if issparse(X) else np.asarray(X)
        return super().fit(X, Y[::2] if Y.ndim == 2 and not issparse(Y) else Y)


EMPTY = "a row of its data is all zero, which is no histogram"
EXPECTED = {
    "check_estimators_dtypes": EMPTY,
    "check_estimator_sparse_tag": EMPTY,
    "check_estimator_sparse_array": EMPTY,
    "check_estimator_sparse_matrix": EMPTY,
    "check_fit2d_1feature": EMPTY,
    "check_transformer_n_iter": "'max_iter' is of each of many pairs, which have no one number of iterations",
}


@parametrize_with_checks(
    [SinkhornNeighborsTransformer(eps=1.0, tol=1e-3), Halves()],
    expected_failed_checks=lambda estimator: {} if isinstance(estimator, Halves) else EXPECTED,
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """40 digits of 0 to 3 as counts of ink on 8 x 8 cells, their labels, and the cost between cells."""
    images, labels = load_digits(n_class=4, return_X_y=True)
    return images[:40], labels[:40], cusink.Grid((8, 8), spacing=1 / 98**0.5).dense()


OPTIONS = {"eps": 0.05, "tol": 1e-4}


@pytest.fixture(scope="module")
def fitted(digits):
    images, _, cost = digits
    return SinkhornNeighborsTransformer(3, cost=cost, **OPTIONS).fit(images[:30])


@pytest.fixture(scope="module")
def matrix(digits):
    images, _, cost = digits
    A = images / images.sum(axis=1, keepdims=True)
    return cusink.distance_matrix(A, A[:30], cost, value="divergence", **OPTIONS)


def test_the_graph_holds_the_nearest_of_the_matrix(digits, fitted, matrix):
    graph = fitted.transform(digits[0])
    assert graph.shape == (40, 30) and (np.diff(graph.indptr) == 4).all()
    order = np.argsort(matrix, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(graph.indices.reshape(40, 4), order)
    np.testing.assert_allclose(graph.data.reshape(40, 4), np.take_along_axis(matrix, order, 1), atol=1e-8)
    assert (graph.data >= 0).all()
    np.testing.assert_array_equal(graph.indices[::4][:30], np.arange(30))  # the diagonal is explicit
    ones = clone(fitted).set_params(mode="connectivity").fit(digits[0][:30]).transform(digits[0])
    assert (ones.data == 1).all()
    np.testing.assert_array_equal(ones.indices.reshape(40, 3), order[:, :3])


def test_neighbours_of_the_training_data_are_others(fitted, matrix):
    own = matrix[:30] + np.diag(np.full(30, np.inf))
    distances, indices = fitted.kneighbors(n_neighbors=2)
    np.testing.assert_array_equal(indices, np.argsort(own, axis=1)[:, :2])
    np.testing.assert_allclose(distances, np.sort(own, axis=1)[:, :2], atol=1e-8)
    np.testing.assert_array_equal(fitted.kneighbors(n_neighbors=2, return_distance=False), indices)
    graph = fitted.kneighbors_graph(n_neighbors=2)
    near = np.zeros((30, 30))
    np.put_along_axis(near, indices, 1, axis=1)
    np.testing.assert_array_equal(graph.toarray(), near)


def test_estimators_of_precomputed_distances_take_the_graph(digits, fitted, matrix):
    images, labels, _ = digits
    by_graph = make_pipeline(fitted, KNeighborsClassifier(3, metric="precomputed")).fit(images[:30], labels[:30])
    by_matrix = KNeighborsClassifier(3, metric="precomputed").fit(matrix[:30], labels[:30])
    np.testing.assert_array_equal(by_graph.predict(images[30:]), by_matrix.predict(matrix[30:]))

    among = clone(fitted).set_params(n_neighbors=29).fit_transform(images[:30])
    radius = float(np.quantile(matrix[:30], 0.1))
    clusters = DBSCAN(eps=radius, min_samples=2, metric="precomputed")
    assert len(set(clusters.fit_predict(among))) > 1
    whole = np.maximum(matrix[:30], 0)
    np.testing.assert_array_equal(clusters.fit_predict(among), clusters.fit_predict(whole))
    embedding = TSNE(perplexity=5, init="random", metric="precomputed", random_state=0, max_iter=250)
    assert np.isfinite(embedding.fit_transform(among)).all()


def test_a_grid_search_chooses_eps_and_neighbours(digits):
    images, labels, cost = digits
    work = Pipeline(
        [
            ("graph", SinkhornNeighborsTransformer(4, cost=cost, **OPTIONS)),
            ("vote", KNeighborsClassifier(2, metric="precomputed")),
        ]
    )
    choices = {"graph__eps": [0.1, 0.5], "vote__n_neighbors": [1]}
    search = GridSearchCV(work, choices, cv=2).fit(images, labels)
    assert len(search.cv_results_["params"]) == 2 and search.best_score_ > 0.8
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(images), search.predict(images))


def test_sparse_rows_are_those_of_the_array(digits):
    images, _, cost = digits
    kinds = np.asarray, csr_array
    estimator = SinkhornNeighborsTransformer(2, cost=cost, eps=0.2)
    found = [clone(estimator).fit(kind(images[:8])).transform(kind(images[:12])) for kind in kinds]
    np.testing.assert_array_equal(found[0].indices, found[1].indices)
    np.testing.assert_allclose(found[0].data, found[1].data, atol=1e-6)


@pytest.mark.parametrize("kinds", [(np.asarray, csr_array), (csr_array, np.asarray)])
def test_samples_are_taken_in_the_kind_of_the_fit(digits, kinds):
    images, _, cost = digits
    of_fit, other = kinds
    estimator = SinkhornNeighborsTransformer(2, cost=cost, eps=0.2).fit(of_fit(images[:8]))
    np.testing.assert_array_equal(
        estimator.transform(other(images[:12])).toarray(), estimator.transform(of_fit(images[:12])).toarray()
    )


def test_without_eps_it_is_a_hundredth_of_the_largest_cost(digits):
    """Of 8 x 8 cells that is between two corners, 2 * 7**2."""
    images, _, _ = digits
    cost = cusink.Grid((8, 8))
    found = SinkhornNeighborsTransformer(2, cost=cost, tol=1e-4).fit(images[:8]).kneighbors()
    want = SinkhornNeighborsTransformer(2, cost=cost, tol=1e-4, eps=0.98).fit(images[:8]).kneighbors()
    np.testing.assert_array_equal(found[1], want[1])
    np.testing.assert_allclose(found[0], want[0], rtol=1e-12)


class Capsule:
    """An object with nothing but DLPack."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def test_samples_with_dlpack_alone(digits, domains):
    images, Xs = digits[0][:8], domains[0]
    estimator = SinkhornNeighborsTransformer(2, cost=digits[2], eps=0.2)
    np.testing.assert_array_equal(
        estimator.fit_transform(Capsule(images)).toarray(), estimator.fit_transform(images).toarray()
    )
    moved = SinkhornTransport().fit(Capsule(Xs), Capsule(domains[1])).transform(Capsule(Xs))
    np.testing.assert_array_equal(moved, SinkhornTransport().fit(Xs, domains[1]).transform(Xs))


@pytest.mark.parametrize("kind", [np.asarray, csr_array])
@pytest.mark.parametrize(("dtype", "unit"), [("float64", 1e-300), ("float64", 1e290), ("float32", 1e-30)])
def test_samples_of_any_sum_are_normalised(digits, kind, dtype, unit):
    """To rounding: sums in another unit are rounded elsewhere, of which a small difference of two values shows more."""
    images, _, cost = digits
    images = images[:8].astype(dtype) / 16
    terms = cusink.distance_matrix(images, None, cost, eps=0.2, value="reg_cost", normalise=True)
    rounding = 4 * np.finfo(dtype).eps * terms.max()
    for value in ("reg_cost", "divergence"):
        estimator = SinkhornNeighborsTransformer(2, cost=cost, eps=0.2, value=value)
        wanted = estimator.fit(kind(images)).kneighbors()
        found = estimator.fit(kind(images * np.asarray(unit, dtype))).kneighbors()
        np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=rounding, err_msg=value)


@pytest.mark.parametrize("weight", [1e308, 1e-310])
@pytest.mark.parametrize("kind", [np.asarray, csr_array])
def test_sums_out_of_range_are_named(kind, weight):
    with pytest.raises(ValueError, match=r"'X' must have a sum between .* a number of float64; got .* in row 0"):
        SinkhornNeighborsTransformer(1).fit(kind(np.full((3, 15), weight)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_neighbors": 0}, "'n_neighbors' must be at least 1; got 0"),
        ({"n_neighbors": 30}, "'n_neighbors' must be at most 29 for mode='distance' and 30 samples; got 30"),
        ({"mode": "both"}, "'mode' must be one of 'distance', 'connectivity'; got 'both'"),
        ({"eps": -1.0}, "'eps' must be positive"),
        ({"value": "emd"}, "'value' must be one of"),
        ({"cost": np.ones((3, 3))}, r"'cost' must have shape \(64, 64\), between the features of 'X'; got \(3, 3\)"),
        ({"cost": np.full((64, 64), np.nan)}, "'cost' must hold finite costs"),
        ({"cost": np.arange(64.0 * 64).reshape(64, 64)}, "'cost' must be a symmetric cost"),
        ({"normalise": False}, "all histograms must have the same mass"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_parameters_are_named(digits, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        SinkhornNeighborsTransformer(**{"cost": digits[2]} | options).fit_transform(digits[0][:30])


# Transport


@pytest.fixture(scope="module")
def domains():
    rng = np.random.default_rng(0)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    return rng.normal(size=(30, 2)), rng.normal(size=(40, 2)) @ turn + 3, rng.normal(size=(20, 2))


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_transport_is_that_of_pot(domains, metric):
    ot = pytest.importorskip("ot")
    Xs, Xt, new = domains
    ours = SinkhornTransport(0.5, metric=metric, tol=1e-10, max_iter=10000).fit(Xs=Xs, Xt=Xt)
    theirs = ot.da.SinkhornTransport(reg_e=0.5, metric=metric, tol=1e-12, max_iter=10000).fit(Xs=Xs, Xt=Xt)
    np.testing.assert_allclose(ours.coupling_, theirs.coupling_, atol=1e-9)
    for X in (Xs, new):
        np.testing.assert_allclose(ours.transform(X), theirs.transform(Xs=X), atol=1e-8)
    for X in (Xt, new + 3):
        np.testing.assert_allclose(ours.inverse_transform(X), theirs.inverse_transform(Xt=X), atol=1e-8)
    # A sample of the fit goes where the plan sends it.
    sent = ours.coupling_ @ Xt / ours.coupling_.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.transform(Xs), sent, atol=1e-12)


def test_methods_take_the_names_of_pot(domains):
    """The results are those of POT's estimator, which is called by the same names."""
    ot = pytest.importorskip("ot")
    Xs, Xt, new = domains
    ours = SinkhornTransport(0.5, tol=1e-10, max_iter=10000)
    theirs = ot.da.SinkhornTransport(reg_e=0.5, tol=1e-12, max_iter=10000)
    np.testing.assert_allclose(ours.fit_transform(Xs=Xs, Xt=Xt), theirs.fit_transform(Xs=Xs, Xt=Xt), atol=1e-8)
    np.testing.assert_allclose(ours.transform(Xs=new), theirs.transform(Xs=new), atol=1e-8)
    np.testing.assert_allclose(ours.inverse_transform(Xt=Xt), theirs.inverse_transform(Xt=Xt), atol=1e-8)
    np.testing.assert_array_equal(ours.transform(X=new), ours.transform(Xs=new))
    with pytest.raises(TypeError, match="'X' must be given once; got 'Xs' too"):
        ours.transform(new, Xs=new)
    with pytest.raises(TypeError, match="'y' must be given once; got 'Xt' too"):
        ours.fit_transform(Xs, Xt, Xt=Xt)
    assert not hasattr(ours, "set_transform_request")  # samples are no metadata
    framed = ours.set_output(transform="pandas").transform(Xs=new)
    np.testing.assert_array_equal(framed.to_numpy(), clone(ours).fit(Xs, Xt).transform(new))


def test_estimators_pass_their_workers_on(domains, digits, monkeypatch):
    import cusink.sklearn.neighbors
    import cusink.sklearn.transport

    told = []

    def watched(function):
        return lambda *given, **named: told.append(named["workers"]) or function(*given, **named)

    monkeypatch.setattr(cusink.sklearn.transport, "sinkhorn", watched(cusink.sinkhorn))
    monkeypatch.setattr(cusink.sklearn.neighbors, "Index", watched(cusink.Index))
    Xs, Xt, _ = domains
    SinkhornTransport(eps=0.1, workers=3).fit(Xs, Xt)
    SinkhornNeighborsTransformer(eps=1.0, tol=1e-3, workers=2).fit(digits[0][:5] + 1)
    SinkhornTransport(eps=0.1).fit(Xs, Xt)
    assert told == [3, 2, None]
    with pytest.raises(ValueError, match="'workers' must be positive"):
        SinkhornTransport(workers=0).fit(Xs, Xt)


def test_transport_in_a_pipeline(domains):
    Xs, Xt, new = domains
    work = make_pipeline(StandardScaler(), SinkhornTransport(eps=0.1)).fit(Xs, Xt)
    moved = work.transform(new)
    scaler = StandardScaler().fit(Xs)
    want = SinkhornTransport(eps=0.1).fit(scaler.transform(Xs), Xt).transform(scaler.transform(new))
    np.testing.assert_array_equal(moved, want)
    assert moved.min() >= Xt.min() and moved.max() <= Xt.max()  # means of target samples
    single = SinkhornTransport(eps=0.1).fit(Xs.astype(np.float32), Xt)
    assert single.transform(new).dtype == np.float32
    assert SinkhornTransport().fit(Xs, Xt).get_feature_names_out(["a", "b"]).tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("Xt", "said"),
    [
        (None, "'Xt' must be an array of target samples"),
        (np.ones((4, 3)), "'Xt' must have 2 features"),
        (np.ones(4), "Expected 2D array"),
        ([[np.nan, 1.0]], "NaN"),
    ],
    ids=["none", "features", "flat", "nan"],
)
def test_bad_targets_are_named(domains, Xt, said):
    with pytest.raises(ValueError, match=said):
        SinkhornTransport().fit(domains[0], Xt)
