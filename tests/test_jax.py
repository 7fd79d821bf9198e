"""`cusink.jax`: values and gradients against the oracle, with and without tracing, sharing of memory, bad input."""

from functools import partial

import numpy as np
import problems
import pytest
import reference as oracle

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import cusink  # noqa: E402
from cusink import jax as bridge  # noqa: E402
from cusink.bridges import transport  # noqa: E402
from cusink.jax import sinkhorn_loss  # noqa: E402

VALUES = ("cost", "reg_cost", "entropic_cost")
TIGHT = {"tol": 1e-11, "max_iter": 20000}


@pytest.fixture(autouse=True)
def double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def case(n=7, m=5, B=3, dtype="float64", seed=0):
    """Weights (B, n), (B, m), a cost (n, m) and a regularisation."""
    rng = np.random.default_rng(seed)
    a, b = problems.histograms(rng, B, n), problems.histograms(rng, B, m)
    return *(jnp.asarray(x, dtype) for x in (a, b, rng.random((n, m)))), 0.1


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("traced", [False, True])
def test_the_loss_is_the_value_of_the_oracle(value, traced):
    a, b, C, eps = case()
    expected = np.array([getattr(v, value) for v in oracle.each(oracle.optimum, a, b, C, eps)])

    def loss(a, b, C, eps, reduction):
        return sinkhorn_loss(a, b, C, eps, value=value, reduction=reduction, **TIGHT)

    loss = jax.jit(loss, static_argnums=4) if traced else loss
    for reduction, reduced in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        np.testing.assert_allclose(loss(a, b, C, eps, reduction), reduced, rtol=1e-9)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("traced", [False, True])
def test_every_exact_gradient_is_the_slope_of_the_oracle(value, traced):
    a, b, C, eps = case(B=1)
    rng = np.random.default_rng(1)
    at = [np.asarray(x) for x in (a[0], b[0], C, eps)]
    gradient = jax.grad(lambda *x: sinkhorn_loss(*x, value=value, **TIGHT), argnums=(0, 1, 2, 3))
    grads = (jax.jit(gradient) if traced else gradient)(*map(jnp.asarray, at))
    for k, (x, grad) in enumerate(zip(at, grads, strict=True)):
        direction = np.asarray(rng.normal(size=x.shape))
        if k < 2:
            direction = (direction - direction.mean()) * x.min()
        elif k == 3:
            direction = 0.1 * direction

        def moved(t, k=k, direction=direction):
            return getattr(oracle.optimum(*(z + t * direction if i == k else z for i, z in enumerate(at))), value)

        np.testing.assert_allclose((grad * direction).sum(), oracle.derivative(moved), rtol=1e-6, err_msg="abCe"[k])


def test_tracing_changes_no_gradient_and_neither_does_the_library():
    a, b, C, eps = case()
    gradient = jax.grad(lambda *x: sinkhorn_loss(*x, eps, reduction="sum", **TIGHT), argnums=(0, 1, 2))
    result = cusink.sinkhorn(*map(np.asarray, (a, b, C)), eps=eps, **TIGHT)
    expected = cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=TIGHT["tol"])
    for grads in (gradient(a, b, C), jax.jit(gradient)(a, b, C)):
        for name, grad in zip("abC", grads, strict=True):
            np.testing.assert_allclose(grad, getattr(expected, name), rtol=1e-13, atol=1e-15)


def test_the_multiplier_is_the_gradient_of_reg_cost_and_the_value_is_the_cost():
    a, b, C, eps = case()
    loss, grads = jax.value_and_grad(
        lambda a, b: sinkhorn_loss(a, b, C, eps, gradient="multiplier", reduction="sum", **TIGHT), argnums=(0, 1)
    )(a, b)
    result = cusink.sinkhorn(*map(np.asarray, (a, b, C)), eps=eps, **TIGHT)
    np.testing.assert_allclose(loss, result.cost.sum(), rtol=1e-14)
    for grad, potential in zip(grads, (result.f, result.g), strict=True):
        np.testing.assert_allclose(grad, potential - potential.mean(axis=1, keepdims=True), atol=1e-14)


@pytest.mark.parametrize("shapes", [((7,), (3, 5), (7, 5)), ((3, 7), (5,), (1, 7, 5)), ((1, 7), (1, 5), (3, 7, 5))])
def test_gradients_have_the_shapes_of_their_inputs_and_sum_over_the_batch(shapes):
    a, b, C, eps = case()
    costs = C * jnp.asarray([1.0, 0.9, 1.1])[:, None, None]
    inputs = [
        x if shape[0] == 3 else (x[:1] if x.ndim == len(shape) else x[0])
        for x, shape in zip((a, b, costs), shapes, strict=True)
    ]
    assert [x.shape for x in inputs] == list(shapes)
    weights = jnp.asarray([1.0, -2.0, 0.5])

    def weighted(*x):
        return (sinkhorn_loss(*x, eps, reduction="none", **TIGHT) * weights).sum()

    def spread(*x):
        return weighted(*(jnp.broadcast_to(y, (3, *y.shape[-k:])) for y, k in zip(x, (1, 1, 2), strict=True)))

    grads, expected = (jax.grad(f, argnums=(0, 1, 2))(*inputs) for f in (weighted, spread))
    for grad, x, wanted in zip(grads, inputs, expected, strict=True):
        assert grad.shape == x.shape
        np.testing.assert_allclose(grad, wanted, rtol=1e-6, atol=1e-9)


def test_vmap_gives_the_numbers_of_a_batch():
    a, b, C, eps = case()

    def one(a, b):
        return sinkhorn_loss(a, b, C, eps, **TIGHT)

    batch, slopes = jax.vmap(jax.value_and_grad(one))(a, b)
    together = jax.grad(lambda a: sinkhorn_loss(a, b, C, eps, reduction="sum", **TIGHT))(a)
    np.testing.assert_allclose(batch, sinkhorn_loss(a, b, C, eps, reduction="none", **TIGHT), rtol=1e-9)
    np.testing.assert_allclose(slopes, together, rtol=1e-7, atol=1e-9)


def test_nothing_is_copied_on_the_way_in(monkeypatch):
    seen = {}

    def solve(a, b, C, **options):
        seen.update(a=a, b=b, C=C)
        return cusink.sinkhorn(a, b, C, **options)

    monkeypatch.setattr(transport, "sinkhorn", solve)
    a, b, C, eps = case()
    jax.grad(sinkhorn_loss)(a, b, C, eps)
    for name, x in zip("abC", (a, b, C), strict=True):
        assert seen[name].ctypes.data == x.unsafe_buffer_pointer()


