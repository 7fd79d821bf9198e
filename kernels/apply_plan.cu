// uses: reduction_terms.cuh
// apply_plan: out_k = sum_s exp(x_k + y_s - C_ks / eps) * v_s, over one axis of C; and the transport cost of each row.
//
// x (B, kept) are the natural logits of the side that is kept, y (B, summed) those of the side that is summed over, v
// (B, summed) has any sign; cost_scale = log2(e) / eps. No maximum is tracked: both logits are in the exponent,
// so a term is an entry of the plan, which near convergence is at most the smaller of two weights. -inf is a legal
// logit, +inf a legal cost. Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays
// C-contiguous; `out` overlaps no input.
//     apply_plan_rows     axis 1, out (B, n): P v
//     apply_plan_columns  axis 0, out (B, m): P' v
//     ..._tiled           the same for a shared C and many problems
//     transport_cost_...  out (B, n): sum_j P_ij C_ij with 0 * inf = 0, by row

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

// out (B, n): the cost of row i of the plan of problem b; C (n, m) with cost_stride 0 or (costs, n, m); x (B, n); y
// (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
transport_cost_rows(REAL* out, const REAL* C, const REAL* x, const REAL* y, const long long* cost_index,
                    REAL cost_scale, long long cost_stride, long long B, long long n, long long m) {
    RowCost term = {out, x, y, cost_scale, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, n): the cost of row i of the plan of problem b; C (n, m); x (B, n); y (B, m).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
transport_cost_rows_tiled(REAL* out, const REAL* C, const REAL* x, const REAL* y, REAL cost_scale, long long B,
                          long long n, long long m) {
    RowCost term = {out, x, y, cost_scale, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}
