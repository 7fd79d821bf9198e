// uses: grid_tiles.cuh
// Sinkhorn iterations on scalings between the cells of a grid: products along one axis, and what lies between them.
//
// K = K_1 x K_2 x ... = 2^s exp(-C / eps) is a product of one small symmetric matrix for each axis. Problems are rows of
// n cells, the last axis fastest. A half-step is a pass for each axis: grid_product for all but the last, and
// grid_half_step, which updates the side with the sums. So an iteration is 2 launches for each axis.
//
// The scalings of a side are x 2^exponent. They are written as they come, and brought to size when they are next read,
// by the power of 2 `down` with which the largest is in [2^(top - 1), 2^top): so no launch must wait for the largest
// x before it writes. Blocks find `high` and `low`, the largest and the smallest x of a bin with weight, by
// atomics, which give the same in any order. Those two and the exponent are a slot. A side has two slots in turn,
// because the one before is read while the next is filled; who reads a side resets its spare one.
//
// A side has lost something where its low, brought to size, is below the smallest normal number. A sum over a factor that
// is brought to size is right to rounding from
//
//     floor = unit (of_kernel max x + of_products + of_factor lost)        +inf for a max x above `limit`
//
// up, see docs/grid.md; `unit` is the smallest number over its rounding. `inside` turns 0 where a sum is not, or where a
// scaling is lost at the beginning or the end. A bin without weight has x = 0, and its sum counts nothing.
//
// Everything may be captured: no launch allocates, and each is right for any grid and any block that is a multiple of 32
// (at most 512), but grid_product and grid_half_step, whose block is PRODUCT_THREADS. These two are bound by 2 B n n_k
// operations for long axes, and by the bytes of x (and, in a half-step, of the weights) for short ones: n_k
// multiply-adds for 8 to 16 bytes in float. Bytes bound all else; in start_grid and grid_error one block has a problem,
// so that few problems of very many cells leave most of a device idle, once for each check. All arrays C-contiguous.

constexpr double LN_2 = 0.69314718055994530942;
constexpr int LIFT = 64;  // keeps weight / sum away from underflow

// 2^e for |e| below 1022, exactly; in float for |e| below 126.
__device__ inline REAL exact_power(long long e) {
    return REAL(__longlong_as_double((1023LL + e) << 52));
}

// The e with which x is in [2^(e - 1), 2^e); x is normal and positive.
__device__ inline int exponent_of(double x) {
    return int((__double_as_longlong(x) >> 52) & 2047) - 1022;
}

// log2(x 2^e) with the digits that it has where log2(x) and e are large and cancel.
__device__ inline double log_of_product(double x, double e) {
    if (!(x >= Limits<double>::tiny && x < double(infinity()))) return log2(x) + e;
    long long bits = __double_as_longlong(x);
    return log2(__longlong_as_double((bits & ((1LL << 52) - 1)) | (1023LL << 52))) + (exponent_of(x) - 1 + e);
}