@pytest.mark.parametrize(("value", "reach"), [("reg_cost", 1.0), ("cost", (0.5, None))])
@pytest.mark.parametrize("traced", [False, True])
def test_gradients_of_unbalanced_transport_are_slopes_of_the_value(value, reach, traced):
    a, b, C, eps = case(B=2)
    given = (a, 0.7 * b if reach == 1.0 else b, C, jnp.asarray(eps))
    rng = np.random.default_rng(2)
    gradient = jax.grad(lambda *x: sinkhorn_loss(*x, value=value, reach=reach, **TIGHT), argnums=(0, 1, 2, 3))
    grads = (jax.jit(gradient) if traced else gradient)(*given)
    at = [np.asarray(x) for x in given]
    for k, (x, grad) in enumerate(zip(at, grads, strict=True)):
        direction = 0.1 * x * rng.random(x.shape)

        def moved(t, k=k, move=direction):
            p, q, costs, scale = (y + t * move if i == k else y for i, y in enumerate(at))
            result = cusink.sinkhorn(p, q, costs, eps=float(scale), reach=reach, tol=1e-13, max_iter=20000)
            return getattr(result, value).mean()

        expected = oracle.derivative(moved)
        np.testing.assert_allclose((np.asarray(grad) * direction).sum(), expected, rtol=1e-6, err_msg="abCe"[k])


def test_unbalanced_transport_without_double_precision_loses_nothing_to_a_large_reach():
    a, b, C, eps = case(B=2)
    given = [np.asarray(x) for x in (a, 0.7 * b, C)]
    solved = cusink.sinkhorn(*given, eps=eps, reach=1e4, tol=1e-11)
    expected = cusink.sinkhorn_adjoint(solved, grad_reg_cost=np.full(2, 0.5))
    jax.config.update("jax_enable_x64", False)
    narrow = (jnp.asarray(x, "float32") for x in given)
    gradient = jax.grad(lambda *x: sinkhorn_loss(*x, eps, value="reg_cost", reach=1e4, tol=1e-5), argnums=(0, 2))
    by_a, by_cost = jax.jit(gradient)(*narrow)
    np.testing.assert_allclose(by_a, expected.a, rtol=1e-5)
    np.testing.assert_allclose(by_cost, expected.C, rtol=0, atol=1e-4 * expected.C.max())


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_leaves_the_masses_of_unbalanced_transport(half):
    a, b, C, eps = (x if isinstance(x, float) else x.astype(half) for x in case())
    b = (b * 1.005).astype(half)
    loss = partial(sinkhorn_loss, eps=eps, value="reg_cost", reach=1.0, tol=1e-6)
    x, y, z = (x.astype("float32") for x in (a, b, C))
    assert not np.allclose(x.sum(-1), y.sum(-1), rtol=1e-3, atol=0)
    np.testing.assert_array_equal(loss(a, b, C), loss(x, y, z).astype(half))
    np.testing.assert_array_equal(jax.grad(loss, 1)(a, b, C), jax.grad(loss, 1)(x, y, z).astype(half))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(half):
    a, b, C, eps = (x if isinstance(x, float) else x.astype(half) for x in case(n=64, m=64))
    loss, grad = jax.value_and_grad(sinkhorn_loss)(a, b, C, eps)
    assert (loss.dtype.name, grad.dtype.name) == (half, half)
    x, y, z = (x.astype("float64") for x in (a, b, C))
    expected = sinkhorn_loss(x, y * x.sum(-1, keepdims=True) / y.sum(-1, keepdims=True), z, eps)
    assert abs(loss.astype("float64") - expected) <= float(jnp.finfo(half).eps) * expected
    with pytest.raises(ValueError, match="must have the same mass"):
        sinkhorn_loss(a * 1.1, b, C, eps)


def test_single_precision_stays_single():
    a, b, C, eps = case(dtype="float32")
    loss, grad = jax.jit(jax.value_and_grad(sinkhorn_loss))(a, b, C, eps)
    assert (loss.dtype, grad.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(loss, sinkhorn_loss(*(x.astype("float64") for x in (a, b, C)), eps), rtol=1e-5)


def test_uniform_weights_and_one_pair():
    _, b, C, eps = case()
    loss = sinkhorn_loss(None, b[0], C, eps, reduction="none")
    assert loss.shape == ()
    np.testing.assert_allclose(loss, sinkhorn_loss(jnp.full(7, 1 / 7), b[0], C, eps), rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"value": "E0"}, ValueError, "'value' must be one of 'cost', 'reg_cost', 'entropic_cost'; got 'E0'"),
        ({"gradient": "sharp"}, ValueError, "'gradient' must be one of 'exact', 'multiplier'; got 'sharp'"),
        ({"reduction": "max"}, ValueError, "'reduction' must be one of 'mean', 'sum', 'none'; got 'max'"),
        ({"init": (0, 0)}, TypeError, "'init' is not taken here"),
        ({"a": np.ones((3, 5)) / 5}, ValueError, "'a' must have 7 bins to match C of shape (7, 5); got shape (3, 5)"),
        ({"b": np.ones((3, 5), "float16")}, TypeError, "one dtype; 'b' is float16 and 'C' float64"),
        ({"C": np.ones(5)}, ValueError, "'C' must have shape (n, m) or (B, n, m); got (5,)"),
        ({"a": -np.ones((3, 7))}, ValueError, "'a' must be non-negative"),
        ({"eps": -1.0}, ValueError, "'eps' must be positive and finite; got -1.0"),
        ({"reach": 0.0}, ValueError, "'reach' must be a positive number"),
        ({"C": cusink.PointCloud([0.0, 1.0])}, TypeError, "got cusink.PointCloud. Pass cusink.jax.PointCloud(x, y)"),
        ({"max_itr": 5}, TypeError, "unexpected keyword argument 'max_itr'"),
    ],
)
def test_bad_input(change, error, message):
    a, b, C, eps = case()
    with pytest.raises(error) as caught:
        sinkhorn_loss(**({"a": a, "b": b, "C": C, "eps": eps} | change))
    assert message in str(caught.value)


