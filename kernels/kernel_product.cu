// uses: point_pairs.cuh kernel_profile.cuh
// kernel_product: sums of a kernel over all pairs of points, which are made as they are summed.
//
//     kernel_sums      out_i = sum_j k(x_i, y_j) v_j
//     kernel_log_sums  out_i = log(sum_j k(x_i, y_j) exp(q_j)); -inf where every term is zero
//     kernel_slopes    sums_i = sum_j w_ij and slopes_i = sum_j w_ij grad_x log k(x_i, y_j), w_ij = k exp(p_i + q_j) v_j
//     distance_sums    out_i = rate * sum_j |x_i - y_j| v_j
//     distance_slopes  sums_i like it, and slopes_i = slope * sum_j v_j (x_i - y_j) / |x_i - y_j|
//     ..._wide         the same for more than 4 coordinates
//
// A kernel is a function of q = |x - y|^2. In base 2 its logarithm is rate * q (form 0), rate * sqrt(q + shift) (form
// 1) or rate * log2(q + shift) (form 2), and its gradient by x is slope * (x - y) over 1, sqrt(q + shift) or q + shift;
// where that is 0, so is the gradient. -inf is a legal p and q. Correct for any grid and any block that is a multiple
// of 32 (at most 512); point_pairs.cuh states the dynamic shared memory of a block. All arrays C-contiguous; outputs
// overlap no input.

struct Sums {
    typedef PlainSum State;
    static constexpr bool HAS_SLOPES = false;
    Profile profile;
    REAL* out;
    const REAL* v;

    __device__ REAL row(long long) const {
        return 0;
    }
    __device__ REAL value(long long j) const {
        return v[j];
    }
    __device__ REAL logit(long long) const {
        return 0;
    }
    __device__ void push(State& state, const REAL (&q)[GROUP], const REAL (&value)[GROUP], const REAL (&)[GROUP], REAL,
                         REAL (&)[GROUP]) const {
        REAL base[GROUP], exponent[GROUP], sum = 0;
        profile.exponents(q, base, exponent);
#pragma unroll
        for (int g = 0; g < GROUP; g++) sum = multiply_add(power_of_two(exponent[g]), value[g], sum);
        state.sum += sum;
    }
    __device__ void write(long long i, const State& state) const {
        out[i] = state.sum;
    }
};

struct LogSums {
    typedef OnlineSoftmax State;
    static constexpr bool HAS_SLOPES = false;
    Profile profile;
    REAL* out;
    const REAL* q;

    __device__ REAL row(long long) const {
        return 0;
    }
    __device__ REAL value(long long) const {
        return 0;
    }
    __device__ REAL logit(long long j) const {
        return q[j] * LOG2_E;
    }
    __device__ void push(State& state, const REAL (&q)[GROUP], const REAL (&)[GROUP], const REAL (&logit)[GROUP], REAL,
                         REAL (&)[GROUP]) const {
        REAL base[GROUP], exponent[GROUP];
        profile.exponents(q, base, exponent);
#pragma unroll
        for (int g = 0; g < GROUP; g++) exponent[g] += logit[g];
        state.push(exponent);
    }
    __device__ void write(long long i, const State& state) const {
        out[i] = LN_2 * state.value();
    }
};

// A sum and the slopes of COUNT coordinates.
template <int COUNT>
struct SlopeSums {
    REAL sum, slope[COUNT];

    __device__ static SlopeSums empty() {
        SlopeSums state;
        state.sum = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) state.slope[k] = 0;
        return state;
    }
    __device__ void merge(const SlopeSums& other) {
        sum += other.sum;
#pragma unroll
        for (int k = 0; k < COUNT; k++) slope[k] += other.slope[k];
    }
};

template <int COUNT>
struct Slopes {
    typedef SlopeSums<COUNT> State;
    static constexpr bool HAS_SLOPES = true;
    Profile profile;
    REAL *sums, *slopes;
    const REAL *v, *p, *q;
    long long d;

