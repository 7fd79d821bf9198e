#!/usr/bin/env python3
"""Register two clouds by an affine map that minimises their Sinkhorn divergence, with and without second derivatives.

The clouds are one set of points before and after a map that the method does not know, in different order. Newton's
method with conjugate gradients asks for products of the Hessian with directions, which `sinkhorn_divergence_hvp` gives
from the solution that is there already; a quasi-Newton method guesses the Hessian from gradients, and each step is a
solve. Both start from the identity and go on until the gradient is small.
"""

import argparse
import sys

import numpy as np

import cusink
from cusink.cli import InputError, Parser, positive

EPS = 0.3


def main(arguments=None):
    """Print what both methods take and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=positive, default=150, help="in each cloud (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    try:
        given = parser.parse_args(arguments)
    except InputError as error:
        print(f"registration: {error}", file=sys.stderr)
        return 2
    source, target, truth = clouds(int(given.points), given.seed)
    print("| method | steps | solves | Hessian products | gradient | error of the map |")
    print("|---|---|---|---|---|---|")
    for method in ("Newton-CG", "L-BFGS-B"):
        fit, work = register(source, target, method)
        slope, off = np.linalg.norm(work.gradient(fit.x)), np.abs(fit.x - truth).max()
        print(f"| {method} | {fit.nit} | {work.solves} | {work.products} | {slope:.1e} | {off:.1e} |", flush=True)
    return 0


def clouds(n, seed):
    """Return points, their images in another order, and the map as one array: a matrix and a shift."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 3)) * [1.0, 0.6, 0.3]
    matrix = np.array([[1.1, 0.3, -0.2], [-0.1, 0.9, 0.25], [0.2, -0.1, 1.2]])
    shift = np.array([0.4, -0.3, 0.2])
    return points, rng.permutation(points) @ matrix.T + shift, np.r_[matrix.ravel(), shift]


class Objective:
    """The divergence of the mapped points from the target, and its derivatives by the map."""

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.solves = self.products = 0
        self._at, self._result = None, None

    def moved(self, parameters):
        """Return the points under a map, which is linear in its parameters: their moves under a direction too."""
        return self.source @ parameters[:9].reshape(3, 3).T + parameters[9:]

    def pulled(self, of_points):
        """Return the gradient by the map, given that by the mapped points."""
        return np.r_[(of_points.T @ self.source).ravel(), of_points.sum(axis=0)]

    def solved(self, parameters):
        """Solve once for the value and all derivatives at one map."""
        if self._at is None or not np.array_equal(self._at, parameters):
            cloud = cusink.PointCloud(self.moved(parameters), self.target)
            self._result = cusink.sinkhorn_divergence(None, None, cloud, eps=EPS, tol=1e-7, max_iter=5000)
            self._at, self.solves = parameters.copy(), self.solves + 1
        return self._result

    def value(self, parameters):
        """Return the divergence."""
        return float(self.solved(parameters).divergence)

    def gradient(self, parameters):
        """Return its gradient."""
        return self.pulled(cusink.sinkhorn_divergence_adjoint(self.solved(parameters)).x)

    def product(self, parameters, direction):
        """Return its Hessian times a direction."""
        self.products += 1
        moves = self.moved(direction)
        return self.pulled(cusink.sinkhorn_divergence_hvp(self.solved(parameters), dx=moves).x)


def register(source, target, method):
    """Return what SciPy found, and the objective with its counts."""
    from scipy.optimize import minimize

    work, start = Objective(source, target), np.r_[np.eye(3).ravel(), np.zeros(3)]
    newton = method == "Newton-CG"
    options = {"xtol": 1e-7} if newton else {"ftol": 1e-16, "gtol": 1e-7}
    second = {"hessp": work.product} if newton else {}
    return minimize(work.value, start, jac=work.gradient, method=method, options=options, **second), work


if __name__ == "__main__":
    sys.exit(main())
