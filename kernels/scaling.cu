// uses: scaling.cuh
// Elementwise kernels around a matrix product (U K, V K') or around softmin: Sinkhorn iterations of larger problems.
//
// Scalings, logits (base 2), gauge and offset as in scaling.cuh: of the true logits p and q (log2 of a exp(f / eps)
// and of b exp(g / eps)) the rows hold p - offset - gauge, the columns q + gauge. cost_scale = log2(e) / eps. Zero
// weights have scaling 0 and logit -inf. Correct for any grid and any block that is a multiple of 32 (at most 512).
// All C-contiguous.

constexpr double LN_2 = 0.69314718055994530942;

__device__ inline double start_logit(REAL weight, REAL potential, double cost_scale) {
    return weight > 0 ? log2(double(weight)) + double(potential) * cost_scale : -double(infinity());
}

// u, p (B, n), v, q (B, m), gauge (B,) from weights a (B, n), b (B, m), potentials f (B, n), g (B, m), offset (B,).
// One warp per problem. The gauge makes the largest u 1, so that the first half-step is in range for any f.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
start_scalings(REAL* u, REAL* p, REAL* v, REAL* q, double* gauge, const REAL* a, const REAL* b, const REAL* f,
               const REAL* g, const double* offset, double cost_scale, long long B, long long n, long long m) {
    int lane = threadIdx.x % 32;
    for (long long k = first_warp(); k < B; k += all_warps()) {
        double highest = -double(infinity());
        for (long long i = lane; i < n; i += 32)
            highest = fmax(highest, start_logit(a[k * n + i], f[k * n + i], cost_scale));
        for (int step = 16; step > 0; step /= 2) highest = fmax(highest, __shfl_xor_sync(FULL_WARP, highest, step));
        double level = highest - offset[k];
        level = magnitude(level) < 1e300 ? nearest_whole(level) : 0;
        for (long long i = lane; i < n; i += 32) {
            double logit = start_logit(a[k * n + i], f[k * n + i], cost_scale) - offset[k] - level;
            p[k * n + i] = REAL(logit);
            u[k * n + i] = capped(REAL(exp2(logit)));
        }
        for (long long j = lane; j < m; j += 32) {
            double logit = start_logit(b[k * m + j], g[k * m + j], cost_scale) + level;
            q[k * m + j] = REAL(logit);
            v[k * m + j] = capped(REAL(exp2(logit)));
        }
        if (lane == 0) gauge[k] = level;
    }
}

// u, p (B, n), v, q (B, m), gauge (B,) in place: the largest u and the largest v of each problem come within 2^8 of
// each other. One warp per problem.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
balance_scalings(REAL* u, REAL* p, REAL* v, REAL* q, double* gauge, long long B, long long n, long long m) {
    for (long long k = first_warp(); k < B; k += all_warps()) {
        REAL level = balance(u + k * n, p + k * n, n, v + k * m, q + k * m, m);
        if (threadIdx.x % 32 == 0) gauge[k] += level;
    }
}

// K (n, m) = 2^SHIFT exp(-(C - minimum) / eps) of a shared C (n, m) with its smallest entry minimum (1,); size = n * m.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
scaled_kernel(REAL* K, const REAL* C, const REAL* minimum, double cost_scale, long long size) {
    for (long long e = first_thread(); e < size; e += all_threads()) {
        REAL entry = kernel_entry(C[e] - minimum[0], cost_scale);
        K[e] = entry >= Limits<REAL>::tiny ? entry : REAL(0);  // subnormals would only slow the product
    }
}

// scaling, logit (B, kept) in place; deviation (B, tiles) of 32 entries each; sums, weights (B, kept); logits (B,
// summed) of the other side; C (n, m) shared, minimum (1,), omega (B,). The strides of C say which of its axes is
// kept. One warp per 32 entries.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
scaling_update(REAL* scaling, REAL* logit, REAL* deviation, const REAL* sums, const REAL* weights, const REAL* logits,
               const REAL* C, const REAL* minimum, const REAL* omega, REAL cost_scale, int method, int measure,
               long long kept_stride, long long summed_stride, long long B, long long kept, long long summed) {
    int lane = threadIdx.x % 32;
    long long tiles = (kept + 31) / 32;
    Costs costs = {C, kept_stride, summed_stride, minimum[0], cost_scale};
    for (long long unit = first_warp(); unit < B * tiles; unit += all_warps()) {
        long long b = unit / tiles, k = unit % tiles * 32 + lane, at = b * kept + k;
        bool inside = k < kept;
        Entry old = {inside ? scaling[at] : REAL(0), inside ? logit[at] : REAL(0), REAL(0)};
        REAL sum = inside ? sums[at] : REAL(0), weight = inside ? weights[at] : REAL(0);
        Entry entry = half_step(old, sum, weight, omega[b], measure, method, costs, k, summed, logits + b * summed);
        if (inside && !measure) {
            scaling[at] = entry.scaling;
            logit[at] = entry.logit;
        }
        REAL total = warp_sum(entry.deviation);
        if (lane == 0) deviation[unit] = total;
    }
}

// logit (B, kept) in place; deviation (B, tiles) of 32 entries each; log_sums (B, kept) in base 2, weights (B,
// kept), omega (B,). One warp per 32 entries.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
logit_update(REAL* logit, REAL* deviation, const REAL* log_sums, const REAL* weights, const REAL* omega, int measure,
             long long B, long long kept) {
    int lane = threadIdx.x % 32;
    long long tiles = (kept + 31) / 32;
    for (long long unit = first_warp(); unit < B * tiles; unit += all_warps()) {
        long long b = unit / tiles, k = unit % tiles * 32 + lane, at = b * kept + k;
        Entry entry = {REAL(0), -infinity(), REAL(0)};
        if (k < kept && weights[at] > 0)
            entry = updated_by_log({REAL(0), logit[at], REAL(0)}, log_sums[at], weights[at], omega[b], measure);
        if (k < kept && !measure) logit[at] = entry.logit;
        REAL total = warp_sum(entry.deviation);
        if (lane == 0) deviation[unit] = total;
    }
}

// out (B, k): the potential of each entry, from its scaling, or its logit where that is out of range; `plain` (B, k)
// where the weight is zero. constant (B,) is added to the base-2 logarithms; weights (B, k).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
read_potentials(REAL* out, const REAL* scaling, const REAL* logit, const REAL* weights, const REAL* plain,
                const double* constant, double cost_scale, long long B, long long kept) {
    for (long long e = first_thread(); e < B * kept; e += all_threads()) {
        double logarithm = in_range(scaling[e]) ? log2(double(scaling[e])) : double(logit[e]);
        logarithm += constant[e / kept] - log2(double(weights[e]));
        out[e] = weights[e] > 0 ? REAL(logarithm / cost_scale) : plain[e];
    }
}

// out (B, k) = (logit + constant) * ln 2: the natural logits that the operators take; logit (B, k), constant (B,).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
read_logits(REAL* out, const REAL* logit, const double* constant, long long B, long long kept) {
    for (long long e = first_thread(); e < B * kept; e += all_threads())
        out[e] = REAL((double(logit[e]) + constant[e / kept]) * LN_2);
}
