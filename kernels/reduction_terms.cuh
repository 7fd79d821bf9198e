// uses: cost_reduction.cuh
// The Terms (see cost_reduction.cuh) of the kernels in softmin.cu, apply_plan.cu, c_transform.cu, points.cu and
// point_products.cu; the first three say what they compute.

struct Softmin {
    static constexpr bool OFTEN = true;  // called in every iteration
    typedef OnlineSoftmax State;
    typedef REAL Summed;
    REAL* out;
    const REAL* logits;
    REAL cost_scale, logit_scale, value_scale;
    long long kept, summed;

    __device__ static Summed nothing() {
        return -infinity();
    }
    __device__ Summed read(long long b, long long s) const {
        return logits[b * summed + s] * logit_scale;
    }
    __device__ State start(long long, long long) const {
        return State::empty();
    }
    template <int COUNT>
    __device__ void push(State& state, const REAL (&cost)[COUNT], const Summed (&logit)[COUNT]) const {
        REAL x[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) x[k] = multiply_add(cost[k], -cost_scale, logit[k]);
        state.push(x);
    }
    // For point_reduction.cuh: exponents in place of costs, which exceed those of the state by `length`.
    __device__ static REAL exponent(const Summed& logit) {
        return logit;
    }
    __device__ static Summed lowered(const Summed& logit, REAL length) {
        return logit - length;
    }
    __device__ static void push_exponents(State& state, const REAL (&x)[GROUP], const Summed (&)[GROUP]) {
        state.push(x);
    }
    __device__ static void begin(State&, REAL) {}
    __device__ static void end(State& state, REAL length) {
        state.shift -= length;
    }
    __device__ void write(long long b, long long k, const State& state) const {
        out[b * kept + k] = value_scale * state.value();
    }
};

constexpr REAL LOG2_E = REAL(1.4426950408889634074);

struct LogitAndValue {
    REAL logit, value;
};

struct KeptSum {
    REAL logit, sum;

    __device__ static KeptSum empty() {
        return {-infinity(), REAL(0)};
    }
    __device__ void merge(const KeptSum& other) {
        sum += other.sum;
    }
    __device__ void merge_warp() {
        sum = warp_sum(sum);
    }
};

struct ApplyPlan {
    static constexpr bool OFTEN = true;  // called in every iteration
    typedef KeptSum State;
    typedef LogitAndValue Summed;
    REAL* out;
    const REAL* x;
    const REAL* y;
    const REAL* v;
    REAL cost_scale;
    long long kept, summed;

    __device__ static Summed nothing() {
        return {-infinity(), REAL(0)};
    }
    __device__ Summed read(long long b, long long s) const {
        return {y[b * summed + s] * LOG2_E, v[b * summed + s]};
    }
    __device__ State start(long long b, long long k) const {
        return {x[b * kept + k] * LOG2_E, REAL(0)};
    }
    template <int COUNT>
    __device__ void push(State& state, const REAL (&cost)[COUNT], const Summed (&at)[COUNT]) const {
        REAL sum = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            sum += power_of_two(multiply_add(cost[k], -cost_scale, at[k].logit) + state.logit) * at[k].value;
        state.sum += sum;
    }
    __device__ static REAL exponent(const Summed& at) {
        return at.logit;
    }
    __device__ static Summed lowered(const Summed& at, REAL length) {
        return {at.logit - length, at.value};
    }
    __device__ static void push_exponents(State& state, const REAL (&x)[GROUP], const Summed (&at)[GROUP]) {
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            state.sum = multiply_add(power_of_two(x[k] + state.logit), at[k].value, state.sum);
    }
    __device__ static void begin(State& state, REAL length) {
        state.logit -= length;
    }
    __device__ static void end(State&, REAL) {}
    __device__ void write(long long b, long long k, const State& state) const {
        out[b * kept + k] = state.sum;
    }
};

struct RowCost {
    static constexpr bool OFTEN = false;
    typedef KeptSum State;
    typedef REAL Summed;
    REAL* out;
    const REAL* x;
    const REAL* y;
    REAL cost_scale;
    long long kept, summed;

    __device__ static Summed nothing() {
        return -infinity();
    }
    __device__ Summed read(long long b, long long s) const {
        return y[b * summed + s] * LOG2_E;
    }
    __device__ State start(long long b, long long k) const {
        return {x[b * kept + k] * LOG2_E, REAL(0)};
    }
    __device__ void push(State& state, const REAL (&cost)[GROUP], const Summed (&logit)[GROUP]) const {
        REAL sum = 0;
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            REAL mass = power_of_two(multiply_add(cost[k], -cost_scale, logit[k]) + state.logit);
            sum += cost[k] == infinity() ? REAL(0) : mass * cost[k];
        }
        state.sum += sum;
    }
    __device__ void write(long long b, long long k, const State& state) const {
        out[b * kept + k] = state.sum;
    }
};

struct CTransform {
    static constexpr bool OFTEN = false;
    typedef Minimum State;
    typedef REAL Summed;
    REAL* out;
    const REAL* potential;
    long long kept, summed;

    __device__ static Summed nothing() {
        return -infinity();
    }
    __device__ Summed read(long long b, long long s) const {
        return potential[b * summed + s];
    }
    __device__ State start(long long, long long) const {
        return State::empty();
    }
    __device__ void push(State& state, const REAL (&cost)[GROUP], const Summed (&potential)[GROUP]) const {
#pragma unroll
        for (int k = 0; k < GROUP; k++) {
            // A forbidden pair stays forbidden, also for a potential of +inf.
            REAL slack = cost[k] == infinity() ? cost[k] : cost[k] - potential[k];
            state.least = smaller(state.least, slack);
        }
    }
    __device__ void write(long long b, long long k, const State& state) const {
        out[b * kept + k] = state.least;
    }
};
