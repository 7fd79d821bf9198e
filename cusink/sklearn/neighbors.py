"""Graphs of nearest neighbours by Sinkhorn distances, for estimators that take precomputed ones."""

from typing import Any, Literal, Self

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cusink.checks.arrays import as_dtype
from cusink.checks.regularisation import RelativeEps
from cusink.checks.scalars import flag, one_of, positive_integer, shown
from cusink.retrieval.index import Index
from cusink.sklearn.checks import cost_like, histograms, named, of_kind
from cusink.types import HostArray, MatrixValue, Tolerance

SHARE = 0.01  # of the largest cost that eps is where none is given
MODES = ("distance", "connectivity")
# What `cusink.Index` calls the parameters.
NAMES = {"A": "X", "B": "X", "C.x": "cost.x", "C.y": "cost.y", "C": "cost", "k": "n_neighbors"}


class SinkhornNeighborsTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transform histograms into a sparse graph of their nearest neighbours by Sinkhorn distance.

    It stands in the place of `sklearn.neighbors.KNeighborsTransformer`, before estimators with
    ``metric="precomputed"``. The neighbours are exact, and found by `cusink.Index`.

    Parameters
    ----------
    n_neighbors : int
        Neighbours of each sample. As scikit-learn counts, ``mode="distance"`` adds one to them: a sample of the
        training data is the first of its own, unless another one before it is equal.
    cost : array, shape (n_features, n_features), PointCloud or Grid, or None
        Cost between features, which are the bins. None stands for bins in a row: the squared difference of their
        numbers, with 1 as the largest.
    eps : float or RelativeEps, or None
        Regularisation in the unit of `cost`. None stands for a hundredth of the largest cost, whatever its unit is.
    value : {"divergence", "cost", "reg_cost", "entropic_cost"}
        The distance, as for `cusink.distance_matrix`. Of these "divergence" alone is 0 between equal samples, which
        estimators expect; "entropic_cost" may be negative, which they refuse.
    mode : {"distance", "connectivity"}
        What the graph holds: distances, or ones.
    normalise : bool
        Divide each sample by its sum. If False all must have one sum.
    max_iter : int
        Iterations at most, as for `cusink.sinkhorn`.
    tol : "auto", float or None
        L1 marginal error at which a pair stops, as for `cusink.sinkhorn`.
    workers : int, optional
        Threads, as for `cusink.distance_matrix`.

    Attributes
    ----------
    index_ : Index
        The training data.
    n_samples_fit_ : int
        How many samples it has.
    n_features_in_ : int
        Bins.
    feature_names_in_ : array of str, shape (n,)
        Names of bins, if `X` has some.

    Raises
    ------
    TypeError, ValueError
        In `fit`, as for `cusink.Index`.

    Examples
    --------
    >>> from cusink.sklearn import SinkhornNeighborsTransformer
    >>> X = [[2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]]
    >>> graph = SinkhornNeighborsTransformer(1, mode="connectivity").fit_transform(X)
    >>> graph.toarray().astype(int).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        cost: Any = None,
        eps: float | RelativeEps | None = None,
        value: MatrixValue = "divergence",
        mode: Literal["distance", "connectivity"] = "distance",
        normalise: bool = True,
        max_iter: int = 1000,
        tol: Tolerance = "auto",
        workers: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.cost = cost
        self.eps = eps
        self.value = value
        self.mode = mode
        self.normalise = normalise
        self.max_iter = max_iter
        self.tol = tol
        self.workers = workers

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Take the samples in, to be looked among.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Histograms, or documents as counts of words.
        y : None
            Ignored.

        Returns
        -------
        self
            The estimator.
        """
        del y
        positive_integer("n_neighbors", self.n_neighbors)
        one_of("mode", self.mode, MODES)
        flag("normalise", self.normalise)
        X = histograms(self, X, fitting=True)
        eps = self.eps
        if eps is None:
            eps = RelativeEps(SHARE, "max") if X.shape[1] > 1 else SHARE  # one bin costs nothing
        with named(NAMES):
            self.index_ = Index(
                X,
                cost_like(self.cost, X),
                eps=eps,
                value=self.value,
                max_iter=self.max_iter,
                tol=self.tol,
                on_empty="raise",
                normalise=self.normalise,
                workers=self.workers,
            )
        self._sparse = issparse(X)
        self.n_samples_fit_ = self._n_features_out = len(self.index_)
        return self

    def transform(self, X: Any) -> csr_matrix:
        """Return the graph of the neighbours of samples among the training data.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_queries, n_features)
            Samples, dense or sparse; those of the training data have themselves among their neighbours, or others
            that are equal.

        Returns
        -------
        scipy.sparse.csr_matrix, shape (n_queries, n_samples_fit)
            `n_neighbors` entries in each row, ascending, and one more for ``mode="distance"``.
        """
        check_is_fitted(self)
        count = positive_integer("n_neighbors", self.n_neighbors) + (self.mode == "distance")
        if count > self.n_samples_fit_:
            most = self.n_samples_fit_ - (self.mode == "distance")
            raise ValueError(
                f"'n_neighbors' must be at most {most} for mode={self.mode!r} and {self.n_samples_fit_} samples; got "
                f"{shown(self.n_neighbors)}. Fit more samples, or ask for fewer"
            )
        return self.kneighbors_graph(X, count, self.mode)

    def fit_transform(self, X: Any, y: Any = None) -> csr_matrix:
        """Take the samples in, and return the graph of their neighbours among themselves.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Histograms.
        y : None
            Ignored.

        Returns
        -------
        scipy.sparse.csr_matrix, shape (n_samples, n_samples)
            As `transform` returns it.
        """
        return self.fit(X, y).transform(X)

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[HostArray, HostArray] | HostArray:
        """Return the nearest neighbours of samples among the training data.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_queries, n_features), optional
            Samples. If not given, those of the training data, none of which is then its own neighbour.
        n_neighbors : int, optional
            Neighbours of each; if not given, as the estimator has it.
        return_distance : bool
            Whether distances are returned too.

        Returns
        -------
        distances : array, shape (n_queries, n_neighbors)
            Ascending in each row; only with `return_distance`.
        indices : array of int, shape (n_queries, n_neighbors)
            Numbers of samples of the training data.
        """
        check_is_fitted(self)
        flag("return_distance", return_distance)
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        rows = None
        if X is not None:
            rows = of_kind(as_dtype("X", histograms(self, X, fitting=False), self.index_.dtype), self._sparse)
        with named(NAMES):
            distances, indices = self.index_.search(rows, count, workers=self.workers)
        if self.value == "divergence":
            np.maximum(distances, 0, out=distances)  # rounding, of which estimators want none below zero
        return (distances, indices) if return_distance else indices

    def kneighbors_graph(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        mode: Literal["distance", "connectivity"] = "connectivity",
    ) -> csr_matrix:
        """Return the graph of the neighbours of samples among the training data.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_queries, n_features), optional
            Samples. If not given, those of the training data, none of which is then its own neighbour.
        n_neighbors : int, optional
            Neighbours of each; if not given, as the estimator has it.
        mode : {"connectivity", "distance"}
            Whether the graph holds ones or distances.

        Returns
        -------
        scipy.sparse.csr_matrix, shape (n_queries, n_samples_fit)
            `n_neighbors` entries in each row, in the order of the distances.
        """
        one_of("mode", mode, MODES)
        distances, indices = self.kneighbors(X, n_neighbors)
        data = distances if mode == "distance" else np.ones_like(distances)
        starts = np.arange(len(indices) + 1) * indices.shape[1]
        return csr_matrix((data.ravel(), indices.ravel(), starts), shape=(len(indices), self.n_samples_fit_))