def test_a_bad_value_under_jit_is_named_in_what_jax_raises():
    a, b, C, eps = case()
    with pytest.raises(Exception, match="'a' must be non-negative"):
        jax.block_until_ready(jax.jit(sinkhorn_loss)(-a, b, C, eps))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, b, C: (bridge.sinkhorn_potentials(x, b, C, 0.1)[0] ** 2).sum(),
        lambda x, b, C: bridge.kernel_distance(C, x, C[:4], None),
        lambda x, b, C: jax.grad(lambda y: sinkhorn_loss(y, b, C, 0.1))(x)[0],
    ],
    ids=["potentials", "kernel", "third"],
)
def test_a_derivative_that_does_not_exist_is_refused(loss):
    a, b, C, _ = case()
    with pytest.raises((NotImplementedError, ValueError), match="once only|twice only"):
        jax.hessian(lambda x: loss(x, b[0], C))(a[0])


def test_the_hessian_of_values_with_reach_is_that_of_differences():
    a, b, C, _ = case()

    def loss(x):
        given = (x, b[0], C, 0.3)
        return sum(sinkhorn_loss(*given, value=value, reach=1.0, tol=1e-12) for value in ("cost", "entropic_cost"))

    direction = jnp.asarray(np.random.default_rng(7).normal(size=a[0].shape)) * a[0]
    before, after = (jax.grad(loss)(a[0] + h * direction) for h in (-1e-4, 1e-4))
    np.testing.assert_allclose(jax.hessian(loss)(a[0]) @ direction, (after - before) / 2e-4, rtol=1e-5, atol=1e-7)


def test_a_loss_that_has_not_converged_warns():
    a, b, C, _ = case()
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach tol"):
        sinkhorn_loss(a, b, C, 0.001, max_iter=3)


# ---- whole numbers, overflow ---------------------------------------------------------------------------------------


def whole(kind):
    """Return a, b and C in whole numbers: lists, or arrays of NumPy or JAX."""
    make = {"list": list, "numpy": np.array, "jax": jnp.array}[kind]
    return make([3, 1]), make([1, 3]), make([[0, 5], [5, 0]])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", ["list", "numpy", "jax"])
@pytest.mark.parametrize(("eps", "right"), [(4.9, -15.802027), (0.5, 7.397310)])
def test_whole_numbers_become_the_default_float(kind, eps, right, wide):
    jax.config.update("jax_enable_x64", wide)
    a, b, C = whole(kind)
    loss = sinkhorn_loss(a, b, C, eps, value="reg_cost")
    assert loss.dtype == (jnp.float64 if wide else jnp.float32)
    x, y, cost = (np.asarray(v, float) for v in (a, b, C))
    np.testing.assert_allclose(loss, oracle.optimum(x, y, cost, eps).reg_cost, rtol=1e-5)
    np.testing.assert_allclose(loss, right, rtol=1e-6)


def test_lists_and_whole_numbers_follow_the_arrays_that_they_come_with():
    C = jnp.asarray([[0.0, 5.0], [5.0, 0.0]], jnp.float32)
    for a, b in (([0.75, 0.25], [0.25, 0.75]), (jnp.array([3, 1]), np.array([1, 3]))):
        assert sinkhorn_loss(a, b, C, 0.5).dtype == jnp.float32
    assert sinkhorn_loss(jnp.asarray([0.75, 0.25], jnp.float32), None, [[0, 5], [5, 0]], 0.5).dtype == jnp.float32
    slope = jax.grad(lambda eps: sinkhorn_loss([3, 1], [1, 3], [[0, 5], [5, 0]], eps, value="reg_cost"))(4.9)
    assert np.isfinite(slope) and slope != 0


@pytest.mark.parametrize("traced", [False, True])
def test_a_gradient_that_overflowed_reaches_the_inputs_of_its_problem(traced):
    a, b, C, eps = case()
    scale = jnp.array([1.0, jnp.inf, 1.0])

    def total(a, b, C, scale):
        return (sinkhorn_loss(a, b, C, eps, reduction="none") * scale).sum()

    slopes = jax.grad(total, argnums=(0, 1, 2))
    slopes = jax.jit(slopes) if traced else slopes
    found, expected = slopes(a, b, C, scale), slopes(a, b, C, jnp.ones(3))
    for grad, finite in zip(found[:2], expected[:2], strict=True):
        assert not np.isfinite(grad[1]).any()
        np.testing.assert_array_equal(grad[::2], finite[::2])
    assert not np.isfinite(found[2]).any()


@pytest.mark.parametrize(
    ("a", "C", "eps", "error"),
    [
        (None, None, 0.1, "'C'"),
        (None, "abc", 0.1, "'C' must be an array, or a list of numbers"),
        (None, [[1j]], 0.1, "'C' must hold real numbers"),
        (None, jnp.eye(2, dtype="float8_e4m3fn"), 0.1, "'C' must hold float64, .*; got float8_e4m3fn. Convert it"),
        (jnp.ones(2, "float8_e5m2"), jnp.eye(2), 0.1, "'a' must hold float64, .*; got float8_e5m2. Convert it"),
        (None, jnp.eye(2), jnp.ones((), "float8_e5m2"), "'eps' must hold float64, .*; got float8_e5m2. Convert it"),
        (jax.random.split(jax.random.key(0), 2), jnp.eye(2), 0.1, "'a' must hold real numbers; got dtype key"),
        (None, jnp.eye(2), jax.random.key(0), "'eps' must hold real numbers; got dtype key"),
        ([10**400], [[1.0]], 0.1, "'a' must hold real numbers"),
        (None, jnp.eye(2), jnp.full((2, 2), 0.1), "'eps' must be a number, or an array of one"),
        (None, jnp.eye(2), True, "'eps' must be a number"),
        (None, jnp.eye(2, dtype=jnp.float32), 1e300, "'eps' must be such that"),
    ],
)
def test_what_is_no_array_of_numbers(a, C, eps, error):
    with pytest.raises((TypeError, ValueError), match=error):
        sinkhorn_loss(a, None, C, eps)


# ---- clouds, grids, both modes, second order, maps -----------------------------------------------------------------


def points(seed=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=(3, 2)))


LOSSES = {
    "cost": lambda x, y: sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.5, **TIGHT),
    "divergence": lambda x, y: bridge.sinkhorn_divergence(
        None, None, bridge.PointCloud(x, y, "euclidean"), 0.5, **TIGHT
    ),
    "kernel": lambda x, y: bridge.kernel_distance(x, None, y, None, kernel="distance"),
    "likelihood": lambda x, y: bridge.kernel_neg_log_likelihood(x, None, y, None),
}


