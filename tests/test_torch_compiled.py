"""Losses, and the package itself, where PyTorch compiles: what runs as an operator, what apart, what is refused."""

import math
import sys
import types

import numpy as np
import pytest

import cusink
from cusink.placement import undisturbed

torch = pytest.importorskip("torch")

from torch.func import grad, hessian, jacfwd, jvp, vmap  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from cusink.torch import (  # noqa: E402
    Measures,
    PointCloud,
    SinkhornLoss,
    apply_plan,
    sinkhorn_divergence,
    sinkhorn_loss,
)

EPS = 0.2
CLOSE = {"rtol": 1e-7, "atol": 1e-9}
pytestmark = [  # what PyTorch says of itself
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* should not be instantiated:DeprecationWarning"),
]


def problem():
    rng = np.random.default_rng(0)
    return tuple(map(torch.as_tensor, (rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(6)), rng.random((5, 6)))))


def loss_of(b, C):
    return lambda a: sinkhorn_loss(a, b, C, EPS, tol=1e-10)


def gradient(a, b, C):
    """Return that of the loss by `a`, of the package without PyTorch."""
    result = cusink.sinkhorn(a.numpy(), b.numpy(), C.numpy(), eps=EPS, tol=1e-10)
    return torch.as_tensor(cusink.sinkhorn_adjoint(result, grad_cost=1.0).a)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def test_the_package_computes_in_compiled_code_what_it_computes_outside():
    a, b, C = problem()

    def values(a):
        result = cusink.sinkhorn(a.numpy(), b.numpy(), C.numpy(), eps=EPS)
        gradients = cusink.sinkhorn_adjoint(result, grad_cost=1.0)
        return [torch.as_tensor(x) for x in (result.cost, result.f, result.plan(), gradients.a, gradients.C)]

    for found, wanted in zip(torch.compile(values, backend="eager")(a), values(a), strict=True):
        assert torch.equal(found, wanted)


def test_compiled_autograd_takes_the_gradient_as_it_is():
    a, b, C = problem()
    leaf = a.clone().requires_grad_()
    value = loss_of(b, C)(leaf)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        value.backward()
    torch.testing.assert_close(leaf.grad, gradient(a, b, C), **CLOSE)


def test_transforms_of_compiled_losses_and_compiled_transforms():
    a, b, C = problem()
    loss, of_a = loss_of(b, C), gradient(a, b, C)
    move = torch.linspace(-1, 1, 5, dtype=a.dtype)

    def compiled(function):
        torch._dynamo.reset()
        return torch.compile(function, backend="aot_eager")

    torch.testing.assert_close(jvp(compiled(loss), (a,), (move,))[1], of_a @ move, **CLOSE)
    torch.testing.assert_close(compiled(lambda t: jvp(loss, (a,), (t,))[1])(move), of_a @ move, **CLOSE)
    torch.testing.assert_close(compiled(jacfwd(loss))(a), of_a, **CLOSE)
    torch.testing.assert_close(compiled(grad(loss))(a), of_a, **CLOSE)
    torch.testing.assert_close(compiled(vmap(loss))(torch.stack([a, a])), loss(a).expand(2), **CLOSE)
    torch.testing.assert_close(compiled(hessian(loss))(a), hessian(loss)(a), **CLOSE)


def test_forward_mode_is_refused_where_nothing_may_leave_the_graph():
    a, b, C = problem()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="of cusink computes with NumPy or CuPy"):
        torch.compile(jacfwd(loss_of(b, C)), backend="eager", fullgraph=True)(a)


@pytest.mark.parametrize("reach", [None, math.inf, (0.5, math.inf), [0.5, None]])
def test_numbers_may_change_between_compiled_calls(reach):
    a, b, C = problem()
    compiled = torch.compile(
        lambda eps, tol: sinkhorn_loss(a, b, C, eps, tol=tol, reach=reach), backend="eager", fullgraph=True
    )
    for eps, tol in ((0.5, 1e-6), (0.4, 1e-7), *((0.3 - 0.02 * k, 1e-8) for k in range(10))):  # eps is no constant
        wanted = cusink.sinkhorn(a.numpy(), b.numpy(), C.numpy(), eps=eps, tol=tol, reach=reach).cost
        assert float(compiled(eps, tol)) == pytest.approx(float(wanted), rel=1e-12)


