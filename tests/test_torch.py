"""`cusink.torch`: values and gradients against the oracle, sharing of memory, autocast, compilation, bad input."""

import warnings

import numpy as np
import problems
import pytest
import reference as oracle

torch = pytest.importorskip("torch")

import cusink  # noqa: E402
from cusink import torch as bridge  # noqa: E402
from cusink.bridges import transport  # noqa: E402
from cusink.torch import SinkhornLoss, sinkhorn_loss  # noqa: E402

VALUES = ("cost", "reg_cost", "entropic_cost")
TIGHT = {"tol": 1e-11, "max_iter": 20000}


def case(n=7, m=5, B=3, dtype=torch.float64, seed=0):
    """Weights (B, n), (B, m), a cost (n, m) and a regularisation."""
    rng = np.random.default_rng(seed)
    a, b = problems.histograms(rng, B, n), problems.histograms(rng, B, m)
    return *(torch.as_tensor(x, dtype=dtype) for x in (a, b, rng.random((n, m)))), 0.1


# ---- values and gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_is_the_value_of_the_oracle(value, reduction):
    a, b, C, eps = case()
    expected = np.array([getattr(v, value) for v in oracle.each(oracle.optimum, a.numpy(), b.numpy(), C.numpy(), eps)])
    expected = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}[reduction]
    got = sinkhorn_loss(a, b, C, eps, value=value, reduction=reduction, **TIGHT)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("value", VALUES)
def test_every_exact_gradient_is_the_slope_of_the_oracle(value):
    a, b, C, eps = case(B=1)
    rng = np.random.default_rng(1)
    leaves = [x.clone().requires_grad_() for x in (a[0], b[0], C, torch.tensor(eps, dtype=torch.float64))]
    grads = torch.autograd.grad(sinkhorn_loss(*leaves, value=value, **TIGHT), leaves)
    at = [x.detach().numpy() for x in leaves]
    for k, (x, grad) in enumerate(zip(at, grads, strict=True)):
        direction = np.asarray(rng.normal(size=x.shape))
        if k < 2:
            direction = (direction - direction.mean()) * x.min()
        elif k == 3:
            direction = 0.1 * direction

        def moved(y, k=k):
            return getattr(oracle.optimum(*(y if i == k else z for i, z in enumerate(at))), value)

        expected = oracle.derivative(lambda t, x=x, d=direction, moved=moved: moved(x + t * d))
        np.testing.assert_allclose((grad.numpy() * direction).sum(), expected, rtol=1e-6, err_msg="abCe"[k])


@pytest.mark.parametrize(("value", "gradient"), [("reg_cost", "multiplier"), ("cost", "exact")])
def test_gradcheck_of_the_report(value, gradient):
    """100 bins, eps = 0.001, float64, at most 1000 iterations, through a softmax; every entry of both Jacobians."""
    rng = np.random.default_rng(0)
    C = torch.as_tensor(problems.grid_cost(10, 10))
    logits = [torch.as_tensor(rng.normal(size=100)).requires_grad_() for _ in range(2)]

    def loss(x, y):
        # A warning, as an error, would end the test if 1000 iterations were not enough.
        weights = x.softmax(dim=0), y.softmax(dim=0)
        return sinkhorn_loss(*weights, C, 0.001, value=value, gradient=gradient, max_iter=1000, tol=1e-10)

    assert torch.autograd.gradcheck(loss, logits, raise_exception=True)


def test_gradcheck_rejects_the_multiplier_as_the_gradient_of_the_cost():
    a, b, C, eps = case(B=1)
    logits = [x.log().requires_grad_() for x in (a, b)]

    def loss(x, y):
        return sinkhorn_loss(x.softmax(-1), y.softmax(-1), C, eps, gradient="multiplier", **TIGHT)

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("value", VALUES)
def test_a_batch_passes_gradcheck_in_all_inputs(value):
    a, b, C, eps = case(n=5, m=4, B=2)
    leaves = [a.log(), b[0].log(), C, torch.tensor([eps], dtype=torch.float64)]
    leaves = [x.requires_grad_() for x in leaves]

    def loss(x, y, C, eps):
        return sinkhorn_loss(x.softmax(-1), y.softmax(-1), C, eps, value=value, reduction="none", **TIGHT)

    assert torch.autograd.gradcheck(loss, leaves, raise_exception=True)


