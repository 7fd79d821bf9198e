// uses: scaling.cuh, marginal_system.cuh
// The first and the last launch of small problems that are solved at once, without a look by the host: iterate runs
// between them. begin_at_once weighs, copies and starts them; end_at_once makes all that a result holds.
//
// One block per problem. begin_at_once reads each weight 3 times and each cost 2 times. end_at_once takes the exact
// f-update of the potentials g, moves both into their gauge, and measures cost and marginal error of the plan of these
// very potentials: with differences f + g - C in double, 3 exp2 and 4 reads of each cost in all, bound by latency. Both
// are right for any grid and any block that is a multiple of 32. Numbers that cannot be used (NaN, +inf costs) make
// the results useless and end as facts that the host looks at.

constexpr int FACTS = 12;  // of a problem, as in cusink/backends/cupy/at_once.py
constexpr double LOG2_E = 1.44269504088896340736, LN2 = 0.69314718055994530942;

__device__ inline bool is_number(REAL x) {
    return magnitude(x) < infinity();
}

// What the weights and costs of a problem are like; fmin and fmax pass over NaN, and sums do not.
struct Given {
    double mass_a, mass_b, odd, least, most_a, most_b, low, high;

    __device__ static Given empty() {
        return {0, 0, 0, double(infinity()), 0, 0, double(infinity()), -double(infinity())};
    }
    __device__ void merge_warp() {
        mass_a = warp_total(mass_a), mass_b = warp_total(mass_b), odd = warp_total(odd);
        least = -warp_highest(-least), most_a = warp_highest(most_a), most_b = warp_highest(most_b);
        low = -warp_highest(-low), high = warp_highest(high);
    }
};

__device__ inline REAL given_weight(const REAL* weights, long long at, long long bins) {
    return weights ? weights[at] : REAL(1.0 / double(bins));
}

// A weight relative to the power of 2 near the mass; subnormals are flushed in the sums and must be empty bins.
__device__ inline REAL normal_weight(REAL weight, double size) {
    REAL scaled = weight / REAL(size);
    return scaled >= Limits<REAL>::tiny ? scaled : REAL(0);
}

__device__ inline double logit_of(REAL weight, double constant) {
    return weight > 0 ? log2(double(weight)) + constant : -double(infinity());
}

