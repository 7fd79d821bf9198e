"""A call of every public function, with arguments of every parameter: small problems that are solved at once."""

import numpy as np
import pytest
import scipy.sparse

import cusink

jax, torch, _, mpl, _ = (pytest.importorskip(name) for name in ("jax", "torch", "dask", "matplotlib", "sklearn"))

import cusink.distributed  # noqa: E402
import cusink.jax  # noqa: E402
import cusink.plot  # noqa: E402
import cusink.sklearn  # noqa: E402
import cusink.torch  # noqa: E402

mpl.use("Agg")

RNG = np.random.default_rng(0)
N = 4


def fixed(array):
    """Return an array that nobody can write to."""
    array.flags.writeable = False
    return array


A, B = (fixed(RNG.dirichlet(np.ones(N))) for _ in range(2))
ROWS, OTHERS = (fixed(RNG.dirichlet(np.ones(N), 3)) for _ in range(2))
X, Y = (fixed(RNG.random((N, 2))) for _ in range(2))
C = fixed(np.abs(np.subtract.outer(np.arange(float(N)), np.arange(float(N)))) / N)
F32 = [fixed(x.astype(np.float32)) for x in (A, B, C)]
CLOUDS = cusink.Measures([0, 2, 4], None, X)
SPARSE = scipy.sparse.csr_array(ROWS)
RESULT = cusink.sinkhorn(A, B, C, eps=0.5)
PAIRS = cusink.sinkhorn(CLOUDS, CLOUDS, "euclidean", eps=0.5)
DIVERGENCE_OF_PAIRS = cusink.sinkhorn_divergence(CLOUDS, CLOUDS, "euclidean", eps=0.5)
INDEX = cusink.Index(OTHERS, C, eps=0.5)
DIVERGENCE = cusink.sinkhorn_divergence(A, B, C, eps=0.5)
BARYCENTER = cusink.barycenter(ROWS, C, eps=0.5)
FREE_BARYCENTER = cusink.free_barycenter(CLOUDS, x=Y, eps=0.5)
BETWEEN_POINTS = cusink.sinkhorn(A, B, cusink.PointCloud(X, Y), eps=0.5)
DIVERGENCE_BETWEEN = cusink.sinkhorn_divergence(A, B, C, eps=0.5, C_aa=C, C_bb=C)
DIVERGENCE_OF_POINTS = cusink.sinkhorn_divergence(A, B, cusink.PointCloud(X, Y), eps=0.5)

STEPS = {"eps": 0.5, "max_iter": 20, "tol": 1e-6, "check_every": 10, "overrelaxation": "auto"}
SOLVE = STEPS | {"method": "auto"}
THREADS = {"workers": 1}
LIMITS = {"memory_limit": None, "normalise": False, "check": True}
RETRIEVAL = {"value": "cost", "progress": False, "full_output": False, "on_empty": "nan", **SOLVE, **LIMITS}
RETRIEVAL |= {"reach": None, **THREADS}
LAZY = {"device": "cpu", "reach": None, **SOLVE, **LIMITS}
NORM = {"x": X, "a": A, "y": Y, "b": B, "kernel": "gaussian", "scale": 1.0, **THREADS}
FIELD = {"field_at": None}
LINE = {"x": A, "a": A, "y": B, "b": B, "power": 2.0}
LOSS = {"value": "cost", "gradient": "exact", "reduction": "mean", "eps": 0.5}
PULLED = {"grad": 1.0, "wrt": None}
SYSTEM = {"tol": 1e-6, "max_iter": 100, **THREADS}
MOVES = {"da": fixed(A - B), "db": fixed(B - A), "dC": C, "deps": 0.1, "dx": None, "dy": None}
MOVES_OF_POINTS = MOVES | {"dC": None, "dx": X, "dy": Y}
VALUES_MOVE = {"grad_cost": 1.0, "grad_reg_cost": 1.0, "grad_entropic_cost": 1.0}
COSTS_MOVE = {"dC_aa": None, "dC_bb": None}
BRIDGED = {"a": A, "b": B, "C": C}
TENSORS = {name: torch.tensor(x) for name, x in BRIDGED.items()}
OF_POINTS = {"x": X, "a": A, "y": Y, "b": B, "kernel": "gaussian", "scale": 1.0, "reduction": "mean"}
TENSORS_OF_POINTS = OF_POINTS | {name: torch.tensor(OF_POINTS[name]) for name in "xayb"}
MEAN = {
    "A": ROWS,
    "C": C,
    "weights": np.ones(3),
    "eps": 0.5,
    "debiased": False,
    **{k: v for k, v in SOLVE.items() if k != "method"},
}
COST_MATRIX = {
    "x": X,
    "y": Y,
    "metric": "euclidean",
    "power": 1,
    "p": None,
    "radius": None,
    "factor": None,
    "labels": None,
    "table": None,
    "gradient": None,
}
GRID = {"shape": (2, 2), "metric": "sqeuclidean", "spacing": 1.0, "periodic": False}
CLOUD = {"x": X, "y": Y, "metric": "euclidean", "power": 1, "p": None, "radius": None, "factor": None}


