"""Losses of pairs of clouds of unequal sizes in PyTorch and JAX: the numbers of the core, and slopes of differences."""

import numpy as np
import pytest

import cusink

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import cusink.jax  # noqa: E402
import cusink.torch  # noqa: E402

SIZES = (3, 5, 2), (4, 1, 6)
EPS = (0.1, 0.2, 0.3)


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def clouds(side, dtype=np.float64):
    rng = np.random.default_rng(side)
    return [(rng.random((n, 2)) + side / 4).astype(dtype) for n in SIZES[side]]


def weights(side):
    rng = np.random.default_rng(7 + side)
    return [rng.dirichlet(np.full(n, 4.0)) for n in SIZES[side]]


def tensors(arrays, **options):
    return [torch.tensor(x, **options) for x in arrays]


CASES = [("sinkhorn_divergence", "sqeuclidean"), ("sinkhorn_divergence", "euclidean"), ("sinkhorn_loss", "sqeuclidean")]


@pytest.mark.parametrize(("loss", "metric"), CASES)
def test_torch_losses_pass_gradcheck_by_points_weights_and_eps(loss, metric):
    function, y = getattr(cusink.torch, loss), cusink.torch.Measures.of(tensors(clouds(1)), tensors(weights(1)))

    def losses(eps, *given):
        side = cusink.torch.Measures.of(given[:3], [w.softmax(0) for w in given[3:]])
        return function(side, y, metric, eps, reduction="none", tol=1e-12)

    eps = torch.tensor(EPS, dtype=torch.float64, requires_grad=True)
    points = tensors(clouds(0), requires_grad=True)
    logits = [torch.tensor(np.log(w), requires_grad=True) for w in weights(0)]
    assert torch.autograd.gradcheck(losses, (eps, *points, *logits), fast_mode=True)
    A, B = cusink.Measures.of(clouds(0), weights(0)), cusink.Measures.of(clouds(1), weights(1))
    core = {"sinkhorn_divergence": "divergence", "sinkhorn_loss": "cost"}[loss]
    solve = cusink.sinkhorn_divergence if core == "divergence" else cusink.sinkhorn
    wanted = getattr(solve(A, B, metric, eps=np.array(EPS), tol=1e-12), core)
    np.testing.assert_allclose(losses(eps, *points, *logits).detach(), wanted, rtol=1e-12)


@pytest.mark.parametrize("loss", ["sinkhorn_divergence", "sinkhorn_loss"])
def test_jax_losses_have_the_slopes_of_differences_and_the_numbers_of_torch(loss):
    function, y = getattr(cusink.jax, loss), cusink.jax.Measures.of(clouds(1), weights(1))
    offsets = np.cumsum([0, *SIZES[0]])

    def losses(eps, w, x):
        side = cusink.jax.Measures(offsets, w, x)
        return function(side, y, "sqeuclidean", eps, reduction="none", tol=1e-12)

    given = tuple(map(jnp.asarray, (EPS, np.concatenate(weights(0)), np.concatenate(clouds(0)))))
    rng, step = np.random.default_rng(2), 1e-5
    moves = [rng.normal(size=x.shape) for x in given]
    for start, stop in zip(offsets, offsets[1:], strict=False):
        moves[1][start:stop] -= moves[1][start:stop].mean()  # masses stay
    moves = tuple(map(jnp.asarray, moves))
    out, along = jax.jvp(losses, given, moves)
    ends = [losses(*(x + sign * step * m for x, m in zip(given, moves, strict=True))) for sign in (1, -1)]
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / (2 * step), atol=1e-7)
    grads = jax.jit(jax.grad(lambda *given: losses(*given) @ jnp.arange(1.0, 4), argnums=(0, 1, 2)))(*given)
    whole = sum(float((g * m).sum()) for g, m in zip(grads, moves, strict=True))
    np.testing.assert_allclose(whole, along @ np.arange(1.0, 4), rtol=1e-9)
    A = cusink.torch.Measures.of(tensors(clouds(0)), tensors(weights(0)))
    B = cusink.torch.Measures.of(tensors(clouds(1)), tensors(weights(1)))
    eps = torch.tensor(EPS, dtype=torch.float64)
    theirs = getattr(cusink.torch, loss)(A, B, "sqeuclidean", eps, reduction="none", tol=1e-12)
    np.testing.assert_allclose(out, theirs, rtol=1e-12)


