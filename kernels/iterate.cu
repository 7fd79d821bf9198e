// uses: scaling.cuh
// iterate: all iterations of a tile of small problems in one launch, with the kernel K in shared memory.
//
// One iteration is one g-update and one f-update, over-relaxed by the omega of the problem. K enters as multiply-adds;
// the loop needs no exponential unless the sum of an entry is not certified (scaling.cuh): that entry alone is then
// summed in the log domain. Method LOG keeps C in shared memory and sums every entry in the log domain. count = 0 is
// one plain f-update. deviation (B,) is the distance of the last f-update from a plain one plus the marginal error of
// the columns at the end: for omega = 1 the L1 marginal error itself, for others a bound on it after one more plain
// f-update.
//
// With `states` a block repeats this up to `checks` times. After each time it checks which of its problems may stop,
// and chooses omega for the others (convergence.cuh). A problem that may stop no longer changes, and a block ends when
// all of its problems may stop.
//
// Per half-step a block of P problems reads n * m / 32 + P * n * m / 128 warp-wide words of shared memory (each K
// once for all problems, four scalings at a time) for P * n * m / 32 warp-wide multiply-adds, and meets at two
// barriers. State (u, p, v, q) as in scaling.cuh, in and out. Correct for any grid and any block that is a multiple
// of 32 (at most 512).

// Four scalings in one shared load; rows of scalings are padded to it, and so are K's rows, with zeros.
__device__ inline int padded(int size) {
    return (size + GROUP - 1) / GROUP * GROUP;
}

__device__ inline int larger_int(int x, int y) {
    return x > y ? x : y;
}

struct IterateArguments {
    REAL *u, *p, *v, *q, *deviation;
    double* gauge;
    StopState* states;
    long long* taken;
    const REAL *C, *cost_minimum;
    const long long* cost_index;
    const REAL *a, *b, *omega;
    const double* mass;
    StopRules rules;
    double cost_scale;
    int method, count, checks, earlier_checks;
    long long cost_stride, B;
    int n, m;
};

// One side of a tile: its bins, scalings and logits (problem by problem, rows of `width`), weights, and the strides
// of K and C.
struct Side {
    int size, width, tiles;
    REAL *scaling, *logit, *deviation;
    const REAL* weights;
    int kernel_stride;
    long long cost_stride;
};

// parts (slices, PROBLEMS, kept tiles * 32): sums over s of scaling_s K_ks; each slice of the warps sums some s.
template <int PROBLEMS>
__device__ void multiply(REAL* parts, const REAL* K, const Side& kept, const Side& summed) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32, slices = larger_int(1, warps / kept.tiles);
    for (int unit = threadIdx.x / 32; unit < slices * kept.tiles; unit += warps) {
        int slice = unit / kept.tiles, place = unit % kept.tiles * 32 + lane;
        const REAL* row = K + (place < kept.size ? place : 0) * kept.kernel_stride;
        REAL sum[PROBLEMS] = {};
        for (int s = slice * GROUP; s < summed.width; s += slices * GROUP) {
            REAL entry[GROUP];
#pragma unroll
            for (int c = 0; c < GROUP; c++) entry[c] = row[(s + c) * summed.kernel_stride];
#pragma unroll
            for (int t = 0; t < PROBLEMS; t++) {
                Four<REAL> factor = *reinterpret_cast<const Four<REAL>*>(summed.scaling + t * summed.width + s);
#pragma unroll
                for (int c = 0; c < GROUP; c++) sum[t] = multiply_add(factor.at[c], entry[c], sum[t]);
            }
        }
#pragma unroll
        for (int t = 0; t < PROBLEMS; t++) parts[((slice * PROBLEMS + t) * kept.tiles) * 32 + place] = sum[t];
    }
}

