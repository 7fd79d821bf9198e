// uses: reduction_terms.cuh
// c_transform: out_k = min_s (C_ks - potential_s) over one axis of C, the softmin at eps = 0.
//
// +inf is a legal cost and -inf a legal potential: such a pair does not enter the minimum; +inf where no pair enters.
// Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps
// no input.

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
