"""How a typed program calls every public function. mypy reads this file, see test_typed_usage.py; nothing runs it.

Return types follow from `full_output`, `out` and `field_at`. Under ``--strict`` an ignored error that does not occur is
an error: the lines that ignore one show that it is found.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

import cusink

Floats = npt.NDArray[np.float32]


def solve(a: Floats, b: Floats, C: Floats, x: Floats, y: Floats) -> None:
    """Solve problems, and pull gradients back."""
    result: cusink.SinkhornResult = cusink.sinkhorn(a, b, C, eps=0.1, reach=(1.0, None), method="log", tol=None)
    cusink.sinkhorn(a, b, cusink.PointCloud(x, y, metric="euclidean"), eps=0.1, init=(result.f, result.g))
    cusink.sinkhorn(None, None, cusink.Grid((8, 8), periodic=True), eps=0.1, overrelaxation=1.5)
    cusink.sinkhorn(a[None], b, C, eps=np.array([0.1, 0.2]), init=None)
    cusink.sinkhorn(a, b, C, eps=cusink.RelativeEps(0.1, "median"))
    gradients: cusink.SinkhornGradients = cusink.sinkhorn_adjoint(result, grad_cost=1.0)
    lower, upper = result.bounds()
    print(lower, upper, result.plan(), result.apply(b, 1), gradients.C, result.barycentric_map(y, axis=1))
    form: cusink.SinkhornForm | None = result.form
    print(form)
    there: cusink.SinkhornExtension = result.at(x)
    known: cusink.SinkhornResult = cusink.SinkhornResult.from_potentials(a, b, C, eps=0.1, g=result.g)
    of_map: cusink.MapGradients = cusink.barycentric_map_adjoint(result, y, x, axis=1)
    of_new: cusink.ExtensionGradients = cusink.extension_adjoint(there, grad_potential=a, grad_map=x, values=y)
    print(of_map.values, of_map.a, of_map.C, of_new.points, of_new.potential)
    print(there.potential, there.map(), there.gradient(), there.barycentric_map(y), known.error)
    free: cusink.FreeBarycenter = cusink.free_barycenter(cusink.Measures.of([x, y]), x=x, eps=0.1, debiased=True)
    by_clouds: cusink.FreeBarycenterGradients = cusink.free_barycenter_adjoint(free, grad_points=x)
    print(free.points, by_clouds.y, cusink.sinkhorn(a, b, C, eps=0.1, gap=1e-3).bounds())
    flow: cusink.Flow = cusink.gradient_flow(x, y, loss="energy", momentum=0.5, callback=print)
    print(flow.points, flow.losses)
    on_a_line: cusink.LineGradients = cusink.wasserstein_1d_adjoint(a, None, b, None, power=2, wrt=("x", "a"))
    print(cusink.wasserstein_1d(a, None, b, None), on_a_line.x)
    divergence: cusink.SinkhornDivergence = cusink.sinkhorn_divergence(a, b, C, eps=0.1, reach=1.0)
    pulled: cusink.DivergenceGradients = cusink.sinkhorn_divergence_adjoint(divergence)
    mean: cusink.Barycenter = cusink.barycenter(a, C, eps=0.1, debiased=True)
    by_weights: cusink.BarycenterGradients = cusink.barycenter_adjoint(mean, grad_barycenter=a)
    gx, gy = cusink.cost_matrix_adjoint(x, None, cusink.cost_matrix(x), "cosine")
    print(pulled, by_weights.weights, gx, gy)
    tangents: cusink.SinkhornTangents = cusink.sinkhorn_jvp(result, da=a, deps=1.0)
    moved: cusink.SinkhornCurvature = cusink.sinkhorn_hvp(result, grad_reg_cost=1.0, dC=C, tol=1e-8)
    turned: cusink.DivergenceCurvature = cusink.sinkhorn_divergence_hvp(divergence, dC=C)
    print(tangents.cost, moved.C, turned.a, cusink.sinkhorn_divergence_jvp(divergence, db=b))
    cusink.sinkhorn(a, b, C, eps=0.1, method="fast")  # type: ignore[call-overload]
    cusink.PointCloud(x, metric="euclid")  # type: ignore[arg-type]


def compare(A: cusink.Measures, B: cusink.Measures) -> None:
    """Solve ragged pairs."""
    pairs: cusink.SinkhornPairs = cusink.sinkhorn(A, B, "euclidean", eps=0.1, reach=1.0)
    one: cusink.SinkhornResult = pairs[0]
    gradients: cusink.SinkhornGradients = cusink.sinkhorn_adjoint(pairs, grad_cost=1.0)
    between: cusink.DivergencePairs = cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=0.1)
    pulled: cusink.DivergenceGradients = cusink.sinkhorn_divergence_adjoint(between)
    print(one.plan(), gradients.x, pulled.y, between[-1].divergence)


def retrieve(A: Floats, B: Floats, C: Floats, path: Path) -> None:
    """Compare collections."""
    cusink.distance_matrix(A, None, C, eps=0.1, out=np.empty((len(A), len(A)), np.float32)).min()
    cusink.distance_matrix(A, B, C, eps=0.1, out="matrix.npy", memory_limit=1 << 30, progress=True)
    print(cusink.distance_matrix(A, B, C, eps=0.1, out=path / "matrix.zarr").shape)
    whole: cusink.DistanceMatrix = cusink.distance_matrix(A, B, C, eps=0.1, value="divergence", full_output=True)
    d, i = cusink.nearest(A, B, C, k=3, eps=0.1)
    found: cusink.Neighbours = cusink.nearest(A, B, C, k=3, eps=0.1, prune=False, full_output=True)
    print(whole.converged, d.min(), i.max(), found.pruning)
    index = cusink.Index(B, C, eps=0.1, value="reg_cost", memory_limit=1 << 30)
    index.add(A)
    index.save(path / "index", overwrite=True)
    d, i = cusink.Index.load(path / "index", mmap=True).search(A, 3, solve_at_most=100, workers=2)
    certified: cusink.Neighbours = index.search(A, 3, candidates=i, full_output=True)
    print(len(index), certified.proved.all(), certified.undercut.max())
    index.search(A, 3, k=4)  # type: ignore[call-overload]
    cusink.set_workers(-1)
    clouds: cusink.Measures = cusink.Measures.of([A, B]).normalised()
    cusink.nearest(clouds[:1], clouds[1:], "euclidean", k=1, eps=0.1, on_empty="raise")
    cusink.nearest(A, B, C, k=3, eps=0.1, full_output=True)[0]  # type: ignore[index]
    cusink.nearest(A, B, C, k=3, eps=0.1, value="emd")  # type: ignore[call-overload]
    print(cusink.distance_matrix(A, B, C, eps=0.1, full_output=True).indices)  # type: ignore[attr-defined]


def distribute(A: Floats, C: Floats) -> None:
    """Compare collections on many machines."""
    import cusink.distributed

    lazy: cusink.DistanceMatrix = cusink.distributed.distance_matrix(A, None, C, eps=0.1, full_output=True)
    distances, indices = cusink.distributed.nearest(A, None, C, k=1, eps=0.1, device="cuda")
    print(lazy.error, distances, indices)


def estimate(A: Floats, C: Floats) -> None:
    """Fit estimators of scikit-learn."""
    from cusink.sklearn import SinkhornNeighborsTransformer, SinkhornTransport

    neighbours = SinkhornNeighborsTransformer(5, cost=C, eps=0.1, value="cost", mode="connectivity").fit(A)
    print(neighbours.index_, neighbours.transform(A).shape, neighbours.kneighbors(return_distance=False))
    print(SinkhornTransport(eps=0.1, metric="euclidean").fit(A, A).inverse_transform(A))


def draw(A: Floats, C: Floats) -> None:
    """Draw into axes."""
    import cusink.plot

    print(cusink.plot.plan(cusink.sinkhorn(A[0], A[1], C, eps=0.1)).figure)
    cusink.plot.transport_lines(C, A, A)
    cusink.plot.convergence([(10, A[0])], tol=1e-6)
    cusink.plot.contact_sheet(A, A, np.zeros((2, 2), int), shape=(8, 8))


def smooth(x: Floats, a: Floats, y: Floats, b: Floats) -> None:
    """Take kernel products and norms."""
    cusink.kernel_product(x, y, b, "laplace", 0.5).sum()
    cusink.kernel_product_log(x, y, None, "exponential").sum()
    gradients: cusink.KernelGradients = cusink.kernel_product_adjoint(x, y, b, a, wrt=("x",))
    print(gradients, cusink.kernel_product_log_adjoint(x, y, None, a))
    cusink.kernel_scalar_product(x, a, y, b, kernel="energy")
    cusink.kernel_scalar_product_adjoint(x, a, y, b)
    distance, field = cusink.kernel_distance(x, a, y, b, field_at=x)
    likelihood, other = cusink.kernel_neg_log_likelihood(x, a, y, b, field_at=x)
    print(distance, field, likelihood, other, cusink.kernel_distance(x, a, y, b) > 0)
    cusink.kernel_neg_log_likelihood_adjoint(x, a, y, b, scale=0.5)
    cusink.kernel_distance_adjoint(x, a, y, b, 2.0)
    cusink.kernel_product_log(x, y, None, "distance")  # type: ignore[arg-type]