def test_sizes_of_measures_may_change_between_compiled_calls():
    y = torch.rand(4, 2, generator=torch.manual_seed(0))

    def loss(x):
        return sinkhorn_divergence(Measures.of([x]), Measures.of([y]), "sqeuclidean", 0.5)

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for n in (5, 6, 7):
        x = torch.rand(n, 2)
        torch.testing.assert_close(compiled(x), loss(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_losses_are_computed_again_by_checkpoints(backend):
    a, b, C = problem()
    leaf, compiled = a.clone().requires_grad_(), torch.compile(loss_of(b, C), backend=backend)
    checkpoint(compiled, leaf, use_reentrant=False).backward()
    torch.testing.assert_close(leaf.grad, gradient(a, b, C), **CLOSE)


def test_what_has_no_derivative_says_so():
    a, b, C = problem()
    with pytest.raises(RuntimeError, match="cannot be differentiated forwards twice"):
        jacfwd(jacfwd(loss_of(b, C)))(a)
    leaf = a.clone().requires_grad_()
    compiled = torch.compile(loss_of(b, C), backend="eager", fullgraph=True)
    (of_a,) = torch.autograd.grad(compiled(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="compiled loss of cusink can be differentiated once only"):
        of_a.sum().backward()


def test_gradients_by_directions_that_a_map_goes_through():
    a, b, C = problem()
    loss = loss_of(b, C)
    moves = torch.eye(5, dtype=a.dtype)
    found = grad(lambda T: vmap(lambda t: jvp(loss, (a,), (t,))[1])(T).sum())(moves)
    torch.testing.assert_close(found, gradient(a, b, C).expand(5, 5), **CLOSE)


def test_gradients_by_one_direction_of_mapped_problems():
    a, b, C = problem()
    costs = torch.stack([C, 2 * C, C.sqrt()])

    def along(move):
        return vmap(lambda C: jvp(lambda C: sinkhorn_loss(a, b, C, EPS, tol=1e-10), (C,), (move,))[1])(costs).sum()

    wanted = sum(grad(lambda C: sinkhorn_loss(a, b, C, EPS, tol=1e-10))(C) for C in costs)
    torch.testing.assert_close(grad(along)(torch.ones_like(C)), wanted, **CLOSE)


def test_what_keeps_calls_apart_is_that_of_every_version(monkeypatch):
    def disable(function):  # of PyTorch before 2.8, which takes no reason
        return function

    monkeypatch.setitem(sys.modules, "torch._dynamo", types.SimpleNamespace(disable=disable))
    assert undisturbed(lambda x: x + 1)(1) == 2


def test_prices_of_both_sides_are_parameters_of_a_module():
    a, b, C = problem()
    price = torch.nn.Parameter(torch.tensor(0.5))
    for reach in ((price, None), [torch.tensor(2.0), price]):
        module = SinkhornLoss(C, EPS, reach=reach)
        assert len(list(module.parameters())) == 1
        assert {"reach_0"} <= set(module.state_dict())
        torch.testing.assert_close(module(a, b), sinkhorn_loss(a, b, C, EPS, reach=reach))
        module(a, b).backward()
        assert price.grad
        assert "0.5" in repr(module)


def test_single_beside_double_precision_under_autocast():
    a, b, C = problem()
    values, points = torch.rand(6, 2), torch.rand(6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply_plan(a, b, C.float(), EPS, values)
        of_points = sinkhorn_loss(None, None, PointCloud(points.double(), points), EPS)
    assert found.dtype == of_points.dtype == torch.float64
    torch.testing.assert_close(found, apply_plan(a, b, C.float(), EPS, values))
