// How far to over-relax: the rule of cusink/_overrelaxation.py.

// Omega by Young's theory, from the rate per iteration at which the error fell with the last one.
__device__ inline double estimated_omega(double omega, double rate, double largest) {
    rate = fmax(fmin(rate, 1 - 1e-5), 1e-3);  // neither leaves a NaN
    double excess = omega - 1;
    double eta = fmin((rate + excess) * (rate + excess) / (rate * omega * omega), 1 - 1e-5);
    double best = rate <= 1.03 * excess ? 1 + 0.9 * excess : 2 / (1 + sqrt(1 - eta));
    return fmax(1.0, fmin(best, largest));
}
