// uses: online_softmax.cuh
// The damped update of an entry and the mass of a marginal, with which transport at a price goes its way.
//
// The potentials are f + t and g - t with prices rho of their marginals, see docs/unbalanced.md and
// cusink/solver/unbalanced.py, whose formulas these are. Natural logarithms.

__device__ inline float exp_minus_one(float x) {
    return expm1f(x);
}
__device__ inline double exp_minus_one(double x) {
    return expm1(x);
}
__device__ inline float log_one_plus(float x) {
    return log1pf(x);
}
__device__ inline double log_one_plus(double x) {
    return log1p(x);
}

// How a side goes to a softmin: the shift t of a problem is sign * t here; `eps` and `fall` are the units of a step up and
// of one down.
struct Damping {
    double kappa, moved, eps, fall;

    __device__ static Damping of(double sign, double eps, double rho, double fall) {
        double kappa = 1 / (1 + eps / rho);
        return {kappa, sign * kappa * eps / rho, eps, fall};
    }
    // The potential after `old`, for a softmin `image` over the other side; over-relaxed by an excess above 0.
    __device__ REAL step(REAL old, REAL image, double shift, REAL excess) const {
        REAL value = REAL(kappa) * image - REAL(shift * moved);
        if (!(excess > 0)) return value;
        REAL step = value - old, unit = REAL(step > 0 ? eps : fall);
        REAL further = unit * log_one_plus(-excess * exp_minus_one(-magnitude(step) / unit));
        return value + (step > 0 ? further : -further);
    }
};

// A sum of weight exp(-x) as sum * exp(-least), with the x of weights above 0; in double.
struct Mass {
    double least, sum;

    __device__ static Mass empty() {
        return {double(infinity()), 0};
    }
    __device__ void add(double x, double weight) {
        double gap = least - x, factor = exp(-fabs(gap));
        sum = gap > 0 ? sum * factor + weight : sum + weight * factor;
        least = fmin(least, x);
    }
    __device__ void merge_warp() {
        double lowest = least;
        for (int step = 16; step > 0; step /= 2) lowest = fmin(lowest, __shfl_xor_sync(FULL_WARP, lowest, step));
        sum = sum > 0 ? sum * exp(lowest - least) : 0;
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, step);
        least = lowest;
    }
};

// The t of the highest dual objective for f + t and g - t, by the masses and the prices of both marginals.
__device__ inline double best_shift(const Mass& of_a, const Mass& of_b, double rho_a, double rho_b) {
    double level = log(of_a.sum / of_b.sum) - of_a.least + of_b.least;
    return level / (1 / rho_a + 1 / rho_b);
}
