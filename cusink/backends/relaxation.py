"""How far to over-relax each problem, estimated from the rate at which its own error falls, and when to give it up.

The same rules stand in kernels/iterate.cu, for problems whose checks are all made on the device; a test compares them.
"""

import numpy as np

# Every omega is safe, see docs/method.md, so that trying costs little. Where costs differ by many eps the plain
# iteration is sure to be slow, and over-relaxation begins at once; else at the first check, by when fast problems end.
FIRST = 1.5
FIRST_IF_STEEP = 1.6
STEEP = 75
LARGEST = 1.97
STALLED = 10  # checks without progress, at an error that rounding explains, after which a problem is given up


class OverRelaxation:
    """Over-relaxation factors omega (B,) in [1, 2).

    Near the solution the plain iteration contracts by some rate eta. Over-relaxed by omega, it contracts by the
    larger root of ``(rate + omega - 1)**2 = rate omega**2 eta`` while omega is below ``2 / (1 + sqrt(1 - eta))``, its
    best value, and by ``omega - 1`` above it (Young's theory, carried to Sinkhorn by Lehmann et al. 2020). The rate
    observed since the last check therefore tells eta, or that omega is too large.
    """

    def __init__(self, problems, setting, steepness):
        self.adaptive = setting == "auto"
        self.steep = steepness >= STEEP
        self.omega = np.ones(problems) if self.adaptive or setting is None else np.full(problems, float(setting))
        if self.adaptive and self.steep:
            self.omega = np.full(problems, FIRST_IF_STEEP)
        self.error = np.full(problems, np.inf)
        self.checks = 0

    def observe(self, error, iterations):
        """Take the errors (B,) after another `iterations` and choose omega anew."""
        if self.adaptive:
            if self.checks > 0:
                self.omega = self._estimate(error, iterations)
            elif not self.steep:
                self.omega = np.full_like(self.omega, FIRST)
        self.error = error
        self.checks += 1

    def keep(self, index):
        """Drop all problems but those at `index`."""
        self.omega, self.error = self.omega[index], self.error[index]

    def _estimate(self, error, iterations):
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = (error / self.error) ** (1 / iterations)
        rate = np.fmax(np.fmin(rate, 1 - 1e-5), 1e-3)  # fmin and fmax leave no NaN
        excess = self.omega - 1
        eta = ((rate + excess) ** 2 / (rate * self.omega**2)).clip(max=1 - 1e-5)
        best = 2 / (1 + np.sqrt(1 - eta))
        too_large = rate <= 1.03 * excess
        return np.where(too_large, 1 + 0.9 * excess, best).clip(1, LARGEST)


class Rounding:
    """Tells which problems have reached the rounding level of their dtype: a small error that no longer falls.

    `exponent` is the largest cost over eps.
    """

    def __init__(self, problems, dtype, exponent):
        self.level = 64 * float(np.finfo(dtype.name).eps) * (1 + exponent)
        self.best = np.full(problems, np.inf)
        self.checks = np.zeros(problems, np.int64)

    def reached(self, error):
        """Take the errors (B,) of a check and say which problems are as good as they get."""
        better = error < 0.99 * self.best
        self.checks = np.where(better, 0, self.checks + 1)
        self.best = np.where(better, error, self.best)
        return (self.checks >= STALLED) & (self.best <= self.level)

    def keep(self, index):
        """Drop all problems but those at `index`."""
        self.best, self.checks = self.best[index], self.checks[index]