def set_and_reset(workers):
    """Set the number of workers for a moment."""
    cusink.set_workers(workers)
    cusink.set_workers(None)


def solved_module(**options):
    """Make the module of the loss, and call it."""
    return cusink.torch.SinkhornLoss(**options)(torch.tensor(A), torch.tensor(B))


def divergence_module(**options):
    """Make the module of the divergence, and call it."""
    return cusink.torch.SinkhornDivergence(**options)(torch.tensor(A), torch.tensor(B))


def kernel_module(**options):
    """Make the module of the kernel distance, and call it."""
    return cusink.torch.KernelDistance(**options)(torch.tensor(X), torch.tensor(Y))


def neighbours_estimator(**options):
    """Fit the estimator of neighbours, and ask it; what is no sample is refused in scikit-learn's words."""
    return cusink.sklearn.SinkhornNeighborsTransformer(**options).fit(OTHERS).transform(ROWS).data


def transport_estimator(**options):
    """Fit the estimator of transport, and map points."""
    return cusink.sklearn.SinkhornTransport(**options).fit(X, Y).transform(Y)


def mean_module(**options):
    """Make the module of the barycenter, and call it."""
    return cusink.torch.Barycenter(**options)(torch.tensor(ROWS))


CALLS = {
    "sinkhorn": (
        cusink.sinkhorn,
        {
            "a": A,
            "b": B,
            "C": C,
            "init": None,
            "reach": None,
            "callback": None,
            "gap": 0.1,
            **SOLVE,
            **LIMITS,
            **THREADS,
        },
    ),
    "sinkhorn unbalanced": (cusink.sinkhorn, {"a": A, "b": B, "C": C, "reach": 1.0, **SOLVE, **LIMITS, **THREADS}),
    "sinkhorn of measures": (
        cusink.sinkhorn,
        {"a": CLOUDS, "b": CLOUDS, "C": "euclidean", "reach": None, **SOLVE, **LIMITS, **THREADS},
    ),
    "sinkhorn_divergence of measures": (
        cusink.sinkhorn_divergence,
        {"a": CLOUDS, "b": CLOUDS, "C": "euclidean", "reach": None, **SOLVE, **LIMITS, **THREADS},
    ),
    "sinkhorn_adjoint of measures": (
        cusink.sinkhorn_adjoint,
        {"result": PAIRS, "grad_cost": 1.0, "grad_reg_cost": None, **SYSTEM},
    ),
    "sinkhorn_divergence_adjoint of measures": (
        cusink.sinkhorn_divergence_adjoint,
        {"result": DIVERGENCE_OF_PAIRS, "grad": 1.0},
    ),
    "plan": (RESULT.plan, {}),
    "bounds": (RESULT.bounds, {}),
    "apply": (RESULT.apply, {"v": A, "axis": 1}),
    "sinkhorn_adjoint": (
        cusink.sinkhorn_adjoint,
        {
            "result": RESULT,
            "grad_cost": 1.0,
            "grad_reg_cost": None,
            "grad_entropic_cost": None,
            "grad_f": None,
            "grad_g": None,
            "grad_plan": None,
            **SYSTEM,
        },
    ),
    "sinkhorn_jvp": (cusink.sinkhorn_jvp, {"result": RESULT, **MOVES, **SYSTEM}),
    "sinkhorn_jvp between points": (cusink.sinkhorn_jvp, {"result": BETWEEN_POINTS, **MOVES_OF_POINTS, **SYSTEM}),
    "sinkhorn_hvp": (cusink.sinkhorn_hvp, {"result": RESULT, **VALUES_MOVE, **MOVES, **SYSTEM}),
    "sinkhorn_hvp between points": (
        cusink.sinkhorn_hvp,
        {"result": BETWEEN_POINTS, **VALUES_MOVE, **MOVES_OF_POINTS, **SYSTEM},
    ),
    "sinkhorn_divergence": (
        cusink.sinkhorn_divergence,
        {"a": A, "b": B, "C": C, "C_aa": C, "C_bb": C, "reach": None, **SOLVE, **LIMITS, **THREADS},
    ),
    "sinkhorn_divergence_adjoint": (cusink.sinkhorn_divergence_adjoint, {"result": DIVERGENCE, "grad": 1.0}),
    "sinkhorn_divergence_jvp": (cusink.sinkhorn_divergence_jvp, {"result": DIVERGENCE, **MOVES, **COSTS_MOVE}),
    "sinkhorn_divergence_jvp between bins": (
        cusink.sinkhorn_divergence_jvp,
        {"result": DIVERGENCE_BETWEEN, **MOVES, "dC_aa": C, "dC_bb": C},
    ),
    "sinkhorn_divergence_jvp between points": (
        cusink.sinkhorn_divergence_jvp,
        {"result": DIVERGENCE_OF_POINTS, **MOVES_OF_POINTS, **COSTS_MOVE},
    ),
    "sinkhorn_divergence_hvp": (
        cusink.sinkhorn_divergence_hvp,
        {"result": DIVERGENCE, "grad": 1.0, **MOVES, **COSTS_MOVE, **SYSTEM},
    ),
    "sinkhorn_divergence_hvp between bins": (
        cusink.sinkhorn_divergence_hvp,
        {"result": DIVERGENCE_BETWEEN, "grad": 1.0, **MOVES, "dC_aa": C, "dC_bb": C, **SYSTEM},
    ),
    "sinkhorn_divergence_hvp between points": (
        cusink.sinkhorn_divergence_hvp,
        {"result": DIVERGENCE_OF_POINTS, "grad": 1.0, **MOVES_OF_POINTS, **COSTS_MOVE, **SYSTEM},
    ),
    "barycenter": (
        cusink.barycenter,
        {
            "A": ROWS,
            "C": C,
            "weights": None,
            "debiased": False,
            **{k: v for k, v in SOLVE.items() if k != "method"},
            **LIMITS,
            **THREADS,
        },
    ),
    "free_barycenter": (
        cusink.free_barycenter,
        {
            "measures": CLOUDS,
            "weights": np.ones(2),
            "x": Y,
            "a": A,
            "eps": 0.5,
            "debiased": False,
            "free_weights": False,
            "reach": None,
            "max_iter": 3,
            "tol": 1e-3,
            "solver_tol": 1e-4,
            "normalise": False,
            "memory_limit": None,
            **THREADS,
        },
    ),
    "barycentric_map_adjoint": (
        cusink.barycentric_map_adjoint,
        {"result": RESULT, "values": Y, "grad_map": X, "axis": 1, **SYSTEM},
    ),
    "extension_adjoint": (
        cusink.extension_adjoint,
        {
            "extension": BETWEEN_POINTS.at(X),
            "grad_potential": A,
            "grad_map": X,
            "grad_gradient": X,
            "values": Y,
            **THREADS,
        },
    ),
    "gradient_flow": (
        cusink.gradient_flow,
        {
            "x": X,
            "y": Y,
            "a": None,
            "b": None,
            "loss": "sinkhorn",
            "eps": 0.5,
            "scale": None,
            "reach": None,
            "step": 0.25,
            "momentum": 0.0,
            "max_iter": 1,
            "tol": 0.5,
            "solver_tol": "auto",
            "memory_limit": None,
            "callback": None,
            **THREADS,
        },
    ),
    "free_barycenter_adjoint": (
        cusink.free_barycenter_adjoint,
        {"result": FREE_BARYCENTER, "grad_points": Y, **SYSTEM},
    ),
    "barycenter_adjoint": (cusink.barycenter_adjoint, {"result": BARYCENTER, "grad_barycenter": A, **SYSTEM}),
    "cost_matrix": (cusink.cost_matrix, COST_MATRIX),
    "cost_matrix_adjoint": (cusink.cost_matrix_adjoint, {"grad_C": C, **COST_MATRIX}),
    "distance_matrix": (
        cusink.distance_matrix,
        {"A": ROWS, "B": OTHERS, "C": C, "out": None, "devices": None, **RETRIEVAL},
    ),
    "distance_matrix of documents": (
        cusink.distance_matrix,
        {"A": SPARSE, "B": None, "C": C, "out": None, "devices": None, **RETRIEVAL},
    ),
    "distance_matrix of measures": (
        cusink.distance_matrix,
        {"A": CLOUDS, "B": None, "C": "euclidean", "out": None, "devices": None, **RETRIEVAL},
    ),
    "nearest": (
        cusink.nearest,
        {
            "A": ROWS,
            "B": OTHERS,
            "C": C,
            "k": 1,
            "prune": True,
            "solve_at_most": 3,
            "candidates": fixed(np.array([[0, 1], [1, 2], [2, 0]])),
            "devices": None,
            **RETRIEVAL,
        },
    ),
    "Index": (
        cusink.Index,
        {"B": OTHERS, "C": C, "value": "cost", "reach": None, "on_empty": "nan", "workers": None, **SOLVE, **LIMITS},
    ),
    "Index.search": (
        INDEX.search,
        {
            "A": ROWS,
            "k": 1,
            "prune": True,
            "solve_at_most": 3,
            "candidates": fixed(np.array([[0, 1], [1, 2], [2, 0]])),
            "progress": False,
            "full_output": False,
            "check": True,
            "workers": 1,
            "devices": None,
        },
    ),
    "set_workers": (set_and_reset, {"workers": 2}),
    "Index.add": (
        lambda B, **given: cusink.Index(OTHERS, C, eps=0.5).add(B, **given),
        {"B": ROWS, "check": True, "workers": None},
    ),
    "Measures": (cusink.Measures, {"offsets": np.array([0, 2, 4]), "weights": None, "points": X}),
    "Measures.of": (cusink.Measures.of, {"clouds": [X, Y], "weights": None}),
    "Measures.of with weights": (cusink.Measures.of, {"clouds": [X, Y], "weights": [A, B]}),
    "PointCloud": (cusink.PointCloud, COST_MATRIX | {"tf32": False, "gradient": None}),
    "Metric": (
        lambda power, p: cusink.Metric("minkowski", power=power, p=p),
        {"power": 1.0, "p": 3.0},
    ),
    "Metric of a factor": (cusink.Metric, {"name": "mahalanobis", "factor": X}),
    "Grid": (cusink.Grid, GRID),
    "RelativeEps": (cusink.RelativeEps, {"share": 0.1, "of": "max"}),
    "sinkhorn with an eps each": (
        lambda eps: cusink.sinkhorn(np.stack([A, B]), B, C, eps=eps, max_iter=20),
        {"eps": np.array([0.5, 0.1])},
    ),
    "wasserstein_1d": (cusink.wasserstein_1d, LINE),
    "wasserstein_1d of a batch": (cusink.wasserstein_1d, LINE | {"x": ROWS, "y": OTHERS}),
    "wasserstein_1d_adjoint": (cusink.wasserstein_1d_adjoint, LINE | PULLED),
    "kernel_product": (cusink.kernel_product, {"x": X, "y": Y, "b": B, "kernel": "gaussian", "scale": 1.0, **THREADS}),
    "kernel_product_adjoint": (
        cusink.kernel_product_adjoint,
        {"x": X, "y": Y, "b": B, "grad": A, "kernel": "gaussian", "scale": 1.0, "wrt": None, **THREADS},
    ),
    "kernel_product_log": (
        cusink.kernel_product_log,
        {"x": X, "y": Y, "log_b": B, "kernel": "gaussian", "scale": 1.0, **THREADS},
    ),
    "kernel_product_log_adjoint": (
        cusink.kernel_product_log_adjoint,
        {"x": X, "y": Y, "log_b": B, "grad": A, "kernel": "gaussian", "scale": 1.0, "wrt": None, **THREADS},
    ),
    "kernel_scalar_product": (cusink.kernel_scalar_product, NORM),
    "kernel_scalar_product_adjoint": (cusink.kernel_scalar_product_adjoint, NORM | PULLED),
    "kernel_distance": (cusink.kernel_distance, NORM | FIELD),
    "kernel_distance_adjoint": (cusink.kernel_distance_adjoint, NORM | PULLED),
    "kernel_neg_log_likelihood": (cusink.kernel_neg_log_likelihood, NORM | FIELD),
    "kernel_neg_log_likelihood_adjoint": (cusink.kernel_neg_log_likelihood_adjoint, NORM | PULLED),
    "sinkhorn between points": (
        cusink.sinkhorn,
        {
            "a": F32[0],
            "b": F32[1],
            "C": cusink.PointCloud(X.astype(np.float32)),
            "reach": None,
            **SOLVE,
            **LIMITS,
            **THREADS,
        },
    ),
    "sinkhorn in float32": (
        cusink.sinkhorn,
        {"a": F32[0], "b": F32[1], "C": F32[2], "reach": (1.0, None), **SOLVE, **THREADS},
    ),
    "sinkhorn on a grid": (
        cusink.sinkhorn,
        {"a": A, "b": B, "C": cusink.Grid(N), "reach": None, **SOLVE, **LIMITS, **THREADS},
    ),
    "distributed.distance_matrix": (
        cusink.distributed.distance_matrix,
        {"A": ROWS, "B": OTHERS, "C": C, "value": "cost", "full_output": False, "on_empty": "nan", **LAZY},
    ),
    "distributed.nearest": (
        cusink.distributed.nearest,
        {
            "A": ROWS,
            "B": OTHERS,
            "C": C,
            "k": 1,
            "value": "cost",
            "prune": True,
            "solve_at_most": 3,
            "candidates": fixed(np.array([[0, 1], [1, 2], [2, 0]])),
            "full_output": False,
            "on_empty": "nan",
            **LAZY,
        },
    ),
    "distributed.Index": (cusink.distributed.Index, {"parts": [INDEX], "client": None}),
    "jax.PointCloud": (cusink.jax.PointCloud, CLOUD),
    "jax.Grid": (cusink.jax.Grid, GRID | {"spacing": jax.numpy.ones(())}),
    "jax.sinkhorn_loss": (cusink.jax.sinkhorn_loss, {**BRIDGED, **LOSS}),
    "jax.sinkhorn_divergence": (
        cusink.jax.sinkhorn_divergence,
        {**BRIDGED, "C_aa": C, "C_bb": C, "reduction": "mean", **SOLVE},
    ),
    "jax.sinkhorn_potentials": (cusink.jax.sinkhorn_potentials, {**BRIDGED, **SOLVE}),
    "jax.barycentric_map": (
        cusink.jax.barycentric_map,
        {**BRIDGED, "values": Y, "axis": 1, **SOLVE},
    ),
    "jax.entropic_map": (
        cusink.jax.entropic_map,
        {**BRIDGED, "C": cusink.jax.PointCloud(X, Y), "points": X, "values": None, "axis": 1, **SOLVE},
    ),
    "jax.potential_at": (
        cusink.jax.potential_at,
        {**BRIDGED, "C": cusink.jax.PointCloud(X, Y), "points": X, "axis": 1, **SOLVE},
    ),
    "jax.apply_plan": (cusink.jax.apply_plan, {**BRIDGED, "values": Y, "axis": 1, **SOLVE}),
    "jax.barycenter": (cusink.jax.barycenter, MEAN),
    "jax.kernel_distance": (cusink.jax.kernel_distance, OF_POINTS),
    "jax.kernel_neg_log_likelihood": (cusink.jax.kernel_neg_log_likelihood, OF_POINTS),
    "torch.PointCloud": (cusink.torch.PointCloud, CLOUD | {"x": torch.tensor(X), "y": torch.tensor(Y)}),
    "torch.Grid": (cusink.torch.Grid, GRID | {"spacing": torch.ones(())}),
    "jax.Measures": (cusink.jax.Measures, {"offsets": [0, 2, 4], "weights": None, "points": X}),
    "torch.Measures": (cusink.torch.Measures, {"offsets": [0, 2, 4], "weights": None, "points": torch.tensor(X)}),
    "torch.sinkhorn_loss": (cusink.torch.sinkhorn_loss, {**TENSORS, **LOSS, **SOLVE}),
    "torch.sinkhorn_divergence": (
        cusink.torch.sinkhorn_divergence,
        {**TENSORS, "C_aa": torch.tensor(C), "C_bb": torch.tensor(C), "reduction": "mean", **SOLVE},
    ),
    "torch.sinkhorn_potentials": (cusink.torch.sinkhorn_potentials, {**TENSORS, **SOLVE}),
    "torch.barycentric_map": (
        cusink.torch.barycentric_map,
        {**TENSORS, "values": torch.tensor(Y), "axis": 1, **SOLVE},
    ),
    "torch.entropic_map": (
        cusink.torch.entropic_map,
        {
            **TENSORS,
            "C": cusink.torch.PointCloud(torch.tensor(X), torch.tensor(Y)),
            "points": torch.tensor(X),
            "values": None,
            "axis": 1,
            **SOLVE,
        },
    ),
    "torch.potential_at": (
        cusink.torch.potential_at,
        {
            **TENSORS,
            "C": cusink.torch.PointCloud(torch.tensor(X), torch.tensor(Y)),
            "points": torch.tensor(X),
            "axis": 1,
            **SOLVE,
        },
    ),
    "torch.apply_plan": (cusink.torch.apply_plan, {**TENSORS, "values": torch.tensor(Y), "axis": 1, **SOLVE}),
    "torch.barycenter": (
        cusink.torch.barycenter,
        {**MEAN, **{name: torch.tensor(MEAN[name]) for name in ("A", "C", "weights")}},
    ),
    "torch.kernel_distance": (cusink.torch.kernel_distance, TENSORS_OF_POINTS),
    "torch.kernel_neg_log_likelihood": (cusink.torch.kernel_neg_log_likelihood, TENSORS_OF_POINTS),
    "torch.SinkhornLoss": (solved_module, {"C": torch.tensor(C), **LOSS, **SOLVE}),
    "torch.SinkhornDivergence": (divergence_module, {"C": torch.tensor(C), "reduction": "mean", **SOLVE}),
    "torch.Barycenter": (mean_module, {"C": torch.tensor(C), "eps": 0.1, "debiased": False}),
    "torch.KernelDistance": (kernel_module, {"kernel": "gaussian", "scale": 1.0, "reduction": "mean"}),
    "SinkhornResult.barycentric_map": (RESULT.barycentric_map, {"values": Y, "axis": 1}),
    "SinkhornResult.at": (BETWEEN_POINTS.at, {"x": X}),
    "SinkhornResult.from_potentials": (
        cusink.SinkhornResult.from_potentials,
        {"a": A, "b": B, "C": C, "eps": 0.5, "f": A, "g": B, "reach": 1.0, "tol": 1e-6, "check": True},
    ),
    "sklearn.SinkhornNeighborsTransformer": (
        neighbours_estimator,
        {
            "n_neighbors": 1,
            "cost": C,
            "eps": 0.5,
            "value": "cost",
            "mode": "distance",
            "normalise": True,
            "max_iter": 1000,
            "tol": 1e-6,
            "workers": None,
        },
    ),
    "sklearn.SinkhornTransport": (
        transport_estimator,
        {"eps": 0.5, "metric": "sqeuclidean", "power": 1.0, "max_iter": 1000, "tol": 1e-6, "workers": None},
    ),
    "plot.plan": (cusink.plot.plan, {"P": RESULT, "x": None, "y": None}),
    "plot.transport_lines": (
        cusink.plot.transport_lines,
        {"P": RESULT, "x": X, "y": Y, "least": 0.01, "size": 36, "linewidth": 1.6},
    ),
    "plot.convergence": (cusink.plot.convergence, {"history": [(10, 0.1), (20, 0.01)], "tol": 1e-6}),
    "plot.contact_sheet": (
        cusink.plot.contact_sheet,
        {
            "queries": OTHERS,
            "corpus": ROWS,
            "indices": np.zeros((3, 1), int),
            "distances": np.ones((3, 1)),
            "query_labels": [0, 1, 2],
            "corpus_labels": [0, 1, 2],
            "shape": (2, 2),
        },
    ),
}


def numbers_in(found):
    """Yield the arrays of floating-point numbers in what a call returned."""
    if isinstance(found, (tuple, list)):
        for part in found:
            yield from numbers_in(part)
    elif isinstance(found, (float, np.ndarray, np.generic, jax.Array, torch.Tensor)):
        yield np.asarray(found, float)
    elif hasattr(found, "__dataclass_fields__"):
        for name in found.__dataclass_fields__:
            if name not in {"problem", "problems", "pruning", "bounded"} and not name.startswith("_"):
                yield from numbers_in(getattr(found, name))