// Update (or only measure) the kept side of all problems that have not stopped from the summed side. All threads of the
// block must call this.
template <int PROBLEMS>
__device__ void update_side(REAL* parts, const REAL* K, const Side& kept, const Side& summed, const REAL* omega,
                            const int* stopped, int problems, int method, bool plain, bool measure,
                            bool sum_deviation, const REAL* C, REAL minimum, REAL cost_scale) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32, slices = larger_int(1, warps / kept.tiles);
    if (method != LOG) {
        multiply<PROBLEMS>(parts, K, kept, summed);
        __syncthreads();
    }
    // For method LOG the cost lies in shared memory.
    Costs costs = {method == LOG ? K : C, method == LOG ? kept.kernel_stride : kept.cost_stride,
                   method == LOG ? summed.kernel_stride : summed.cost_stride, minimum, cost_scale};
    for (int unit = threadIdx.x / 32; unit < problems * kept.tiles; unit += warps) {
        int t = unit / kept.tiles, k = unit % kept.tiles * 32 + lane, at = t * kept.width + k;
        bool inside = k < kept.size;
        REAL sum = 0;
        if (method != LOG)
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++) sum += parts[((slice * PROBLEMS + t) * kept.tiles) * 32 + k];
        Entry old = {inside ? kept.scaling[at] : REAL(0), inside ? kept.logit[at] : REAL(0), REAL(0)};
        Entry entry = half_step(old, sum, inside ? kept.weights[t * (long long)kept.size + k] : REAL(0),
                                plain ? REAL(1) : omega[t], measure, method, costs, k, summed.size,
                                summed.logit + t * summed.width);
        if (inside && !measure && !stopped[t]) {
            kept.scaling[at] = entry.scaling;
            kept.logit[at] = entry.logit;
        }
        if (sum_deviation) {
            REAL total = warp_sum(entry.deviation);
            if (lane == 0) kept.deviation[unit] = total;
        }
    }
    __syncthreads();
}

template <int PROBLEMS>
__device__ void iterate(const IterateArguments& x) {
    __shared__ Side sides[2];
    __shared__ REAL omega[PROBLEMS];
    __shared__ int stopped[PROBLEMS];
    // Dynamic shared memory: K | u | p | v | q | parts | deviations; `shared_memory` in
    // cusink/backends/cupy/launch.py counts the same.
    int warps = blockDim.x / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int rows = padded(x.n), columns = padded(x.m), stride = columns + 1;  // odd: no bank conflict along either axis
    int row_tiles = (x.n + 31) / 32, column_tiles = (x.m + 31) / 32;
    REAL* K = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* u = K + rows * stride;
    REAL* p = u + PROBLEMS * rows;
    REAL* v = p + PROBLEMS * rows;
    REAL* q = v + PROBLEMS * columns;
    REAL* parts = q + PROBLEMS * columns;
    REAL* deviations = parts + PROBLEMS * 32 * larger_int(warps, larger_int(row_tiles, column_tiles));
    bool own_cost = x.cost_stride != 0, first = true;
    for (long long b0 = blockIdx.x * (long long)PROBLEMS; b0 < x.B; b0 += gridDim.x * (long long)PROBLEMS) {
        int problems = x.B - b0 < PROBLEMS ? int(x.B - b0) : PROBLEMS;
        long long place = own_cost ? (x.cost_index ? x.cost_index[b0] : b0) : 0;
        const REAL* C = x.C + place * x.cost_stride;
        REAL minimum = x.cost_minimum[place];
        if (first || own_cost)
            for (int i = warp; i < rows; i += warps)
#pragma unroll 1
                for (int j = lane; j < stride; j += 32) {
                    REAL cost = i < x.n && j < x.m ? C[(long long)i * x.m + j] : infinity();
                    K[i * stride + j] = x.method == LOG ? cost : kernel_entry(cost - minimum, x.cost_scale);
                }
        first = false;
        for (int t = warp; t < PROBLEMS; t += warps) {
#pragma unroll 1
            for (int i = lane; i < rows; i += 32) {
                bool inside = t < problems && i < x.n;
                u[t * rows + i] = inside ? x.u[(b0 + t) * x.n + i] : REAL(0);
                p[t * rows + i] = inside ? x.p[(b0 + t) * x.n + i] : -infinity();
            }
#pragma unroll 1
            for (int j = lane; j < columns; j += 32) {
                bool inside = t < problems && j < x.m;
                v[t * columns + j] = inside ? x.v[(b0 + t) * x.m + j] : REAL(0);
                q[t * columns + j] = inside ? x.q[(b0 + t) * x.m + j] : -infinity();
            }
        }
        // The kept side changes with each half-step; shared memory saves registers.
        if (threadIdx.x == 0) {
            sides[0] = {x.m, columns, column_tiles, v, q, deviations + PROBLEMS * row_tiles, x.b + b0 * x.m, 1, 1};
            sides[1] = {x.n, rows, row_tiles, u, p, deviations, x.a + b0 * x.n, stride, x.m};
        }
        int t = threadIdx.x;
        if (t < PROBLEMS) {
            stopped[t] = t >= problems;
            if (!stopped[t]) omega[t] = x.states ? REAL(x.states[b0 + t].omega) : x.omega[b0 + t];
        }
        __syncthreads();
        bool plain = x.count == 0;
#pragma unroll 1
        for (int check = 0; check < x.checks; check++) {
            // Half-steps alternate, g first; the last one only measures. One copy of the code serves both sides, which
            // saves registers.
            int last = plain ? 2 : 2 * x.count;
#pragma unroll 1
            for (int half = plain ? 1 : 0; half <= last; half++) {
                update_side<PROBLEMS>(parts, K, sides[half & 1], sides[1 - (half & 1)], omega, stopped, problems,
                                      x.method, plain, half == last, half >= last - 1, C, minimum,
                                      REAL(x.cost_scale));
            }
            if (t < problems && !stopped[t]) {
                REAL total = 0;
                for (int c = 0; c < row_tiles; c++) total += sides[1].deviation[t * row_tiles + c];
                for (int c = 0; c < column_tiles; c++) total += sides[0].deviation[t * column_tiles + c];
                x.deviation[b0 + t] = total;
                if (x.states) {
                    StopState state = x.states[b0 + t];
                    double error = double(total) / x.mass[b0 + t];
                    x.rules.observe(state, error, x.count, x.earlier_checks + check);
                    if (!(error < 1e300)) state.stopped = 1;  // the problem left the range of method SCALING
                    x.states[b0 + t] = state;
                    x.taken[b0 + t] = (check + 1) * (long long)x.count;
                    stopped[t] = state.stopped != 0;
                    omega[t] = REAL(state.omega);
                }
            }
            __syncthreads();
            bool ended = true;
#pragma unroll
            for (int k = 0; k < PROBLEMS; k++) ended = ended && stopped[k];
            if (ended || check + 1 == x.checks) break;  // all threads agree
            for (int k = warp; k < problems; k += warps) {
                if (stopped[k]) continue;
                REAL level = balance(u + k * rows, p + k * rows, x.n, v + k * columns, q + k * columns, x.m);
                if (lane == 0) x.gauge[b0 + k] += level;
            }
            __syncthreads();
        }
        for (int t = warp; t < problems; t += warps) {
#pragma unroll 1
            for (int i = lane; i < x.n; i += 32) {
                x.u[(b0 + t) * x.n + i] = u[t * rows + i];
                x.p[(b0 + t) * x.n + i] = p[t * rows + i];
            }
#pragma unroll 1
            for (int j = lane; j < x.m; j += 32) {
                x.v[(b0 + t) * x.m + j] = v[t * columns + j];
                x.q[(b0 + t) * x.m + j] = q[t * columns + j];
            }
        }
        __syncthreads();  // the next tile writes 'sides' again
    }
}