// Numbers that are not negative are in the order of their bits.
__device__ inline void raise_to(float* at, float x) {
    atomicMax(reinterpret_cast<unsigned*>(at), __float_as_uint(x));
}
__device__ inline void raise_to(double* at, double x) {
    atomicMax(reinterpret_cast<unsigned long long*>(at), (unsigned long long)__double_as_longlong(x));
}
__device__ inline void lower_to(float* at, float x) {
    atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(x));
}
__device__ inline void lower_to(double* at, double x) {
    atomicMin(reinterpret_cast<unsigned long long*>(at), (unsigned long long)__double_as_longlong(x));
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

// A side as it is read, brought to size: largest is +inf where no scaling is in range.
struct Extent {
    double exponent, largest;
    bool lost;
};

// To which size scalings are brought, and by powers of 2 of which |e| at most.
struct Size {
    int top, span;

    __device__ static bool can(REAL high) {
        return high >= Limits<REAL>::tiny && high < infinity();
    }
    // The e of the power of 2 that is taken out of scalings with this largest one.
    __device__ int shift(REAL high) const {
        int e = can(high) ? exponent_of(double(high)) - top : 0;
        return e > span ? span : e < -span ? -span : e;
    }
};

struct Slots {
    const double* exponent;
    const REAL *high, *low;
    Size size;

    __device__ Extent of(long long b) const {
        int shift = size.shift(high[b]);
        REAL down = exact_power(-shift);
        double largest = Size::can(high[b]) ? double(high[b] * down) : double(infinity());
        return {exponent[b] + shift, largest, !(low[b] * down >= Limits<REAL>::tiny)};
    }
};

// What a sum over one side can lose.
struct SumBound {
    double unit, of_kernel, of_products, of_factor, limit;

    __device__ double floor(const Extent& factor) const {
        if (!(factor.largest <= limit)) return double(infinity());
        return unit * (of_kernel * factor.largest + of_products + of_factor * factor.lost);
    }
};

// An input that is x, brought to size where `high` (B,) is not null.
struct Scaled {
    const REAL *x, *high;
    Size size;

    __device__ void begin(REAL* of_line, long long p, long long l0, const Shape& shape) const {
        long long l = l0 + threadIdx.x;
        if (threadIdx.x >= TILE) return;
        bool scales = high != nullptr && l < shape.lines;
        of_line[threadIdx.x] = exact_power(scales ? -size.shift(high[shape.problem(p, l)]) : 0);
    }
    __device__ REAL read(long long at, REAL of_line) const {
        return x[at] * of_line;
    }
};

// out: the products along one axis with x (problems, lines, n), see grid_tiles.cuh; high (B,) of x, or null.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
grid_product(REAL* out, const REAL* K, const REAL* x, const REAL* high, int top, int span, long long problems,
             long long lines, long long n, long long out_problem, long long out_cell, long long out_line) {
    Shape shape = {problems, lines, n, out_problem, out_cell, out_line};
    multiply_axis(K, shape, Scaled{x, high, {top, span}}, Sums{out});
}

// The update of a side by the sums of its line's problem, see grid_half_step.
struct Update {
    REAL *x, *high, *low, *kept_sums, *spare_high, *spare_low;
    double* exponent;
    int* inside;
    const REAL *weights, *excess;
    const double* old_exponent;
    Slots factor;
    SumBound bound;
    int s;

    struct Line {
        long long b;
        double floor;
        REAL beyond, old, high, low;
        bool uncertain;
    };
    __device__ static Line none() {
        return {0, 0, REAL(0), REAL(0), REAL(0), infinity(), false};
    }
    __device__ Line line(long long b) const {
        Extent extent = factor.of(b);
        double span = factor.size.span, up = old_exponent[b] - (s - LIFT - extent.exponent);
        REAL old = exact_power((long long)fmax(-span, fmin(up, span)));
        return {b, bound.floor(extent), excess[b], old, REAL(0), infinity(), false};
    }
    __device__ void write(Line& line, const Place& place, REAL sum) const {
        REAL weight = weights[place.at], value = 0;
        if (weight > 0) {
            if (!(double(sum) >= line.floor && sum < infinity())) line.uncertain = true;
            value = weight * exact_power(LIFT) / sum;
            if (line.beyond > 0) {
                REAL past = line.beyond * (x[place.at] * line.old);
                value = line.beyond * value + larger(value - past, REAL(0));
            }
            line.high = larger(line.high, value);
            line.low = smaller(line.low, value);
        }
        x[place.at] = value;
        if (kept_sums != nullptr) kept_sums[place.at] = sum;
        if (place.first) {  // one sum of a problem is the first
            exponent[line.b] = s - LIFT - factor.of(line.b).exponent;
            spare_high[line.b] = 0;
            spare_low[line.b] = infinity();
        }
    }
    __device__ void end(Line& line, bool lives, bool together, long long) const {
        if (lives && line.uncertain) atomicMin(inside + line.b, 0);
        if (together) {  // one atomic for the warp, whose first lane always has a line
            line.high = warp_maximum(line.high);
            line.low = -warp_maximum(-line.low);
            lives = threadIdx.x % 32 == 0;
        }
        if (!lives || !(line.high > 0 || line.low < infinity())) return;  // no bin with weight
        raise_to(high + line.b, line.high);
        lower_to(low + line.b, line.low);
    }
};

// The last pass of a half-step. From in (problems, lines, n), what the passes before left of a factor, to a side's
// scalings x (B, n) = weights / sums, or past that by excess (B,); their exponent, high and low (B,) are the next slot
// of the side, of which high and low have been reset, and old_exponent (B,) is of the slot before. inside (B,) turns 0
// where a sum is not certified. `spare` is the factor's other slot, which is reset. kept_sums (B, n) receives the
// sums, unless it is null. in_high (B,) is null unless `in` is the factor itself.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
grid_half_step(REAL* x, double* exponent, REAL* high, REAL* low, int* inside, REAL* spare_high, REAL* spare_low,
               REAL* kept_sums, const REAL* K, const REAL* in, const REAL* in_high, const REAL* weights,
               const double* old_exponent, const double* factor_exponent, const REAL* factor_high,
               const REAL* factor_low, const REAL* excess, double unit, double of_kernel, double of_products,
               double of_factor, double limit, int s, int top, int span, long long problems, long long lines,
               long long n, long long out_problem, long long out_cell, long long out_line) {
    Shape shape = {problems, lines, n, out_problem, out_cell, out_line};
    Size size = {top, span};
    Slots factor = {factor_exponent, factor_high, factor_low, size};
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    Update update = {x,       high,   low,          kept_sums, spare_high, spare_low, exponent, inside,
                     weights, excess, old_exponent, factor,    bound,      s};
    multiply_axis(K, shape, Scaled{in, in_high, size}, update);
}

// x (B, n) and the slot exponent, high, low (B,) of one side at its potential (B, n), natural and in float64, and its
// other slot reset; rate = log2(e) / eps; weights (B, n). Where `begins`, inside (B,) is set to 1, and to 0 for a problem
// that has lost a scaling.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
start_grid(REAL* x, double* exponent, REAL* high, REAL* low, REAL* spare_high, REAL* spare_low, int* inside,
           const REAL* weights, const double* potential, double rate, int top, int begins, long long B, long long n) {
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        double most = -double(infinity());
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            REAL weight = weights[b * n + i];
            if (weight > 0) most = fmax(most, log2(double(weight)) + potential[b * n + i] * rate);
        }
        double taken = ceil(block_largest(most)) - top, bad = 0, largest = 0, least = double(infinity());
        for (long long i = threadIdx.x; i < n; i += blockDim.x) {
            REAL weight = weights[b * n + i], value = 0;
            if (weight > 0) {
                value = REAL(exp2(log2(double(weight)) + potential[b * n + i] * rate - taken));
                if (!(value >= Limits<REAL>::tiny && value < infinity())) bad = 1;
                largest = fmax(largest, double(value));
                least = fmin(least, double(value));
            }
            x[b * n + i] = value;
        }
        bad = block_largest(bad);
        largest = block_largest(largest);
        least = -block_largest(-least);
        if (threadIdx.x == 0) {
            exponent[b] = taken;
            high[b] = REAL(largest);
            low[b] = REAL(least);
            spare_high[b] = 0;
            spare_low[b] = infinity();
            if (begins || bad > 0) inside[b] = begins && bad == 0;
        }
    }
}