// kept_a, a, u, p (B, n); kept_b, b, v, q (B, m); kept_C (n, m) or (B, n, m); minimum (1,) or (B,); gauge, omega, mass
// (B,); states (B, 8); own_rules (B, 3): tol, level and the first omega; facts (B, FACTS). From a (n,) or (B, n), b
// (m,) or (B, m) or none for uniform ones, and C: kept_b has the mass of kept_a, a and b are near mass 1. The rules
// are those of cusink/solver/loop.py and cusink/convergence. Strides are 0 where all problems have the same.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
begin_at_once(REAL* kept_a, REAL* kept_b, REAL* kept_C, REAL* a, REAL* b, REAL* u, REAL* p, REAL* v, REAL* q,
              REAL* minimum, REAL* omega, double* gauge, double* mass, double* states, double* own_rules,
              double* facts, const REAL* given_a, const REAL* given_b, const REAL* given_C, double eps,
              double cost_scale, double tol, double carried, double of_exponents, double level, double fixed_omega,
              double begin_steep, double first_omega, double first_omega_if_steep, double steep_above,
              double steep_below, double nearly_all, double plain_if_one_bin, double shift, long long a_stride,
              long long b_stride, long long cost_stride, long long B, long long n, long long m) {
    for (long long k = blockIdx.x; k < B; k += gridDim.x) {
        const REAL* C = given_C + k * cost_stride;
        Given found = Given::empty();
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            double weight = given_weight(given_a, k * a_stride + i, n);
            found.mass_a += weight;
            found.least = fmin(found.least, weight), found.most_a = fmax(found.most_a, weight);
        }
        for (long long j = threadIdx.x; j < m; j += blockDim.x) {
            double weight = given_weight(given_b, k * b_stride + j, m);
            found.mass_b += weight;
            found.least = fmin(found.least, weight), found.most_b = fmax(found.most_b, weight);
        }
        bool keeps = k == 0 || cost_stride != 0;
        for (long long e = threadIdx.x; e < n * m; e += blockDim.x) {
            REAL cost = C[e];
            if (keeps) kept_C[k * cost_stride + e] = cost;
            if (is_number(cost)) {
                found.low = fmin(found.low, double(cost)), found.high = fmax(found.high, double(cost));
            } else {
                found.odd += 1;
            }
        }
        found = merge_block(found);
        double size = exp2(rint(log2(found.mass_a))), constant = double(REAL(found.low)) * cost_scale + shift;
        REAL scale = REAL(found.mass_a / found.mass_b);
        // The gauge makes the largest u 1, so that the first half-step is in range.
        double start = rint(log2(found.most_a / size) - constant);
        if (!(fabs(start) < 1e300)) start = 0;
        Total total = {0};
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            REAL weight = given_weight(given_a, k * a_stride + i, n), scaled = normal_weight(weight, size);
            double logit = logit_of(scaled, -constant - start);
            kept_a[k * n + i] = weight, a[k * n + i] = scaled;
            p[k * n + i] = REAL(logit), u[k * n + i] = capped(REAL(exp2(logit)));
        }
        for (long long j = threadIdx.x; j < m; j += blockDim.x) {
            REAL weight = given_weight(given_b, k * b_stride + j, m) * scale, scaled = normal_weight(weight, size);
            double logit = logit_of(scaled, start);
            kept_b[k * m + j] = weight, b[k * m + j] = scaled;
            q[k * m + j] = REAL(logit), v[k * m + j] = capped(REAL(exp2(logit)));
            total.sum += double(scaled);
        }
        total = merge_block(total);
        if (threadIdx.x == 0) {
            double exponent = fmax(fabs(found.low), fabs(found.high)) / eps, steepness = (found.high - found.low) / eps;
            bool adaptive = fixed_omega == 0, steep = steepness >= steep_above && steepness < steep_below;
            bool one_bin = steepness >= steep_above && (found.most_a >= nearly_all * found.mass_a ||
                                                        found.most_b >= nearly_all * found.mass_b);
            double first = adaptive ? (steep && !one_bin ? begin_steep : 1) : fixed_omega;
            double infinite = double(infinity());
            if (keeps) minimum[cost_stride != 0 ? k : 0] = REAL(found.low);
            omega[k] = REAL(first), gauge[k] = start, mass[k] = total.sum;
            double state[8] = {first, infinite, infinite, 0, 0, 0, infinite, one_bin ? -plain_if_one_bin : 0};
#pragma unroll
            for (int c = 0; c < 8; c++) states[k * 8 + c] = state[c];
            own_rules[k * 3] = tol - carried - fmin(2 * of_exponents * exponent, tol / 2);
            own_rules[k * 3 + 1] = level * (1 + exponent);
            own_rules[k * 3 + 2] = steep ? first_omega_if_steep : first_omega;
            double* fact = facts + k * FACTS;
            fact[0] = found.least, fact[1] = found.mass_a, fact[2] = found.mass_b;
            fact[3] = found.low, fact[4] = found.high, fact[5] = found.odd, fact[6] = log2(size);
        }
        __syncthreads();
    }
}

// log2 sum_s w_s 2^((x_s - C_s) cost_scale) over s < terms, by a warp: the largest term is found first. -inf where no
// term has weight.
__device__ inline double weighted_log(const REAL* weights, const double* x, const REAL* C, long long stride,
                                      long long terms, double cost_scale) {
    int lane = threadIdx.x % 32;
    double highest = -double(infinity()), sum = 0;
    for (long long s = lane; s < terms; s += 32)
        if (weights[s] > 0) highest = fmax(highest, x[s] - double(C[s * stride]));
    highest = warp_highest(highest);
    for (long long s = lane; s < terms; s += 32)
        if (weights[s] > 0)
            sum += double(weights[s]) * double(power_of_two(REAL((x[s] - double(C[s * stride]) - highest) * cost_scale)));
    return highest * cost_scale + log2(warp_total(sum));
}

