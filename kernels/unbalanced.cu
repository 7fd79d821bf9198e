// uses: damping.cuh
// What an iteration of unbalanced transport does beside softmin: an update of one side, and the shift of both.
//
// The potentials are f + t and g - t with prices rho of their marginals, see docs/unbalanced.md and
// cusink/solver/unbalanced.py, whose formulas these are. Natural logarithms. Bound by bytes: each array is read once
// (translate twice) and written once. Correct for any grid and any block that is a multiple of 32 (at most 512). All
// arrays C-contiguous.

__device__ inline Mass block_mass(const REAL* weights, const REAL* potential, double rho, long long n) {
    Mass mass = Mass::empty();
    for (long long i = threadIdx.x; i < n; i += blockDim.x)
        if (weights[i] > 0) mass.least = fmin(mass.least, double(potential[i]) / rho);
    for (long long i = threadIdx.x; i < n; i += blockDim.x)
        if (weights[i] > 0) mass.sum += double(weights[i]) * exp(mass.least - double(potential[i]) / rho);
    return merge_block(mass);
}

// out, logits (B, n) of a side with potential (B, n): from the softmin `image` (B, n) over the other side and the shift
// t (B,) that is sign * t here, over-relaxed by excess (B,), null for none; weights and their logarithms (B, n). eps and
// fall are the units of a step up and of one down. 0 in a bin without weight.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
damped_update(REAL* out, REAL* logits, const REAL* potential, const REAL* image, const REAL* weights,
              const REAL* log_weights, const double* shift, const REAL* excess, double sign, double eps, double rho,
              double fall, long long B, long long n) {
    const Damping damping = Damping::of(sign, eps, rho, fall);
    for (long long at = first_thread(); at < B * n; at += all_threads()) {
        long long b = at / n;
        REAL value = 0;
        if (weights[at] > 0) value = damping.step(potential[at], image[at], shift[b], excess == nullptr ? REAL(0) : excess[b]);
        out[at] = value;
        logits[at] = log_weights[at] + value / REAL(eps);
    }
}

// shift (B,): the t of the highest dual objective for f + t and g - t, from weights a, f (B, n) and b, g (B, m) and the
// prices of both marginals. One block per problem.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
translate(double* shift, const REAL* a, const REAL* b, const REAL* f, const REAL* g, double rho_a, double rho_b,
          long long B, long long n, long long m) {
    for (long long k = blockIdx.x; k < B; k += gridDim.x) {
        Mass of_a = block_mass(a + k * n, f + k * n, rho_a, n), of_b = block_mass(b + k * m, g + k * m, rho_b, m);
        double best = best_shift(of_a, of_b, rho_a, rho_b);
        if (threadIdx.x == 0) shift[k] = best;
    }
}
