// uses: reduction_terms.cuh
// softmin: out = value_scale * log2(sum_s exp2(logit_scale * logits_s - cost_scale * C_ks)), summed over one axis of C.
//
// With logit_scale = log2(e), cost_scale = log2(e) / eps and value_scale = -eps * ln(2) this is -eps * log-sum-exp of
// natural logits; with 1, log2(e) / eps and 1 it is the plain base-2 logarithm that the iteration keeps. Scales are
// >= 0, -inf is a legal logit, +inf a legal cost; where every term is zero, the result is value_scale * -inf. Correct
// for any grid and any block that is a multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps no
// input.
//     softmin_rows     axis 1, out (B, n), logits (B, m); a cost per problem or few problems: bound by the bytes of C
//     softmin_columns  axis 0, out (B, m), logits (B, n); the same
//     ..._tiled        the same for a shared C and many problems: bound by B * n * m exponentials
//     ..._half         the same, either way, for C in half precision

// out (B, n); C (n, m) with cost_stride 0 or (costs, n, m); logits (B, m); cost_index (B,) or null. One block per (b,
// i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_rows(REAL* out, const REAL* C, const REAL* logits, const long long* cost_index, REAL cost_scale,
             REAL logit_scale, REAL value_scale, long long cost_stride, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, m); C (n, m) with cost_stride 0 or (costs, n, m); logits (B, n); cost_index (B,) or null. One block per (b,
// 32 j).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_columns(REAL* out, const REAL* C, const REAL* logits, const long long* cost_index, REAL cost_scale,
                REAL logit_scale, REAL value_scale, long long cost_stride, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, m, n};
    reduce_columns(term, C, cost_index, cost_stride, B, n, m);
}

// out (B, n); C (n, m); logits (B, m). One block per (4 b per warp, 32 i).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_rows_tiled(REAL* out, const REAL* C, const REAL* logits, REAL cost_scale, REAL logit_scale, REAL value_scale,
                   long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}

// out (B, m); C (n, m); logits (B, n). One block per (4 b per warp, 32 j).
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_columns_tiled(REAL* out, const REAL* C, const REAL* logits, REAL cost_scale, REAL logit_scale, REAL value_scale,
                      long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, m, n};
    reduce_tiles<0>(term, C, B, n, m);
}

// softmin_rows with C in half precision; everything is accumulated in REAL.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_rows_half(REAL* out, const Half* C, const REAL* logits, const long long* cost_index, REAL cost_scale,
                  REAL logit_scale, REAL value_scale, long long cost_stride, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, n, m};
    reduce_rows(term, C, cost_index, cost_stride, B, n, m);
}

// softmin_columns with C in half precision; everything is accumulated in REAL.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_columns_half(REAL* out, const Half* C, const REAL* logits, const long long* cost_index, REAL cost_scale,
                     REAL logit_scale, REAL value_scale, long long cost_stride, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, m, n};
    reduce_columns(term, C, cost_index, cost_stride, B, n, m);
}

// softmin_rows_tiled with C in half precision; everything is accumulated in REAL.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_rows_tiled_half(REAL* out, const Half* C, const REAL* logits, REAL cost_scale, REAL logit_scale,
                        REAL value_scale, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, n, m};
    reduce_tiles<1>(term, C, B, n, m);
}

// softmin_columns_tiled with C in half precision; everything is accumulated in REAL.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
softmin_columns_tiled_half(REAL* out, const Half* C, const REAL* logits, REAL cost_scale, REAL logit_scale,
                           REAL value_scale, long long B, long long n, long long m) {
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, m, n};
    reduce_tiles<0>(term, C, B, n, m);
}
