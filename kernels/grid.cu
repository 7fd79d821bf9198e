// uses: online_softmax.cuh
// Sinkhorn iterations on scalings between the cells of a grid: products along one axis, and what lies between them.
//
// K = K_1 x K_2 x ... = 2^s exp(-C / eps) is a product of one small symmetric matrix for each axis. Problems are rows of
// n cells, the last axis fastest. The scalings of a side are x 2^exponent with the largest x in [2^(top - 1), 2^top), so
// that they never leave the range because of a common factor. `lost` is 1 where a scaling of a bin with weight has
// underflowed. A sum over a factor x is right to rounding from
//
//     floor = unit (of_kernel max x + of_products + of_factor lost)        +inf for a max x above `limit`
//
// up, see docs/grid.md; `unit` is the smallest number over its rounding. `inside` turns 0 where a sum is not, or where a
// scaling is lost at the beginning or the end. A bin without weight has x = 0, and its sum counts nothing.
//
// Everything may be captured: no launch allocates, and each is right for any grid and any block that is a multiple of 32
// (at most 512), but grid_product, whose block is PRODUCT_THREADS. Bytes bound all but grid_product; one block has a problem, so that
// few problems of very many cells leave most of a device idle. All arrays C-contiguous.

constexpr double LN_2 = 0.69314718055994530942;
constexpr int LIFT = 64;  // keeps weight / sum away from underflow
constexpr int TILE = 32, EACH = 4, PRODUCT_THREADS = (TILE / EACH) * (TILE / EACH);

// 2^e for |e| below 1022, exactly; in float for |e| below 126.
__device__ inline REAL exact_power(double e) {
    return REAL(__longlong_as_double((1023LL + (long long)e) << 52));
}

// The e with which x is in [2^(e - 1), 2^e); x is normal and positive.
__device__ inline int exponent_of(double x) {
    int e = int(floor(log2(x))) + 1;
    // log2 is not exact to the last digit near a power of two.
    if (x < exp2(double(e - 1))) e--;
    if (x >= exp2(double(e))) e++;
    return e;
}

struct Largest {
    double value;

    __device__ static Largest empty() {
        return {-double(infinity())};
    }
    __device__ void merge_warp() {
        for (int step = 16; step > 0; step /= 2) value = fmax(value, __shfl_xor_sync(FULL_WARP, value, step));
    }
};

struct WideSum {
    double value;

    __device__ static WideSum empty() {
        return {0};
    }
    __device__ void merge_warp() {
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(FULL_WARP, value, step);
    }
};

__device__ inline double block_largest(double x) {
    return merge_block(Largest{x}).value;
}
__device__ inline double block_sum(double x) {
    return merge_block(WideSum{x}).value;
}

// What a sum over one side can lose.
struct SumBound {
    double unit, of_kernel, of_products, of_factor, limit;

    __device__ double floor(double largest, int lost) const {
        return largest <= limit ? unit * (of_kernel * largest + of_products + of_factor * lost) : double(infinity());
    }
};

// out = K x along the last axis of `problems` arrays x (lines, n), n the cells of the axis; K (n, n) symmetric. The
// result for problem p, cell i, line l goes to p out_problem + i out_cell + l out_line: with (lines n, lines, 1) the
// axis of a problem becomes its first. A block makes tiles of 32 x 32 results from 32 cells at a time, a thread 4 x 4 of
// them: 16 multiply-adds for two wide loads of shared memory.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)
grid_product(REAL* out, const REAL* K, const REAL* x, long long problems, long long lines, long long n,
             long long out_problem, long long out_cell, long long out_line) {
    __shared__ Four<REAL> of_K[TILE][TILE / EACH], of_x[TILE][TILE / EACH + 1];  // [summed cell][kept cell or line]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = threadIdx.x / (TILE / EACH), column = threadIdx.x % (TILE / EACH);
    long long cell_tiles = (n + TILE - 1) / TILE, line_tiles = (lines + TILE - 1) / TILE;
    for (long long unit = blockIdx.x; unit < problems * cell_tiles * line_tiles; unit += gridDim.x) {
        long long p = unit / (cell_tiles * line_tiles), rest = unit % (cell_tiles * line_tiles);
        long long i0 = rest / line_tiles * TILE, l0 = rest % line_tiles * TILE;
        const REAL* mine = x + p * lines * n;
        REAL total[EACH][EACH] = {};
        for (long long j0 = 0; j0 < n; j0 += TILE) {
            __syncthreads();  // the tiles before have been read
            for (int k = warp; k < TILE; k += PRODUCT_THREADS / 32) {
                long long j = j0 + k, i = i0 + lane;  // K is symmetric: a row of it is a column
                of_K[k][lane / EACH].at[lane % EACH] = i < n && j < n ? K[j * n + i] : REAL(0);
                long long l = l0 + k, cell = j0 + lane;
                of_x[lane][k / EACH].at[k % EACH] = l < lines && cell < n ? mine[l * n + cell] : REAL(0);
            }
            __syncthreads();
#pragma unroll 8
            for (int k = 0; k < TILE; k++) {
                Four<REAL> kernel = of_K[k][row], factor = of_x[k][column];
#pragma unroll
                for (int s = 0; s < EACH; s++)
#pragma unroll
                    for (int t = 0; t < EACH; t++)
                        total[s][t] = multiply_add(kernel.at[s], factor.at[t], total[s][t]);
            }
        }
#pragma unroll
        for (int s = 0; s < EACH; s++)
#pragma unroll
            for (int t = 0; t < EACH; t++) {
                long long i = i0 + row * EACH + s, l = l0 + column * EACH + t;
                if (i < n && l < lines) out[p * out_problem + i * out_cell + l * out_line] = total[s][t];
            }
    }
}