def test_the_multiplier_is_the_gradient_of_reg_cost_and_the_value_is_the_cost():
    a, b, C, eps = case()
    C = C.requires_grad_()
    a, b = a.requires_grad_(), b.requires_grad_()
    loss = sinkhorn_loss(a, b, C, eps, gradient="multiplier", reduction="sum", **TIGHT)
    result = cusink.sinkhorn(*(x.detach().numpy() for x in (a, b, C)), eps=eps, **TIGHT)
    np.testing.assert_allclose(loss.item(), result.cost.sum(), rtol=1e-14)
    by_a, by_b, by_C = torch.autograd.grad(loss, (a, b, C))
    np.testing.assert_allclose(by_a, result.f - result.f.mean(axis=1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(by_b, result.g - result.g.mean(axis=1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(by_C, result.plan().sum(axis=0), atol=1e-14)


@pytest.mark.parametrize("shapes", [((7,), (3, 5), (7, 5)), ((3, 7), (5,), (1, 7, 5)), ((1, 7), (3, 5), (3, 7, 5))])
def test_gradients_have_the_shapes_of_their_inputs_and_sum_over_the_batch(shapes):
    a, b, C, eps = case()
    full = [a[:1].expand(3, 7), b[:1].expand(3, 5), C.expand(3, 7, 5)]
    full[0 if shapes[0][0] == 3 else 1] = a if shapes[0][0] == 3 else b  # what has a batch varies over it
    leaves = [
        (x if shape[0] == 3 and len(shape) == x.ndim else x[0] if len(shape) < x.ndim else x[:1])
        .clone()
        .requires_grad_()
        for x, shape in zip(full, shapes, strict=True)
    ]
    assert [tuple(x.shape) for x in leaves] == list(shapes)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def weighted(a, b, C):
        return (sinkhorn_loss(a, b, C, eps, reduction="none", **TIGHT) * weights).sum()

    grads = torch.autograd.grad(weighted(*leaves), leaves)
    separate = [x.clone().requires_grad_() for x in full]
    expected = torch.autograd.grad(weighted(*separate), separate)
    for grad, leaf, wanted in zip(grads, leaves, expected, strict=True):
        assert grad.shape == leaf.shape
        missing = (1,) * (wanted.ndim - leaf.ndim) + tuple(leaf.shape)
        torch.testing.assert_close(grad, wanted.sum_to_size(missing).reshape(leaf.shape), rtol=1e-6, atol=1e-9)


def test_one_pair_and_uniform_weights():
    a, b, C, eps = case()
    loss = sinkhorn_loss(a[0], None, C, eps, reduction="none")
    assert loss.shape == () and loss.dtype == torch.float64
    uniform = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(loss, sinkhorn_loss(a[0], uniform, C, eps), rtol=1e-14, atol=0)


def test_empty_bins_have_finite_gradients():
    a, b, C, eps = case()
    a[:, 2] = 0
    a = (a / a.sum(dim=1, keepdim=True)).requires_grad_()
    for value in VALUES:
        (grad,) = torch.autograd.grad(sinkhorn_loss(a, b, C, eps, value=value), a)
        assert torch.isfinite(grad).all()


def test_training_through_a_model_lowers_the_loss():
    torch.manual_seed(0)
    inputs, C = torch.randn(16, 6), torch.as_tensor(problems.line_cost(4), dtype=torch.float32)
    target = torch.eye(4)[torch.randint(0, 4, (16,))]
    model = torch.nn.Linear(6, 4)
    loss = SinkhornLoss(C, eps=0.05, tol=1e-5)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        now = loss(model(inputs).softmax(dim=1), target)
        now.backward()
        optimiser.step()
        losses.append(now.item())
    assert losses[-1] < 0.7 * losses[0]


# ---- sharing, autograd's rules -------------------------------------------------------------------------------------


def test_nothing_is_copied_on_the_cpu(monkeypatch):
    seen = {}

    def solve(a, b, C, **options):
        seen.update(a=a, b=b, C=C, result=cusink.sinkhorn(a, b, C, **options))
        return seen["result"]

    def pull_back(result, **cotangents):
        seen["grads"] = cusink.sinkhorn_adjoint(result, **cotangents)
        return seen["grads"]

    monkeypatch.setattr(transport, "sinkhorn", solve)
    monkeypatch.setattr(transport, "sinkhorn_adjoint", pull_back)
    a, b, C, eps = case()
    leaves = [x.requires_grad_() for x in (a, b, C)]
    loss = sinkhorn_loss(*leaves, eps, reduction="none")
    for name, leaf in zip("abC", leaves, strict=True):
        assert seen[name].ctypes.data == leaf.data_ptr()
    assert seen["result"].cost.ctypes.data == loss.data_ptr()
    grads = torch.autograd.grad(loss.sum(), leaves)
    for name, grad in zip("abC", grads, strict=True):
        assert getattr(seen["grads"], name).ctypes.data == grad.data_ptr()


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch):
    computed = []

    class Watched:
        def __init__(self, grads):
            self.grads = grads

        def __getattr__(self, name):
            computed.append(name)
            return getattr(self.grads, name)

    monkeypatch.setattr(transport, "sinkhorn_adjoint", lambda *a, **k: Watched(cusink.sinkhorn_adjoint(*a, **k)))
    a, b, C, eps = case()
    sinkhorn_loss(a.requires_grad_(), b, C, eps).backward()
    assert computed == ["a"]


def test_no_graph_is_kept_where_no_gradient_is_wanted():
    a, b, C, eps = case()
    assert sinkhorn_loss(a, b, C, eps).grad_fn is None
    with torch.no_grad():
        assert sinkhorn_loss(a.requires_grad_(), b, C, eps).grad_fn is None


def test_a_change_in_place_before_backward_is_noticed():
    a, b, C, eps = case()
    loss = sinkhorn_loss(a.clone().requires_grad_(), b, C, eps)
    b.mul_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("loss", "order"), [("cost", 3), ("potentials", 2), ("kernel", 2)])
def test_a_derivative_that_does_not_exist_is_refused(loss, order):
    a, b, C, eps = case(B=1)
    logits = a[0].log().requires_grad_()
    functions = {
        "cost": lambda x: sinkhorn_loss(x, b, C, eps),
        "potentials": lambda x: bridge.sinkhorn_potentials(x, b, C, eps)[0].square().sum(),
        "kernel": lambda x: bridge.kernel_distance(C, x, C[:4], None),
    }
    value = functions[loss](logits.softmax(-1))
    for _ in range(order - 1):
        (grad,) = torch.autograd.grad(value, logits, create_graph=True)
        value = grad.square().sum()
    with pytest.raises(RuntimeError, match="once only|twice only"):
        torch.autograd.grad(value, logits, create_graph=True)


# ---- half precision, autocast, compile -----------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(half):
    a, b, C, eps = case(n=64, m=64)
    rounded = [x.to(half) for x in (a, b, C)]
    leaf = rounded[0].clone().requires_grad_()
    loss = sinkhorn_loss(leaf, *rounded[1:], eps)
    loss.backward()
    assert (loss.dtype, leaf.grad.dtype) == (half, half)
    # The rounded problem, solved in float64 with the masses made equal, up to one rounding of the answer.
    x, y, z = (x.double() for x in rounded)
    expected = sinkhorn_loss(x, y * x.sum(-1, keepdim=True) / y.sum(-1, keepdim=True), z, eps)
    assert abs(loss.double() - expected) <= torch.finfo(half).eps * expected
    with pytest.raises(ValueError, match="must have the same mass"):
        sinkhorn_loss(rounded[0] * 1.1, *rounded[1:], eps)
    number = torch.tensor(eps, dtype=half, requires_grad=True)  # NumPy has no bfloat16
    sinkhorn_loss(*rounded, number).backward()
    assert number.grad.dtype == half and number.grad.isfinite()
    with pytest.raises(ValueError, match="'x' must have shape"):
        bridge.kernel_distance(rounded[2][:0], None, rounded[2], None)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_masses_of_unbalanced_transport(half):
    a, b, C, eps = case()
    answers = []
    rounded = [x.to(half) for x in (a, 1.005 * b, C)]
    for given in (rounded, [x.float() for x in rounded]):
        leaf = given[1].clone().requires_grad_()
        loss = sinkhorn_loss(given[0], leaf, given[2], eps, value="reg_cost", reach=1.0, tol=1e-6)
        loss.backward()
        answers.append([loss.detach().to(half), leaf.grad.to(half)])
    assert not np.allclose(given[0].sum(1), given[1].sum(1), rtol=1e-3, atol=0)
    for got, expected in zip(*answers, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(half):
    a, b, C, eps = case(n=64, m=64, dtype=torch.float32)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", dtype=half):
        scores = torch.nn.functional.linear(a, weight)
        assert scores.dtype == half
        predicted = scores.softmax(dim=1).to(half)
        loss = sinkhorn_loss(predicted, b, C, eps, tol=1e-4)
    loss.backward()
    assert (loss.dtype, weight.grad.dtype) == (torch.float32, torch.float32)
    assert torch.isfinite(weight.grad).all() and weight.grad.abs().max() > 0
    same = predicted.detach().float()
    expected = sinkhorn_loss(same, b * same.sum(dim=-1, keepdim=True), C, eps, tol=1e-4)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)


OF_POINTS = {  # every public function, of points x and y, weights b, and values that are x
    "sinkhorn_loss": lambda x, y, b: sinkhorn_loss(None, b, bridge.PointCloud(x, y), 0.5),
    "of a cost": lambda x, y, b: sinkhorn_loss(None, b, x @ y.T.to(x.dtype) + 2, 0.5),
    "sinkhorn_divergence": lambda x, y, b: bridge.sinkhorn_divergence(None, b, bridge.PointCloud(x, y), 0.5),
    "sinkhorn_potentials": lambda x, y, b: bridge.sinkhorn_potentials(None, b, bridge.PointCloud(x, y), 0.5)[0],
    "apply_plan": lambda x, y, b: bridge.apply_plan(None, b, bridge.PointCloud(y, y), 0.5, x),
    "barycentric_map": lambda x, y, b: bridge.barycentric_map(None, b, bridge.PointCloud(y, y), 0.5, x),
    "entropic_map": lambda x, y, b: bridge.entropic_map(None, b, bridge.PointCloud(y, y), 0.5, x),
    "potential_at": lambda x, y, b: bridge.potential_at(None, b, bridge.PointCloud(y, y), 0.5, x),
    "barycenter": lambda x, y, b: bridge.barycenter(b.expand(2, 4), bridge.PointCloud(x, y), eps=0.5),
    "kernel_distance": lambda x, y, b: bridge.kernel_distance(x, None, y, b),
    "kernel_neg_log_likelihood": lambda x, y, b: bridge.kernel_neg_log_likelihood(x, None, y, b),
    "KernelDistance": lambda x, y, b: bridge.KernelDistance("energy")(y, x),
    "SinkhornLoss": lambda x, y, b: SinkhornLoss(eps=0.5)(y, x),
    "SinkhornDivergence": lambda x, y, b: bridge.SinkhornDivergence(eps=0.5)(x, y),
    "Barycenter": lambda x, y, b: bridge.Barycenter(torch.eye(4), eps=0.5)(b + 0 * x),
}


@pytest.mark.parametrize("other", [torch.float32, torch.float64])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OF_POINTS)
def test_under_autocast_all_functions_mix_half_precision_with_others(name, half, other):
    assert {name for name in OF_POINTS if name in bridge.__all__} == set(bridge.__all__) - {
        "Grid",
        "PointCloud",
        "Measures",
    }
    rng = np.random.default_rng(0)
    x, y = (torch.as_tensor(rng.random((4, 4)), dtype=torch.float32) for _ in range(2))
    b = torch.full((4,), 0.25)
    with torch.autocast("cpu", dtype=half):
        given = (x @ torch.eye(4)).requires_grad_()
        assert given.dtype == half
        out = OF_POINTS[name](given, y.to(other), b.to(half))
    expected = OF_POINTS[name](x.to(half).float(), y, b)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.detach(), expected, rtol=1e-2 if name == "of a cost" else 1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(out.sum(), given)
    assert grad.dtype == half and grad.isfinite().all()


@pytest.mark.parametrize("loss", ["histograms", "clouds", "kernel", "barycenter"])
def test_compiled_code_keeps_the_loss_in_its_graph(loss):
    a, b, C, eps = case()
    module, target = SinkhornLoss(C, eps), C[:5, :2] + 1
    functions = {
        "histograms": lambda x: 2 * module((3 * x).softmax(dim=1), b).square(),
        "clouds": lambda x: bridge.sinkhorn_divergence(None, None, bridge.PointCloud(x, target), eps, reach=2.0),
        "kernel": lambda x: bridge.kernel_distance(x, None, target, None),
        "barycenter": lambda x: bridge.barycenter(b, x[:5, :], eps=eps)[0],
    }
    compiled = torch.compile(functions[loss], backend="aot_eager", fullgraph=True)
    for k in range(2):
        x = a.log() if loss == "histograms" else C[:, :2] + k
        eager, traced = (x.clone().requires_grad_() for _ in range(2))
        expected, got = functions[loss](eager), compiled(traced)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
        expected.backward()
        got.backward()
        torch.testing.assert_close(traced.grad, eager.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_whole_numbers_are_floats_before_they_are_compiled(dtype, reduction):
    _, b, C, eps = case()
    labels = torch.eye(len(C), dtype=torch.int64)[: len(b)].to(dtype)

    def loss(logits):
        return sinkhorn_loss(labels, logits.softmax(dim=1), C, eps, reduction=reduction).square().sum()

    eager, traced = (b.log().requires_grad_() for _ in range(2))
    expected = loss(eager)
    expected.backward()
    got = torch.compile(loss, backend="aot_eager", fullgraph=True)(traced)
    got.backward()
    assert eager.grad.abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(traced.grad, eager.grad, rtol=1e-12, atol=1e-15)


def test_points_of_whole_numbers_are_those_of_floats():
    x, y = torch.tensor([[0, 1], [2, 3]]), torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    for function in (bridge.kernel_distance, bridge.kernel_neg_log_likelihood):
        expected = function(x.float(), None, y, None)
        assert expected > 0.1
        torch.testing.assert_close(function(x, None, y, None), expected)
        torch.testing.assert_close(function(x, torch.tensor([1, 1]) / 2, y, None), expected)
        torch.testing.assert_close(function(x, None, x + 1, None), function(x.double(), None, x.double() + 1, None))
        assert function(x, None, y.bfloat16(), None).dtype == torch.bfloat16
    one = torch.ones(2, dtype=torch.int64)
    measures = bridge.Measures([0, 2], one, x)
    assert measures.points.dtype == measures.weights.dtype == torch.float64


# ---- the module ----------------------------------------------------------------------------------------------------


def test_the_module_holds_the_cost_as_a_buffer_or_learns_it():
    a, b, C, eps = case()
    fixed, learnt = SinkhornLoss(C, eps, value="reg_cost"), SinkhornLoss(torch.nn.Parameter(C.clone()), eps)
    assert list(fixed.state_dict()) == ["C"] and not list(fixed.parameters())
    torch.testing.assert_close(fixed(a, b), sinkhorn_loss(a, b, C, eps, value="reg_cost"))
    learnt(a, b).backward()
    assert learnt.C.grad.shape == C.shape and learnt.C.grad.abs().sum() > 0
    assert repr(fixed) == "SinkhornLoss(eps=0.1, value='reg_cost', gradient='exact', reduction='mean')"
    assert fixed.float().C.dtype == torch.float32


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": "E0"}, ValueError, "'value' must be one of 'cost', 'reg_cost', 'entropic_cost'; got 'E0'"),
        ({"gradient": "sharp"}, ValueError, "'gradient' must be one of 'exact', 'multiplier'; got 'sharp'"),
        ({"reduction": "max"}, ValueError, "'reduction' must be one of 'mean', 'sum', 'none'; got 'max'"),
        ({"a": np.ones(7) / 7}, TypeError, "'a' must be a tensor; got numpy.ndarray. Convert it with torch.as_tensor"),
        ({"C": None}, TypeError, "'C' must be a tensor; got NoneType"),
        ({"b": torch.ones(3, 5).half() / 5}, TypeError, "one dtype; 'b' is torch.float16 and 'C' is torch.float64"),
        ({"b": torch.empty(3, 5, device="meta")}, TypeError, "one device; 'b' is on meta and 'C' on cpu"),
        ({"b": torch.ones(3, 6).half() / 6}, TypeError, "one dtype"),
        ({"b": torch.ones(3, 6).double() / 6}, ValueError, "'b' must have shape (5,) to match C of shape (7, 5)"),
        ({"eps": -1.0}, ValueError, "'eps' must be positive and finite; got -1.0"),
        ({"max_itr": 5}, TypeError, "unexpected keyword argument 'max_itr'"),
    ],
)
def test_bad_input(change, error, message):
    a, b, C, eps = case()
    with pytest.raises(error) as caught:
        sinkhorn_loss(**({"a": a, "b": b, "C": C, "eps": eps} | change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("function", "own"),
    [
        (sinkhorn_loss, {}),
        (bridge.sinkhorn_potentials, {}),
        (bridge.apply_plan, {"values": torch.ones(5, 1).double()}),
        (bridge.barycentric_map, {"values": torch.ones(5, 1).double()}),
        (bridge.entropic_map, {"points": torch.ones(2, 1).double()}),
        (bridge.potential_at, {"points": torch.ones(2, 1).double()}),
        (bridge.sinkhorn_divergence, {}),
    ],
)
def test_an_unknown_option_is_one_of_the_function_that_was_called(function, own):
    cloud = bridge.PointCloud(torch.arange(5.0).double()[:, None], torch.arange(5.0).double()[:, None] + 1)
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) got an unexpected keyword argument 'max_itr'"):
        function(None, None, cloud, 0.5, **own, max_itr=5)