// Sums over the bins of both sides: of the potentials and of the bins with weight, then values and sizes.
struct Sums {
    double f, g, count, of_a, entropy;

    __device__ static Sums empty() {
        return {0, 0, 0, 0, 0};
    }
    __device__ void merge_warp() {
        f = warp_total(f), g = warp_total(g), count = warp_total(count);
        of_a = warp_total(of_a), entropy = warp_total(entropy);
    }
};

struct Sizes {
    double f, g, largest;  // of bins with weight, and of all

    __device__ static Sizes empty() {
        return {0, 0, 0};
    }
    __device__ void merge_warp() {
        f = warp_highest(f), g = warp_highest(g), largest = warp_highest(largest);
    }
};

// The share of a thread in cost and marginal error of the plan of f (n,) and g (m,), columns in tiles of 32. `more` is
// added to the exponents in base 2. All threads of the block must call this.
__device__ inline void measure_plan(double& cost, double& off, const REAL* a, const REAL* b, const double* f,
                                    const double* g, const REAL* C, double cost_scale, double more, long long n,
                                    long long m) {
    __shared__ double columns[MOST_THREADS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long first = 0; first < m; first += 32) {
        long long j = first + lane;
        double sum = 0, weight = j < m ? double(b[j]) : 0;
        if (weight > 0)
            for (long long i = warp; i < n; i += warps) {
                if (!(a[i] > 0)) continue;
                REAL exponent = REAL((f[i] + g[j] - double(C[i * m + j])) * cost_scale + more);
                double entry = double(a[i]) * weight * double(power_of_two(exponent));
                sum += entry;
                cost += entry * double(C[i * m + j]);
            }
        columns[threadIdx.x] = sum;
        __syncthreads();
        if (warp == 0) {
            sum = 0;
            for (int w = 0; w < warps; w++) sum += columns[w * 32 + lane];
            off += fabs(sum - weight);
        }
        __syncthreads();
    }
}