FACTOR = np.array([[1.0, 0.3, -0.5], [-0.4, 0.8, 0.2]])
OPTIONS = [
    ("hellinger", {}),
    ("kl", {}),
    ("haversine", {"radius": 2.0}),
    ("minkowski", {"p": 3, "power": 3}),
    ("mahalanobis", {"factor": FACTOR, "power": 2}),
    ("sqeuclidean", {"power": 2}),
]


@pytest.mark.parametrize("loss", ["sinkhorn_divergence", "sinkhorn_loss"])
@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_both_libraries_take_every_metric(name, options, loss):
    """Losses and gradients, by a factor too, are the core's of one pair after the other."""
    of_one, adjoint = cusink.sinkhorn, lambda one: cusink.sinkhorn_adjoint(one, grad_cost=1.0, tol=1e-10)
    if loss == "sinkhorn_divergence":
        of_one, adjoint = cusink.sinkhorn_divergence, cusink.sinkhorn_divergence_adjoint
    how = {"tol": 1e-11, "max_iter": 5000}
    x, y = ([p + 0.1 for p in clouds(side)] for side in (0, 1))
    given = [np.concatenate(p) for p in (x, weights(0), y, weights(1), [options.get("factor", FACTOR)])]
    offsets = [np.cumsum([0, *sizes]) for sizes in SIZES]

    def of_jax(x, a, y, b, factor):
        metric = cusink.Metric(name, **options | ({"factor": factor} if "factor" in options else {}))
        sides = [cusink.jax.Measures(at, w, p) for at, w, p in zip(offsets, (a, b), (x, y), strict=True)]
        return getattr(cusink.jax, loss)(*sides, metric, 0.2, reduction="sum", **how)

    tensors_given = tensors(given, requires_grad=True)
    p, a, q, b, factor = tensors_given
    metric = cusink.Metric(name, **options | ({"factor": factor} if "factor" in options else {}))
    sides = [cusink.torch.Measures(at, w, z) for at, w, z in zip(offsets, (a, b), (p, q), strict=True)]
    if name == "kl" and loss == "sinkhorn_divergence":
        with pytest.raises(ValueError, match="'C' must be a symmetric cost within either side"):
            cusink.torch.sinkhorn_divergence(*sides, metric, 0.2)
        with pytest.raises(Exception, match="'C' must be a symmetric cost within either side"):
            of_jax(*map(jnp.asarray, given))
        return
    each = [
        of_one(w, v, cusink.PointCloud(s, t, name, **options), eps=0.2, **how)
        for w, v, s, t in zip(weights(0), weights(1), x, y, strict=True)
    ]
    pulled = list(map(adjoint, each))
    wanted = [np.concatenate([getattr(one, part) for one in pulled]) for part in "xayb"]
    if "factor" in options:
        wanted.append(sum(one.metric["factor"] for one in pulled))
    total = sum(one.cost if loss == "sinkhorn_loss" else one.divergence for one in each)
    value = getattr(cusink.torch, loss)(*sides, metric, 0.2, reduction="sum", **how)
    slopes = torch.autograd.grad(value, tensors_given[: len(wanted)])
    theirs, of_theirs = jax.jit(jax.value_and_grad(of_jax, argnums=tuple(range(len(wanted)))))(*map(jnp.asarray, given))
    np.testing.assert_allclose([value.detach(), theirs], total, rtol=1e-8)
    for found in (slopes, of_theirs):
        for slope, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(slope, right, rtol=1e-7, atol=1e-7)


def test_a_factor_of_a_metric_is_checked():
    A, B = (cusink.torch.Measures.of(tensors(clouds(side))) for side in (0, 1))
    with pytest.raises(ValueError, match="'factor' must have a row for each of the 2 coordinates"):
        cusink.torch.sinkhorn_loss(A, B, cusink.Metric("mahalanobis", factor=np.eye(3)), 0.1)
    with pytest.raises(ValueError, match=r"cusink.Metric\('mahalanobis', factor=L\)"):
        cusink.torch.sinkhorn_loss(A, B, "mahalanobis", 0.1)
    learnt = cusink.Metric("mahalanobis", factor=torch.eye(2, dtype=torch.float64, requires_grad=True))
    with pytest.raises(TypeError, match="'factor' must not require a gradient"):
        cusink.sinkhorn(cusink.Measures.of(clouds(0)), cusink.Measures.of(clouds(1)), learnt, eps=0.1)