def test_a_cloud_of_arrays_is_refused():
    a, C = torch.ones(2).double() / 2, cusink.PointCloud([0.0, 1.0])
    for call in (lambda: sinkhorn_loss(a, a, C, 0.1), lambda: SinkhornLoss(C, 0.1)):
        with pytest.raises(TypeError, match=r"'C' must be a tensor.*; got cusink.PointCloud\. Pass "):
            call()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("function", [bridge.apply_plan, bridge.barycentric_map])
def test_values_of_the_other_side_are_named(function, axis):
    count = (7, 5)[axis]
    with pytest.raises(ValueError, match=rf"'values' must have shape \({count}, d\), or that with a batch axis; got"):
        function(None, None, case()[2], 0.1, torch.ones((5, 7)[axis], 2).double(), axis=axis)


def test_tensors_elsewhere_than_cpu_and_cuda_are_refused():
    meta = torch.empty(3, 3, device="meta")
    with pytest.raises(TypeError, match="'reach' must be on the CPU or on a CUDA device; got meta"):
        sinkhorn_loss(None, None, torch.eye(2), 0.1, reach=meta[0, 0])
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of PyTorch about what it may change
        quantised = torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.quint8)
        nested = torch.nested.nested_tensor([torch.ones(2)])
    with pytest.raises(TypeError, match="'eps' must be a dense tensor of real numbers; got torch.quint8"):
        sinkhorn_loss(None, None, torch.eye(2), quantised)
    with pytest.raises(TypeError, match="'a' must be a dense tensor of real numbers; got a nested one"):
        sinkhorn_loss(nested, None, torch.eye(2), 0.1)
    with pytest.raises(TypeError, match="'x' must be a dense tensor of real numbers; got a nested one"):
        bridge.kernel_distance(nested, None, nested, None)
    with pytest.raises(TypeError, match="on the CPU or on a CUDA device; got meta"):
        sinkhorn_loss(meta[0], meta[0], meta, 0.1)


