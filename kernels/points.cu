// uses: point_reduction.cuh reduction_terms.cuh
// softmin, apply_plan, transport_cost and c_transform with a cost recreated from points; softmin.cu, apply_plan.cu and
// c_transform.cu say what each computes.
//
// Either axis, as both are the same with the clouds exchanged: x (B or 1, kept, d) are the points of the side that is
// kept, y (B or 1, summed, d) those of the side that is summed over. Correct for any grid and any block that is a
// multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps no input. Bound by B * kept * summed
// exponentials for small d, by d times as many multiply-adds for larger.

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); logits (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_points(REAL* out, const REAL* x, const REAL* y, const REAL* logits, REAL cost_scale, REAL logit_scale,
               REAL value_scale, REAL exponent, int norm, int d, long long x_stride, long long y_stride, long long B,
               long long kept, long long summed) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, kept, summed};
    reduce_points(term, {x, y, x_stride, y_stride, d, norm, exponent}, B, kept, summed);
}

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); p (B, kept); q, v (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
apply_plan_points(REAL* out, const REAL* x, const REAL* y, const REAL* p, const REAL* q, const REAL* v, REAL cost_scale,
                  REAL exponent, int norm, int d, long long x_stride, long long y_stride, long long B, long long kept,
                  long long summed) {
    ApplyPlan term = {out, p, q, v, cost_scale, kept, summed};
    reduce_points(term, {x, y, x_stride, y_stride, d, norm, exponent}, B, kept, summed);
}

// out (B, kept): the cost of row k of the plan; x (B or 1, kept, d); y (B or 1, summed, d); p (B, kept); q (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
transport_cost_points(REAL* out, const REAL* x, const REAL* y, const REAL* p, const REAL* q, REAL cost_scale,
                      REAL exponent, int norm, int d, long long x_stride, long long y_stride, long long B,
                      long long kept, long long summed) {
    RowCost term = {out, p, q, cost_scale, kept, summed};
    reduce_points(term, {x, y, x_stride, y_stride, d, norm, exponent}, B, kept, summed);
}

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); potential (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
c_transform_points(REAL* out, const REAL* x, const REAL* y, const REAL* potential, REAL exponent, int norm, int d,
                   long long x_stride, long long y_stride, long long B, long long kept, long long summed) {
    CTransform term = {out, potential, kept, summed};
    reduce_points(term, {x, y, x_stride, y_stride, d, norm, exponent}, B, kept, summed);
}

// out (costs, rows, m): the cost itself; x (costs, rows, d); y (costs, m, d). One thread per entry.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
cost_points(REAL* out, const REAL* x, const REAL* y, REAL exponent, int norm, int d, long long costs, long long rows,
            long long m) {
    PointPairs points = {x, y, 0, 0, d, norm, exponent};
    for (long long k = first_thread(); k < costs * rows * m; k += all_threads()) {
        const REAL* from = x + k / m * d;
        const REAL* to = y + (k / (rows * m) * m + k % m) * d;
        REAL s = 0;
        for (int c = 0; c < d; c++) {
            REAL difference = from[c] - to[c];
            s = norm == SQUARED ? add_coordinate<SQUARED>(s, difference) : add_coordinate<CITYBLOCK>(s, difference);
        }
        out[k] = points.cost(s);
    }
}
