// uses: point_products.cuh reduction_terms.cuh
// softmin and apply_plan with a cost made from points of many coordinates, on tensor cores: see points.cu and
// point_products.cuh.
//
// For the squared norm, in float, where tensor cores multiply halves fast; in double there is nothing in these kernels.
// x_lengths (B or 1, kept) and y_lengths (B or 1, summed) are the squared lengths of the points. x_parts (B or 1, padded,
// blocks, 64) and x_scales (B or 1, blocks, padded) are what split_points makes of x, y_... of y; padded is the size in whole
// tiles of 320, blocks are of 32 coordinates. terms is 3, or 1 for products of 11 bits. Correct for any grid; the block is
// SPLIT_THREADS.

// parts (B, padded, blocks, 64), scales (B, blocks, padded) of points x (B, n, d), zero behind the last point. One warp per
// block of 32 coordinates.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
split_points(Half* parts, float* scales, const REAL* x, long long B, long long n, long long padded, int d) {
    long long blocks = (d + PARTS - 1) / PARTS;
    for (long long unit = first_warp(); unit < B * padded * blocks; unit += all_warps()) {
        long long block = unit % blocks, b = unit / blocks / padded, k = unit / blocks % padded;
        long long c = block * PARTS + threadIdx.x % 32;
        REAL value = k < n && c < d ? x[(b * n + k) * d + c] : REAL(0);
        write_parts<true>(value, parts + unit * HALVES, scales + (b * blocks + block) * padded + k);
    }
}

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); logits (B, summed).
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
softmin_products(REAL* out, const REAL* x, const REAL* x_lengths, const Half* x_parts, const float* x_scales,
                 const REAL* y, const REAL* y_lengths, const Half* y_parts, const float* y_scales, const REAL* logits,
                 REAL cost_scale, REAL logit_scale, REAL value_scale, int terms, REAL exponent, int norm, int d,
                 long long x_stride, long long y_stride, long long B, long long kept, long long summed) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, kept, summed};
    reduce_point_products(term, CloseShare(), {x, x_lengths, x_parts, x_scales, x_stride, kept},
                          {y, y_lengths, y_parts, y_scales, y_stride, summed}, terms, exponent, norm, d, B);
}

// out (B, kept); x (B or 1, kept, d); y (B or 1, summed, d); p (B, kept); q, v (B, summed).
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
apply_plan_products(REAL* out, const REAL* x, const REAL* x_lengths, const Half* x_parts, const float* x_scales,
                    const REAL* y, const REAL* y_lengths, const Half* y_parts, const float* y_scales, const REAL* p,
                    const REAL* q, const REAL* v, REAL cost_scale, int terms, REAL exponent, int norm, int d,
                    long long x_stride, long long y_stride, long long B, long long kept, long long summed) {
    ApplyPlan term = {out, p, q, v, cost_scale, kept, summed};
    reduce_point_products(term, CloseShare(), {x, x_lengths, x_parts, x_scales, x_stride, kept},
                          {y, y_lengths, y_parts, y_scales, y_stride, summed}, terms, exponent, norm, d, B);
}
