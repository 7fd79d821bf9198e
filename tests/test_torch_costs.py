"""`cusink.torch` between points of every metric, and on grids whose spacing is learnt: derivatives, modules, input."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cusink  # noqa: E402
from cusink import torch as bridge  # noqa: E402
from cusink.torch import PointCloud, SinkhornDivergence, SinkhornLoss, sinkhorn_divergence, sinkhorn_loss  # noqa: E402

TIGHT = {"tol": 1e-11, "max_iter": 20000}
METRICS = {  # those with parameters of their own, or that are made in blocks
    "minkowski": {"p": 3.0, "power": 3.0},
    "hellinger": {"power": 2.0},
    "kl": {},
    "haversine": {"radius": 2.0, "power": 2.0},
}
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by PyTorch


def leaf(*shape, low=0.2, high=1.2, seed=0):
    given = torch.as_tensor(np.random.default_rng(seed).uniform(low, high, shape))
    return given.requires_grad_()


def clouds(n=4, m=3, k=3):
    """Points (n, 2) and (m, 2), and a factor (2, k)."""
    return leaf(n, 2), leaf(m, 2, seed=1), leaf(2, k, low=-1, high=1, seed=2)


def learnt(x, y, factor, power=2.0):
    return PointCloud(x, y, "mahalanobis", factor=factor, power=power)


FUNCTIONS = {
    "cost": lambda C, new: sinkhorn_loss(None, None, C, 0.3, **TIGHT),
    "divergence": lambda C, new: sinkhorn_divergence(None, None, C, 0.3, **TIGHT),
    "potentials": lambda C, new: bridge.sinkhorn_potentials(None, None, C, 0.3, **TIGHT),
    "potential": lambda C, new: bridge.potential_at(None, None, C, 0.3, new, **TIGHT),
    "map": lambda C, new: bridge.entropic_map(None, None, C, 0.3, new, axis=0, **TIGHT),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@forward_mode
def test_a_learnt_factor_passes_gradcheck_in_both_modes(name):
    function, given = FUNCTIONS[name], (*clouds(), leaf(2, 2, seed=3))
    fast = {"fast_mode": True, "rtol": 1e-4}
    assert torch.autograd.gradcheck(
        lambda x, y, factor, new: function(learnt(x, y, factor), new), given, check_forward_ad=True, **fast
    )
    if name in ("cost", "divergence"):
        x, y, factor = clouds(3, 2, 2)
        assert torch.autograd.gradgradcheck(
            lambda x, factor: function(learnt(x, y.detach(), factor), None), (x, factor), atol=1e-4, fast_mode=True
        )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", FUNCTIONS)
@forward_mode
def test_every_metric_passes_gradcheck_in_both_modes(metric, name):
    if (metric, name) == ("kl", "divergence"):
        x, y, _ = clouds()
        with pytest.raises(ValueError, match="symmetric"):
            sinkhorn_divergence(None, None, PointCloud(x, y, "kl"), 0.3)
        return
    function, (x, y, _) = FUNCTIONS[name], clouds()
    assert torch.autograd.gradcheck(
        lambda x, y, new: function(PointCloud(x, y, metric, **METRICS[metric]), new),
        (x, y, leaf(2, 2, seed=3)),
        check_forward_ad=True,
        fast_mode=True,
        rtol=1e-4,
    )
    if name == "cost":
        assert torch.autograd.gradgradcheck(
            lambda x, y: function(PointCloud(x, y, metric, **METRICS[metric]), None), (x, y), atol=1e-4, fast_mode=True
        )


@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_factor_is_that_of_the_package(far, dtype):
    x, y, factor = (p.detach() for p in clouds())
    x, y = ((p * 16).round() / 16 + far for p in (x, y))  # of which a float holds every digit
    cloud = cusink.PointCloud(x.numpy(), y.numpy(), "mahalanobis", factor=factor.numpy(), power=2)
    result = cusink.sinkhorn(None, None, cloud, eps=0.3, tol=1e-8, max_iter=20000)
    given = [p.to(dtype).requires_grad_() for p in (x, y, factor)]
    rtol = 1e-6 if dtype == torch.float64 else 1e-3
    loss = sinkhorn_loss(None, None, learnt(*given), 0.3, tol=1e-5 if dtype == torch.float32 else 1e-8, max_iter=20000)
    by_factor = torch.autograd.grad(loss, given[2])[0]
    assert loss.dtype == by_factor.dtype == dtype
    np.testing.assert_allclose(loss.item(), result.cost, rtol=rtol)
    expected = cusink.sinkhorn_adjoint(result, grad_cost=1.0).metric["factor"]
    np.testing.assert_allclose(by_factor, expected, rtol=rtol, atol=rtol)


def test_what_a_factor_maps_are_the_points_themselves():
    """At new points as between the bins; the images of the factor stay inside."""
    (x, y, factor), new = (p.detach() for p in clouds()), leaf(5, 2, seed=3).detach()
    cloud = cusink.PointCloud(x.numpy(), y.numpy(), "mahalanobis", factor=factor.numpy())
    result = cusink.sinkhorn(None, None, cloud, eps=0.1, tol=1e-10)
    for axis, name in ((1, "x"), (0, "y")):
        at = result.at(**{name: new.numpy()})
        C = PointCloud(x, y, "mahalanobis", factor=factor)
        found = bridge.entropic_map(None, None, C, 0.1, new, axis=axis, tol=1e-10)
        np.testing.assert_allclose(found, at.map(), rtol=1e-7)
        found = bridge.potential_at(None, None, C, 0.1, new, axis=axis, tol=1e-10)
        np.testing.assert_allclose(found, at.potential, rtol=1e-7, atol=1e-9)
    alone = PointCloud(x, None, "mahalanobis", factor=factor)
    assert bridge.entropic_map(None, None, alone, 0.1, new).shape == (5, 2)
    assert repr(alone) == "PointCloud(x=[4, 2], factor=[2, 3], metric='mahalanobis', power=1.0)"


def test_factors_map_and_compile():
    x, y, factor = (p.detach() for p in clouds())

    def loss(x, factor):
        return sinkhorn_loss(None, None, learnt(x, y, factor), cusink.RelativeEps(0.1), **TIGHT)

    factors = torch.stack([factor, 2 * factor, -factor])
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0))(x, factors)
    for k in range(3):
        expected = torch.func.grad(loss, argnums=(0, 1))(x, factors[k])
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got[k], wanted, rtol=1e-7, atol=1e-10)
    grads = []
    for way in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        given = factor.clone().requires_grad_()
        grads.append(torch.autograd.grad(way(x, given), given)[0])
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)
    torch._dynamo.reset()

    def others(x):
        return sum(
            sinkhorn_loss(None, None, PointCloud(x, y, metric, **METRICS[metric]), 0.3, **TIGHT) for metric in METRICS
        )

    given = x.clone().requires_grad_()
    compiled = torch.compile(others, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(way(given), given)[0] for way in (others, compiled)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


def test_points_of_a_batch_share_a_factor():
    x, y, factor = leaf(3, 4, 2), leaf(5, 2, seed=1), leaf(2, 2, seed=2)
    losses = sinkhorn_loss(None, None, learnt(x, y, factor), 0.3, reduction="none", **TIGHT)
    each = [sinkhorn_loss(None, None, learnt(p, y, factor), 0.3, **TIGHT) for p in x]
    torch.testing.assert_close(losses, torch.stack(each), rtol=1e-8, atol=0)
    found, wanted = (torch.autograd.grad(total, (x, y, factor)) for total in (losses.sum(), sum(each)))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_factor_is_applied_in_single_precision(half):
    x, y, factor = (p.detach().to(half) for p in clouds())
    exact = sinkhorn_loss(None, None, learnt(x.float(), y.float(), factor.float()), 0.3)
    torch.testing.assert_close(sinkhorn_loss(None, None, learnt(x, y, factor), 0.3), exact.to(half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sinkhorn_loss(None, None, learnt(x.float(), y, factor), 0.3) == exact
        A = torch.eye(4)[:2]
        found = bridge.barycenter(A, learnt(x.float(), y.float(), factor.float()), eps=0.3)
    torch.testing.assert_close(found, bridge.barycenter(A, learnt(x.float(), y.float(), factor.float()), eps=0.3))


def test_a_barycenter_is_differentiable_in_a_factor():
    x, y, factor = clouds()
    A = torch.as_tensor(np.random.default_rng(4).dirichlet(np.ones(4), 2))
    bins = torch.arange(3.0, dtype=torch.float64)

    def mean(y, factor):
        return bridge.barycenter(A, learnt(x.detach(), y, factor), eps=0.5, tol=1e-12, max_iter=20000) @ bins

    assert torch.autograd.gradcheck(mean, (y, factor), fast_mode=True, rtol=1e-4)


# ---- modules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SinkhornLoss, SinkhornDivergence])
def test_modules_learn_a_factor(make):
    x, y, factor = (p.detach() for p in clouds())
    module = make(eps=0.3, metric="mahalanobis", power=2, factor=torch.nn.Parameter(factor.clone()))
    assert [name for name, _ in module.named_parameters()] == ["factor"]
    optimiser, values = torch.optim.SGD(module.parameters(), lr=0.1), []
    for _ in range(3):
        optimiser.zero_grad()
        values.append(module(x, y))
        values[-1].backward()
        optimiser.step()
    assert values[2] < values[0]
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(x, y), module(x, y)) and again(None, x, None, y) == module(x, y)
    fixed = make(eps=0.3, metric="mahalanobis", factor=factor)
    assert list(fixed.state_dict()) == ["factor"] and fixed.float().factor.dtype == torch.float32
    others = make(eps=0.3, metric="minkowski", p=3.0), make(eps=0.3, metric="haversine", radius=2.0)
    function = sinkhorn_loss if make is SinkhornLoss else sinkhorn_divergence
    for other, own in zip(
        others, ({"metric": "minkowski", "p": 3.0}, {"metric": "haversine", "radius": 2}), strict=True
    ):
        assert other(x, y) == function(None, None, PointCloud(x, y, **own), 0.3)


def test_a_divergence_learns_the_costs_within_its_sides():
    x, y = (p.detach().numpy() for p in clouds()[:2])
    C, C_aa, C_bb = (
        torch.nn.Parameter(torch.as_tensor(cusink.cost_matrix(*pair))) for pair in ((x, y), (x, x), (y, y))
    )
    learns = SinkhornDivergence(C, 0.5, C_aa=C_aa, C_bb=C_bb.detach())
    assert [name for name, _ in learns.named_parameters()] == ["C", "C_aa"] and "C_bb" in learns.state_dict()
    assert repr(learns) == "SinkhornDivergence(eps=0.5, reduction='mean')"
    learns(None, None).backward()
    value = sinkhorn_divergence(None, None, C, 0.5, C_aa=C_aa, C_bb=C_bb)
    torch.testing.assert_close(C_aa.grad, torch.autograd.grad(value, C_aa)[0])
    assert pickle.loads(pickle.dumps(learns)).double()(None, None) == value
    with pytest.raises(TypeError, match="'C_aa' must be a tensor; got list"):
        SinkhornDivergence(C, 0.5, C_aa=[[0.0]])
    with pytest.raises(TypeError, match="unexpected keyword argument 'C_aa'"):
        SinkhornLoss(C, 0.5, C_aa=C_aa)(None, None)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "mahalanobis"}, ValueError, "'factor' must be given for metric 'mahalanobis'"),
        ({"factor": torch.eye(2)}, ValueError, "'factor' must be None unless 'metric' is 'mahalanobis'; got"),
        ({"p": 3}, ValueError, "'p' must be None unless 'metric' is 'minkowski'; got int"),
        ({"metric": "mahalanobis", "factor": torch.eye(3)}, ValueError, "a row for each of the 2 coordinates of 'x'"),
        ({"metric": "mahalanobis", "factor": torch.ones(2)}, ValueError, "'factor' must have two axes"),
        ({"metric": "mahalanobis", "factor": np.eye(2)}, TypeError, "'factor' must be a tensor; got numpy.ndarray"),
        ({"metric": "chebyshev"}, ValueError, "'metric' must be one of 'sqeuclidean'"),
        ({"metric": torch.cdist}, TypeError, "'metric' must be one of 'sqeuclidean'"),
        ({"metric": "haversine", "radius": -1.0}, ValueError, "'radius' must be positive and finite; got -1.0"),
    ],
)
def test_bad_metrics(options, error, message):
    x, y, _ = clouds()
    with pytest.raises(error) as caught:
        PointCloud(x, y, **options)
    assert message in str(caught.value)
    if "coordinates" not in message:
        with pytest.raises(error) as caught:
            SinkhornLoss(eps=0.1, **options)
        assert message in str(caught.value)


def test_new_points_have_the_coordinates_of_a_cloud_with_a_factor():
    x, y, factor = (p.detach() for p in clouds())
    with pytest.raises(ValueError, match="'points' must have the 2 coordinates of the cloud; got shape"):
        bridge.potential_at(None, None, learnt(x, y, factor), 0.3, leaf(2, 3))


# ---- grids whose spacing is learnt ---------------------------------------------------------------------------------


def spaced(height, gaps, metric="sqeuclidean"):
    return bridge.Grid((3, 4), metric, spacing=(height, gaps))


def on_grid(B=2):
    """Histograms (B, 12), one spacing, and distances between four cells."""
    a, b = (torch.as_tensor(np.random.default_rng(seed).dirichlet(np.ones(12), B)) for seed in (0, 1))
    return a, b, torch.tensor(0.7, dtype=torch.float64, requires_grad=True), leaf(3, low=0.4)


MOVED = leaf(12, 2).detach()
ON_GRIDS = {
    "cost": lambda a, b, C: sinkhorn_loss(a, b, C, 0.3, reduction="none", **TIGHT),
    "unbalanced": lambda a, b, C: sinkhorn_loss(a, b, C, 0.3, reach=0.7, reduction="none", **TIGHT),
    "divergence": lambda a, b, C: sinkhorn_divergence(a, b, C, 0.3, reduction="none", **TIGHT),
    "potentials": lambda a, b, C: bridge.sinkhorn_potentials(a, b, C, 0.3, **TIGHT),
    "product": lambda a, b, C: bridge.apply_plan(a, b, C, 0.3, MOVED, **TIGHT),
    "means": lambda a, b, C: bridge.barycentric_map(a, b, C, 0.3, MOVED, **TIGHT),
    "barycenter": lambda a, b, C: bridge.barycenter(torch.stack([a, b], 1), C, eps=0.3, tol=1e-12, max_iter=20000),
}


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("name", ON_GRIDS)
def test_a_learnt_spacing_passes_gradcheck(name, metric):
    a, b, height, gaps = on_grid()
    assert torch.autograd.gradcheck(
        lambda height, gaps: ON_GRIDS[name](a, b, spaced(height, gaps, metric)),
        (height, gaps),
        fast_mode=True,
        rtol=1e-4,
    )


def test_a_learnt_spacing_has_the_numbers_of_the_package():
    a, b, height, gaps = on_grid()
    grid = cusink.Grid((3, 4), spacing=(0.7, gaps.detach().numpy()))
    loss = sinkhorn_loss(a, b, spaced(height, gaps), 0.3, reduction="none", **TIGHT)
    result = cusink.sinkhorn(a.numpy(), b.numpy(), grid, eps=0.3, **TIGHT)
    np.testing.assert_array_equal(loss.detach(), result.cost)
    rows, _ = cusink.sinkhorn_adjoint(result, grad_cost=np.ones(2), tol=TIGHT["tol"]).axes
    (by_height,) = torch.autograd.grad(loss.sum(), height, retain_graph=True)
    np.testing.assert_allclose(by_height, rows @ np.arange(3), rtol=1e-12)
    single = [x.float() for x in (a, b)], height.detach().float().requires_grad_()
    of_floats = sinkhorn_loss(*single[0], bridge.Grid((3, 4), spacing=single[1]), 0.3, normalise=True)
    (by_float,) = torch.autograd.grad(of_floats, single[1])
    assert of_floats.dtype == by_float.dtype == torch.float32
    shared = height.detach().requires_grad_()
    exact = sinkhorn_loss(a, b, bridge.Grid((3, 4), spacing=shared), 0.3, **TIGHT)
    torch.testing.assert_close(by_float, torch.autograd.grad(exact, shared)[0].float(), rtol=1e-3, atol=0)
    line = bridge.Grid((12, 1), spacing=shared)  # an axis of one cell has no distances
    (along,) = torch.autograd.grad(sinkhorn_loss(a, b, line, 0.3, **TIGHT), shared)
    straight = bridge.Grid(12, spacing=shared)
    torch.testing.assert_close(along, torch.autograd.grad(sinkhorn_loss(a, b, straight, 0.3, **TIGHT), shared)[0])
    images = sinkhorn_loss(a.reshape(2, 3, 4), b.reshape(2, 3, 4), spaced(height, gaps), 0.3, **TIGHT)
    torch.testing.assert_close(images, loss.mean())


@pytest.mark.parametrize("function", [sinkhorn_loss, sinkhorn_divergence])
def test_spacings_map(function):
    a, b, height, gaps = (x.detach() for x in on_grid(3))

    def one(a, b, height, gaps):
        return function(a, b, spaced(height, gaps), cusink.RelativeEps(0.1), **TIGHT)

    heights, gradient = torch.stack([height, 2 * height, 3 * height]), torch.func.grad(one, argnums=(0, 2, 3))
    for dims in ((0, 0, 0, None), (0, 0, None, None), (None, None, 0, None)):
        given = [
            x if dim is not None else y for x, y, dim in zip((a, b, heights), (a[0], b[0], height), dims, strict=False)
        ]
        found = torch.func.vmap(gradient, in_dims=dims)(*given, gaps)
        for k in range(3):
            at = [x if dim is None else x[k] for x, dim in zip((*given, gaps), dims, strict=True)]
            for got, wanted in zip(found, gradient(*at), strict=True):
                torch.testing.assert_close(got[k], wanted, rtol=1e-6, atol=1e-9)
    jacobian = torch.func.jacrev(lambda h: function(a, b, spaced(h, gaps), 0.3, reduction="none", **TIGHT))(height)
    for k in range(3):
        expected = torch.func.grad(lambda h, k=k: function(a[k], b[k], spaced(h, gaps), 0.3, **TIGHT))(height)
        torch.testing.assert_close(jacobian[k], expected, rtol=1e-6, atol=1e-9)


def test_spacings_compile():
    a, b, height, gaps = on_grid()
    learns = SinkhornLoss(spaced(torch.nn.Parameter(height.detach()), gaps.detach()), 0.3, **TIGHT)

    def loss(height, gaps):
        return sinkhorn_loss(a, b, spaced(height, gaps), cusink.RelativeEps(0.1), **TIGHT) + learns(a, b)

    compiled, grads = torch.compile(loss, backend="aot_eager", fullgraph=True), []
    for way in (loss, compiled):
        grads.append(torch.autograd.grad(way(height, gaps), (height, gaps, *learns.parameters())))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


@forward_mode
def test_what_has_no_derivative_by_a_spacing_is_refused():
    a, b, height, gaps = on_grid()
    for name, function in ON_GRIDS.items():
        rule = "differentiated once, and backwards only" if name == "barycenter" else "'spacing' has no derivative of"
        with pytest.raises(NotImplementedError, match=rule):
            torch.func.jvp(
                lambda h, f=function: f(a, b, spaced(h, gaps.detach())), (height.detach(),), (height.detach(),)
            )
    (slope,) = torch.autograd.grad(ON_GRIDS["cost"](a, b, spaced(height, gaps)).sum(), height, create_graph=True)
    with pytest.raises(NotImplementedError, match="'spacing' has no second derivative here"):
        slope.backward()

    def loss(a):  # those by others stay
        return sinkhorn_loss(a, b[0], spaced(height.detach(), gaps.detach()), 0.3, **TIGHT)

    assert torch.func.hessian(loss)(a[0]).abs().sum() > 0


@pytest.mark.parametrize("make", [SinkhornLoss, SinkhornDivergence, bridge.Barycenter])
def test_modules_learn_a_spacing(make):
    a, b, height, gaps = (x.detach() for x in on_grid())
    module = make(spaced(torch.nn.Parameter(height), gaps), 0.3)
    assert [name for name, _ in module.named_parameters()] == ["spacing_0"]
    assert list(module.state_dict()) == ["spacing_0", "spacing_1"]
    given = (torch.stack([a, b], 1),) if make is bridge.Barycenter else (a, b)
    module(*given).sum().backward()
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(*given), module(*given))
    with torch.no_grad():
        again.spacing_0 *= 2
    assert not torch.allclose(again(*given), module(*given), atol=0)  # its own, and as it is now
    assert module.float().spacing_1.dtype == torch.float32
    if make is not bridge.Barycenter:
        assert module.spacing_0.grad and module(a.float(), b.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spacing": torch.ones(3)}, ValueError, "'spacing' must be one number for all axes, or a tuple"),
        (
            {"spacing": (1.0, torch.ones(4))},
            ValueError,
            "or 3 distances between neighbours, for axis 1 of 4 cells; got",
        ),
        ({"spacing": (torch.tensor(1.0), 1.0), "periodic": True}, ValueError, "'periodic' must be False along axis 0"),
        ({"spacing": (torch.tensor(1j), 1.0)}, TypeError, "'spacing' must be a dense tensor of real numbers"),
        (
            {"spacing": (torch.tensor(1.0),)},
            ValueError,
            "'spacing' must be one value, or 2 for a grid of 2 axes; got 1",
        ),
        ({"metric": "cosine"}, ValueError, "'metric' must be one of 'sqeuclidean', 'euclidean', 'cityblock'"),
    ],
)
def test_bad_grids(options, error, message):
    with pytest.raises(error) as caught:
        bridge.Grid((3, 4), **options)
    assert message in str(caught.value)


def test_what_a_grid_is_told_where_it_is_used():
    a, b, height, _ = on_grid()
    with pytest.raises(ValueError, match="'spacing' must be positive and finite"):
        sinkhorn_loss(a, b, bridge.Grid((3, 4), spacing=(-height, 1.0)), 0.3)
    with pytest.raises(TypeError, match=r"pass spacing.detach\(\), or make a cusink.torch.Grid$"):
        cusink.Grid((3, 4), spacing=(height, 1.0))
    with pytest.raises(TypeError, match=r"'tol' must not require .*; pass tol.detach\(\)$"):
        sinkhorn_loss(a, b, cusink.Grid((3, 4)), 0.3, tol=height)
    with pytest.raises(TypeError, match=r"pass a.detach\(\), or take a loss of cusink.torch$"):
        cusink.sinkhorn(a.clone().requires_grad_(), b, cusink.Grid((3, 4)), eps=0.3)
    grid = bridge.Grid((3, 4), "euclidean", spacing=(height, 2.0), periodic=(False, True))
    assert repr(grid) == "Grid((3, 4), 'euclidean', spacing=(given, 2.0), periodic=(False, True))"
    with pytest.raises(TypeError, match="'C' must be a PointCloud for new points"):
        bridge.potential_at(a, b, grid, 0.3, torch.ones(2, 2).double())


# ---- eps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["max", "mean", "median"])
@pytest.mark.parametrize("kind", ["stored", "clouds", "grid", "spaced"])
def test_an_eps_of_a_barycenter_may_be_relative(kind, of):
    rng, relative = np.random.default_rng(0), cusink.RelativeEps(0.1, of)
    A, C = rng.dirichlet(np.ones(4), 2), rng.random((4, 4))
    x, y = rng.random((4, 2)), rng.random((4, 2))
    costs = {
        "stored": (C, torch.as_tensor(C)),
        "clouds": (cusink.PointCloud(x, y), PointCloud(torch.as_tensor(x), torch.as_tensor(y))),
        "grid": (cusink.Grid(4), cusink.Grid(4)),
        "spaced": (cusink.Grid(4, spacing=0.5), bridge.Grid(4, spacing=torch.as_tensor(0.5))),
    }
    plain, own = costs[kind]
    expected = cusink.barycenter(A, plain, eps=relative, tol=1e-9)
    found = bridge.barycenter(torch.as_tensor(A), own, eps=relative, tol=1e-9)
    np.testing.assert_allclose(found, expected.barycenter, rtol=1e-7)


@pytest.mark.parametrize("eps", [[0.1, 0.2], "mean", None, {}, np.array([0.1, 0.2])])
def test_what_may_be_an_eps_is_said_in_one_place(eps):
    x = clouds()[0]
    rule = r"'eps' must be a number, a tensor of one or of one per problem, or a share of the costs, such as"
    for call in (
        lambda: sinkhorn_loss(None, None, PointCloud(x), eps),
        lambda: sinkhorn_divergence(None, None, PointCloud(x), eps),
        lambda: bridge.barycenter(torch.as_tensor(np.eye(4)[:2]), PointCloud(x), eps=eps),
        lambda: bridge.entropic_map(None, None, PointCloud(x), eps, x),
    ):
        with pytest.raises(TypeError, match=rule):
            call()
