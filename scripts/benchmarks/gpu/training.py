"""What training takes of a device: losses of clouds, gradients, Hessian products and JAX's maps, each checked first."""

import time

import numpy as np
from benchmarks.gpu import peers
from benchmarks.gpu.kernels import NOT_INSTALLED
from benchmarks.harness import works

EPS = 0.05
TOLERANCE = 1e-2  # relative error of a gradient, in the norm
NO_DEVICE = "JAX has no GPU here"


def optimal_plan(a, b, C, eps):
    """Return the plan that plain iterations in the log domain converge to, in float64."""
    log_a, log_b, f = np.log(a), np.log(b), np.zeros(len(a))
    for _ in range(20_000):
        g = -eps * works.log_sum_exp(log_a[:, None] + (f[:, None] - C) / eps, 0)
        old, f = f, -eps * works.log_sum_exp(log_b + (g - C) / eps, 1)
        if np.abs(f - old).max() <= 1e-13:
            break
    return np.exp(log_a[:, None] + log_b + (f[:, None] + g - C) / eps)


def nearest_sum(C, P):
    """Return X, Y of the sum X_i + Y_j nearest to C in the mean square weighted by P, by dense least squares."""
    n, m = C.shape
    roots = np.sqrt(P)
    rows = np.concatenate([np.repeat(np.eye(n), m, axis=0), np.tile(np.eye(m), (n, 1))], axis=1)
    found = np.linalg.lstsq(rows * roots.reshape(-1, 1), (roots * C).ravel(), rcond=None)[0]
    return found[:n], found[n:]


def by_points(x, y, eps, value):
    """Return the gradient of a value by x, between uniform clouds, from dense algebra in float64."""
    C = ((x[:, None] - y) ** 2).sum(axis=-1)
    P = optimal_plan(*(np.full(k, 1 / k) for k in C.shape), C, eps)
    if value == "cost":
        X, Y = nearest_sum(C, P)
        P = P * (1 + (X[:, None] + Y - C) / eps)
    return 2 * (x * P.sum(axis=1)[:, None] - P @ y)


def divergence_by_points(x, y, eps):
    """Return the gradient of the divergence of uniform clouds by x."""
    return by_points(x, y, eps, "reg_cost") - by_points(x, x, eps, "reg_cost")


def off(found, right):
    """Return the relative error in the norm; NaN counts as wrong."""
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


def judged(error):
    return {"error": error, "status": "measured" if error <= TOLERANCE else "wrong"}


def in_turns(calls, repeats):
    """Return the median wall time of each call, in ms; they take turns, after a first call of each."""
    taken = {name: [] for name in calls}
    for k in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if k:
                taken[name].append(time.perf_counter() - started)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in taken.items()}


def clouds(B, n):
    """Return points x, y (B, n, 3), in float32; the targets are moved and shrunk."""
    x, y = np.random.default_rng(0).random((2, B, n, 3), np.float32)
    return x, 0.8 * y + np.float32(0.3)


def torch_divergence(tiny, repeats):
    """Time divergences of pairs of clouds in PyTorch, forward and backward."""
    import torch

    from cusink.torch import PointCloud, sinkhorn_divergence

    where = "cuda" if torch.cuda.is_available() else "cpu"
    B, n = (2, 9) if tiny else (64, 200)
    hosts = clouds(B, n)
    x, y = (torch.as_tensor(points, device=where) for points in hosts)

    def call():
        points = x.clone().requires_grad_()
        sinkhorn_divergence(None, None, PointCloud(points, y), EPS, reduction="sum").backward()
        if where == "cuda":
            torch.cuda.synchronize()
        return points.grad

    found, right = call()[0].cpu().numpy(), divergence_by_points(*(z[0].astype(float) for z in hosts), EPS)
    row = {"what": f"divergence, forward and backward, PyTorch on {where}", "dtype": "float32", "B": B, "n": n}
    yield row | judged(off(found, right)) | {"ms": in_turns({"both": call}, repeats)["both"]}


def clouds_and_arrays(tiny, repeats):
    """Time the divergence of clouds beside that of the same costs as arrays."""
    import cupy

    import cusink

    for dtype in ("float32", "float64"):
        B, n = (2, 9) if tiny else (64, 200)
        x, y = (cupy.asarray(points, dtype) for points in clouds(B, n))
        a = cupy.full((B, n), 1 / n, dtype)
        C, C_aa, C_bb = (cusink.PointCloud(*pair).dense() for pair in ((x, y), (x, x), (y, y)))

        def of_clouds(a=a, x=x, y=y):
            found = cusink.sinkhorn_divergence(a, a, cusink.PointCloud(x, y), eps=EPS)
            peers.wait(cupy)
            return found

        def of_arrays(a=a, C=C, C_aa=C_aa, C_bb=C_bb):
            found = cusink.sinkhorn_divergence(a, a, C, C_aa=C_aa, C_bb=C_bb, eps=EPS)
            peers.wait(cupy)
            return found

        right = divergence_by_points(*(z[0].astype(float) for z in clouds(B, n)), EPS)
        error = off(cusink.sinkhorn_divergence_adjoint(of_clouds()).x[0].get(), right)
        values = [call().divergence.get() for call in (of_clouds, of_arrays)]
        ms = in_turns({"clouds": of_clouds, "arrays": of_arrays}, repeats)
        row = {"what": "divergence of clouds / of arrays", "dtype": dtype, "B": B, "n": n}
        yield row | judged(max(error, off(*values))) | ratio(ms["clouds"], ms["arrays"], 1.2)