    __device__ REAL row(long long i) const {
        return p ? p[i] * LOG2_E : REAL(0);
    }
    __device__ REAL value(long long j) const {
        return v[j];
    }
    __device__ REAL logit(long long j) const {
        return q ? q[j] * LOG2_E : REAL(0);
    }
    __device__ void push(State& state, const REAL (&q)[GROUP], const REAL (&value)[GROUP], const REAL (&logit)[GROUP],
                         REAL row, REAL (&factor)[GROUP]) const {
        REAL base[GROUP], exponent[GROUP], sum = 0;
        profile.exponents(q, base, exponent);
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            REAL weight = power_of_two(exponent[g] + logit[g] + row) * value[g];
            sum += weight;
            factor[g] = base[g] > 0 ? weight / base[g] : REAL(0);
        }
        state.sum += sum;
    }
    __device__ void write(long long i, const State& state) const {
        sums[i] = state.sum;
    }
    __device__ void write_slope(long long i, long long k, REAL slope) const {
        slopes[i * d + k] = profile.slope * slope;
    }
};

struct DistanceSums {
    typedef PlainSum State;
    static constexpr bool HAS_SLOPES = false;
    REAL rate;
    REAL* out;
    const REAL* v;

    __device__ REAL row(long long) const {
        return 0;
    }
    __device__ REAL value(long long j) const {
        return v[j];
    }
    __device__ REAL logit(long long) const {
        return 0;
    }
    __device__ void push(State& state, const REAL (&q)[GROUP], const REAL (&value)[GROUP], const REAL (&)[GROUP], REAL,
                         REAL (&)[GROUP]) const {
        REAL sum = 0;
#pragma unroll
        for (int g = 0; g < GROUP; g++) sum = multiply_add(square_root(q[g]), value[g], sum);
        state.sum += sum;
    }
    __device__ void write(long long i, const State& state) const {
        out[i] = rate * state.sum;
    }
};

template <int COUNT>
struct DistanceSlopes {
    typedef SlopeSums<COUNT> State;
    static constexpr bool HAS_SLOPES = true;
    REAL rate, by;
    REAL *sums, *slopes;
    const REAL* v;
    long long d;

    __device__ REAL row(long long) const {
        return 0;
    }
    __device__ REAL value(long long j) const {
        return v[j];
    }
    __device__ REAL logit(long long) const {
        return 0;
    }
    __device__ void push(State& state, const REAL (&q)[GROUP], const REAL (&value)[GROUP], const REAL (&)[GROUP], REAL,
                         REAL (&factor)[GROUP]) const {
        REAL distance[GROUP], sum = 0;
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            distance[g] = square_root(q[g]);
            sum = multiply_add(distance[g], value[g], sum);
        }
        state.sum += sum;
        __syncwarp();  // or the compiler mixes roots and quotients of float64, for which there are too few registers
#pragma unroll
        for (int g = 0; g < GROUP; g++) factor[g] = distance[g] > 0 ? value[g] / distance[g] : REAL(0);
    }
    __device__ void write(long long i, const State& state) const {
        sums[i] = rate * state.sum;
    }
    __device__ void write_slope(long long i, long long k, REAL slope) const {
        slopes[i * d + k] = by * slope;
    }
};

// out (B, n); x (B, n, d) with d <= 4; y (B, m, d); v (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_sums(REAL* out, const REAL* x, const REAL* y, const REAL* v, REAL rate, REAL shift, long long form, long long B,
            long long n, long long m, long long d) {
    Sums term = {{form, rate, shift, 0}, out, v};
    walk_near(term, x, y, B, n, m, d);
}

// out (B, n); x (B, n, d); y (B, m, d); v (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_sums_wide(REAL* out, const REAL* x, const REAL* y, const REAL* v, REAL rate, REAL shift, long long form,
                 long long B, long long n, long long m, long long d) {
    Sums term = {{form, rate, shift, 0}, out, v};
    walk_wide(term, x, y, B, n, m, d);
}