def test_a_loss_that_has_not_converged_warns():
    a, b, C, _ = case()
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol"):
        sinkhorn_loss(a, b, C, 0.001, max_iter=3)


# ---- on a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("value", VALUES)
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(value):
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no GPU")
    a, b, C, eps = case(n=100, m=70)
    answers = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device, copy=True).requires_grad_() for x in (a, b, C)]
        with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else torch.no_grad():
            with torch.enable_grad():
                loss = sinkhorn_loss(*leaves, eps, value=value, **TIGHT)
                grads = torch.autograd.grad(loss, leaves)
        assert all(x.device.type == device for x in (loss, *grads))
        answers.append([x.detach().cpu() for x in (loss, *grads)])
    for cpu, gpu in zip(*answers, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-6, atol=1e-10)


# ---- learnt eps, overflow ------------------------------------------------------------------------------------------


def test_a_learnt_eps_is_a_parameter_of_the_module():
    a, b, C, _ = case()
    loss = SinkhornLoss(C, eps=torch.nn.Parameter(torch.tensor(0.5, dtype=C.dtype)))
    assert [name for name, _ in loss.named_parameters()] == ["eps"]
    loss(a, b).backward()
    assert torch.isfinite(loss.eps.grad) and loss.eps.grad != 0
    fixed = SinkhornLoss(C, eps=torch.tensor(0.5, dtype=C.dtype))
    assert not list(fixed.parameters()) and "eps" in dict(fixed.named_buffers())
    assert torch.equal(fixed(a, b), loss(a, b)) and "eps=0.5" in repr(fixed)


@pytest.mark.parametrize("value", ["cost", "reg_cost", "entropic_cost"])
def test_a_gradient_that_overflowed_reaches_the_inputs_of_its_problem(value):
    a, b, C, eps = case()
    leaves = [x.clone().requires_grad_() for x in (a, b, C)]
    cotangent = torch.ones(len(a), dtype=C.dtype)
    losses = sinkhorn_loss(*leaves, eps, value=value, reduction="none")
    expected = torch.autograd.grad(losses, leaves, cotangent, retain_graph=True)
    cotangent[1] = torch.inf
    for grad, finite in zip(torch.autograd.grad(losses, leaves, cotangent), expected, strict=True):
        assert not grad[1 if grad.shape[0] == len(a) and grad.shape != C.shape else slice(None)].isfinite().any()
        if grad.shape != C.shape:
            assert torch.equal(grad[0], finite[0])


def test_a_scaler_of_half_precision_sees_the_overflow():
    """A loss of 2 times 65536 is infinite in float16; the scaler then skips the step."""
    a = torch.full((4,), 0.25, dtype=torch.float16, requires_grad=True)
    b, C = torch.tensor([0.0, 0, 0, 1], dtype=torch.float16), 2 * torch.ones(4, 4, dtype=torch.float16)
    (sinkhorn_loss(a, b, C, eps=0.5) * 65536.0).backward()
    assert a.grad.dtype == torch.float16 and not a.grad.isfinite().any()


# PyTorch's own forward mode warns of what it uses when it is first loaded.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
LARGE = {
    "loss": lambda x, y: sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.3),
    "reach": lambda x, y: sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.3, reach=0.7),
    "divergence": lambda x, y: bridge.sinkhorn_divergence(None, None, bridge.PointCloud(x, y), 0.3),
    "potentials": lambda x, y: bridge.sinkhorn_potentials(None, None, bridge.PointCloud(x, y), 0.3)[0][:2].sum(),
    "map": lambda x, y: bridge.barycentric_map(None, None, bridge.PointCloud(x, y), 0.3, y)[0].sum(),
    "kernel": lambda x, y: bridge.kernel_distance(x, None, y, None),
}