// error (B,): how far the marginals of a side are off, over its mass, from sums (B, n) over the other side. With excess
// (B,) it is set, and to 0 where there is no excess: then the side has just been updated with these sums. Without (null)
// it is added, and scale (B,), unless null, receives what makes x * sums marginals. inside (B,) turns 0 where a sum is not
// certified, or where either side has lost a scaling.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_error(double* error, int* inside, double* scale, const REAL* sums, const REAL* x, const REAL* weights,
           const double* exponent, const REAL* high, const REAL* low, const double* factor_exponent,
           const REAL* factor_high, const REAL* factor_low, const REAL* excess, double unit, double of_kernel,
           double of_products, double of_factor, double limit, int s, int top, int span, long long B, long long n) {
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    Slots mine = {exponent, high, low, {top, span}}, others = {factor_exponent, factor_high, factor_low, {top, span}};
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        Extent factor = others.of(b);
        double floor = bound.floor(factor), whole = exp2(exponent[b] + factor.exponent - s);
        double uncertain = mine.of(b).lost || factor.lost, off = 0, mass = 0;
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
            error[b] = excess == nullptr ? error[b] + off / mass : excess[b] > 0 ? off / mass : 0;
            if (scale != nullptr) scale[b] = whole;
            if (uncertain > 0) inside[b] = 0;
        }
    }
}

// out (B, n): the potentials of the scalings of a side, natural and in float64. A bin without weight has 0 without sums,
// and with sums (B, n) over the other side its softmin, or NaN where that sum is not certified.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_potentials(double* out, const REAL* x, const REAL* weights, const double* exponent, const REAL* sums,
                const double* factor_exponent, const REAL* factor_high, const REAL* factor_low, double eps, double unit,
                double of_kernel, double of_products, double of_factor, double limit, int s, int top, int span,
                long long B, long long n) {
    SumBound bound = {unit, of_kernel, of_products, of_factor, limit};
    Slots others = {factor_exponent, factor_high, factor_low, {top, span}};
    for (long long at = first_thread(); at < B * n; at += all_threads()) {
        long long b = at / n;
        double logarithm = 0;
        if (weights[at] > 0) {
            logarithm = log_of_product(double(x[at]) / double(weights[at]), exponent[b]);
        } else if (sums != nullptr) {
            Extent factor = others.of(b);
            bool certain = double(sums[at]) >= bound.floor(factor) && sums[at] < infinity();
            logarithm = -log_of_product(certain ? double(sums[at]) : -1.0, factor.exponent - s);  // -1 gives NaN
        }
        out[at] = eps * LN_2 * logarithm;
    }
}