// out (B, n); x (B, n, d) with d <= 4; y (B, m, d); q (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_log_sums(REAL* out, const REAL* x, const REAL* y, const REAL* q, REAL rate, REAL shift, long long form,
                long long B, long long n, long long m, long long d) {
    LogSums term = {{form, rate, shift, 0}, out, q};
    walk_near(term, x, y, B, n, m, d);
}

// out (B, n); x (B, n, d); y (B, m, d); q (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_log_sums_wide(REAL* out, const REAL* x, const REAL* y, const REAL* q, REAL rate, REAL shift, long long form,
                     long long B, long long n, long long m, long long d) {
    LogSums term = {{form, rate, shift, 0}, out, q};
    walk_wide(term, x, y, B, n, m, d);
}

// sums (B, n); slopes (B, n, d); x (B, n, d) with d <= 4; y (B, m, d); v (B, m); p (B, n) and q (B, m) or null. One
// block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_slopes(REAL* sums, REAL* slopes, const REAL* x, const REAL* y, const REAL* v, const REAL* p, const REAL* q,
              REAL rate, REAL shift, REAL slope, long long form, long long B, long long n, long long m, long long d) {
    Slopes<NEAR> term = {{form, rate, shift, slope}, sums, slopes, v, p, q, d};
    walk_near(term, x, y, B, n, m, d);
}

// sums (B, n); slopes (B, n, d); x (B, n, d); y (B, m, d); v (B, m); p (B, n) and q (B, m) or null. One block per (b,
// 32 i, 16 coordinates), each of which recomputes the pairs.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
kernel_slopes_wide(REAL* sums, REAL* slopes, const REAL* x, const REAL* y, const REAL* v, const REAL* p, const REAL* q,
                   REAL rate, REAL shift, REAL slope, long long form, long long B, long long n, long long m,
                   long long d) {
    Slopes<COORDINATES> term = {{form, rate, shift, slope}, sums, slopes, v, p, q, d};
    walk_wide(term, x, y, B, n, m, d);
}

// out (B, n); x (B, n, d) with d <= 4; y (B, m, d); v (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
distance_sums(REAL* out, const REAL* x, const REAL* y, const REAL* v, REAL rate, long long B, long long n, long long m,
              long long d) {
    DistanceSums term = {rate, out, v};
    walk_near(term, x, y, B, n, m, d);
}

// out (B, n); x (B, n, d); y (B, m, d); v (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
distance_sums_wide(REAL* out, const REAL* x, const REAL* y, const REAL* v, REAL rate, long long B, long long n,
                   long long m, long long d) {
    DistanceSums term = {rate, out, v};
    walk_wide(term, x, y, B, n, m, d);
}

// sums (B, n); slopes (B, n, d); x (B, n, d) with d <= 4; y (B, m, d); v (B, m). One block per (b, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
distance_slopes(REAL* sums, REAL* slopes, const REAL* x, const REAL* y, const REAL* v, REAL rate, REAL slope,
                long long B, long long n, long long m, long long d) {
    DistanceSlopes<NEAR> term = {rate, slope, sums, slopes, v, d};
    walk_near(term, x, y, B, n, m, d);
}

// sums (B, n); slopes (B, n, d); x (B, n, d); y (B, m, d); v (B, m). One block per (b, 32 i, 16 coordinates), each of
// which recomputes the pairs.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
distance_slopes_wide(REAL* sums, REAL* slopes, const REAL* x, const REAL* y, const REAL* v, REAL rate, REAL slope,
                     long long B, long long n, long long m, long long d) {
    DistanceSlopes<COORDINATES> term = {rate, slope, sums, slopes, v, d};
    walk_wide(term, x, y, B, n, m, d);
}