// x (B, n), exponent, largest (B,), lost (B,) of one side at its potential (B, n), natural and in float64; rate = log2(e)
// / eps; weights (B, n). Where `begins`, inside (B,) is set to 1, and to 0 for a problem that has lost a scaling.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
start_grid(REAL* x, double* exponent, double* largest, int* lost, int* inside, const REAL* weights,
           const double* potential, double rate, int top, int begins, long long B, long long n) {
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        double high = -double(infinity());
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            REAL weight = weights[b * n + i];
            if (weight > 0) high = fmax(high, log2(double(weight)) + potential[b * n + i] * rate);
        }
        high = ceil(block_largest(high)) - top;
        double bad = 0, most = 0;
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            REAL weight = weights[b * n + i], value = 0;
            if (weight > 0) {
                value = REAL(exp2(log2(double(weight)) + potential[b * n + i] * rate - high));
                if (!(value >= Limits<REAL>::tiny && value < infinity())) bad = 1;
            }
            x[b * n + i] = value;
            most = fmax(most, double(value));
        }
        bad = block_largest(bad);
        most = block_largest(most);
        if (threadIdx.x == 0) {
            exponent[b] = high;
            largest[b] = most;
            lost[b] = bad > 0;
            if (begins || bad > 0) inside[b] = begins && bad == 0;
        }
    }
}

// A half-step: x (B, n), exponent, largest (B,), lost (B,) of a side go to weights / sums, or past it by excess (B,), from
// sums (B, n) over the other side, whose exponent, largest and lost those of the `factor` are. inside (B,) turns 0 where
// a sum is not certified. error (B,), null for none, receives how far the marginals were off before, as mass, for the
// problems with an excess.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_update(REAL* x, double* exponent, double* largest, int* lost, int* inside, double* error, const REAL* sums,
            const REAL* weights, const double* factor_exponent, const double* factor_largest, const int* factor_lost,
            const REAL* excess, double unit, double of_kernel, double of_products, double of_factor, double limit, int s,
            int top, int span, long long B, long long n) {
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        const double floor = bound.floor(factor_largest[b], factor_lost[b]), past = exponent[b];
        double lifted = s - LIFT - factor_exponent[b], uncertain = 0, high = 0;
        REAL beyond = excess[b], old = exact_power(fmax(-double(span), fmin(past - lifted, double(span))));
        auto updated = [&](long long at) {
            REAL plain = weights[at] * REAL(__longlong_as_double((1023LL + LIFT) << 52)) / sums[at];
            if (beyond == 0) return plain;
            return beyond * plain + larger(plain - beyond * (x[at] * old), REAL(0));
        };
        for (long long at = b * n + threadIdx.x; at < (b + 1) * n; at += blockDim.x) {
            if (!(weights[at] > 0)) continue;
            if (!(double(sums[at]) >= floor && sums[at] < infinity())) uncertain = 1;
            high = fmax(high, double(updated(at)));
        }
        high = block_largest(high);
        uncertain = block_largest(uncertain);
        if (!(high >= Limits<double>::tiny && high < double(infinity()))) uncertain = high = 1;
        double shift = exponent_of(high) - top, bad = 0;
        REAL down = exact_power(fmax(-double(span), fmin(-shift, double(span))));
        for (long long at = b * n + threadIdx.x; at < (b + 1) * n; at += blockDim.x) {
            REAL value = weights[at] > 0 ? updated(at) * down : REAL(0);
            if (weights[at] > 0 && !(value >= Limits<REAL>::tiny)) bad = 1;
            x[at] = value;
        }
        bad = block_largest(bad);
        double off = 0;
        if (error != nullptr && beyond > 0) {
            double whole = exp2(lifted + shift + factor_exponent[b] - s);
            for (long long at = b * n + threadIdx.x; at < (b + 1) * n; at += blockDim.x)
                if (weights[at] > 0) off += fabs(double(x[at]) * double(sums[at]) * whole - double(weights[at]));
            off = block_sum(off);
        }
        __syncthreads();  // `past` has been read
        if (threadIdx.x == 0) {
            exponent[b] = lifted + shift;
            largest[b] = high * double(down);
            lost[b] = bad > 0;
            if (uncertain > 0) inside[b] = 0;
            if (error != nullptr) error[b] = off;
        }
    }
}

