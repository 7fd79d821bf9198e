// uses: cost_reduction.cuh
// c_transform: out_k = min_s (C_ks - potential_s) over one axis of C, the softmin at eps = 0.
//
// +inf is a legal cost and -inf a legal potential: such a pair takes no part in the minimum; +inf where none is left.
// Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps
// no input.

struct CTransform {
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

// out (B, n); C (n, m) with cost_stride 0 or (costs, n, m); potential (B, m); cost_index (B,) or null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
c_transform_rows(REAL* out, const REAL* C, const REAL* potential, const long long* cost_index, long long cost_stride,
                 long long B, long long n, long long m) {
    CTransform term = {out, potential, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, m); C (n, m) with cost_stride 0 or (costs, n, m); potential (B, n); cost_index (B,) or null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
c_transform_columns(REAL* out, const REAL* C, const REAL* potential, const long long* cost_index, long long cost_stride,
                    long long B, long long n, long long m) {
    CTransform term = {out, potential, m, n};
    reduce_columns(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, n); C (n, m); potential (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
c_transform_rows_tiled(REAL* out, const REAL* C, const REAL* potential, long long B, long long n, long long m) {
    CTransform term = {out, potential, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}

// out (B, m); C (n, m); potential (B, n).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
c_transform_columns_tiled(REAL* out, const REAL* C, const REAL* potential, long long B, long long n, long long m) {
    CTransform term = {out, potential, m, n};
    reduce_tiles<0>(term, C, B, n, m);
}
