// uses: convergence.cuh
// One Sinkhorn half-step of single entries: the certified multiplicative form, and log-sum-exp for what it cannot
// certify.
//
// A problem is stored as scalings U = a exp(f / eps), V = b exp(g / eps) and as their base-2 logarithms ("logits"),
// which stay right where a scaling leaves the range of REAL. A sum S_j = sum_i U_i K_ij gives the plain update
// V_j = b_j / S_j.
//
// Range. K = 2^SHIFT exp(-(C - min C) / eps) <= 2^SHIFT, and a scaling above CAP becomes +inf, so that every sum it
// touches is inf or NaN. Underflow to zero then takes less than n * tiny * (2^SHIFT + CAP) from a sum of n terms,
// whether K, U or their product underflowed. A finite sum above n * CERTAIN, which is that loss over the rounding unit,
// is right to rounding. SHIFT splits the exponents between K and the scalings: without it half of the range that a
// problem may span is lost. The shift (none for method LOG, which would lose digits to it) and min C are absorbed by
// the logits of the rows; a power of 2 that moves between rows and columns ("gauge") balances the two sides.

template <class T>
struct Range;
template <>
struct Range<float> {
    static constexpr int SHIFT = 44;
    static constexpr float CAP = 0x1p46f, CERTAIN = 0x1p-56f;  // 2^(-126 + 46 + 1 + 23)
};
template <>
struct Range<double> {
    static constexpr int SHIFT = 476;
    static constexpr double CAP = 0x1p480, CERTAIN = 0x1p-489;  // 2^(-1022 + 480 + 1 + 52)
};

// Method: scalings alone; scalings, with log-sum-exp for entries that are not certified; log-sum-exp alone.
constexpr int SCALING = 0, AUTO = 1, LOG = 2;

__device__ inline REAL shift_of(int method) {
    return method == LOG ? REAL(0) : REAL(Range<REAL>::SHIFT);
}

__device__ inline REAL least_certified(long long terms) {
    return REAL(terms) * Range<REAL>::CERTAIN;
}

__device__ inline bool certified(REAL sum, long long terms) {
    return sum > least_certified(terms) && sum < infinity();  // false for NaN
}

__device__ inline bool in_range(REAL scaling) {
    return scaling >= Limits<REAL>::tiny && scaling <= Range<REAL>::CAP;
}

__device__ inline REAL capped(REAL scaling) {
    return scaling <= Range<REAL>::CAP ? scaling : infinity();
}

// An entry of K for a cost above the smallest. In two parts: with C / eps of 1000 a single float product would leave
// exp2 with 1000 rounding errors.
__device__ inline REAL kernel_entry(REAL cost, double cost_scale) {
    REAL scale = REAL(cost_scale), rest = REAL(cost_scale - double(scale));
    REAL product = cost * scale;
    if (!(product < REAL(4000))) return 0;  // beyond the range of double, and +inf
    REAL whole = nearest_whole(product);
    REAL fraction = (product - whole) + multiply_add(cost, rest, multiply_add(cost, scale, -product));
    return power_of_two(Range<REAL>::SHIFT - whole) * power_of_two(-fraction);
}

// Where an entry's logarithmic sums read the cost, by kept and by summed index. `minimum` as in K.
struct Costs {
    const REAL* C;
    long long kept_stride, summed_stride;
    REAL minimum, scale;

    __device__ REAL term(REAL logit, long long k, long long s) const {
        return multiply_add(C[k * kept_stride + s * summed_stride] - minimum, -scale, logit);
    }
};

// log2 sum_s 2^(logits_s) K_ks, without the shift of K, for the lanes that are `wanted`. The whole warp must call this.
// `logits` is anything with an index.
template <class Logits>
__device__ inline REAL log_sum(bool wanted, const Costs& costs, long long k, long long terms, const Logits& logits) {
    unsigned left = __ballot_sync(FULL_WARP, wanted);
    int lane = threadIdx.x % 32;
    REAL result = 0, x[GROUP];
    if (__popc(left) > 8) {  // many: each lane sums its own entry
        OnlineSoftmax state = OnlineSoftmax::empty();
#pragma unroll 1  // rare, and registers are for the common path
        for (long long s = 0; s < terms; s += GROUP) {
#pragma unroll
            for (int c = 0; c < GROUP; c++)
                x[c] = wanted && s + c < terms ? costs.term(logits[s + c], k, s + c) : -infinity();
            state.push(x);
        }
        return state.value();
    }
    while (left) {  // few: the warp sums one entry after the other
        int source = __ffs(left) - 1;
        left &= left - 1;
        long long entry = __shfl_sync(FULL_WARP, k, source);
        OnlineSoftmax state = OnlineSoftmax::empty();
#pragma unroll 1
        for (long long first = lane; first < terms; first += GROUP * 32) {
#pragma unroll
            for (int c = 0; c < GROUP; c++) {
                long long s = first + c * 32;
                x[c] = s < terms ? costs.term(logits[s], entry, s) : -infinity();
            }
            state.push(x);
        }
        state.merge_warp();
        if (lane == source) result = state.value();
    }
    return result;
}