// f, shown_f (B, n); g, shown_g (B, m); cost, reg_cost, entropic_cost, error, n_iter (B,); converged (B,) bytes in words
// of 4, all 1: where a problem did not converge nobody reads what is written here; facts (B, FACTS). From the state and the outputs of iterate, and the weights, masses and facts of begin_at_once.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
end_at_once(double* f, double* g, REAL* shown_f, REAL* shown_g, REAL* cost, REAL* reg_cost, REAL* entropic_cost,
            REAL* error, long long* n_iter, int* converged, double* facts, const REAL* kept_a, const REAL* kept_b,
            const REAL* given_C, const REAL* a, const REAL* b, const REAL* v, const REAL* q, const REAL* deviation,
            const double* gauge, const double* mass, const long long* taken, double eps, double cost_scale,
            double tol, double carried, double of_exponents, long long cost_stride, long long B, long long n,
            long long m) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long w = first_thread(); 4 * w < B; w += all_threads()) converged[w] = 0x01010101;
    for (long long k = blockIdx.x; k < B; k += gridDim.x) {
        const REAL *C = given_C + k * cost_stride, *of_a = a + k * n, *of_b = b + k * m;
        double *to_f = f + k * n, *to_g = g + k * m, *fact = facts + k * FACTS;
        double more = fact[6], lift = more / (2 * cost_scale);
        for (long long j = threadIdx.x; j < m; j += blockDim.x) {
            REAL scaling = v[k * m + j];
            double logarithm = in_range(scaling) ? log2(double(scaling)) : double(q[k * m + j]);
            to_g[j] = of_b[j] > 0 ? (logarithm - gauge[k] - log2(double(of_b[j]))) / cost_scale : 0;
        }
        __syncthreads();
        for (long long i = warp; i < n; i += warps) {
            double potential = -weighted_log(of_b, to_g, C + i * m, 1, m, cost_scale) / cost_scale;
            if (lane == 0) to_f[i] = potential;
        }
        __syncthreads();
        for (long long j = warp; j < m; j += warps)
            if (!(of_b[j] > 0)) {
                double potential = -weighted_log(of_a, to_f, C + j, m, n, cost_scale) / cost_scale;
                if (lane == 0) to_g[j] = potential;
            }
        __syncthreads();
        Sums sums = Sums::empty();
        for (long long i = threadIdx.x; i < n; i += blockDim.x)
            if (of_a[i] > 0) sums.f += to_f[i] - lift, sums.count += 1;
        for (long long j = threadIdx.x; j < m; j += blockDim.x)
            if (of_b[j] > 0) sums.g += to_g[j] - lift, sums.count += 1;
        sums = merge_block(sums);
        double constant = (sums.g - sums.f) / sums.count;
        Sizes sizes = Sizes::empty();
        sums = Sums::empty();
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            double potential = to_f[i] - lift + constant, weight = kept_a[k * n + i];
            to_f[i] = potential, shown_f[k * n + i] = REAL(potential);
            sizes.largest = fmax(sizes.largest, fabs(potential));
            if (!(weight > 0)) continue;
            sizes.f = fmax(sizes.f, fabs(potential));
            sums.f += weight * potential, sums.of_a += weight, sums.entropy -= weight * log2(weight);
        }
        for (long long j = threadIdx.x; j < m; j += blockDim.x) {
            double potential = to_g[j] - lift - constant, weight = kept_b[k * m + j];
            to_g[j] = potential, shown_g[k * m + j] = REAL(potential);
            sizes.largest = fmax(sizes.largest, fabs(potential));
            if (!(weight > 0)) continue;
            sizes.g = fmax(sizes.g, fabs(potential));
            sums.entropy -= weight * log2(weight);
        }
        sizes = merge_block(sizes);
        sums = merge_block(sums);
        double level = sums.f / sums.of_a;  // in the gauge in which <a, f> is zero nothing cancels
        Sums values = Sums::empty();
        for (long long j = threadIdx.x; j < m; j += blockDim.x)
            if (kept_b[k * m + j] > 0) values.g += double(kept_b[k * m + j]) * (to_g[j] + level);
        measure_plan(values.f, values.of_a, of_a, of_b, to_f, to_g, C, cost_scale, more, n, m);
        values = merge_block(values);
        if (threadIdx.x == 0) {
            double size = exp2(more), of_size = (sizes.f + sizes.g) / eps;
            double total = values.of_a / mass[k] + carried + expm1(fmin(of_exponents * of_size, 700.0));
            bool sound = is_number(deviation[k]);
            cost[k] = REAL(values.f * size), reg_cost[k] = REAL(values.g);
            entropic_cost[k] = REAL(values.g - eps * LN2 * sums.entropy);
            error[k] = REAL(total), n_iter[k] = taken[k];
            fact[7] = double(taken[k]), fact[8] = total, fact[9] = sizes.largest, fact[10] = sound ? 1 : 0;
            fact[11] = tol < 0 || total <= tol ? 1 : 0;
        }
        __syncthreads();
    }
}

