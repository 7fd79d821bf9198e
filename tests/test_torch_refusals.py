"""Derivatives that exist beside inputs by which there are none, and those that do not exist."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.autograd import functional  # noqa: E402
from torch.func import grad, hessian, jacfwd, jacrev, jvp  # noqa: E402

import cusink.torch as bridge  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

TIGHT = {"tol": 1e-12, "max_iter": 100_000}


@pytest.fixture
def given():
    torch.manual_seed(0)
    a, b = torch.rand(4, dtype=torch.float64).softmax(0), torch.rand(5, dtype=torch.float64).softmax(0)
    return a, b, torch.rand(4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)


def test_products_with_a_hessian_in_every_way_of_pytorch(given):
    a, b, C, move = given

    def loss(C):
        return bridge.sinkhorn_loss(a, b, C, 0.1, **TIGHT)

    step = 1e-4
    want = (grad(loss)(C + step * move) - grad(loss)(C - step * move)) / (2 * step)
    found = {
        "hvp": functional.hvp(loss, C, move)[1],
        "vhp": functional.vhp(loss, C, move)[1],
        "jvp of grad": jvp(grad(loss), (C,), (move,))[1],
        "grad of jvp": grad(lambda C: jvp(loss, (C,), (move,))[1])(C),
    }
    for name, product in found.items():
        np.testing.assert_allclose(product, want, rtol=1e-6, atol=1e-8, err_msg=name)
    of_sum = grad(lambda move: jvp(grad(loss), (C,), (move,))[1].sum())(move)
    np.testing.assert_allclose(of_sum, functional.hvp(loss, C, torch.ones_like(C))[1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["potentials", "plan", "kernel", "map"])
def test_derivatives_along_moves_by_two_backward_passes(given, name):
    """As `torch.autograd.functional.jvp` takes them, of works whose gradient has no derivative by the inputs."""
    a, b, C, _ = given
    x, y = torch.rand(4, 2, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    outputs = {
        "potentials": lambda C: torch.cat(bridge.sinkhorn_potentials(a, b, C, 0.1, **TIGHT)),
        "plan": lambda C: bridge.apply_plan(a, b, C, 0.1, y, **TIGHT),
        "kernel": lambda x: bridge.kernel_distance(x, None, y, None, kernel="gaussian"),
        "map": lambda C: bridge.barycentric_map(a, b, C, 0.1, y, **TIGHT),
    }
    of, at = outputs[name], x if name == "kernel" else C
    move = torch.rand_like(at)
    step = 1e-5
    want = (of(at + step * move) - of(at - step * move)) / (2 * step)
    np.testing.assert_allclose(functional.jvp(of, at, move)[1], want, rtol=1e-6, atol=1e-7)


def test_a_second_derivative_beside_a_learnt_reach(given):
    a, b, C, _ = given
    a, reach = a.requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = []
    for price in (reach, reach.detach()):
        loss = bridge.sinkhorn_loss(a, b, C, 0.1, reach=price, value="reg_cost", **TIGHT)
        (slope,) = torch.autograd.grad(loss, a, create_graph=True)
        found.append(torch.autograd.grad(slope.pow(2).sum(), a, retain_graph=True)[0])
        if price is reach:
            with pytest.raises(NotImplementedError, match="'reach' has no second derivative"):
                torch.autograd.grad(slope.pow(2).sum(), reach)
    np.testing.assert_array_equal(found[0], found[1])


def test_what_does_not_exist_is_named_as_users_know_it(given):
    a, b, C, _ = given
    eps = torch.tensor(0.1, dtype=torch.float64)

    def first(C):
        return bridge.sinkhorn_potentials(a, b, C, 0.1)[0].sum()

    def loss(eps):
        return bridge.sinkhorn_loss(a, b, C, eps)

    C = C.requires_grad_()
    (slope,) = torch.autograd.grad(first(C), C, create_graph=True)
    once = [
        lambda: slope.sum().backward(),
        lambda: hessian(first)(C.detach()),
        lambda: jacfwd(jacfwd(first))(C.detach()),
    ]
    for call in once:
        with pytest.raises(NotImplementedError, match="^potentials of cusink can be differentiated once only"):
            call()
    for call in (lambda: hessian(grad(loss))(eps), lambda: jacrev(hessian(loss))(eps)):
        with pytest.raises(NotImplementedError, match="cusink losses can be differentiated twice only"):
            call()


@pytest.mark.parametrize("eps", [None, "mean", np.ones(2), torch.ones(2, 2)])
@pytest.mark.parametrize("module", [bridge.SinkhornLoss, bridge.SinkhornDivergence])
def test_a_wrong_eps_is_refused_when_a_module_is_made(module, eps):
    with pytest.raises((TypeError, ValueError), match="'eps' must be a number"):
        module(eps=eps)


def test_a_gap_that_no_loss_shows_is_refused(given):
    a, b, C, _ = given
    with pytest.raises(ValueError, match="'gap' must be None here, as losses show no bounds; got 0.001"):
        bridge.sinkhorn_loss(a, b, C, 0.1, gap=1e-3)