def moved(function, x, direction):
    return oracle.derivative(lambda t: np.asarray(function(x + t * direction)))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_of_clouds_are_slopes_in_both_modes(loss, traced):
    (x, y), direction = points(), jnp.asarray(np.random.default_rng(4).normal(size=(4, 2)))
    wrap = jax.jit if traced else lambda f: f
    forward = wrap(lambda x, u: jax.jvp(lambda x: LOSSES[loss](x, y), (x,), (u,))[1])(x, direction)
    backward = (wrap(jax.grad(LOSSES[loss]))(x, y) * direction).sum()
    expected = moved(lambda x: LOSSES[loss](x, y), x, direction)
    np.testing.assert_allclose([forward, backward], expected, rtol=1e-7)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("loss", ["cost", "divergence"])
def test_second_derivatives_are_slopes_of_the_gradient_in_any_order(loss, traced):
    (x, y), direction = points(), jnp.asarray(np.random.default_rng(4).normal(size=(4, 2)))
    gradient = jax.grad(lambda x: LOSSES[loss](x, y))
    expected = moved(gradient, x, direction)
    products = {
        "forward over reverse": lambda x: jax.jvp(gradient, (x,), (direction,))[1],
        "reverse over reverse": jax.grad(lambda x: (gradient(x) * direction).sum()),
        "reverse over forward": jax.grad(lambda x: jax.jvp(lambda x: LOSSES[loss](x, y), (x,), (direction,))[1]),
        "hessian": lambda x: jnp.einsum("ijkl,kl->ij", jax.hessian(lambda x: LOSSES[loss](x, y))(x), direction),
    }
    for name, product in products.items():
        found = (jax.jit(product) if traced else product)(x)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("value", VALUES)