def test_jax_maps_over_points():
    B = cusink.jax.Measures.of(clouds(1))
    points = np.concatenate(clouds(0))

    def loss(points):
        return cusink.jax.sinkhorn_divergence(cusink.jax.Measures([0, 3, 8, 10], None, points), B, "sqeuclidean", 0.1)

    values, slopes = jax.vmap(jax.value_and_grad(loss))(jnp.asarray([points, 2 * points]))
    for k in (0, 1):
        value, slope = jax.value_and_grad(loss)(jnp.asarray((k + 1) * points))
        np.testing.assert_allclose(values[k], value, rtol=1e-12)
        np.testing.assert_allclose(slopes[k], slope, rtol=1e-12, atol=1e-15)


def test_float32_and_the_multiplier_and_reach():
    A, B = (cusink.torch.Measures.of(tensors(clouds(side, np.float32), requires_grad=not side)) for side in (0, 1))
    loss = cusink.torch.sinkhorn_loss(A, B, "sqeuclidean", 0.1, gradient="multiplier", reduction="none")
    assert loss.dtype == torch.float32
    (slope,) = torch.autograd.grad(loss.sum(), A.points)
    core = cusink.sinkhorn(cusink.Measures.of(clouds(0)), cusink.Measures.of(clouds(1)), "sqeuclidean", eps=0.1)
    np.testing.assert_allclose(loss.detach(), core.cost, rtol=1e-4)
    np.testing.assert_allclose(slope, cusink.sinkhorn_adjoint(core, grad_reg_cost=1.0).x, atol=1e-4)
    unequal = cusink.torch.Measures.of(tensors(clouds(1)), tensors([2 * w for w in weights(1)]))
    C = cusink.torch.Measures.of(tensors(clouds(0)), tensors(weights(0), requires_grad=True))
    far = cusink.torch.sinkhorn_divergence(C, unequal, "sqeuclidean", 0.1, reach=0.5, reduction="sum", tol=1e-10)
    (slope,) = torch.autograd.grad(far, C.weights)
    step = torch.tensor(np.random.default_rng(3).normal(size=len(slope)) * 1e-6)
    moved = [
        cusink.torch.sinkhorn_divergence(
            cusink.torch.Measures(C.offsets, C.weights.detach() + sign * step, C.points),
            unequal,
            "sqeuclidean",
            0.1,
            reach=0.5,
            reduction="sum",
            tol=1e-10,
        )
        for sign in (1, -1)
    ]
    np.testing.assert_allclose((slope * step).sum(), (moved[0] - moved[1]) / 2, rtol=1e-5)


