"""Checks of the arguments of estimators: scikit-learn's own for data, and errors by the names of their parameters."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse
from sklearn.utils.validation import check_array, validate_data

from cusink.checks.arrays import array_module, kind
from cusink.checks.foreign import taken
from cusink.costs.kinds import with_arrays
from cusink.costs.matrix import cost_matrix
from cusink.types import HostArray

DTYPES = [np.float64, np.float32]


def samples(estimator: Any, X: Any, *, fitting: bool) -> HostArray:
    """Return samples (n_samples, n_features) of an estimator as an array, whose features are those of the fit."""
    X = _on_the_host("X", X)
    found: HostArray = validate_data(estimator, X, reset=fitting, dtype=DTYPES, order="C")
    return found


def histograms(estimator: Any, X: Any, *, fitting: bool) -> Any:
    """Return samples as an array or as sparse rows, none of them negative or without weight."""
    X = _on_the_host("X", X)
    rules = {"accept_sparse": "csr", "dtype": DTYPES, "order": "C", "ensure_non_negative": True}
    X = validate_data(estimator, X, reset=fitting, **rules)
    empty = np.asarray(X.max(axis=1).toarray() if issparse(X) else X.max(axis=1)).ravel() == 0
    if empty.any():
        raise ValueError(f"'X' must have a positive sum in each row; row {int(empty.argmax())} is all zero")
    return X


def of_kind(X: Any, sparse: bool) -> Any:
    """Return samples as sparse rows or as an array, whichever the samples of the fit were."""
    if issparse(X) == sparse:
        return X
    return csr_array(X) if sparse else X.toarray()


def targets(Y: Any, features: int, name: str) -> HostArray:
    """Return target samples (n_targets, n_features), of as many features as the sources have."""
    if Y is None:
        raise ValueError(f"'{name}' must be an array of target samples; requires y to be passed, but got None")
    Y = _on_the_host(name, Y)
    found: HostArray = check_array(Y, dtype=DTYPES, order="C", input_name=name)
    if found.shape[1] != features:
        raise ValueError(f"'{name}' must have {features} features, as 'X' has; got shape {found.shape}")
    return found


def cost_like(cost: Any, X: Any) -> Any:
    """Return the cost between the features of X in its dtype; for None that of bins in a row."""
    if cost is None:
        return cost_matrix(np.linspace(0, 1, X.shape[1], dtype=X.dtype))

    def converted(array: Any) -> Any:
        array = _on_the_host("cost", taken("cost", array))
        other = isinstance(array, np.ndarray) and array.dtype in DTYPES
        return array.astype(X.dtype, copy=False) if other else array

    cost, bins = with_arrays(cost, converted), X.shape[1]
    shape = getattr(cost, "shape", (bins, bins))  # lists are for others to judge
    if shape != (bins, bins):
        raise ValueError(f"'cost' must have shape {(bins, bins)}, between the features of 'X'; got {shape}")
    return cost


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors name the parameters of an estimator in the place of those of the function that it calls."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = re.sub(r"'([\w.]+)'", lambda word: f"'{names.get(word[1], word[1])}'", str(error))
        raise type(error)(message) from None


def _on_the_host(name: str, x: Any) -> Any:
    """Return an input as scikit-learn reads it, which is unless it has DLPack alone."""
    if array_module(x) is not np:
        raise TypeError(
            f"'{name}' must lie in the memory of the host for scikit-learn; got {kind(x)}. Convert it with "
            "cupy.asnumpy, or call cusink.Index or cusink.sinkhorn, which take it as it is"
        )
    alone = hasattr(type(x), "__dlpack__") and not hasattr(type(x), "__array__")
    return taken(name, x) if alone else x