def test_reverse_over_forward_of_a_batch_with_one_cost(value):
    a, b, C, eps = case()
    direction = jnp.asarray(np.random.default_rng(5).normal(size=C.shape))
    weights = jnp.asarray([1.0, -0.5, 2.0])

    def slope(C):
        losses = partial(sinkhorn_loss, a, b, eps=eps, value=value, reduction="none", **TIGHT)
        return (weights * jax.jvp(losses, (C,), (direction,))[1]).sum()

    gradient = jax.grad(lambda C: (weights * sinkhorn_loss(a, b, C, eps, value=value, reduction="none", **TIGHT)).sum())
    np.testing.assert_allclose(jax.grad(slope)(C), jax.jvp(gradient, (C,), (direction,))[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("traced", [False, True])
def test_vmap_over_every_argument_is_one_call(monkeypatch, traced):
    a, b, C, _ = case()
    costs, eps = jnp.stack([C, 0.9 * C, 1.1 * C]), jnp.asarray([0.1, 0.2, 0.1])
    calls, solve = [], transport.sinkhorn
    monkeypatch.setattr(transport, "sinkhorn", lambda *args, **options: calls.append(1) or solve(*args, **options))

    def one(a, b, C, eps):
        return sinkhorn_loss(a, b, C, eps, **TIGHT)

    gradient = jax.grad(one, argnums=(0, 1, 2, 3))
    mapped = jax.vmap(gradient)
    found = jax.block_until_ready((jax.jit(mapped) if traced else mapped)(a, b, costs, eps))
    assert len(calls) == 1  # whatever the eps of each
    shared = jax.vmap(gradient, in_axes=(0, None, None, None))(a, b[0], C, 0.1)
    for k in range(3):
        for together, args in ((found, (a[k], b[k], costs[k], eps[k])), (shared, (a[k], b[0], C, 0.1))):
            for got, expected in zip(together, gradient(*args), strict=True):
                np.testing.assert_allclose(got[k], expected, rtol=1e-6, atol=1e-9)


def test_relative_eps_is_that_of_the_costs_and_stays_as_the_number_it_is():
    a, b, C, _ = case()
    relative, costs = cusink.RelativeEps(0.1, "mean"), jnp.stack([C, 0.9 * C, 3 * C])

    def loss(C, eps):
        return sinkhorn_loss(a, b, C, eps, **TIGHT)

    eps = 0.1 * costs.mean(axis=(1, 2))
    expected, gradient = jax.value_and_grad(loss)(costs, eps)
    for found in (
        jax.value_and_grad(loss)(costs, relative),
        jax.jit(jax.value_and_grad(lambda C: loss(C, relative)))(costs),
    ):
        np.testing.assert_allclose(found[0], expected, rtol=1e-9)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-6, atol=1e-9)


def test_maps_in_maps_and_over_batches():
    a, b, C, eps = case()
    table = jax.vmap(jax.vmap(lambda x, y: sinkhorn_loss(x, y, C, eps, **TIGHT), (None, 0)), (0, None))(a, b)
    scaled = jax.vmap(lambda s: sinkhorn_loss(a, b, s * C, eps, reduction="none", **TIGHT))(jnp.asarray([1.0, 0.5]))
    for i in range(3):
        for j in range(3):
            np.testing.assert_allclose(table[i, j], sinkhorn_loss(a[i], b[j], C, eps, **TIGHT), rtol=1e-9)
    np.testing.assert_allclose(scaled[1], sinkhorn_loss(a, b, C / 2, eps, reduction="none", **TIGHT), rtol=1e-9)
    jacobian = jax.jacrev(lambda C: sinkhorn_loss(a, b, C, eps, reduction="none", **TIGHT))(C)
    expected = jax.grad(lambda C: sinkhorn_loss(a[1], b[1], C, eps, **TIGHT))(C)
    np.testing.assert_allclose(jacobian[1], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("traced", [False, True])
def test_derivatives_of_one_problem_along_mapped_directions_have_gradients(traced):
    a, b, C, eps = case(B=1)
    rng = np.random.default_rng(8)
    moves, weights = jnp.asarray(rng.normal(size=(4, *C.shape))), jnp.asarray(rng.normal(size=(4, 7)))
    wrap = jax.jit if traced else lambda f: f

    def loss(a, C):
        return sinkhorn_loss(a, b[0], C, eps, **TIGHT)

    def along(moves):
        return jax.vmap(lambda move: jax.jvp(partial(loss, a[0]), (C,), (move,))[1])(moves) @ weights[:, 0]

    def of_gradients(moves):
        slopes = jax.vmap(lambda move: jax.jvp(lambda C: jax.grad(loss)(a[0], C), (C,), (move,))[1])(moves)
        return (slopes * weights).sum()

    given = [np.asarray(x) for x in (a[0], b[0])]
    slopes = [moved(lambda C: oracle.optimum(*given, np.asarray(C), eps).cost, C, move) for move in moves]
    found = wrap(jax.grad(along))(moves)
    assert found.shape == moves.shape
    np.testing.assert_allclose((found * moves).sum(axis=(1, 2)), weights[:, 0] * np.array(slopes), rtol=1e-6)
    expected = [(wrap(jax.grad(loss))(a[0], C + 1e-5 * m) - jax.grad(loss)(a[0], C - 1e-5 * m)) / 2e-5 for m in moves]
    products = (wrap(jax.grad(of_gradients))(moves) * moves).sum(axis=(1, 2))
    np.testing.assert_allclose(products, (jnp.stack(expected) * weights).sum(axis=1), rtol=1e-6)


def test_derivatives_of_mapped_problems_along_one_direction_have_gradients():
    a, b, C, eps = case(B=1)
    direction = jnp.asarray(np.random.default_rng(9).normal(size=C.shape))
    given, costs = [np.asarray(x) for x in (a[0], b[0])], jnp.stack([C, 0.9 * C, 1.1 * C])

    def along(move):
        loss = partial(sinkhorn_loss, a[0], b[0], eps=eps, **TIGHT)
        return jax.vmap(lambda C: jax.jvp(loss, (C,), (move,))[1])(costs).sum()

    slopes = [moved(lambda C: oracle.optimum(*given, np.asarray(C), eps).cost, C, direction) for C in costs]
    np.testing.assert_allclose((jax.grad(along)(direction) * direction).sum(), sum(slopes), rtol=1e-6)


def test_potentials_are_differentiable():
    a, b, C, eps = case(B=1)
    rng = np.random.default_rng(6)
    u, direction = rng.normal(size=7), jnp.asarray(rng.normal(size=C.shape))

    def loss(C):
        f, g = bridge.sinkhorn_potentials(a[0], b[0], C, eps, **TIGHT)
        return f @ u - g.sum() ** 2

    expected = moved(loss, C, direction)
    np.testing.assert_allclose((jax.grad(loss)(C) * direction).sum(), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(loss, (C,), (direction,))[1], expected, rtol=1e-6)


def test_images_on_a_grid_and_a_divergence_with_costs_of_its_own():
    rng = np.random.default_rng(5)
    a, b = (jnp.asarray(problems.histograms(rng, 2, 12)) for _ in range(2))
    grid = cusink.Grid((3, 4), "euclidean", spacing=(0.5, (0.5, 1.0, 0.25)))
    for loss in (sinkhorn_loss, bridge.sinkhorn_divergence):
        found, expected = (jax.grad(partial(loss, b=b, C=C, eps=0.2, tol=1e-10))(a) for C in (grid, grid.dense()))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    x, y = points()
    costs = [jnp.asarray(cusink.cost_matrix(*map(np.asarray, pair))) for pair in ((x, y), (x, x), (y, y))]
    value = bridge.sinkhorn_divergence(None, None, costs[0], 0.5, C_aa=costs[1], C_bb=costs[2])
    np.testing.assert_allclose(value, bridge.sinkhorn_divergence(None, None, bridge.PointCloud(x, y), 0.5), rtol=1e-9)
    with pytest.raises(ValueError, match="must both be given"):
        bridge.sinkhorn_divergence(None, None, costs[0], 0.5, C_aa=costs[1])


def test_without_double_precision_second_derivatives_lose_nothing_either():
    x, y = points()
    expected = np.asarray(jax.hessian(lambda x: LOSSES["cost"](x, y))(x))
    jax.config.update("jax_enable_x64", False)
    x, y = (jnp.asarray(np.asarray(p), "float32") for p in (x, y))
    found = jax.jit(jax.hessian(lambda x: sinkhorn_loss(None, None, bridge.PointCloud(x, y), 0.5, tol=1e-6)))(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("axis", [0, 1])
def test_products_with_the_plan_are_differentiable_and_map(axis):
    x, y = points()
    values, direction = (y if axis else x), jnp.asarray(np.random.default_rng(4).normal(size=(4, 2)))

    def loss(x):
        cloud = bridge.PointCloud(x, y)
        return (bridge.apply_plan(None, None, cloud, 0.5, values, axis=axis, **TIGHT) ** 2).sum()

    expected = moved(loss, x, direction)
    np.testing.assert_allclose((jax.jit(jax.grad(loss))(x) * direction).sum(), expected, rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(loss, (x,), (direction,))[1], expected, rtol=1e-7)
    together = jax.vmap(jax.grad(loss))(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(together[1], jax.grad(loss)(2 * x), rtol=1e-7, atol=1e-10)


def mean(A, C, weights=None, eps=0.1, **options):
    """Return the barycenter of rows that are brought to one mass."""
    return bridge.barycenter(A / A.sum(axis=-1, keepdims=True), C, weights, eps=eps, **TIGHT, **options)


@pytest.mark.parametrize("traced", [False, True])
def test_gradients_of_barycenters_are_slopes(traced):
    rng = np.random.default_rng(3)
    given = [rng.dirichlet(np.ones(4), (2, 2)), rng.random((4, 3)), 0.2 + rng.random((2, 2)), np.array([0.1, 0.3])]
    given, r = [jnp.asarray(x) for x in given], jnp.asarray(rng.normal(size=(2, 3)))

    def loss(*inputs):
        return (mean(*inputs) * r).sum()

    slopes = jax.grad(jax.jit(loss) if traced else loss, argnums=(0, 1, 2, 3))(*given)
    for k, (x, slope) in enumerate(zip(given, slopes, strict=True)):
        direction = 0.1 * jnp.asarray(rng.normal(size=x.shape))
        expected = moved(lambda x, k=k: loss(*(x if i == k else y for i, y in enumerate(given))), x, direction)
        np.testing.assert_allclose((slope * direction).sum(), expected, rtol=1e-6)
    with pytest.raises(NotImplementedError, match="can be differentiated once, and backwards only"):
        jax.jvp(loss, tuple(given), tuple(given))


def test_barycenters_map_over_costs_and_points_and_keep_half_precision():
    rng = np.random.default_rng(4)
    A, x = jnp.asarray(rng.dirichlet(np.ones(4), (2, 3))), jnp.asarray(rng.random((2, 4, 2)))

    def loss(A, x):
        return mean(A, bridge.PointCloud(x), eps=0.3)[0]

    together = jax.vmap(jax.grad(loss, argnums=(0, 1)))(A, x)
    for k in range(2):
        for found, expected in zip(together, jax.grad(loss, argnums=(0, 1))(A[k], x[k]), strict=True):
            np.testing.assert_allclose(found[k], expected, rtol=1e-7, atol=1e-10)
    C = jnp.asarray(cusink.cost_matrix(np.asarray(x[0])))
    half = bridge.barycenter(A.astype("bfloat16"), C.astype("bfloat16"), eps=0.3)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(float), mean(A, C, eps=0.3), atol=2e-2)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"A": None}, TypeError, "'A' must be an array of histograms"),
        ({"A": np.ones((2, 4))}, ValueError, r"'A' must have shape \(K, 3\) or \(B, K, 3\)"),
        ({"C": np.ones((2, 3, 3))}, ValueError, r"'C' must have shape \(n, m\)"),
        ({"C": np.ones((3, 3), np.float16)}, TypeError, "all arrays must share one dtype; 'C' is float16"),
        ({"weights": np.ones(3)}, ValueError, r"'weights' must have shape \(2,\) or \(B, 2\)"),
    ],
)
def test_bad_input_of_a_barycenter(given, error, message):
    arguments = {"A": np.full((2, 3), 1 / 3), "C": np.ones((3, 3)), "eps": 0.1} | given
    with pytest.raises(error, match=message):
        bridge.barycenter(arguments.pop("A"), arguments.pop("C"), **arguments)


