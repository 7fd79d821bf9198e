#!/usr/bin/env python3
"""Fit a generative model to weighted points with a kernel norm, a likelihood or the Sinkhorn distance.

The experiment of Jean Feydy's notebook "Fitting a generative model using standard divergences between measures", with
explicit gradients all the way and no automatic differentiation: the divergence's adjoint gives the gradient by the
weights and points of the sample, the model's (model.py) takes it to the parameters, and Adam makes the step.
Every iteration draws a new sample of the model, so that the cost flickers as the notebook's does.

kernel       |mu - nu|^2 in the norm of a kernel
likelihood   - sum_j b_j log (k * mu)(y_j), the negative log-likelihood of the data under the blurred model
sinkhorn     <P, C> - eps H(P), regularised transport with the squared distance and eps = scale^2
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

import cusink
from cusink.cli import InputError, Parser, positive
from examples.model import CENTRES, TRUTH, Model, observe

DEFAULT = {  # kernel, scale, iterations: the notebook's
    "kernel": ("energy", 0.25, 1000),
    "likelihood": ("gaussian", 0.25, 500),
    "sinkhorn": ("gaussian", 0.15, 500),
}
REPORT = 50  # iterations from one printed cost, and one figure, to the next
MAX_ITER = 10_000  # of a transport plan
TRUTH_SAMPLES = 50  # whose costs say what a perfect fit would reach
EXTENT = 2.0  # pictures show the square from -2 to 2
CELLS = 100  # of a field, along each side
INK, GREY, MODEL, DATA = "#1b1b1b", "#6b6b6b", "#d55e00", "#0072b2"


class Adam:
    """Adam (Kingma and Ba, 2015): steps of about `rate` against the mean of the gradients, by their mean square."""

    def __init__(self, rate=0.1, eps=1e-2, decays=(0.9, 0.999)):
        self.rate, self.eps, self.decays = rate, eps, decays
        self.count, self.mean, self.square = 0, 0.0, 0.0

    def step(self, parameters, gradient):
        """Return the parameters after one step."""
        first, second = self.decays
        self.count += 1
        self.mean = first * self.mean + (1 - first) * gradient
        self.square = second * self.square + (1 - second) * gradient**2
        mean, square = self.mean / (1 - first**self.count), self.square / (1 - second**self.count)
        return parameters - self.rate * mean / (np.sqrt(square) + self.eps)


# Each divergence takes the model's points x and weights a, the data's y and b, and points of a grid or None. It returns
# its value, the gradients by a and x, and, where the grid is given, what goes behind the points of the picture.


def kernel(x, a, y, b, given, grid=None):
    """Squared norm of the difference; the picture is the difference as the kernel sees it."""
    options = {"kernel": given.kernel, "scale": given.scale}
    cost, field = of(cusink.kernel_distance(x, a, y, b, field_at=grid, **options), grid)
    grads = cusink.kernel_distance_adjoint(x, a, y, b, wrt=("x", "a"), **options)
    return cost, grads.a, grads.x, field


def likelihood(x, a, y, b, given, grid=None):
    """Negative log-likelihood of the data under the blurred model; the picture is the log of its density."""
    options = {"kernel": given.kernel, "scale": given.scale}
    cost, field = of(cusink.kernel_neg_log_likelihood(x, a, y, b, field_at=grid, **options), grid)
    grads = cusink.kernel_neg_log_likelihood_adjoint(x, a, y, b, wrt=("x", "a"), **options)
    return cost, grads.a, grads.x, field


def sinkhorn(x, a, y, b, given, grid=None):
    """Entropic transport cost; the picture is the plan."""
    # The notebook's u = tau u + (1 - tau) update is over-relaxation by 1 - tau.
    overrelaxation = "auto" if given.tau is None else 1 - given.tau
    options = {"eps": given.scale**2, "overrelaxation": overrelaxation, "max_iter": MAX_ITER}
    with warnings.catch_warnings():
        # Where mass must cross a wide gap, that takes many iterations; a gradient short of tol is good enough to go on.
        warnings.simplefilter("ignore", cusink.ConvergenceWarning)
        result = cusink.sinkhorn(a, b, cusink.cost_matrix(x, y), **options)
        grads = cusink.sinkhorn_adjoint(result, grad_entropic_cost=1.0)
    by_x, _ = cusink.cost_matrix_adjoint(x, y, grads.C)
    if not result.converged:
        given.missed.append(float(result.error))
    return result.entropic_cost, grads.a, by_x, None if grid is None else result.plan()


DIVERGENCES = {"kernel": kernel, "likelihood": likelihood, "sinkhorn": sinkhorn}


def of(found, grid):
    """Return the value and the field that a divergence returned, None if it returned no field."""
    return (found, None) if grid is None else found


def fit(given, report):
    """Fit the model to data drawn from the seed; return it and the costs of all iterations.

    `report` is called with the iteration, the cost, the model, its sample, the data, and what goes behind them, at each
    iteration that is printed or is a frame of the animation.
    """
    rng = np.random.default_rng(given.seed)
    b, y = observe(rng, given.points)
    model, adam, costs = Model.start(given.degree), Adam(), []
    for iteration in range(given.iterations + 1):
        normals = rng.standard_normal(given.points)
        a, x = model.sample(normals)
        shown = iteration % REPORT == 0 or (given.frames and iteration % given.frames == 0)
        cost, by_a, by_x, behind = DIVERGENCES[given.divergence](x, a, y, b, given, cells() if shown else None)
        costs.append(float(cost))
        if shown:
            report(iteration, costs[-1], model, (x, a), (y, b), behind)
        if not np.isfinite(costs[-1]):
            break
        gradient = model.sample_adjoint(normals, by_a, by_x)
        model = Model.unpack(adam.step(model.pack(), gradient.pack()))
    return model, np.array(costs)


def costs_of_truth(given):
    """Return the loss of samples of the true model: a perfect fit would reach it."""
    rng = np.random.default_rng(given.seed)
    b, y = observe(rng, given.points)
    found = []
    for _ in range(TRUTH_SAMPLES):
        a, x = TRUTH.sample(rng.standard_normal(given.points))
        found.append(float(DIVERGENCES[given.divergence](x, a, y, b, given)[0]))
    return np.array(found)


def cells():
    """Centres (CELLS, CELLS, 2) of the cells of the square that is shown, rows from below."""
    ticks = EXTENT * ((2 * np.arange(CELLS) + 1) / CELLS - 1)
    return np.stack(np.meshgrid(ticks, ticks), axis=-1)


def main(arguments=None):
    """Fit, print, draw, and return the exit status: 1 if the cost ceased to be a number."""
    try:
        given = parse(arguments)
    except InputError as error:
        print(f"fitting: {error}", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    start, spent = time.perf_counter(), 0.0
    pictures = Pictures(given)

    def report(iteration, cost, *situation):
        nonlocal spent
        before = time.perf_counter()
        if iteration % REPORT == 0:
            print(f"Iteration  {iteration} Cost =  {cost:.6g}")
        pictures.draw(iteration, *situation)
        spent += time.perf_counter() - before

    model, costs = fit(given, report)
    seconds = time.perf_counter() - start - spent
    pictures.finish(costs)
    print(f"\n{len(costs)} iterations in {seconds:.1f} s, and pictures in {spent:.1f} s")
    if given.missed:
        print(f"{len(given.missed)} plans stopped early, with a marginal error of at most {max(given.missed):.1g}")
    usual = np.median(costs[len(costs) // 2 :])
    print(
        f"median cost: {usual:.4g} in the second half; {np.median(costs_of_truth(given)):.4g} of samples of the truth"
    )
    share = 1 / (1 + np.exp(-np.array([model.p, TRUTH.p])))
    print(f"{'':<8}{'P':>8}{'sigma_-1':>10}{'sigma_+1':>10}")
    for name, parameters, P in (("fitted", model, share[0]), ("truth", TRUTH, share[1])):
        print(f"{name:<8}{P:8.3f}" + "".join(f"{abs(sigma):10.3f}" for sigma in parameters.sigmas))
    print(f"\nPictures: {given.output}")
    return 0 if np.isfinite(costs[-1]) else 1


def parse(arguments):
    """Return the arguments, checked; what depends on the divergence is filled in."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--divergence", choices=list(DIVERGENCES), default="sinkhorn", help="(default: %(default)s)")
    add("--kernel", choices=["gaussian", "laplace", "energy", "exponential"], help="energy, or gaussian for likelihood")
    add("--scale", type=positive, help="length of the kernel, or sqrt(eps) (default: 0.25, or 0.15 for sinkhorn)")
    add("--points", type=int, default=50, help="of the data, and of each sample (default: %(default)s)")
    add("--iterations", type=int, help="steps of Adam (default: 500, or 1000 for kernel)")
    add("--degree", type=int, default=2, help="of the polynomials of the model (default: %(default)s)")
    add("--tau", type=float, help="over-relax by 1 - tau, from 1 to 2; -0.5 is the notebook's (default: estimated)")
    add("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    add("--frames", type=int, default=10, help="iterations from frame to frame of the animation; 0 for none")
    add("--output", type=Path, help="folder for the pictures (default: outputs/fit_<divergence>)")
    given = parser.parse_args(arguments)
    for name, value in zip(("kernel", "scale", "iterations"), DEFAULT[given.divergence], strict=True):
        if getattr(given, name) is None:
            setattr(given, name, value)
    transport = given.divergence == "sinkhorn"
    if transport and given.kernel != "gaussian":
        raise InputError("--kernel: transport has the squared distance alone, which is --kernel gaussian; leave it out")
    if given.divergence == "kernel" and given.kernel == "exponential":
        raise InputError(
            "--kernel exponential is for --divergence likelihood alone; take laplace, which is smooth at 0"
        )
    if given.tau is not None and not (transport and -1 < given.tau <= 0):
        raise InputError("--tau must be above -1 and at most 0, and goes with --divergence sinkhorn alone")
    if min(given.points - 1, given.degree, given.iterations) < 1 or min(given.seed, given.frames) < 0:
        raise InputError("--points must be at least 2, --degree and --iterations 1, --seed and --frames 0")
    given.missed = []
    given.output = given.output or Path(f"outputs/fit_{given.divergence}")
    return given


LEGEND = "Dots: points, as large as their weight; lines: the curves that they lie about; white dots: the two centres"
SHADES = {
    "kernel": "shades: where the model has more (red) or less (blue) than the data",
    "likelihood": "shades: the logarithm of the density that the model stands for",
    "sinkhorn": "grey lines: the transport plan",
}


class Pictures:
    """Draws figures of the fit, the frames of its animation, the curve of its cost, and a summary of all."""

    def __init__(self, given):
        from matplotlib.animation import PillowWriter

        self.given, self.seen = given, {}
        self.figure = new_figure(5.4, 5.4)
        self.ax = self.figure.add_axes((0.02, 0.02, 0.96, 0.9))
        self.writer = PillowWriter(fps=8)
        self.writer.setup(self.figure, given.output / "fit.gif", dpi=100)

    def draw(self, iteration, *situation):
        """Draw a situation as a figure, as a frame, or both."""
        self.situation(self.ax, iteration, *situation)
        if iteration % REPORT == 0:
            self.seen[iteration] = situation
            self.figure.savefig(self.given.output / f"iteration_{iteration:04d}.png", dpi=100)
        if self.given.frames and iteration % self.given.frames == 0:
            self.writer.grab_frame()

    def situation(self, ax, iteration, model, sample, data, behind):
        """Draw the model after some iterations, its sample, the data, and what is behind them."""
        (x, a), (y, b) = sample, data
        ax.clear()
        if self.given.divergence == "sinkhorn":
            from cusink import plot

            plot.transport_lines(behind, x, y, ax=ax, size=0, color="#7a8ca0", linewidth=2.4)
        else:
            self.field(ax, behind)
        t = np.linspace(-4, 4, 401)
        for parameters, colour, width in ((TRUTH, DATA, 1.0), (model, MODEL, 1.6)):
            ax.plot(*parameters.curve(t).T, color=colour, linewidth=width, zorder=3)
            ax.plot(*parameters.curve(CENTRES).T, "o", color=colour, markersize=9, markerfacecolor="white", zorder=3)
        for points, weights, colour in ((y, b, DATA), (x, a, MODEL)):
            area = 210 * np.sqrt(len(weights)) * weights
            ax.scatter(*points.T, area, color=colour, edgecolors="white", linewidths=0.4, zorder=4)
        ax.set_xlim(-EXTENT, EXTENT)
        ax.set_ylim(-EXTENT, EXTENT)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(f"{self.given.divergence}, iteration {iteration}", fontsize=15, color=INK, loc="left")
        for place, name, colour in ((0.78, "data, truth", DATA), (1, "model", MODEL)):
            ax.text(place, 1.018, name, fontsize=15, color=colour, ha="right", transform=ax.transAxes)

    def field(self, ax, values):
        """Draw a field over the square, in bands of colour."""
        if self.given.divergence == "kernel":  # more of the model is orange, more of the data blue
            top = 1.2 * np.abs(values).max()
            levels, colours = np.linspace(-top, top, 20), "RdBu_r"
        else:  # the log of a density: what is e^12 times thinner than the densest is white
            levels, colours = values.max() + np.linspace(-12, 6, 19), "Oranges"
        centres = cells()
        ax.contourf(centres[..., 0], centres[..., 1], values, levels, cmap=colours, alpha=0.8, zorder=0)

    def curve(self, ax, costs):
        """Draw the cost of every iteration."""
        ax.plot(costs, color=INK, linewidth=0.9)
        ax.set_yscale("log" if 0 < 20 * costs.min() < costs.max() else "linear")
        ax.set_title(f"cost, at last {costs[-1]:.4g}", fontsize=15, color=INK, loc="left")
        ax.set_xlabel("iteration", fontsize=14, color=GREY)
        ax.tick_params(which="both", labelsize=14, colors=GREY)
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.spines[["top", "right"]].set_visible(False)

    def finish(self, costs):
        """Save the animation, the curve of the cost, and a summary: the first two figures, the last, and the cost."""
        if self.given.frames:
            self.writer.finish()
        figure = new_figure(6.4, 4, layout="constrained")
        self.curve(figure.add_subplot(), costs)
        figure.savefig(self.given.output / "cost.png", dpi=100)
        figure = new_figure(20.4, 5.9)
        for place, iteration in enumerate(sorted({0, REPORT, max(self.seen)} & set(self.seen))):
            ax = figure.add_axes(((place * 5.1 + 0.1) / 20.4, 0.6 / 5.9, 4.9 / 20.4, 4.9 / 5.9))
            self.situation(ax, iteration, *self.seen[iteration])
        self.curve(figure.add_axes((15.9 / 20.4, 1.05 / 5.9, 4.3 / 20.4, 4.4 / 5.9)), costs)
        figure.text(0.1 / 20.4, 0.16 / 5.9, f"{LEGEND}; {SHADES[self.given.divergence]}", fontsize=16, color=GREY)
        figure.savefig(self.given.output / "summary.png", dpi=80)


def new_figure(width, height, **options):
    """Make a figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", **options)


if __name__ == "__main__":
    sys.exit(main())