def ratio(ms, per_ms, wanted):
    return {"ms": ms, "per_ms": per_ms, "ratio": ms / per_ms, "wanted": wanted}


def exact_gradient(tiny, repeats):
    """Time gradients by weights beside the forward pass, 100 iterations on a grid (the work W1 of the CPU)."""
    import cupy

    import cusink

    side, B = (3, 2) if tiny else (10, 256)
    host, n = works.squared_grid_cost(side, side), side**2
    for dtype in ("float32", "float64"):
        a, b = np.random.default_rng(0).dirichlet(np.ones(n), (2, B)).astype(dtype)
        given = [cupy.asarray(z, dtype) for z in (a, b, host)]

        def forward(given=given):
            found = cusink.sinkhorn(*given, eps=0.01, max_iter=100, tol=None)
            peers.wait(cupy)
            return found

        result = forward()

        def pull(name, result=result):
            found = cusink.sinkhorn_adjoint(result, **{f"grad_{name}": 1.0})
            peers.wait(cupy)
            return found

        f, g = (z[0].get().astype(float) for z in (result.f, result.g))
        P = np.outer(a[0], b[0]) * np.exp((f[:, None] + g - host) / 0.01)
        X, _ = nearest_sum(host, P)
        rights = {"cost": X - X.mean(), "reg_cost": f - f.mean()}
        ms = in_turns(
            {"forward": forward} | {name: lambda pull=pull, name=name: pull(name) for name in ("cost", "reg_cost")},
            repeats,
        )
        for name, wanted in (("cost", 0.5), ("reg_cost", 0.02)):
            row = {"what": f"gradient of {name} / forward", "dtype": dtype, "B": B, "n": n}
            error = off(pull(name).a[0].get(), rights[name])
            yield row | judged(error) | ratio(ms[name], ms["forward"], wanted)


def hessian_products(tiny, repeats):
    """Time products with Hessians by points beside a gradient of `cost`; fewer points are held to differences."""
    import cupy

    import cusink

    few, n = (6, 12) if tiny else (40, 2000)
    for dtype in ("float32", "float64"):
        x, y, dx = np.random.default_rng(0).random((3, n, 3))

        def calls(x, y, dx, dtype=dtype):
            x, y, dx = (cupy.asarray(z, dtype) for z in (x, y, dx))
            result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=EPS)

            def run(function, **given):
                found = function(result, **given).x
                peers.wait(cupy)
                return found

            return {
                "gradient": lambda: run(cusink.sinkhorn_adjoint, grad_cost=1.0),
                "reg_cost": lambda: run(cusink.sinkhorn_hvp, grad_reg_cost=1.0, dx=dx),
                "cost": lambda: run(cusink.sinkhorn_hvp, grad_cost=1.0, dx=dx),
            }

        small, h = calls(x[:few], y[:few], dx[:few]), 1e-4
        ms = in_turns(calls(x, y, dx), repeats)
        for value in ("reg_cost", "cost"):
            up, down = (by_points(x[:few] + s * dx[:few], y[:few], EPS, value) for s in (h, -h))
            row = {"what": f"Hessian of {value} by points, a product / gradient", "dtype": dtype, "B": 1, "n": n}
            error = off(small[value]().get(), (up - down) / (2 * h))
            yield row | judged(error) | ratio(ms[value], ms["gradient"], 3.0)


def jax_maps(tiny, repeats):
    """Time JAX's vmap over problems with their gradients beside one batched call, both compiled."""
    import jax

    from cusink.jax import sinkhorn_loss

    device = jax.devices()[0].platform
    side, B = (3, 2) if tiny else (10, 256)
    row = {"what": f"vmap of problems with gradients / batched call, JAX on {device}", "dtype": "float32"}
    row |= {"B": B, "n": side**2}
    if device == "cpu" and not tiny:
        yield row | {"status": NO_DEVICE}
        return
    C = jax.numpy.asarray(works.squared_grid_cost(side, side), "float32")
    hosts = np.random.default_rng(0).dirichlet(np.ones(side**2), (2, B)).astype(np.float32)
    a, b = map(jax.numpy.asarray, hosts)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(lambda p, q: sinkhorn_loss(p, q, C, EPS))))
    batched = jax.jit(jax.value_and_grad(lambda p, q: sinkhorn_loss(p, q, C, EPS, reduction="sum")))
    costs = np.asarray(C, float)
    X, _ = nearest_sum(costs, optimal_plan(*(w[0].astype(float) for w in hosts), costs, EPS))
    right = X - X.mean()
    error = max(off(np.asarray(call(a, b)[1])[0], right) for call in (mapped, batched))
    named = {"mapped": mapped, "batched": batched}
    ms = in_turns({name: lambda call=call: jax.block_until_ready(call(a, b)) for name, call in named.items()}, repeats)
    yield row | judged(error) | ratio(ms["mapped"], ms["batched"], 1.3)


WORKS = (torch_divergence, clouds_and_arrays, exact_gradient, hessian_products, jax_maps)


def measure(tiny):
    """Yield a row for each work: its time, beside what, and how far its answer is from the reference."""
    repeats = 1 if tiny else 7
    for work in WORKS:
        try:
            yield from work(tiny, repeats)
        except ImportError as error:
            yield {"what": work.__name__, "status": f"{NOT_INSTALLED}: {error.name}"}
        except Exception as error:  # one that fails is a row that says so
            yield {"what": work.__name__, "status": f"{type(error).__name__}: {error}"[:200]}