@pytest.mark.parametrize("odd", ["x", "a", "y", "b"])
@pytest.mark.parametrize("function", [bridge.kernel_distance, bridge.kernel_neg_log_likelihood])
def test_kernels_refuse_arrays_of_different_dtypes_on_either_side(function, odd):
    x, y = points()
    given = {"x": x, "a": jnp.full(4, 0.25), "y": y, "b": jnp.full(3, 1 / 3)}
    given |= {odd: given[odd].astype("bfloat16")}
    uniform = {"a": None, "b": None} if odd in "xy" else {}
    with pytest.raises(TypeError, match=f"all arrays must share one dtype; .*'{odd}' (is )?bfloat16"):
        function(**given | uniform)


@pytest.mark.parametrize("traced", [False, True])
def test_options_are_constants_of_what_is_compiled(traced):
    a, b, C, eps = case(B=1)
    wrap = jax.jit if traced else lambda f: f
    loss = wrap(lambda C: sinkhorn_loss(a, b, C, eps, reach=[0.5, 1.0], tol=np.asarray(1e-11), max_iter=20000))
    given = (np.asarray(x) for x in (a, b, C))
    expected = cusink.sinkhorn(*given, eps=eps, reach=(0.5, 1.0), tol=1e-11, max_iter=20000).cost
    np.testing.assert_allclose(loss(C), expected.mean(), rtol=1e-9)
    values, cloud = jnp.ones((5, 2)), bridge.PointCloud(C[:3], C[3:])
    calls = [
        lambda **options: sinkhorn_loss(a, b, C, eps, **options),
        lambda **options: bridge.sinkhorn_divergence(a, a, cusink.Grid(7), eps, **options),
        lambda **options: bridge.sinkhorn_potentials(a, b, C, eps, **options),
        lambda **options: bridge.apply_plan(a, b, C, eps, values, **options),
        lambda **options: bridge.barycentric_map(a, b, C, eps, values, **options),
        lambda **options: bridge.potential_at(None, None, cloud, eps, C[:3], **options),
        lambda **options: bridge.barycenter(a, cusink.Grid(7), eps=eps, **options),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="'tol' must be no array, as what is compiled depends on it; got"):
            wrap(lambda tol, call=call: call(tol=tol))(jnp.asarray(1e-4))
        with pytest.raises(TypeError, match="unexpected keyword argument 'max_itr'; options of the solver are"):
            wrap(lambda C, call=call: call(max_itr=5))(C)


@pytest.mark.parametrize("traced", [False, True])
def test_shapes_are_checked_before_anything_is_traced(traced):
    a, b, C, _ = case()
    wrap = jax.jit if traced else lambda f: f
    for function in (bridge.apply_plan, bridge.barycentric_map):
        for axis, (right, wrong) in enumerate(((7, 5), (5, 7))):
            message = rf"'values' must have shape \({right}, d\), or that with a batch axis; got \({wrong}, 2\)"
            with pytest.raises(ValueError, match=message):
                wrap(partial(function, None, None, eps=0.1, axis=axis))(C, values=jnp.ones((wrong, 2)))
    for given in ((a[:2], b, C, 0.1), (a, b[0], jnp.stack([C, C]), 0.1), (a, b, C, jnp.ones(2))):
        with pytest.raises(ValueError, match="batch sizes must be equal or 1; got"):
            wrap(sinkhorn_loss)(*given)


def test_images_of_any_sum_in_two_dtypes():
    """Gradients are those by the weights as they are, in their shape and dtype."""
    rng, grid = np.random.default_rng(2), cusink.Grid((3, 4))
    a, b = jnp.asarray(rng.random((3, 4)), jnp.float32), jnp.asarray(rng.random((3, 4)))

    def loss(a, b):
        return sinkhorn_loss(a, b, grid, 0.5, tol=1e-10, normalise=True)

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(a, b)
    assert value.dtype == jnp.float64 and [x.dtype for x in slopes] == [jnp.float32, jnp.float64]
    for at, slope in enumerate(slopes):
        move = jnp.asarray(rng.standard_normal((3, 4)))
        up, down = (
            loss(*(x.astype(float) + (sign * 1e-5 * move if k == at else 0) for k, x in enumerate((a, b))))
            for sign in (1, -1)
        )
        assert float((slope * move).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)
    each = jax.vmap(loss)(jnp.stack([a, 2 * a]), jnp.stack([b, b]))
    np.testing.assert_allclose(each, value, rtol=1e-6)
    f, _ = bridge.sinkhorn_potentials(a, b, grid, 0.5, normalise=True)
    assert f.shape == (3, 4)
    assert bridge.apply_plan(a, b, grid, 0.5, jnp.ones((3, 4, 2)), normalise=True).shape == (3, 4, 2)
    assert bridge.barycenter(jnp.stack([a, 2 * a]), grid, eps=0.5, normalise=True).shape == (3, 4)
    with pytest.raises(ValueError, match=r"'a' must have shape \(3, 4\) or \(B, 3, 4\)"):
        loss(a[:2], b)


