"""A generative model of weighted points in the plane, with its derivative written by hand.

The model is that of Jean Feydy's notebook "Fitting a generative model using standard divergences between measures": a
mixture of two Gaussians on a line, N(-1, sigma_-1) with probability P and N(+1, sigma_+1) with 1 - P, put into the
plane by a polynomial curve. Half of N normal numbers z_i goes to each class, whose probability weighs its points
instead of drawing more of them, so that the measure depends smoothly on all parameters:

    P = 1 / (1 + exp(-p))            a_i = P / (N/2)    or  (1 - P) / (N - N/2)
    t_i = sigma_c z_i + c            x_i = sum_k coefficients_k t_i^k           c = -1 or +1, the class of point i
"""

from dataclasses import dataclass

import numpy as np

CENTRES = np.array([-1.0, 1.0])


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """Parameters of the model, or a gradient by them: p; sigmas (2,); coefficients (degree + 1, 2), constants first."""

    p: float
    sigmas: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def start(cls, degree):
        """Return the notebook's first parameters: classes of equal mass on a short piece of a straight curve."""
        return cls(p=0.0, sigmas=np.full(2, 0.1), coefficients=np.full((degree + 1, 2), 0.1))

    @classmethod
    def unpack(cls, vector):
        """Return the model whose parameters, one after the other, are `vector`."""
        return cls(p=float(vector[0]), sigmas=vector[1:3], coefficients=vector[3:].reshape(-1, 2))

    def pack(self):
        """All parameters as one vector."""
        return np.concatenate([[self.p], self.sigmas, self.coefficients.ravel()])

    def curve(self, t):
        """Points (n, 2) of the curve at times `t` (n,)."""
        return powers(t, len(self.coefficients)) @ self.coefficients

    def sample(self, normals):
        """Weights (N,) and points (N, 2) that standard normal numbers (N,) become."""
        first, t = self._times(normals)
        share, count = 1 / (1 + np.exp(-self.p)), first.sum()
        return np.where(first, share / count, (1 - share) / (len(normals) - count)), self.curve(t)

    def sample_adjoint(self, normals, grad_weights, grad_points):
        """Pull gradients by what `sample` returned back to the parameters: a Model that holds them."""
        first, t = self._times(normals)
        share, count = 1 / (1 + np.exp(-self.p)), first.sum()
        by_share = np.where(first, 1 / count, -1 / (len(normals) - count)) @ grad_weights
        degrees = len(self.coefficients)
        # dx/dt = sum_k k coefficients_k t^(k-1), and dt/dsigma is the normal number itself.
        slope = powers(t, degrees)[:, : degrees - 1] @ (np.arange(1, degrees)[:, None] * self.coefficients[1:])
        by_sigma = (grad_points * slope).sum(axis=1) * normals
        return Model(
            p=by_share * share * (1 - share),
            sigmas=np.array([by_sigma[first].sum(), by_sigma[~first].sum()]),
            coefficients=powers(t, degrees).T @ grad_points,
        )

    def _times(self, normals):
        """Which points (N,) are of the first class, and the times (N,) on the curve of all."""
        first = np.arange(len(normals)) < len(normals) // 2
        return first, np.where(first, self.sigmas[0], self.sigmas[1]) * normals + np.where(first, *CENTRES)


# What the notebook samples its data from: classes of 73 and 27 % on a cubic curve.
TRUTH = Model(
    p=1.0,
    sigmas=np.array([0.2, 0.4]),
    coefficients=np.array([[-0.2, 1.0, 0.2, -0.3], [-1.0, -0.5, 0.9, 0.2]]).T,
)
NOISE = 0.05


def observe(rng, count):
    """Weights (count,) and points (count, 2) of a sample of the truth, with Gaussian noise on the points."""
    weights, points = TRUTH.sample(rng.standard_normal(count))
    return weights, points + NOISE * rng.standard_normal(points.shape)


def powers(t, count):
    """``t_i^k`` for k < count: an array (n, count)."""
    return t[:, None] ** np.arange(count)