// error (B,) = (error + how far the marginals of a side are off) / its mass, from sums (B, n) over the other side; inside
// (B,) turns 0 where a sum is not certified, or where either side has lost a scaling.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_error(double* error, int* inside, const REAL* sums, const REAL* x, const REAL* weights, const double* exponent,
           const int* lost, const double* factor_exponent, const double* factor_largest, const int* factor_lost,
           double unit, double of_kernel, double of_products, double of_factor, double limit, int s, long long B,
           long long n) {
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        double floor = bound.floor(factor_largest[b], factor_lost[b]), whole = exp2(exponent[b] + factor_exponent[b] - s);
        double uncertain = lost[b] || factor_lost[b], off = 0, mass = 0;
        for (long long at = b * n + threadIdx.x; at < (b + 1) * n; at += blockDim.x) {
            if (!(weights[at] > 0)) continue;
            if (!(double(sums[at]) >= floor && sums[at] < infinity())) uncertain = 1;
            off += fabs(double(x[at]) * double(sums[at]) * whole - double(weights[at]));
            mass += double(weights[at]);
        }
        uncertain = block_largest(uncertain);
        off = block_sum(off);
        mass = block_sum(mass);
        if (threadIdx.x == 0) {
            error[b] = (error[b] + off) / mass;
            if (uncertain > 0) inside[b] = 0;
        }
    }
}

// out (B, n): the potentials of the scalings of a side, natural and in float64. A bin without weight has 0 without sums,
// and with sums (B, n) over the other side its softmin, or NaN where that sum is not certified.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_potentials(double* out, const REAL* x, const REAL* weights, const double* exponent, const REAL* sums,
                const double* factor_exponent, const double* factor_largest, const int* factor_lost, double eps,
                double unit, double of_kernel, double of_products, double of_factor, double limit, int s, long long B,
                long long n) {
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    for (long long at = first_thread(); at < B * n; at += all_threads()) {
        long long b = at / n;
        double logarithm = 0;
        if (weights[at] > 0) {
            logarithm = log2(double(x[at]) / double(weights[at])) + exponent[b];
        } else if (sums != nullptr) {
            bool certain = double(sums[at]) >= bound.floor(factor_largest[b], factor_lost[b]) && sums[at] < infinity();
            logarithm = certain ? s - factor_exponent[b] - log2(double(sums[at])) : double(infinity()) - double(infinity());
        }
        out[at] = eps * LN_2 * logarithm;
    }
}

// potential (B, n) in place and logits (B, n) of it, of a side with weights (B, n), all in float64: from the softmin `plain`
// (B, n) over the other side, over-relaxed by excess (B,). A bin without weight keeps the softmin.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_relax(double* potential, double* logits, const double* plain, const double* weights, const double* excess,
           double eps, long long B, long long n) {
    for (long long at = first_thread(); at < B * n; at += all_threads()) {
        double value = plain[at], past = excess[at / n];
        if (weights[at] > 0 && past > 0) {
            double beyond = -past * expm1(fmin((potential[at] - value) / eps, 80.0));
            value += eps * log1p(fmax(beyond, past - 1));
        }
        potential[at] = value;
        logits[at] = weights[at] > 0 ? log(weights[at]) + value / eps : -double(infinity());
    }
}
