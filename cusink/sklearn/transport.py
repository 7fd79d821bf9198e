"""Moving samples of one domain into another by entropic transport."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from cusink.checks.regularisation import RelativeEps
from cusink.costs.clouds import PointCloud, SampleMetric
from cusink.sklearn.checks import named, samples, targets
from cusink.solver.sinkhorn import sinkhorn
from cusink.types import HostArray, Tolerance

NAMES = {"x": "Xs", "y": "Xt", "C": "Xs"}  # of the parameters of `cusink.PointCloud` and `cusink.sinkhorn`

T = TypeVar("T", bound=type)
# What POT calls the parameters of methods.
ALIASES = {
    "transform": {"Xs": "X"},
    "inverse_transform": {"Xt": "X"},
    "fit_transform": {"Xs": "X", "Xt": "y"},
}


def also_called(aliases: Mapping[str, Mapping[str, str]]) -> Callable[[T], T]:
    """Let methods of a class take parameters by further names.

    A decorator of the class, as scikit-learn's own wrappers, which are made with it, want an `X`.
    """

    def with_names(method: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(self: Any, *args: Any, **keywords: Any) -> Any:
            for other, name in names.items():
                if other in keywords:
                    if name in keywords or len(args) > list(names.values()).index(name):
                        raise TypeError(f"'{name}' must be given once; got '{other}' too, which is the same")
                    keywords[name] = keywords.pop(other)
            return method(self, *args, **keywords)

        return wrapped

    def decorate(cls: T) -> T:
        for name, names in aliases.items():
            setattr(cls, name, with_names(getattr(cls, name), names))
        return cls

    return decorate


@also_called(ALIASES)
class SinkhornTransport(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Transform samples of a source domain into a target domain by the entropic map between them.

    All samples of a domain weigh the same. It maps as `ot.da.SinkhornTransport` of POT does, whose ``reg_e`` is `eps`,
    with memory for the samples and not for all pairs of them. Its methods take samples by POT's names `Xs`, `Xt`, too.

    Parameters
    ----------
    eps : float or RelativeEps
        Regularisation in the unit of the cost.
    metric : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        The cost between samples, as for `cusink.PointCloud`.
    power : float
        The cost is the metric to this power.
    max_iter : int
        Iterations at most, as for `cusink.sinkhorn`.
    tol : "auto", float or None
        L1 marginal error at which the solve stops, as for `cusink.sinkhorn`.
    workers : int, optional
        Threads that solve, as for `cusink.sinkhorn`; maps are made on those that `cusink.set_workers` says.

    Attributes
    ----------
    result_ : SinkhornResult
        The solved problem: costs, convergence, potentials.
    coupling_ : array, shape (n_source_samples, n_target_samples)
        The plan, made anew whenever it is asked for.
    n_iter_ : int
        Iterations that it took.
    n_features_in_ : int
        Coordinates of a sample.
    feature_names_in_ : array of str, shape (n,)
        Their names, if the source samples have some.

    Raises
    ------
    TypeError, ValueError
        In `fit`, as for `cusink.sinkhorn`.

    References
    ----------
    N. Courty et al., Optimal transport for domain adaptation, PAMI 2017.
    A.-A. Pooladian and J. Niles-Weed, Entropic estimation of optimal transport maps, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from cusink.sklearn import SinkhornTransport
    >>> Xs = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> transport = SinkhornTransport(eps=0.01).fit(Xs, Xs + 5)
    >>> transport.transform([[0.0, 0.0], [0.9, 0.1]]).round(3).tolist()
    [[5.0, 5.0], [6.0, 5.0]]
    """

    # The second names are no metadata to be routed.
    __metadata_request__transform = {"Xs": UNUSED}  # noqa: RUF012, as scikit-learn reads it
    __metadata_request__inverse_transform = {"Xt": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        eps: float | RelativeEps = 1.0,
        *,
        metric: SampleMetric = "sqeuclidean",
        power: float = 1,
        max_iter: int = 1000,
        tol: Tolerance = "auto",
        workers: int | None = None,
    ) -> None:
        self.eps = eps
        self.metric = metric
        self.power = power
        self.max_iter = max_iter
        self.tol = tol
        self.workers = workers

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def coupling_(self) -> HostArray:
        """The plan, shape (n_source_samples, n_target_samples)."""
        check_is_fitted(self, "result_")
        plan: HostArray = self.result_.plan()
        return plan

    def fit(self, Xs: Any, Xt: Any = None) -> Self:
        """Solve transport of the source samples to the target samples.

        Parameters
        ----------
        Xs : array-like, shape (n_source_samples, n_features)
            Source samples.
        Xt : array-like, shape (n_target_samples, n_features)
            Target samples, as many as there are; a pipeline passes them as ``y``.

        Returns
        -------
        self
            The estimator.
        """
        Xs = samples(self, Xs, fitting=True)
        Xt = targets(Xt, self.n_features_in_, "Xt").astype(Xs.dtype, copy=False)
        with named(NAMES):
            cloud = PointCloud(Xs, Xt, self.metric, power=self.power)
            self.result_ = sinkhorn(
                None, None, cloud, eps=self.eps, max_iter=self.max_iter, tol=self.tol, workers=self.workers
            )
        self.n_iter_ = int(self.result_.n_iter)
        return self

    def fit_transform(self, X: Any = None, y: Any = None, *, Xs: Any = None, Xt: Any = None) -> HostArray:
        """Solve transport, and map the source samples.

        Parameters
        ----------
        X : array-like, shape (n_source_samples, n_features)
            Source samples.
        y : array-like, shape (n_target_samples, n_features)
            Target samples.
        Xs, Xt : array-like
            The same two, by POT's names.

        Returns
        -------
        array, shape (n_source_samples, n_features)
            The images of the source samples.
        """
        del Xs, Xt  # `also_called` has made X and y of them
        return self.fit(X, y).transform(X)

    def transform(self, X: Any = None, *, Xs: Any = None) -> HostArray:
        """Map source samples, of the fit or new, into the target domain.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Source samples.
        Xs : array-like
            The same, by POT's name.

        Returns
        -------
        array, shape (n_samples, n_features)
            For each the mean of the target samples under its row of the plan, as `SinkhornResult.at` extends it.
        """
        del Xs
        return self._mapped(X, "x")

    def inverse_transform(self, X: Any = None, *, Xt: Any = None) -> HostArray:
        """Map target samples, of the fit or new, into the source domain.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
            Target samples.
        Xt : array-like
            The same, by POT's name.

        Returns
        -------
        array, shape (n_samples, n_features)
            For each the mean of the source samples under its column of the plan.
        """
        del Xt
        return self._mapped(X, "y")

    def _mapped(self, X: Any, side: str) -> HostArray:
        check_is_fitted(self)
        X = samples(self, X, fitting=False).astype(self.result_.f.dtype, copy=False)
        with named({side: "X"}):
            mapped: HostArray = self.result_.at(**{side: X}).map()
        return mapped
