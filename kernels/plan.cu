// uses: online_softmax.cuh
// plan: the plans themselves, P_bij = exp(p_bi + q_bj - C_ij / eps).
//
// p (B, n) and q (B, m) are natural logits; cost_scale = log2(e) / eps. -inf is a legal logit, +inf a legal cost.
// Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps
// no input.

constexpr REAL LOG2_E = REAL(1.4426950408889634074);

// out (B, n, m); C (n, m) with cost_stride 0 or (B, n, m); p (B, n); q (B, m). One warp per row: bound by the bytes
// of out.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
plan(REAL* out, const REAL* C, const REAL* p, const REAL* q, REAL cost_scale, long long cost_stride, long long B,
     long long n, long long m) {
    int lane = threadIdx.x % 32;
    for (long long row = first_warp(); row < B * n; row += all_warps()) {
        long long b = row / n, i = row % n;
        const REAL* c = C + b * cost_stride + i * m;
        REAL kept = p[row] * LOG2_E;
#pragma unroll 4
        for (long long j = lane; j < m; j += 32)
            out[row * m + j] = power_of_two(multiply_add(c[j], -cost_scale, q[b * m + j] * LOG2_E) + kept);
    }
}