@pytest.mark.parametrize("name", LARGE)
def test_gradients_are_linear_in_those_of_the_loss_as_far_as_there_are_numbers(name):
    """A scaler of losses that never overflow doubles its factor for ever."""
    x, y = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.rand(4, 2)
    (one,) = torch.autograd.grad(LARGE[name](x[0], y), x)
    assert one.abs().max() > 1e-3
    for scale in (1e-20, 1e20, 1e30, 1e38):
        (large,) = torch.autograd.grad(LARGE[name](x[0], y) * scale, x)
        torch.testing.assert_close(large / scale, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    (lost,) = torch.autograd.grad(LARGE[name](x[0], y) * torch.inf, x)
    assert not lost[0].isfinite().any()


@forward_mode
@pytest.mark.parametrize("loss", [sinkhorn_loss, bridge.sinkhorn_divergence])
def test_second_derivatives_and_forward_mode_say_what_overflowed(loss):
    x, y = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.rand(4, 2)
    for scale in (torch.inf, torch.nan):
        (gradient,) = torch.autograd.grad(loss(None, None, bridge.PointCloud(x, y), 0.3), x, create_graph=True)
        (twice,) = torch.autograd.grad((gradient**2).sum() * scale, x)
        assert twice.isnan().all()
    x = x.detach()
    move = torch.zeros_like(x)
    move[1, 0, 0] = torch.inf
    _, tangent = torch.func.jvp(
        lambda x: loss(None, None, bridge.PointCloud(x, y), 0.3, reduction="none"), (x,), (move,)
    )
    assert tangent[0].isfinite() and tangent[1].isnan()
    _, tangent = torch.func.jvp(
        lambda reach: loss(None, None, bridge.PointCloud(x, y), 0.3, reach=reach),
        (torch.tensor(1.5),),
        (torch.ones(()),),
    )
    assert tangent.dtype == torch.float32


@pytest.mark.parametrize(
    ("C", "eps", "error"),
    [
        (torch.eye(2).to_sparse(), 0.1, "'C' must be a dense tensor"),
        (torch.eye(2) * 1j, 0.1, "'C' must be a dense tensor"),
        (torch.eye(2), torch.full((2, 2), 0.1), "'eps' must be a number, or a tensor of one"),
        (torch.eye(2), torch.tensor(0.1j), "'eps' must be a real number"),
        (torch.eye(2), torch.tensor([0.1]).to_sparse(), "'eps' must be a dense tensor"),
        (torch.eye(2), torch.empty((), device="meta"), "'eps' must be on the CPU or on a CUDA device; got meta"),
        (torch.eye(2), torch.tensor(0.1).to(torch.float8_e5m2), "'eps' must hold float64, .*; got torch.float8_e5m2"),
        (torch.eye(2).to(torch.float8_e4m3fn), 0.1, "'C' must hold float64, .*; got torch.float8_e4m3fn"),
        (torch.eye(2) * torch.nan, cusink.RelativeEps(0.1), "'C' must hold finite costs"),
    ],
)
def test_tensors_that_are_no_costs_or_numbers(C, eps, error):
    with pytest.raises((TypeError, ValueError), match=error):
        sinkhorn_loss(None, None, C, eps)


# ---- clouds, grids, second order, torch.func -----------------------------------------------------------------------


def points(n=4, m=3, seed=3):
    rng = np.random.default_rng(seed)
    return (torch.as_tensor(rng.normal(size=(k, 2))).requires_grad_() for k in (n, m))


LOSSES = {
    "cost": lambda x, y: sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.5, **TIGHT),
    "divergence": lambda x, y: bridge.sinkhorn_divergence(
        None, None, bridge.PointCloud(x, y, "euclidean"), 0.5, **TIGHT
    ),
    "kernel": lambda x, y: bridge.kernel_distance(x, None, y, None, kernel="energy"),
    "likelihood": lambda x, y: bridge.kernel_neg_log_likelihood(x, None, y, None),
    "potentials": lambda x, y: bridge.sinkhorn_potentials(None, None, bridge.PointCloud(x, y), 0.5, **TIGHT),
}


@forward_mode
@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_of_clouds_pass_gradcheck_in_both_modes(loss):
    assert torch.autograd.gradcheck(LOSSES[loss], tuple(points()), check_forward_ad=True)


@pytest.mark.parametrize("loss", ["cost", "divergence"])
def test_second_derivatives_of_clouds_pass_gradgradcheck(loss):
    x, y = points(3, 2)
    assert torch.autograd.gradgradcheck(LOSSES[loss], (x, y.detach()))


@pytest.mark.parametrize(
    ("value", "reach"), [("cost", None), ("entropic_cost", None), ("cost", 0.7), ("entropic_cost", 0.7)]
)
def test_second_derivatives_in_all_inputs_pass_gradgradcheck(value, reach):
    a, b, C, eps = case(n=3, m=2, B=2)
    leaves = [x.requires_grad_() for x in (a.log(), b[0].log(), C, torch.tensor(eps, dtype=torch.float64))]

    def loss(x, y, C, eps):
        return sinkhorn_loss(x.softmax(-1), y.softmax(-1), C, eps, value=value, reach=reach, reduction="sum", **TIGHT)

    assert torch.autograd.gradgradcheck(loss, leaves, atol=1e-4, fast_mode=True)