def test_without_a_graph_no_slopes_are_taken_and_a_second_derivative_is_refused(monkeypatch):
    A, B = (cusink.torch.Measures.of(tensors(clouds(side), requires_grad=not side)) for side in (0, 1))
    loss = cusink.torch.sinkhorn_divergence(A, B, "sqeuclidean", 0.1)
    (slope,) = torch.autograd.grad(loss, A.points, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        slope.sum().backward()
    monkeypatch.setattr("cusink.bridges.measures.sinkhorn_divergence_adjoint", None)
    with torch.no_grad():
        assert cusink.torch.sinkhorn_divergence(A, B, "sqeuclidean", 0.1) == loss.detach()


@pytest.mark.parametrize("loss", ["sinkhorn_divergence", "sinkhorn_loss"])
def test_both_libraries_normalise_measures(loss):
    heavy = [[(2 + side) * w for w in weights(side)] for side in (0, 1)]
    given = [np.concatenate(part) for side in (0, 1) for part in (clouds(side), heavy[side])]
    offsets, found = [np.cumsum([0, *sizes]) for sizes in SIZES], []
    how = {"reach": 0.5, "normalise": True, "tol": 1e-10}
    wanted = getattr(cusink.torch, loss)(
        *(cusink.torch.Measures.of(tensors(clouds(side)), tensors(weights(side))) for side in (0, 1)),
        "sqeuclidean",
        0.1,
        **how | {"normalise": False},
    )
    x, a, y, b = tensors(given, requires_grad=True)
    sides = [cusink.torch.Measures(at, w, p) for at, w, p in zip(offsets, (a, b), (x, y), strict=True)]
    value = getattr(cusink.torch, loss)(*sides, "sqeuclidean", 0.1, **how)
    found.append((value.detach(), *(slope.numpy() for slope in torch.autograd.grad(value, (x, a, y, b)))))

    def of_jax(x, a, y, b):
        sides = [cusink.jax.Measures(at, w, p) for at, w, p in zip(offsets, (a, b), (x, y), strict=True)]
        return getattr(cusink.jax, loss)(*sides, "sqeuclidean", 0.1, **how)

    value, slopes = jax.value_and_grad(of_jax, argnums=(0, 1, 2, 3))(*map(jnp.asarray, given))
    found.append((value, *slopes))
    for value, *slopes in found:
        np.testing.assert_allclose(value, wanted.item(), rtol=1e-9)
        for ours, theirs in zip(slopes, found[0][1:], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-9)
        np.testing.assert_allclose(np.add.reduceat(slopes[1] * given[1], offsets[0][:-1]), 0, atol=1e-9)
    empty = cusink.torch.Measures([0, 2], torch.zeros(2), torch.rand(2, 2))
    with pytest.raises(ValueError, match="item 0 has none"):
        getattr(cusink.torch, loss)(empty, empty, "sqeuclidean", 0.1, normalise=True)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_bad_pairs_are_refused(library):
    door, made = {"torch": (cusink.torch, tensors), "jax": (cusink.jax, lambda arrays: list(map(jnp.asarray, arrays)))}[
        library
    ]
    x, y = made(clouds(0)), made(clouds(1))
    A, B = door.Measures.of(x), door.Measures.of(y)
    solve, wrong = door.sinkhorn_divergence, pytest.raises
    assert repr(A) == "Measures(3 items, 10 points, d=2)"
    with wrong(ValueError, match="equally many measures"):
        solve(A, door.Measures.of(y[:2]), "sqeuclidean", 0.1)
    with wrong(ValueError, match="d = 2 and d = 1"):
        solve(A, door.Measures.of([p[:, :1] for p in y]), "sqeuclidean", 0.1)
    with wrong(ValueError, match="item 1 has none"):
        solve(A, door.Measures.of([y[0], y[0][:0], y[0]]), "sqeuclidean", 0.1)
    with wrong(ValueError, match="NaN or infinity in point 3, of item 1"):
        solve(A, door.Measures.of([x[0], x[1] * np.nan, x[2]]), "sqeuclidean", 0.1)
    with wrong(TypeError, match="must both be Measures"):
        solve(A, None, "sqeuclidean", 0.1)
    arrays = cusink.Measures.of(clouds(0))
    for sides in ((A, arrays), (arrays, arrays)):
        with wrong(TypeError, match=f"must be cusink.{library}.Measures, or weights; got cusink.Measures"):
            solve(*sides, "sqeuclidean", 0.1)
    with wrong(TypeError, match=f"both be cusink.Measures, or neither; 'b' is cusink.{library}.Measures"):
        cusink.sinkhorn_divergence(arrays, A, "sqeuclidean", eps=0.1)
    with wrong(TypeError, match="name of a metric"):
        solve(A, B, x[0], 0.1)
    with wrong(ValueError, match="'C' must be one of"):
        solve(A, B, "chebyshev", 0.1)
    with wrong(ValueError, match="for each of the 3 pairs"):
        solve(A, B, "sqeuclidean", made([np.ones(2)])[0])
    with wrong(TypeError, match="RelativeEps"):
        door.sinkhorn_loss(A, B, "sqeuclidean", cusink.RelativeEps(0.1))
    with wrong(ValueError, match="'offsets' must rise"):
        door.Measures([0, 3], None, x[1])
    with wrong(TypeError, match="'offsets' must be integers"):
        door.Measures([0.0, 5.0], None, x[1])
    with wrong(ValueError, match="'weights' must have shape"):
        door.Measures([0, 5], x[0][:, 0], x[1])
    with wrong(ValueError, match="of one d"):
        door.Measures.of([x[0], x[1][:, :1]])
    with wrong(TypeError, match="sequence of"):
        door.Measures.of(x[0])
    with wrong(TypeError, match="half precision"):
        door.Measures.of([p.half() if library == "torch" else p.astype(jnp.float16) for p in x])