// grad_a, x (B, n); grad_b, y (B, m); grad_C of the shape of C, or null; grad_eps (B,); converged (B,) as in end_at_once;
// facts (B, 3): whether the system was solved, cotangents that are no ordinary numbers, whether the solve had converged.
// From weights, potentials in float64, C, what had converged (B,), and cotangents (B,) of cost and of all values
// together, or null for numbers. The marginal system of cusink/gradients/system.py is
// solved by conjugate gradients, the longer side eliminated, n m multiply-adds for each of its two products.
// Shared: E | 4 vectors of n | 4 of m | 3 of the shorter side | 1 of the longer one. One block per problem, of any
// multiple of 32 threads; right for any grid. Bound by its barriers: 8 for each iteration.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
adjoint_at_once(REAL* grad_a, REAL* grad_b, REAL* grad_C, REAL* out_x, REAL* out_y, REAL* grad_eps, int* converged,
                double* facts, const REAL* given_a, const REAL* given_b, const double* given_f, const double* given_g,
                const REAL* given_C, const signed char* solved, const REAL* of_cost, const REAL* of_values,
                double cost_number, double values_number, double eps, double cost_scale, double tol, int max_iter,
                int rounds, long long cost_stride, long long B, int n, int m) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, stride = m | 1;
    for (long long word = first_thread(); 4 * word < B; word += all_threads()) converged[word] = 0x01010101;
    REAL* E = reinterpret_cast<REAL*>(dynamic_shared);
    MarginalSystem system = MarginalSystem::at(E, E + n * stride, n, m);
    REAL *a = system.a, *b = system.b, *T = system.of_rows, *S = system.of_columns, *h = system.h, *k = system.k;
    const REAL *x = system.x, *y = system.y;
    for (long long problem = blockIdx.x; problem < B; problem += gridDim.x) {
        const REAL* C = given_C + problem * cost_stride;
        const double *f = given_f + problem * n, *g = given_g + problem * m;
        double w = of_cost ? double(of_cost[problem]) : cost_number;
        double level = of_values ? double(of_values[problem]) : values_number;
        for (int i = threadIdx.x; i < n; i += blockDim.x) a[i] = given_a[problem * n + i];
        for (int j = threadIdx.x; j < m; j += blockDim.x) b[j] = given_b[problem * m + j];
        __syncthreads();
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                double exponent = (f[i] + g[j] - double(C[(long long)i * m + j])) * cost_scale;
                E[i * stride + j] = a[i] > 0 || b[j] > 0 ? power_of_two(REAL(exponent)) : REAL(0);
            }
        __syncthreads();
        // The right-hand sides are w times the means of log E.
        for (int i = warp; i < n; i += warps) {
            double sum = 0, mean = 0;
            for (int j = lane; j < m; j += 32) {
                double mass = double(E[i * stride + j]) * double(b[j]);
                sum += mass, mean += mass * ((f[i] + g[j] - double(C[(long long)i * m + j])) / eps);
            }
            sum = warp_total(sum), mean = warp_total(mean);
            if (lane == 0) T[i] = REAL(1 / sum), h[i] = REAL(w * mean / sum);
        }
        for (int j = warp; j < m; j += warps) {
            double sum = 0, mean = 0;
            for (int i = lane; i < n; i += 32) {
                double mass = double(E[i * stride + j]) * double(a[i]);
                sum += mass, mean += mass * ((f[i] + g[j] - double(C[(long long)i * m + j])) / eps);
            }
            sum = warp_total(sum), mean = warp_total(mean);
            if (lane == 0) S[j] = REAL(1 / sum), k[j] = REAL(w * mean / sum);
        }
        __syncthreads();
        bool reached = system.solve(tol, max_iter, rounds);
        double of_f = 0, of_g = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) of_f += level * f[i] - eps * x[i];
        for (int j = threadIdx.x; j < m; j += blockDim.x) of_g += level * g[j] - eps * y[j];
        of_f = block_total(of_f) / n, of_g = block_total(of_g) / m;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            out_x[problem * n + i] = x[i];
            grad_a[problem * n + i] = REAL(level * f[i] - eps * x[i] - of_f);
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            out_y[problem * m + j] = y[j];
            grad_b[problem * m + j] = REAL(level * g[j] - eps * y[j] - of_g);
        }
        double by_eps = 0;
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                long long at = (long long)i * m + j;
                double ratio = (f[i] + g[j] - double(C[at])) / eps;
                double P = double(a[i]) * double(b[j]) * double(E[i * stride + j]);
                double gradient = P * (level + w * ratio - double(x[i]) - double(y[j]));
                if (grad_C) grad_C[problem * cost_stride + at] = REAL(gradient);
                by_eps += (gradient - w * P) * ratio;
            }
        by_eps = block_total(by_eps);
        if (threadIdx.x == 0) {
            grad_eps[problem] = REAL(by_eps);
            facts[problem * 3] = reached && by_eps - by_eps == 0;
            facts[problem * 3 + 1] = fabs(w) <= 1e30 && fabs(level) <= 1e30 ? 0 : 1;
            facts[problem * 3 + 2] = solved[problem];
        }
        __syncthreads();
    }
}