@forward_mode
@pytest.mark.parametrize("loss", ["cost", "divergence"])
def test_hessians_of_torch_func_are_those_of_autograd(loss):
    x, y = points()
    found = torch.func.hessian(LOSSES[loss], argnums=(0, 1))(x.detach(), y.detach())
    expected = torch.autograd.functional.hessian(LOSSES[loss], (x, y))
    for k in range(4):
        torch.testing.assert_close(found[k // 2][k % 2], expected[k // 2][k % 2], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found[0][1], found[1][0].permute(2, 3, 0, 1), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_is_one_call_with_the_numbers_of_a_loop(monkeypatch, shared):
    a, b, C, _ = case()
    costs = C if shared else torch.stack([C, 0.9 * C, 1.1 * C])
    eps = torch.tensor([0.1, 0.2, 0.1], dtype=torch.float64)
    calls, solve = [], transport.sinkhorn
    monkeypatch.setattr(transport, "sinkhorn", lambda *args, **options: calls.append(1) or solve(*args, **options))

    def one(x, y, C, eps):
        return sinkhorn_loss(x.softmax(-1), y, C, eps, **TIGHT)

    mapped = torch.func.vmap(torch.func.grad(one, argnums=(0, 2, 3)), in_dims=(0, 0, None if shared else 0, 0))
    found = mapped(a.log(), b, costs, eps)
    assert len(calls) == 1  # whatever the eps of each
    for k in range(3):
        expected = torch.func.grad(one, argnums=(0, 2, 3))(a[k].log(), b[k], C if shared else costs[k], eps[k])
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got[k], want, rtol=1e-6, atol=1e-9)


def test_jacobians_of_a_batch_with_one_cost_are_those_of_each_loss():
    a, b, C, eps = case()
    jacobian = torch.func.jacrev(lambda C: sinkhorn_loss(a, b, C, eps, reduction="none", **TIGHT))(C)
    for k in range(len(a)):
        expected = torch.func.grad(lambda C, k=k: sinkhorn_loss(a[k], b[k], C, eps, **TIGHT))(C)
        torch.testing.assert_close(jacobian[k], expected, rtol=1e-6, atol=1e-9)


def test_one_eps_for_each_problem():
    a, b, C, _ = case()
    eps = torch.tensor([0.1, 0.3, 0.1], dtype=torch.float64, requires_grad=True)
    leaf = C.clone().requires_grad_()
    losses = sinkhorn_loss(a, b, leaf, eps, reduction="none", **TIGHT)
    by_eps, by_C = torch.autograd.grad(losses.sum(), (eps, leaf))
    total = torch.zeros_like(C)
    for k in range(3):
        leaves = C.clone().requires_grad_(), eps[k].detach().clone().requires_grad_()
        loss = sinkhorn_loss(a[k], b[k], *leaves, **TIGHT)
        torch.testing.assert_close(losses[k], loss, rtol=1e-9, atol=0)
        of_C, of_eps = torch.autograd.grad(loss, leaves)
        torch.testing.assert_close(by_eps[k], of_eps, rtol=1e-6, atol=1e-9)
        total += of_C
    torch.testing.assert_close(by_C, total, rtol=1e-6, atol=1e-9)


def test_relative_eps_is_that_of_the_costs_and_stays_as_the_number_it_is():
    a, b, C, _ = case()
    relative = cusink.RelativeEps(0.1, "median")
    costs = torch.stack([C, 0.9 * C, 3 * C])
    eps = 0.1 * costs.flatten(1).quantile(0.5, dim=1)
    for given, number in ((C, eps[0]), (costs, eps)):
        leaves = [given.clone().requires_grad_() for _ in range(2)]
        losses = [sinkhorn_loss(a, b, leaf, e, **TIGHT) for leaf, e in zip(leaves, (relative, number), strict=True)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
        grads = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(losses, leaves, strict=True)]
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)
    mapped = torch.func.vmap(lambda x, y, C: sinkhorn_loss(x, y, C, relative, **TIGHT))(a, b, costs)
    torch.testing.assert_close(mapped.mean(), losses[0].detach(), rtol=1e-9, atol=0)
    grid = cusink.Grid((1, 4))
    weights = torch.full((4,), 0.25, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    of_grid = [bridge.sinkhorn_divergence(*weights, grid, e) for e in (cusink.RelativeEps(0.1, "max"), 0.9)]
    torch.testing.assert_close(*of_grid, rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [SinkhornLoss, bridge.SinkhornDivergence, bridge.KernelDistance])
def test_modules_take_clouds(make):
    x, y = (p.detach() for p in points())
    module = make() if make is bridge.KernelDistance else make(eps=0.5)
    a, b = torch.full((4,), 0.25, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(module(x, y), module(a, x, b, y), rtol=1e-12, atol=0)
    if make is SinkhornLoss:
        stored = torch.as_tensor(cusink.cost_matrix(x.numpy(), y.numpy()))
        torch.testing.assert_close(module(a, b, stored), module(x, y), rtol=1e-6, atol=0)
    with pytest.raises(TypeError, match="must be called as"):
        module(x)


def test_images_on_a_grid():
    rng = np.random.default_rng(5)
    a, b = (torch.as_tensor(problems.histograms(rng, 2, 12)).requires_grad_() for _ in range(2))
    grid = cusink.Grid((3, 4), "euclidean", spacing=(0.5, (0.5, 1.0, 0.25)))
    dense = torch.as_tensor(grid.dense())
    for loss in (sinkhorn_loss, bridge.sinkhorn_divergence):
        values, grads = [], []
        for C in (grid, dense):
            values.append(loss(a, b, C, 0.2, tol=1e-10))
            grads.append(torch.autograd.grad(values[-1], (a, b)))
        torch.testing.assert_close(*values, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-8)
    assert repr(SinkhornLoss(grid, 0.2)).startswith("SinkhornLoss(eps=0.2")
    with pytest.raises(TypeError, match="must not both be None for a Grid"):
        sinkhorn_loss(None, None, grid, 0.2)


def test_a_divergence_with_costs_of_its_own():
    rng = np.random.default_rng(6)
    x, y = rng.random((4, 2)), rng.random((3, 2))
    costs = [torch.as_tensor(cusink.cost_matrix(*pair)).requires_grad_() for pair in ((x, y), (x, x), (y, y))]
    value = bridge.sinkhorn_divergence(None, None, costs[0], 0.5, C_aa=costs[1], C_bb=costs[2])
    grads = torch.autograd.grad(value, costs)
    result = cusink.sinkhorn_divergence(
        None,
        None,
        *(c.detach().numpy() for c in costs[:1]),
        eps=0.5,
        C_aa=costs[1].detach().numpy(),
        C_bb=costs[2].detach().numpy(),
    )
    expected = cusink.sinkhorn_divergence_adjoint(result)
    for grad, name in zip(grads, ("C", "C_aa", "C_bb"), strict=True):
        np.testing.assert_allclose(grad, getattr(expected, name), rtol=1e-12)
    with pytest.raises(ValueError, match="must both be given"):
        bridge.sinkhorn_divergence(None, None, costs[0], 0.5, C_aa=costs[1])


@forward_mode
@pytest.mark.parametrize("axis", [0, 1])
def test_products_with_the_plan_pass_gradcheck_in_both_modes(axis):
    x, y = points()
    rng = np.random.default_rng(7)
    values = torch.as_tensor(rng.normal(size=(2, 3 if axis else 4, 1))).requires_grad_()

    def product(x, eps, values):
        return bridge.apply_plan(None, None, bridge.PointCloud(x, y.detach()), eps, values, axis=axis, **TIGHT)

    eps = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(product, (x, eps, values), check_forward_ad=True)
    cloud = cusink.PointCloud(x.detach().numpy(), y.detach().numpy())
    plan = cusink.sinkhorn(None, None, cloud, eps=0.5, **TIGHT).plan()
    expected = (plan if axis else plan.T) @ values.detach().numpy()
    np.testing.assert_allclose(product(x, eps, values).detach(), expected, rtol=1e-8)
    with pytest.raises(ValueError, match="'values' must have shape"):
        product(x, eps, values[:, :2])


# ---- barycenters ---------------------------------------------------------------------------------------------------


def mean(A, C, weights=None, eps=0.1, **options):
    """Return the barycenter of rows that are brought to one mass."""
    return bridge.barycenter(A / A.sum(dim=-1, keepdim=True), C, weights, eps=eps, **TIGHT, **options)


def test_barycenters_pass_gradcheck_in_all_inputs():
    rng = np.random.default_rng(3)
    A, weights, C, x, y = (
        torch.tensor(v, requires_grad=True)
        for v in (
            rng.dirichlet(np.ones(4), (2, 2)),
            0.2 + rng.random((2, 2)),
            rng.random((4, 3)),
            rng.random((4, 1)),
            rng.random((3, 1)),
        )
    )
    eps = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mean, (A, C, weights, eps), fast_mode=True)
    one = A[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda A, x, y: mean(A, bridge.PointCloud(x, y)), (one, x, y), fast_mode=True)
    (slope,) = torch.autograd.grad(mean(one, C.detach())[0], one, create_graph=True)
    with pytest.raises(RuntimeError, match="barycenters of cusink can be differentiated once only"):
        slope.sum().backward()
    values = np.asarray(cusink.barycenter(A.detach().numpy()[0], C.detach().numpy(), eps=0.1, **TIGHT).barycenter)
    np.testing.assert_allclose(mean(one, C).detach().numpy(), values, rtol=1e-12)


def test_barycenters_map_and_keep_half_precision():
    rng = np.random.default_rng(4)
    A, weights = torch.tensor(rng.dirichlet(np.ones(4), (2, 3))), torch.tensor(rng.random((2, 3)) + 0.1)
    costs = torch.tensor(rng.random((2, 4, 4)))
    each = torch.stack([mean(a, c, w) for a, c, w in zip(A, costs, weights, strict=True)])
    torch.testing.assert_close(torch.func.vmap(mean)(A, costs, weights), each)
    slopes = torch.func.vmap(torch.func.grad(lambda a, c, w: mean(a, c, w)[0], argnums=1))(A, costs, weights)
    torch.testing.assert_close(slopes[1], torch.func.grad(lambda c: mean(A[1], c, weights[1])[0])(costs[1]))
    half = bridge.Barycenter(costs[0].bfloat16(), eps=0.1)(A.bfloat16(), weights.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), mean(A, costs[0], weights), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"A": np.ones((2, 3))}, TypeError, "'A' must be a tensor"),
        ({"A": torch.ones(2, 4)}, ValueError, r"'A' must have shape \(K, 3\) or \(B, K, 3\)"),
        ({"C": torch.ones(2, 3, 3)}, ValueError, r"'C' must have shape \(n, m\)"),
        ({"weights": torch.ones(3)}, ValueError, r"'weights' must have shape \(2,\) or \(B, 2\)"),
        ({"eps": torch.ones(3), "weights": torch.ones(2, 2)}, ValueError, "batch sizes must be equal or 1"),
        ({"debiased": 1}, TypeError, "'debiased' must be a bool"),
    ],
)
def test_bad_input_of_a_barycenter(given, error, message):
    arguments = {"A": torch.full((2, 3), 1 / 3), "C": torch.ones(3, 3), "eps": 0.1} | given
    with pytest.raises(error, match=message):
        bridge.barycenter(arguments.pop("A"), arguments.pop("C"), **arguments)


