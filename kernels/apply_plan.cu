// uses: cost_reduction.cuh
// apply_plan: out_k = sum_s exp(x_k + y_s - C_ks / eps) * v_s, over one axis of C; and the transport cost of each row.
//
// x (B, kept) are the natural logits of the side that is kept, y (B, summed) those of the side that is summed over, v
// (B, summed) has any sign; cost_scale = log2(e) / eps. No maximum has to be tracked: both logits are in the
// exponent, so a term is an entry of the plan, at most the smaller of two weights near convergence. -inf is a legal
// logit, +inf a legal cost. Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays
// C-contiguous; `out` overlaps no input.
//     apply_plan_rows     axis 1, out (B, n): P v
//     apply_plan_columns  axis 0, out (B, m): P' v
//     ..._tiled           the same for a shared C and many problems
//     transport_cost_...  out (B, n): sum_j P_ij C_ij with 0 * inf = 0, by row

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
    __device__ void push(State& state, const REAL (&cost)[GROUP], const Summed (&at)[GROUP]) const {
        REAL sum = 0;
#pragma unroll
        for (int k = 0; k < GROUP; k++)
            sum += power_of_two(multiply_add(cost[k], -cost_scale, at[k].logit) + state.logit) * at[k].value;
        state.sum += sum;
    }
    __device__ void write(long long b, long long k, const State& state) const {
        out[b * kept + k] = state.sum;
    }
};

struct RowCost {
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

// out (B, n); C (n, m) with cost_stride 0 or (costs, n, m); x (B, n); y, v (B, m); cost_index (B,) or null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
apply_plan_rows(REAL* out, const REAL* C, const REAL* x, const REAL* y, const REAL* v, const long long* cost_index,
                REAL cost_scale, long long cost_stride, long long B, long long n, long long m) {
    ApplyPlan term = {out, x, y, v, cost_scale, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, m); C (n, m) with cost_stride 0 or (costs, n, m); x (B, m); y, v (B, n); cost_index (B,) or null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
apply_plan_columns(REAL* out, const REAL* C, const REAL* x, const REAL* y, const REAL* v, const long long* cost_index,
                   REAL cost_scale, long long cost_stride, long long B, long long n, long long m) {
    ApplyPlan term = {out, x, y, v, cost_scale, m, n};
    reduce_columns(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, n); C (n, m); x (B, n); y, v (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
apply_plan_rows_tiled(REAL* out, const REAL* C, const REAL* x, const REAL* y, const REAL* v, REAL cost_scale,
                      long long B, long long n, long long m) {
    ApplyPlan term = {out, x, y, v, cost_scale, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}

// out (B, m); C (n, m); x (B, m); y, v (B, n).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
apply_plan_columns_tiled(REAL* out, const REAL* C, const REAL* x, const REAL* y, const REAL* v, REAL cost_scale,
                         long long B, long long n, long long m) {
    ApplyPlan term = {out, x, y, v, cost_scale, m, n};
    reduce_tiles<0>(term, C, B, n, m);
}

// out (B, n): what row i of the plan of problem b costs; C (n, m) with cost_stride 0 or (costs, n, m); x (B, n); y
// (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
transport_cost_rows(REAL* out, const REAL* C, const REAL* x, const REAL* y, const long long* cost_index,
                    REAL cost_scale, long long cost_stride, long long B, long long n, long long m) {
    RowCost term = {out, x, y, cost_scale, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, n): what row i of the plan of problem b costs; C (n, m); x (B, n); y (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
transport_cost_rows_tiled(REAL* out, const REAL* C, const REAL* x, const REAL* y, REAL cost_scale, long long B,
                          long long n, long long m) {
    RowCost term = {out, x, y, cost_scale, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}