// `deviation` is weight * |1 - old / new|, the entry's share of the marginal error.
struct Entry {
    REAL scaling, logit, deviation;
};

// log2 of a scaling in range, for its logit: the exponent is exact, and the device's own logarithm of the mantissa is off by
// 2^-22 at most. With the last rounding that is, from 4 on, no more than the unit that log_two may be off by, which takes 24
// instructions more, and below 4 no more than the logits of other entries are.
__device__ inline float log_in_range(float scaling) {
    unsigned bits = __float_as_uint(scaling);
    float mantissa = __uint_as_float((bits & 0x7fffffu) | 0x3f800000u);  // from 1 to 2
    return float(int(bits >> 23) - 127) + __log2f(mantissa);
}
__device__ inline double log_in_range(double scaling) {
    return log_two(scaling);
}

// The update of an entry whose sum is certified; with measure, only the deviation of the old entry. Its logit is log_two of the
// scaling unless it may be `rough`.
__device__ inline Entry updated_by_sum(const Entry& old, REAL sum, REAL weight, REAL omega, bool measure,
                                       bool rough = false) {
    REAL ratio = in_range(old.scaling) ? old.scaling * (sum / weight) : infinity();
    if (!(ratio < infinity())) ratio = power_of_two(old.logit + (log_two(sum) - log_two(weight)));
    if (measure) return {old.scaling, old.logit, weight * magnitude(1 - ratio)};
    REAL factor = relaxation(omega, ratio), scaling = weight / sum * factor;
    REAL logit;
    if (in_range(scaling))
        logit = rough ? log_in_range(scaling) : log_two(scaling);
    else
        logit = log_two(weight) - log_two(sum) + log_two(factor);
    return {capped(scaling), logit, weight * magnitude(1 - factor)};
}

// The same for the base-2 logarithm of the sum.
__device__ inline Entry updated_by_log(const Entry& old, REAL log_sum, REAL weight, REAL omega, bool measure) {
    if (!(log_sum > -infinity())) return {REAL(0), -infinity(), weight};  // no partner: all of the weight is missing
    REAL plain = log_two(weight) - log_sum, ratio = power_of_two(old.logit - plain);
    if (measure) return {old.scaling, old.logit, weight * magnitude(1 - ratio)};
    REAL factor = relaxation(omega, ratio), logit = plain + log_two(factor);
    return {capped(power_of_two(logit)), logit, weight * magnitude(1 - factor)};
}

// A half-step of one entry per lane: range check, update or measurement. The whole warp must call this; a lane without
// an entry has weight 0. `logits` and `terms` belong to the other side, which is summed over.
__device__ inline Entry half_step(const Entry& old, REAL sum, REAL weight, REAL omega, bool measure, int method,
                                  const Costs& costs, long long k, long long terms, const REAL* logits) {
    bool carries = weight > 0;
    bool fails = carries && (method == LOG || !certified(sum, terms));
    REAL logarithm = method == SCALING ? REAL(0) : log_sum(fails, costs, k, terms, logits) + shift_of(method);
    if (!carries) return {REAL(0), -infinity(), REAL(0)};
    if (!fails) return updated_by_sum(old, sum, weight, omega, measure);
    if (method == SCALING) return {old.scaling, old.logit, infinity()};  // the host sees the error
    return updated_by_log(old, logarithm, weight, omega, measure);
}

__device__ inline REAL moved(REAL scaling, REAL logit, REAL by) {
    // A power of 2 changes no digit; a scaling that was out of range is recomputed from its logarithm.
    return capped(in_range(scaling) && magnitude(by) < 60 ? scaling * power_of_two(by) : power_of_two(logit));
}

// Bring the largest u (n) and the largest v (m) of a problem within 2^8 of each other, by a warp; return the power of 2
// that went from the rows to the columns.
__device__ inline REAL balance(REAL* u, REAL* p, long long n, REAL* v, REAL* q, long long m) {
    int lane = threadIdx.x % 32;
    REAL row = Limits<REAL>::lowest, column = Limits<REAL>::lowest;
    for (long long i = lane; i < n; i += 32) row = larger(row, p[i]);
    for (long long j = lane; j < m; j += 32) column = larger(column, q[j]);
    row = warp_maximum(row);
    column = warp_maximum(column);
    REAL level = nearest_whole((row - column) / 2);
    if (row == Limits<REAL>::lowest || column == Limits<REAL>::lowest || !(magnitude(level) >= 4)) return 0;
    for (long long i = lane; i < n; i += 32) {
        p[i] -= level;
        u[i] = moved(u[i], p[i], -level);
    }
    for (long long j = lane; j < m; j += 32) {
        q[j] += level;
        v[j] = moved(v[j], q[j], level);
    }
    return level;
}