def test_images_of_any_sum_in_two_dtypes():
    """Gradients are those by the weights as they are, in their shape and dtype."""
    rng, grid = np.random.default_rng(2), cusink.Grid((3, 4))
    a = torch.tensor(rng.random((2, 3, 4)), dtype=torch.float32, requires_grad=True)
    b = torch.tensor(rng.random((2, 3, 4)), requires_grad=True)
    how = {"tol": 1e-10, "reduction": "sum", "normalise": True}
    loss = sinkhorn_loss(a, b, grid, 0.5, **how)
    loss.backward()
    assert loss.dtype == torch.float64
    assert (a.grad.dtype, b.grad.dtype) == (torch.float32, torch.float64)
    for x, at in ((a, 0), (b, 1)):
        move = torch.tensor(rng.standard_normal(x.shape))
        pairs = [
            [y.detach().double() + (sign * 1e-5 * move if k == at else 0) for k, y in enumerate((a, b))]
            for sign in (1, -1)
        ]
        up, down = (float(sinkhorn_loss(*pair, grid, 0.5, **how)) for pair in pairs)
        assert float((x.grad * move).sum()) == pytest.approx((up - down) / 2e-5, rel=1e-5)
    f, g = bridge.sinkhorn_potentials(a, b, grid, 0.5, normalise=True)
    assert f.shape == g.shape == a.shape
    assert bridge.apply_plan(a, b, grid, 0.5, torch.ones(3, 4, 2), normalise=True).shape == (2, 3, 4, 2)
    assert bridge.barycenter(a, grid, eps=0.5, normalise=True).shape == (3, 4)
    assert bridge.sinkhorn_divergence(a, b, grid, 0.5, normalise=True).dtype == torch.float64
    with pytest.raises(ValueError, match=r"'a' must have shape \(3, 4\) or \(B, 3, 4\)"):
        sinkhorn_loss(a[:, :2], b, grid, 0.5)
    with pytest.raises(ValueError, match="'a' must have a positive sum"):
        sinkhorn_loss(a * 0, b, grid, 0.5, normalise=True)


def test_weights_in_float32_beside_costs_in_float64_may_miss_their_masses_as_float32_does():
    weights = torch.full((2, 7), 1 / 7) * torch.tensor([[1.0], [1.0005]])
    weights.requires_grad_()
    C = torch.tensor(problems.grid_cost(1, 7))
    sinkhorn_loss(weights[0], weights[1], C, 0.1).backward()
    assert weights.grad.dtype == torch.float32
    with pytest.raises(ValueError, match="'a' and 'b' must have the same mass"):
        sinkhorn_loss(weights[0].double(), weights[1].double(), C, 0.1)


# ---- maps, new points, prices of the marginals ---------------------------------------------------------------------


def of_maps(seed=8):
    """Leaves by name: scores and weights of both sides, clouds, new points, values, a cost, eps, prices."""
    rng = np.random.default_rng(seed)
    shapes = {"s": (2, 4), "b": (3,), "x": (4, 2), "y": (3, 2), "new": (2, 2), "v": (3, 1), "C": (4, 3), "reach": (2,)}
    leaves = {name: torch.tensor(0.3 + rng.random(shape), requires_grad=True) for name, shape in shapes.items()}
    return leaves | {name: torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for name in ("eps", "one")}


def cloud(x, y):
    return bridge.PointCloud(x, y, "euclidean", power=1.5)


MAPS = {  # functions, and the names of their leaves; those with `reach` have no forward mode
    "means": ("s b C eps v", lambda s, b, *rest: bridge.barycentric_map(s.softmax(-1), b / b.sum(), *rest, **TIGHT)),
    "columns": (
        "s b x y eps new reach",
        lambda s, b, x, y, eps, new, reach: bridge.barycentric_map(
            s, b, cloud(x, y), eps, torch.cat([new, new]), axis=0, reach=reach, **TIGHT
        ),
    ),
    "map": (
        "s b x y eps new",
        lambda s, b, x, y, eps, new: bridge.entropic_map(s.softmax(-1), b / b.sum(), cloud(x, y), eps, new, **TIGHT),
    ),
    "values": (
        "b x y eps new v one",
        lambda b, x, y, eps, new, v, one: bridge.entropic_map(
            None, b, cloud(x, y), eps, new, v, reach=(one, None), normalise=True, **TIGHT
        ),
    ),
    "potential": (
        "s b x eps new",
        lambda s, b, x, eps, new: bridge.potential_at(s, b, cloud(x, x[1:]), eps, new, axis=0, reach=0.7, **TIGHT),
    ),
    "cost": ("s b C eps reach", lambda s, b, C, eps, reach: sinkhorn_loss(s, b, C, eps, reach=reach, **TIGHT)),
    "divergence": (
        "s x y one",
        lambda s, x, y, one: bridge.sinkhorn_divergence(s, None, cloud(x, y), 0.4, reach=one, **TIGHT),
    ),
    "potentials": (
        "s b C reach",
        lambda s, b, C, reach: bridge.sinkhorn_potentials(s, b, C, 0.4, reach=reach, **TIGHT),
    ),
}
BACKWARD = ("columns", "values", "potentials")


@forward_mode
@pytest.mark.parametrize("name", MAPS)
def test_maps_and_prices_pass_gradcheck(name):
    names, function = MAPS[name]
    leaves, fast = of_maps(), {"fast_mode": True, "rtol": 1e-4}
    given = tuple(leaves[each] for each in names.split())
    assert torch.autograd.gradcheck(function, given, check_forward_ad=name not in BACKWARD, **fast)


@forward_mode
def test_what_has_no_derivative_by_prices_is_refused():
    leaves = of_maps()
    names, function = MAPS["columns"]
    given = tuple(leaves[each].detach() for each in names.split())
    with pytest.raises(NotImplementedError, match="'reach' has no derivative of forward mode here"):
        torch.func.jvp(lambda r: function(*given[:-1], r), given[-1:], given[-1:])
    loss = MAPS["cost"][1](*(leaves[each] for each in "s b C eps reach".split()))
    (slope,) = torch.autograd.grad(loss, leaves["reach"], create_graph=True)
    with pytest.raises(NotImplementedError, match="'reach' has no second derivative here"):
        slope.sum().backward()


