// uses: cost_reduction.cuh
// The plans themselves, P_bij = exp(p_bi + q_bj - C_ij / eps), and their weighted sum over the problems.
//
// p (B, n) and q (B, m) are natural logits; cost_scale = log2(e) / eps. -inf is a legal logit, +inf a legal cost.
// Correct for any grid and any block that is a multiple of 32 (at most 512). All arrays C-contiguous; `out` overlaps
// no input.

constexpr REAL LOG2_E = REAL(1.4426950408889634074);
constexpr int SUM_ROWS = 4;  // rows of the plan that one warp sums: each q is read once for all of them

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

// out (n, m) = sum_b weights_b P_b; C (n, m) with cost_stride 0 or (B, n, m); p (B, n); q (B, m); weights (B,) of any
// sign. One block per SUM_ROWS rows and 32 columns; its warps share out the problems. Shared: SUM_ROWS REAL per
// thread.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
plan_sum(REAL* out, const REAL* C, const REAL* p, const REAL* q, const REAL* weights, REAL cost_scale,
         long long cost_stride, long long B, long long n, long long m) {
    REAL* parts = reinterpret_cast<REAL*>(dynamic_shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    long long across = (m + 31) / 32, tiles = across * ((n + SUM_ROWS - 1) / SUM_ROWS);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        long long i = tile / across * SUM_ROWS, j = tile % across * 32 + lane;
        long long column = j < m ? j : 0;
        REAL sum[SUM_ROWS] = {}, cost[SUM_ROWS] = {};
        for (long long b = warp; b < B; b += warps) {
            REAL logit = q[b * m + column] * LOG2_E, weight = weights[b];
#pragma unroll
            for (int r = 0; r < SUM_ROWS; r++) {
                long long row = i + r < n ? i + r : n - 1;
                if (cost_stride || b == warp) cost[r] = C[b * cost_stride + row * m + column];
                sum[r] += weight * power_of_two(multiply_add(cost[r], -cost_scale, p[b * n + row] * LOG2_E) + logit);
            }
        }
#pragma unroll
        for (int r = 0; r < SUM_ROWS; r++) parts[(warp * SUM_ROWS + r) * 32 + lane] = sum[r];
        __syncthreads();
        for (int r = warp; r < SUM_ROWS; r += warps) {
            REAL total = 0;
            for (int w = 0; w < warps; w++) total += parts[(w * SUM_ROWS + r) * 32 + lane];
            if (i + r < n && j < m) out[(i + r) * m + j] = total;
        }
        __syncthreads();  // the next tile writes 'parts' again
    }
}
