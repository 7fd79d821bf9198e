// uses: point_products.cuh reduction_terms.cuh
// softmin and apply_plan with a cost made from points of many coordinates, on tensor cores: see points.cu and
// point_products.cuh.
//
// For the squared norm, in float, from compute capability 8.0 on. x_norms (B or 1, kept) and y_norms (B or 1, summed)
// are the squares of the points' lengths; terms is 3, or 1 for products in plain tf32.

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); logits (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_PRODUCT_THREADS, 1)
softmin_products(REAL* out, const REAL* x, const REAL* y, const REAL* x_norms, const REAL* y_norms, const REAL* logits,
                 REAL cost_scale, REAL logit_scale, REAL value_scale, int terms, REAL exponent, int norm, int d,
                 long long x_stride, long long y_stride, long long B, long long kept, long long summed) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, kept, summed};
    PointPairs points = {x, y, x_stride, y_stride, d, norm, exponent};
    reduce_point_products(term, points, x_norms, y_norms, terms, B, kept, summed);
}

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); p (B, kept); q, v (B, summed).
extern "C" __global__ void __launch_bounds__(MOST_PRODUCT_THREADS, 1)
apply_plan_products(REAL* out, const REAL* x, const REAL* y, const REAL* x_norms, const REAL* y_norms, const REAL* p,
                    const REAL* q, const REAL* v, REAL cost_scale, int terms, REAL exponent, int norm, int d,
                    long long x_stride, long long y_stride, long long B, long long kept, long long summed) {
    ApplyPlan term = {out, p, q, v, cost_scale, kept, summed};
    PointPairs points = {x, y, x_stride, y_stride, d, norm, exponent};
    reduce_point_products(term, points, x_norms, y_norms, terms, B, kept, summed);
}