def test_maps_over_new_points_and_prices_are_loops():
    leaves = {name: x.detach() for name, x in of_maps().items()}
    b, x, y, new, C = (leaves[name] for name in ("b", "x", "y", "new", "C"))
    points, prices = torch.stack([new, new + 0.5, 2 * new]), torch.tensor([0.3, 0.9, torch.inf], dtype=torch.float64)

    def at(points):
        return bridge.entropic_map(None, None, cloud(x, y), 0.4, points, **TIGHT)[:, 0].prod()

    def priced(reach):
        return sinkhorn_loss(None, b / b.sum(), C, 0.4, reach=reach, **TIGHT)

    for function, given in ((at, points), (priced, prices)):
        found = torch.func.vmap(torch.func.grad_and_value(function))(given)
        each = [torch.func.grad_and_value(function)(x) for x in given]
        for got, wanted in zip(found, map(torch.stack, zip(*each, strict=True)), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-10)
    assert found[0][2] == 0  # both marginals are met


def test_maps_and_prices_in_compiled_code_and_modules():
    leaves = of_maps()
    b, x, y, new = (leaves[name].detach() for name in ("b", "x", "y", "new"))
    module = SinkhornLoss(None, 0.4, reach=torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64)))
    assert [name for name, _ in module.named_parameters()] == ["reach"] and "reach=0.6" in repr(module)

    def function(new):
        there = bridge.entropic_map(None, b, cloud(x, y), 0.4, new, reach=2.0)
        there = there + bridge.apply_plan(None, b, cloud(x, y), 0.4, y, reach=2.0)[:2]
        return there.sum() + bridge.potential_at(None, b, cloud(x, y), 0.4, new, reach=2.0).sum() + module(new, y)

    compiled, grads = torch.compile(function, backend="aot_eager", fullgraph=True), []
    for way in (function, compiled):
        leaf = new.clone().requires_grad_()
        module.zero_grad()
        way(leaf).backward()
        grads.append((leaf.grad, module.reach.grad))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("output", ["product", "potentials", "means", "map"])
def test_a_gradient_of_a_map_that_overflowed_reaches_the_inputs_of_its_problem(output):
    a, b, C, eps = case(n=4, m=4)
    functions = {
        "product": lambda a: bridge.apply_plan(a, b, C, eps, C, **TIGHT),
        "potentials": lambda a: bridge.sinkhorn_potentials(a, b, C, eps, **TIGHT)[1],
        "means": lambda a: bridge.barycentric_map(a, b, C, eps, C, **TIGHT),
        "map": lambda a: bridge.entropic_map(a, b, cloud(C, C + 1), eps, C, **TIGHT),
    }
    leaf = a.clone().requires_grad_()
    out = functions[output](leaf)
    (finite,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)
    cotangent = torch.ones_like(out)
    cotangent[1].view(-1)[0] = torch.inf
    (grad,) = torch.autograd.grad(out, leaf, cotangent)
    assert grad[1].isnan().all()
    torch.testing.assert_close(grad[[0, 2]], finite[[0, 2]], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, r: bridge.entropic_map(None, None, x, 0.1, x), TypeError, "'C' must be a PointCloud for new points"),
        (lambda x, r: bridge.potential_at(None, None, cloud(x, x), 0.1, x[:, :1]), ValueError, "the 2 coordinates"),
        (lambda x, r: bridge.entropic_map(None, None, cloud(x, x), 0.1, x, x[:1]), ValueError, r"shape \(2, d\)"),
        (
            lambda x, r: sinkhorn_loss(None, None, x, 0.1, reach=r),
            ValueError,
            r"one for each marginal; got shapes \(3,\)",
        ),
        (lambda x, r: sinkhorn_loss(None, None, x, 0.1, reach=-r[0]), ValueError, "'reach' must be"),
        (lambda x, r: sinkhorn_loss(None, None, x, 0.1, reach=r[0] > 0), TypeError, "'reach' must be a real number"),
        (lambda x, r: sinkhorn_loss(None, None, x, 0.1, reach=(r[0], -1.0)), ValueError, "'reach' must be"),
        (lambda x, r: sinkhorn_loss(None, None, x, 0.1, reach="given"), TypeError, "'reach' must be"),
        (
            lambda x, r: bridge.sinkhorn_divergence(None, None, x, 0.1, reach=(r[0], r[:2])),
            ValueError,
            r"'reach' must be one number, or one for each marginal; got shapes \(\), \(2,\)",
        ),
        (
            lambda x, r: sinkhorn_loss(*[bridge.Measures.of([x])] * 2, "euclidean", 0.1, reach=r[0]),
            TypeError,
            "'reach' must hold numbers for Measures",
        ),
    ],
)
def test_bad_input_of_maps_and_prices(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.ones(3))


def test_measures_are_made_inside_compiled_code():
    """From offsets and from separate clouds, with weights and without; bad offsets are refused as outside."""
    torch.manual_seed(0)
    w, x, y = torch.rand(7), torch.rand(7, 3), torch.rand(9, 3)

    def function(w, x, y):
        pairs = bridge.Measures([0, 3, 7], w, x), bridge.Measures.of([y[:5], y[5:]])
        return sinkhorn_loss(*pairs, "sqeuclidean", 0.5, normalise=True)

    found = []
    for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = [t.clone().requires_grad_() for t in (w, x, y)]
        loss = run(*leaves)
        loss.backward()
        found.append([loss.detach(), *(t.grad for t in leaves)])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=0, atol=0)
    for offsets, message in (([0, 5, 3, 7], "must rise from 0"), ([0, 3, 6], "must rise from 0"), ([0], "must rise")):
        with pytest.raises(ValueError, match=message):
            bridge.Measures(offsets, None, x)


@forward_mode
def test_a_point_that_keeps_nothing_moves_in_forward_mode():
    x, y = torch.tensor([0.0, 0.1, 4.2], dtype=torch.float64), torch.tensor([0.0, 0.1], dtype=torch.float64)
    a, b, C = torch.full_like(x, 1 / 3), torch.full_like(y, 1 / 2), (x[:, None] - y) ** 2
    move = 2 * (x[:, None] - y)
    _, (df, dg) = torch.func.jvp(
        lambda C: bridge.sinkhorn_potentials(a, b, C, eps=0.01, reach=0.01, tol=1e-11), (C,), (move,)
    )
    assert df[2].item() == pytest.approx((move[2, 1] - dg[1]).item() / 2, rel=1e-9)  # of its one partner, damped
    assert df[:2].numpy() == pytest.approx([-0.03497554, 0.03497554], rel=1e-5)


# ---- PyTorch's defaults --------------------------------------------------------------------------------------------


def test_tensors_stay_on_their_device_whatever_the_default_one_is():
    a, b, C, eps = case()
    x, y = torch.rand(5, 2), torch.rand(4, 2)

    def losses():
        weights, points = a.clone().requires_grad_(), x.clone().requires_grad_()
        found = [SinkhornLoss(C, eps=eps, **TIGHT)(weights, b), bridge.SinkhornDivergence(eps=eps)(points, y)]
        found.append(bridge.KernelDistance()(points, y))
        sum(found).backward()
        return [loss.detach() for loss in found] + [weights.grad, points.grad]

    want = losses()
    torch.set_default_device("meta")
    try:
        got = losses()
    finally:
        torch.set_default_device(None)
    assert all(x.device.type == "cpu" and torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_a_price_that_is_a_number_keeps_its_digits_beside_a_tensor():
    a, b, C, eps = case()
    price = torch.tensor(0.7, dtype=torch.float64)
    got = sinkhorn_loss(a, b, C, eps, reach=(price, 0.1), reduction="none", **TIGHT)
    want = cusink.sinkhorn(a.numpy(), b.numpy(), C.numpy(), eps=eps, reach=(0.7, 0.1), **TIGHT).cost
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