// u, p (B, n) and v, q (B, m) in place; deviation (B,); C (n, m) with cost_stride 0 or (costs, n, m), cost_minimum of
// each cost; cost_index (B,) or null; a (B, n), b (B, m). Without states (null): omega (B,), and checks = 1. With them:
// gauge (B,) and states (B, 8) in place, taken (B,) iterations, mass (B,); earlier_checks of these problems came before
// this launch. One problem per block.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
iterate_1(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, double tol, double level, double progress, double first_omega,
          double largest_omega, int stalled_checks, int adaptive, int least_observed, double cost_scale, int method,
          int count, int checks, int earlier_checks, long long cost_stride, long long B, int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<1>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B, n, m});
}

// The same for a shared C (cost_stride 0): two problems per block, each entry of K read once for both.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
iterate_2(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, double tol, double level, double progress, double first_omega,
          double largest_omega, int stalled_checks, int adaptive, int least_observed, double cost_scale, int method,
          int count, int checks, int earlier_checks, long long cost_stride, long long B, int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<2>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B, n, m});
}

// The same for a shared C (cost_stride 0): four problems per block.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
iterate_4(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, double tol, double level, double progress, double first_omega,
          double largest_omega, int stalled_checks, int adaptive, int least_observed, double cost_scale, int method,
          int count, int checks, int earlier_checks, long long cost_stride, long long B, int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<4>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B, n, m});
}