MAPS = {
    "means": lambda x, b, y, v, eps: bridge.barycentric_map(None, b, bridge.PointCloud(x, y), eps, v, **TIGHT),
    "map": lambda x, b, y, v, eps: bridge.entropic_map(None, b, bridge.PointCloud(x, y), eps, 2 * x[:2], **TIGHT),
    "values": lambda x, b, y, v, eps: bridge.entropic_map(
        None, 2 * b, bridge.PointCloud(x, y), eps, x[1:], v, reach=(0.5, None), **TIGHT
    ),
    "potential": lambda x, b, y, v, eps: bridge.potential_at(
        None, b, bridge.PointCloud(x, y), eps, 2 * y[:2], axis=0, **TIGHT
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_pass_check_grads_in_both_modes(name):
    x, y = points()
    rng = np.random.default_rng(6)
    b, v = jnp.asarray(rng.normal(size=len(y))), jnp.asarray(rng.normal(size=(len(y), 1)))

    def function(x, b, *rest):
        return MAPS[name](x, jax.nn.softmax(b), *rest)

    check_grads(function, (x, b, y, v, 0.5), 1, ("fwd", "rev"), atol=1e-5, rtol=1e-5)
    compiled = jax.jit(lambda x: function(x, b, y, v, 0.5))
    np.testing.assert_allclose(compiled(x), function(x, b, y, v, 0.5), rtol=1e-12)


@pytest.mark.parametrize("traced", [False, True])
def test_prices_of_the_marginals_are_differentiable_and_map(traced):
    a, b, C, eps = case(B=1)

    def loss(reach):
        return sinkhorn_loss(a, b, C, eps, reach=reach, **TIGHT)

    loss = jax.jit(loss) if traced else loss
    for reach in (jnp.asarray(0.5), jnp.asarray([0.5, 0.9])):
        check_grads(loss, (reach,), 1, ("fwd", "rev"), atol=1e-5, rtol=1e-5)
    prices = jnp.asarray([0.3, 0.9])
    each = [jax.value_and_grad(loss)(reach) for reach in prices]
    np.testing.assert_allclose(jax.vmap(jax.value_and_grad(loss))(prices), np.transpose(each), rtol=1e-7)
    with pytest.raises(NotImplementedError, match="'reach' has no second derivative here"):
        jax.hessian(loss)(prices)
    if not traced:
        of_self = jax.grad(lambda reach: bridge.sinkhorn_divergence(a, a, cusink.Grid(7), eps, reach=reach))(prices[0])
        np.testing.assert_allclose(of_self, 0, atol=1e-6)
        with pytest.raises(TypeError, match="'reach' must be a real number"):
            loss(prices > 0)


@pytest.mark.parametrize("traced", [False, True])
def test_derivatives_that_do_not_exist_are_refused_alike_in_traced_code(traced):
    a, b, C, eps = case(B=1)
    rho = jnp.asarray(0.5)
    missing = {
        "'reach' has no second derivative": lambda way: jax.jvp(
            way(jax.grad(lambda r: bridge.sinkhorn_divergence(a, a, cusink.Grid(7), eps, reach=r))), (rho,), (rho,)
        ),
        "'reach' has no derivative of forward mode": lambda way: jax.jvp(
            way(lambda r: bridge.sinkhorn_potentials(a, b, C, eps, reach=r)), (rho,), (rho,)
        ),
        "a barycenter can be differentiated once, and backwards only": lambda way: jax.jvp(
            way(lambda C: bridge.barycenter(b, C, eps=1.0)), (C.T @ C,), (C.T @ C,)
        ),
    }
    for message, call in missing.items():
        with pytest.raises(NotImplementedError, match=message):
            call(jax.jit if traced else lambda function: function)


def test_a_point_that_keeps_nothing_moves_in_forward_mode():
    x, y = jnp.array([0.0, 0.1, 4.2]), jnp.array([0.0, 0.1])
    move = 2 * (x[:, None] - y)

    def potentials(C):
        a, b = jnp.full(3, 1 / 3), jnp.full(2, 1 / 2)
        return bridge.sinkhorn_potentials(a, b, C, eps=0.01, reach=0.01, tol=1e-11)

    _, (df, dg) = jax.jvp(potentials, ((x[:, None] - y) ** 2,), (move,))
    np.testing.assert_allclose(df[2], (move[2, 1] - dg[1]) / 2, rtol=1e-9)  # of its one partner, damped
    np.testing.assert_allclose(df[:2], [-0.03497554, 0.03497554], rtol=1e-5)


OTHERS = np.random.default_rng(8).random((5, 2))


def of_cloud(function, metric="sqeuclidean", eps=0.5, **options):
    return lambda x: function(None, None, bridge.PointCloud(x, jnp.asarray(OTHERS), metric), eps, **options)


TAKEN = {
    "value": of_cloud(sinkhorn_loss),
    "cosine": of_cloud(sinkhorn_loss, "cosine"),
    "by eps": lambda x: of_cloud(sinkhorn_loss, eps=0.5 + x[0, 0] ** 2)(x),
    "by reach": lambda x: of_cloud(sinkhorn_loss, reach=1 + x[0, 0] ** 2)(x),
    "divergence": of_cloud(bridge.sinkhorn_divergence),
    "potentials": lambda x: of_cloud(bridge.sinkhorn_potentials)(x)[0] @ x[:, 0],
    "map": lambda x: of_cloud(bridge.entropic_map, points=x)(x).sum(),
    "barycenter": lambda x: bridge.barycenter(jax.nn.softmax(x.T), cusink.Grid((2, 2)), eps=0.5)[0] ** 2,
    "kernel distance": lambda x: bridge.kernel_distance(x, None, jnp.asarray(OTHERS), None),
    "likelihood": lambda x: bridge.kernel_neg_log_likelihood(x, None, jnp.asarray(OTHERS), None),
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("taken", [(True, False, True), (False, False, False)], ids=["some", "none"])
def test_a_mapped_condition_asks_nothing_of_the_branch_that_was_not_taken(name, taken):
    """A map computes both branches, the one that was not taken from zeros: no warning, and no error of them."""
    x = jnp.asarray(np.random.default_rng(9).random((3, 4, 2)))

    def loss(x, condition):
        return jax.lax.cond(condition, TAKEN[name], lambda x: (x**2).sum(), x)

    want = [jax.grad(TAKEN[name])(one) if some else 2 * one for one, some in zip(x, taken, strict=True)]
    for gradient in (jax.vmap(jax.grad(loss)), jax.jit(jax.vmap(jax.grad(loss)))):
        np.testing.assert_allclose(gradient(x, jnp.asarray(taken)), np.stack(want), rtol=1e-5, atol=1e-7)


def test_second_derivatives_of_a_mapped_condition_ask_nothing_of_it_either():
    x = jnp.asarray(np.random.default_rng(9).random((3, 4, 2)))
    every = TAKEN["value"]

    def along(function, x):
        return jax.grad(lambda x: (jax.grad(function)(x) ** 2).sum())(x)

    def chosen(x, condition):
        return along(lambda x: jax.lax.cond(condition, every, lambda x: (x**2).sum(), x), x)

    want = np.stack([along(every, x[0]), 8 * x[1], along(every, x[2])])
    np.testing.assert_allclose(jax.vmap(chosen)(x, jnp.array([True, False, True])), want, rtol=1e-4, atol=1e-6)


def test_weights_of_zero_are_a_problem_where_they_may_have_any_sign():
    x, zeros = jnp.asarray(OTHERS[:3]), jnp.zeros((2, 3))
    b = jnp.asarray(np.random.default_rng(3).random((2, 5)))
    loss = jax.grad(lambda a, b: bridge.kernel_distance(x, a, jnp.asarray(OTHERS), b))
    want = np.stack([loss(*each) for each in zip(zeros, b, strict=True)])
    np.testing.assert_allclose(jax.vmap(loss)(zeros, b), want, rtol=1e-12)
    assert np.abs(want).min() > 0


@pytest.mark.parametrize("name", ["kernel_distance", "kernel_neg_log_likelihood"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": (5, 3)}, r"'x' and 'y' must have the same number of coordinates; got shapes \(4, 2\) and \(5, 3\)"),
        ({"a": (3,)}, r"'a' must have shape \(4,\) or \(B, 4\), a number per point, .*; got \(3,\)"),
        ({"b": (2, 4)}, r"'b' must have shape \(5,\) or \(B, 5\), a number per point, .*; got \(2, 4\)"),
        ({"a": ()}, r"'a' must have shape \(4,\) or \(B, 4\), a number per point, .*; got \(\)"),
        ({"a": (2, 4), "y": (3, 5, 2)}, "batch sizes must be equal or 1; got 'a' 2, 'y' 3"),
    ],
)
def test_shapes_of_kernel_functions_are_refused_while_they_are_traced(name, change, message):
    shapes = {"x": (4, 2), "a": (4,), "y": (5, 2), "b": (5,)} | change
    given = [jax.ShapeDtypeStruct(shape, "float64") for shape in shapes.values()]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(bridge, name), *given)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loss", {"method": "scale"}, "'method' must be one of 'auto', 'log', 'scaling'; got 'scale'"),
        ("loss", {"tol": -1}, "'tol' must be positive and finite"),
        ("loss", {"max_iter": 0}, "'max_iter' must be at least 1; got 0"),
        ("loss", {"overrelaxation": 3.0}, r"'overrelaxation' must be 'auto', a number in \[1, 2\) or None; got 3.0"),
        ("loss", {"check_every": 0}, "'check_every' must be at least 1; got 0"),
        ("loss", {"memory_limit": -5}, "'memory_limit' must be a number of bytes; got -5"),
        ("loss", {"gap": -1}, "'gap' must be positive and finite; got -1"),
        ("loss", {"gap": 0.1, "reach": 1.0}, "'gap' must be None with 'reach'"),
        ("loss", {"gap": 0.1}, "'gap' must be None here, as losses show no bounds; got 0.1"),
        ("loss", {"check": 1}, "'check' must be a bool, True or False; got int"),
        ("loss", {"method": "scaling", "reach": jnp.ones(2)}, "'method' must be 'auto' or 'log' for unbalanced"),
        ("pairs", {"gap": 0.1}, "'gap' must be None where 'a' and 'b' are cusink.Measures; got float"),
        ("pairs", {"tol": -1}, "'tol' must be positive and finite"),
        ("divergence", {"C_aa": None, "C_bb": None}, r"'C' must be square, .*; got shape \(7, 5\)"),
        ("divergence", {"C_aa": jnp.ones((5, 5))}, r"'C_aa' must have shape \(7, 7\) or \(3, 7, 7\); got \(5, 5\)"),
        ("divergence", {"C_bb": jnp.ones((2, 5, 5))}, "batch sizes must be equal or 1; got 'a' 3, 'b' 3, 'C_bb' 2"),
        (
            "divergence",
            {"C": lambda: bridge.PointCloud(jnp.ones((7, 2)), jnp.ones((5, 2)))},
            "'C_aa' must be None for a PointCloud, which knows its own costs",
        ),
        (
            "loss",
            {"C": lambda: bridge.PointCloud(jnp.ones((7, 2)), jnp.ones((5, 3)))},
            r"'x' and 'y' must have the same number of coordinates; got \(7, 2\) and \(5, 3\)",
        ),
        ("barycenter", {}, r"'C' must be symmetric for a debiased barycenter, .*; got shape \(7, 5\)"),
        ("barycenter", {"tol": -1}, "'tol' must be positive and finite"),
    ],
)
def test_options_and_shapes_are_refused_alike_in_traced_code(name, options, message, traced):
    a, b, C, eps = case()
    clouds = bridge.Measures([0, 2, 5], None, jnp.asarray(OTHERS[:5]))
    own = {"C_aa": jnp.zeros((7, 7)), "C_bb": jnp.zeros((5, 5))}

    def call():
        if name == "barycenter":
            return bridge.barycenter(a, C, eps=eps, debiased=True, **options)
        if "pairs" in name:
            of = bridge.sinkhorn_divergence if "divergences" in name else sinkhorn_loss
            return of(clouds, clouds, "sqeuclidean", eps, **options)
        of, given = (bridge.sinkhorn_divergence, own) if name == "divergence" else (sinkhorn_loss, {})
        given = {"C": C} | given | options
        cost = given.pop("C")
        return of(a, b, cost() if callable(cost) else cost, eps, **given)

    with pytest.raises((TypeError, ValueError), match=message):
        (jax.jit(call) if traced else call)()
