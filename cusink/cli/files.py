"""Read arrays from files, and check them so that a message names the file."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cusink.checks.weights import first_bad_weight, first_index, first_unequal_mass, mass_in_range
from cusink.costs.clouds import METRICS, PointCloud
from cusink.costs.grid import GRID_METRICS, Grid
from cusink.costs.kinds import data_of, named_arrays
from cusink.costs.matrix import cost_matrix
from cusink.types import HostArray

__all__ = [
    "InputError",
    "line",
    "load",
    "problem",
    "queries",
]


STORED = 1 << 20  # entries of a cost up to which it is a matrix; beyond, it stays points or a grid
NO_UNIT = "--scale-cost: the cost must have a positive entry to be divided by; leave it out"


class InputError(Exception):
    """Unusable input; the message names it, the rule, the value and the way out."""


def line(message: object) -> str:
    """Return a message as one line."""
    return " ".join(str(message).split()) or type(message).__name__


def split_name(name: str) -> tuple[Path, str | None]:
    """Return the path in a name such as ``file.npz`` or ``store.zarr:array``, and the inner name or None."""
    for ending in (".npz", ".zarr"):
        head, separator, key = name.rpartition(ending + ":")
        if separator:
            return Path(head + ending), key
    return Path(name), None


def load(name: str, sparse: bool = False) -> Any:
    """Return the array of real numbers in the file called `name`; a sparse matrix only where `sparse` allows it."""
    path, key = split_name(name)
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    try:
        array = _zarr(path, key) if path.suffix == ".zarr" else _numpy(path, key)
    except (InputError, ImportError):
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or line(error)}") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory; split it") from None
    except Exception as error:  # damaged files raise ValueError, EOFError, BadZipFile, zlib.error, SyntaxError, ...
        if "Object arrays" in str(error) or "Python objects" in str(error):
            raise InputError(f"{path}: holds pickled objects, which are never read; save an array of numbers") from None
        if path.suffix == ".zarr":
            raise InputError(f"{path}: is not a Zarr array, or is damaged ({line(error)})") from None
        raise InputError(f"{path}: is not a .npy or .npz file, or is damaged; write it with numpy.save") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: must hold real numbers; got dtype {array.dtype}")
    if not sparse and not isinstance(array, np.ndarray):
        raise InputError(f"{name}: must be a dense array; got a sparse matrix. Only histograms may be sparse")
    return array


def _numpy(path: Path, key: str | None) -> Any:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with open(path, "rb") as file:  # closed here even if it is damaged
        array = np.load(file, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        if key is None and {"format", "shape", "data"} <= set(array.files):
            import scipy.sparse

            return scipy.sparse.csr_array(scipy.sparse.load_npz(path))
        held = f"it has {', '.join(array.files) or 'none'}"
        if key is None and len(array.files) != 1:
            raise InputError(f"{path}: must hold one array, or name one as in {path}:name; {held}")
        if key is not None and key not in array.files:
            raise InputError(f"{path}: has no array '{key}'; {held}")
        return array[key or array.files[0]]


def _zarr(path: Path, key: str | None) -> HostArray:
    try:
        import zarr
    except ImportError:
        raise InputError(f"{path}: needs Zarr, which is not installed: pip install zarr") from None
    try:
        found = zarr.open(path, mode="r", path=key or "")
    except FileNotFoundError:
        problem = "is not a Zarr array" if key is None else f"has no array '{key}'"
        raise InputError(
            f"{path}: {problem}; write it with zarr.save_array, or name an array in it as in {path}:name"
        ) from None
    if not isinstance(found, zarr.Array):
        raise InputError(f"{path}: is a Zarr group; name an array in it as in {path}:name")
    return np.asarray(found[...])


def problem(given: Namespace, divide: bool = True) -> tuple[Any, Any, Any]:
    """Return checked histograms A and B (None for A with itself) and the cost, arrays in the wanted dtype.

    Those that are to be normalised are divided by their masses if `divide` asks for it.
    """
    dtype = np.dtype(given.dtype)
    names = [given.queries] if given.corpus is None else [given.queries, given.corpus]
    sets = [load(name, sparse=True) for name in names]
    if given.grid is not None:
        sets = [array.reshape(len(array), -1) if array.shape[1:] == given.grid else array for array in sets]
    C, of_cost = cost(given, dtype, any(not isinstance(array, np.ndarray) for array in sets))
    sets = [_histograms(*item, of_cost, dtype) for item in zip(names, sets, C.shape, strict=False)]
    masses = [_masses(*item, dtype) for item in zip(names, sets, strict=True)]
    if given.normalise:
        sets = [_normalised(array, mass) if divide else array for array, mass in zip(sets, masses, strict=True)]
    elif given.reach is None:
        _one_mass(names, masses, dtype)
    return sets[0], sets[1] if given.corpus is not None else None, C


def queries(name: str, dtype: Any, normalise: bool) -> Any:
    """Return the histograms in a file, in the dtype of an index, which checks the rest."""
    array = load(name, sparse=True)
    if isinstance(array, np.ndarray) and array.ndim > 2:
        array = array.reshape(len(array), -1)  # images on a grid
    if not normalise or array.ndim != 2:
        return array.astype(dtype, copy=False)
    array = _weights(name, array, dtype)
    return _normalised(array, _masses(name, array, dtype))


def cost(given: Namespace, dtype: Any, sparse: bool) -> tuple[Any, str]:
    """Return the cost, and words for it in messages; `sparse` says that the histograms are."""
    metric = given.metric or "sqeuclidean"
    if given.cost is not None:
        C = load(given.cost)
        if C.ndim != 2 or C.size == 0 or (given.corpus is None and C.shape[0] != C.shape[1]):
            rule = "(bins, bins)" if given.corpus is None else "(bins of queries, bins of corpus)"
            raise InputError(f"{given.cost}: the cost must have shape {rule}; got {C.shape}")
        if (wrong := first_index(np.isnan(C) | (C == -np.inf))) is not None:
            raise InputError(f"{given.cost}: a cost must be a number or +inf (forbidden); got {C[wrong]} at {wrong}")
        return _scaled(C.astype(dtype), given.scale_cost), f"the cost of shape {C.shape}"
    if given.grid is not None:
        words = f"the grid {'x'.join(map(str, given.grid))}"
        large = np.prod(given.grid) ** 2 > STORED
        if large and not sparse and metric in GRID_METRICS and len(given.grid) <= 3:
            return _grid(given.grid, metric, given.scale_cost), words
        points = [np.indices(given.grid).reshape(len(given.grid), -1).T.astype(np.float64)]
        return _of_points(points, metric, given.scale_cost, sparse and large, dtype, "--metric"), words
    points = [load(name).astype(dtype) for name in given.points]
    if len(points) == 2 and given.corpus is None:
        raise InputError("--points: one collection lies on one set of points; give one file, or a corpus")
    words = f"{len(points[0])} points of {given.points[0]}" if len(points) == 1 else "the points"
    return _of_points(points, metric, given.scale_cost, sparse, dtype, "--points"), words


def _of_points(points: list[HostArray], metric: Any, scale: bool, sparse: bool, dtype: Any, option: str) -> Any:
    try:
        stays = (len(points[0]) * len(points[-1]) > STORED or sparse) and metric in METRICS
        if stays:
            x, y = (p.astype(dtype) for p in (points * 2)[:2])
            cloud = PointCloud(x, None if len(points) == 1 else y, metric)
            return _scaled_cloud(cloud) if scale else cloud
        return _scaled(cost_matrix(points[0], points[-1], metric=metric).astype(dtype), scale)
    except (TypeError, ValueError) as error:
        raise InputError(f"{option}: {line(error)}") from None
    except MemoryError:
        raise InputError(
            f"{option}: the {len(points[0])} x {len(points[-1])} costs do not fit into memory, and --metric {metric} "
            f"has no other form; {', '.join(METRICS)} are not stored"
        ) from None


def _scaled_cloud(cloud: PointCloud) -> PointCloud:
    """Return a PointCloud with the costs of `cloud` divided by the largest, which is found without storing them."""
    costs = data_of(cloud, np, np.float64, [p.astype(np.float64) for p in named_arrays(cloud).values()])
    x, y = costs.centred()
    if not (largest := _farthest(x, y, costs.norm)) > 0:
        raise InputError(NO_UNIT)
    unit = largest if costs.norm == "cityblock" else largest**0.5
    x, y = ((p / unit).astype(cloud.x.dtype) for p in (x, y))
    # A cosine is half the squared distance on the unit sphere, where these points are.
    metric = "sqeuclidean" if cloud.metric == "cosine" else cloud.metric
    return PointCloud(x, None if cloud.x is cloud.y else y, metric)


def _farthest(x: HostArray, y: HostArray, norm: str) -> float:
    """Return the largest distance between points of `x` and of `y`, squared unless city-block.

    The points are centred, so that a matrix product finds the pair farthest apart; its distance is computed from the
    difference.
    """
    from scipy.spatial.distance import cdist

    largest, rows = 0.0, max(1, STORED // len(y))
    for start in range(0, len(x), rows):
        block, others = x[start : start + rows], y[start:] if x is y else y
        if norm == "cityblock":
            found = cdist(block, others, norm).max()
        else:
            squares = ((p * p).sum(axis=1) for p in (block, others))
            i, j = divmod(int((np.add.outer(*squares) - 2 * (block @ others.T)).argmax()), len(others))
            found = ((block[i] - others[j]) ** 2).sum()
        largest = max(largest, float(found))
    return largest


def _grid(shape: tuple[int, ...], metric: Any, scale: bool) -> Grid:
    if not scale:
        return Grid(shape, metric)
    largest = Grid(shape, metric).max()
    return Grid(shape, metric, spacing=largest**-0.5 if metric == "sqeuclidean" else 1 / largest)


def _scaled(C: HostArray, scale: bool) -> HostArray:
    """Return the cost, divided by its largest finite entry if `scale` asks for it."""
    if not scale:
        return np.ascontiguousarray(C)
    if not (largest := C.max(initial=0, where=np.isfinite(C))) > 0:
        raise InputError(NO_UNIT)
    return np.ascontiguousarray(C / largest)


def _histograms(name: str, array: Any, bins: int, of_cost: str, dtype: Any) -> Any:
    """Return the array in `dtype`, after checking that it is (count, bins), finite and non-negative."""
    if array.ndim != 2 or array.shape[1] != bins or array.shape[0] == 0:
        raise InputError(f"{name}: must have shape (count, {bins}) to match {of_cost}; got {array.shape}")
    return _weights(name, array, dtype)


def _weights(name: str, array: Any, dtype: Any) -> Any:
    """Return the array in `dtype`, after checking that it is finite and non-negative."""
    values = array if isinstance(array, np.ndarray) else array.data
    if (wrong := first_bad_weight(np, values)) is not None:
        value = values[wrong]
        if values is not array:  # the number of a stored entry
            wrong = int(np.searchsorted(array.indptr, wrong[0], side="right")) - 1, int(array.indices[wrong])
        at = f"at row {wrong[0]}, bin {wrong[1]}"
        if np.isfinite(value):
            raise InputError(f"{name}: weights must not be negative; got {value:g} {at}. Clip or shift them")
        raise InputError(f"{name}: weights must be finite; got {value} {at}")
    return array.astype(dtype, copy=False)


def _masses(name: str, array: Any, dtype: Any) -> HostArray:
    """Return the sums (count,) of weights, after checking that they are numbers of `dtype`, of documents 0 too."""
    with np.errstate(over="ignore"):
        mass = np.asarray(array.sum(axis=1, dtype=np.float64))
    empty = mass == 0
    if isinstance(array, np.ndarray) and (wrong := first_index(empty)) is not None:
        raise InputError(f"{name}: every histogram must have some mass; that of row {wrong[0]} is 0. Remove it")
    try:
        mass_in_range(name, np.where(empty, 1, mass), dtype)
    except ValueError as error:
        raise InputError(f"{name}: weights " + str(error).removeprefix(f"'{name}' ")) from None
    return mass


def _normalised(array: Any, mass: HostArray) -> Any:
    """Return histograms divided by their masses (count,)."""
    if isinstance(array, np.ndarray):
        return np.divide(array, mass[:, None], dtype=array.dtype, casting="same_kind")
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(mass > 0, 1 / mass, 0).astype(array.dtype)
    array = array.copy()
    array.data *= np.repeat(factors, np.diff(array.indptr))
    return array


def _one_mass(names: Sequence[str], masses: Sequence[HostArray], dtype: Any) -> None:
    """Raise unless all histograms have one mass, to the relative tolerance of the solver."""
    firsts = ((name, first_index(mass != 0), mass) for name, mass in zip(names, masses, strict=True))
    owner, row, expected = next(((name, at[0], mass[at]) for name, at, mass in firsts if at is not None), ("", 0, 0.0))
    for name, mass in zip(names, masses, strict=True):
        _, wrong = first_unequal_mass(np, mass, expected, dtype)
        if wrong is not None:
            raise InputError(
                f"{name}: all histograms must have one mass; row {wrong[0]} has {mass[wrong]:g}, row {row} of"
                f" {owner} has {expected:g}. Pass --normalise to divide each by its own"
            )
