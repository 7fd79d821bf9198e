// uses: point_products.cuh kernel_profile.cuh
// strip_sums: sums of kernel_product.cu between points of many coordinates, on tensor cores: see point_products.cuh.
//
//     kernel_sums_products      out_i = sum_j k(x_i, y_j) v_j
//     kernel_log_sums_products  out_i = log(sum_j k(x_i, y_j) exp(q_j)); -inf where every term is zero
//     distance_sums_products    out_i = rate * sum_j |x_i - y_j| v_j
//
// In float, where tensor cores multiply halves fast; in double there is nothing in these kernels. x and y are as they were
// given, so that differences have all digits. x_lengths (B, n), x_parts (B, padded, blocks, 64) and x_scales (B, blocks,
// padded) are made of them about a common centre, y_... of y: see point_products.cu. A point y without weight is the centre
// there. Bound by tensor cores, then issue slots: for each pair a root or a logarithm, as the kernel is, 1 exp2 and 11
// others. Correct for any grid; the block is SPLIT_THREADS.

// The products leave some 2^-22 of |x|^2 + |y|^2 in a squared distance q, which a kernel feels beside q and beside its
// `room`: 1 / rate of a Gaussian, else the shift. Where both are no more than a share of |x|^2 + |y|^2, q is made from
// differences; and where it may be 0, so that a kernel between equal points has all its digits.
struct CloseBeside {
    REAL room;

    __device__ REAL below(REAL both) const {
        return larger(multiply_add(REAL(0.125), both, -room), REAL(3.8147e-6) * both);
    }
};

struct Sums {
    static constexpr bool OFTEN = true;
    typedef PlainSum State;
    typedef REAL Summed;
    Profile profile;
    REAL* out;
    const REAL* v;
    long long n, m;

    __device__ static Summed nothing() {
        return 0;
    }
    __device__ Summed read(long long b, long long j) const {
        return v[b * m + j];
    }
    __device__ State start(long long, long long) const {
        return State::empty();
    }
    template <int COUNT>
    __device__ void push(State& state, const REAL (&q)[COUNT], const Summed (&value)[COUNT]) const {
        REAL base[COUNT], exponent[COUNT], sum = 0;
        profile.exponents(q, base, exponent);
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum = multiply_add(power_of_two(exponent[k]), value[k], sum);
        state.sum += sum;
    }
    __device__ void write(long long b, long long i, const State& state) const {
        out[b * n + i] = state.sum;
    }
};

struct LogSums {
    static constexpr bool OFTEN = true;
    typedef OnlineSoftmax State;
    typedef REAL Summed;
    Profile profile;
    REAL* out;
    const REAL* logits;
    long long n, m;

    __device__ static Summed nothing() {
        return -infinity();
    }
    __device__ Summed read(long long b, long long j) const {
        return logits[b * m + j] * LOG2_E;
    }
    __device__ State start(long long, long long) const {
        return State::empty();
    }
    template <int COUNT>
    __device__ void push(State& state, const REAL (&q)[COUNT], const Summed (&logit)[COUNT]) const {
        REAL base[COUNT], exponent[COUNT];
        profile.exponents(q, base, exponent);
#pragma unroll
        for (int k = 0; k < COUNT; k++) exponent[k] += logit[k];
        state.push(exponent);
    }
    __device__ void write(long long b, long long i, const State& state) const {
        out[b * n + i] = LN_2 * state.value();
    }
};

struct DistanceSums {
    static constexpr bool OFTEN = true;
    typedef PlainSum State;
    typedef REAL Summed;
    REAL rate;
    REAL* out;
    const REAL* v;
    long long n, m;

    __device__ static Summed nothing() {
        return 0;
    }
    __device__ Summed read(long long b, long long j) const {
        return v[b * m + j];
    }
    __device__ State start(long long, long long) const {
        return State::empty();
    }
    template <int COUNT>
    __device__ void push(State& state, const REAL (&q)[COUNT], const Summed (&value)[COUNT]) const {
        REAL sum = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++) sum = multiply_add(square_root(q[k]), value[k], sum);
        state.sum += sum;
    }
    __device__ void write(long long b, long long i, const State& state) const {
        out[b * n + i] = rate * state.sum;
    }
};

template <class Term>
__device__ inline void sum_strips(const Term& term, REAL room, const SplitPoints& x, const SplitPoints& y, int d,
                                  long long B) {
    reduce_point_products(term, CloseBeside{room}, x, y, 3, REAL(1), SQUARED, d, B);
}

// out (B, n); x (B, n, d); y (B, m, d); v (B, m).
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
kernel_sums_products(REAL* out, const REAL* x, const REAL* x_lengths, const Half* x_parts, const float* x_scales,
                     const REAL* y, const REAL* y_lengths, const Half* y_parts, const float* y_scales, const REAL* v,
                     REAL rate, REAL shift, REAL room, long long form, int d, long long B, long long n, long long m) {
    Sums term = {{form, rate, shift, 0}, out, v, n, m};
    sum_strips(term, room, {x, x_lengths, x_parts, x_scales, n * d, n}, {y, y_lengths, y_parts, y_scales, m * d, m}, d, B);
}

// out (B, n); x (B, n, d); y (B, m, d); logits (B, m).
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
kernel_log_sums_products(REAL* out, const REAL* x, const REAL* x_lengths, const Half* x_parts, const float* x_scales,
                         const REAL* y, const REAL* y_lengths, const Half* y_parts, const float* y_scales,
                         const REAL* logits, REAL rate, REAL shift, REAL room, long long form, int d, long long B,
                         long long n, long long m) {
    LogSums term = {{form, rate, shift, 0}, out, logits, n, m};
    sum_strips(term, room, {x, x_lengths, x_parts, x_scales, n * d, n}, {y, y_lengths, y_parts, y_scales, m * d, m}, d, B);
}

// out (B, n); x (B, n, d); y (B, m, d); v (B, m).
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
distance_sums_products(REAL* out, const REAL* x, const REAL* x_lengths, const Half* x_parts, const float* x_scales,
                       const REAL* y, const REAL* y_lengths, const Half* y_parts, const float* y_scales, const REAL* v,
                       REAL rate, int d, long long B, long long n, long long m) {
    DistanceSums term = {rate, out, v, n, m};
    sum_strips(term, REAL(0), {x, x_lengths, x_parts, x_scales, n * d, n}, {y, y_lengths, y_parts, y_scales, m * d, m}, d,
               B);
}
