// uses: online_softmax.cuh
// plan: the plans themselves, P_bij = exp(p_bi + q_bj - C_ij / eps); plan_sum: their sum over the problems, weighted.
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

// out (parts, n, m): part k is ``sum_b P_bij (rows_bi + columns_bj + costs_b C_ij)`` over its share of the problems, all of
// which have the cost C (n, m): the gradient by a shared cost, without any array of plans. A forbidden pair (C = +inf)
// is 0. p, rows (B, n); q, columns (B, m); costs (B,); `columns` and `costs` may be null, which stands for zeros.
//
// A block has a tile of 8 rows for each of its warps and 32 columns, a lane 8 entries of one column; the logits of CHUNK
// problems lie in shared memory: p | rows (CHUNK, 8 * warps each) | q | columns (CHUNK, 32 each) | costs (CHUNK). Per
// term 1 exp2, 5 others and less than 1 load from shared memory: bound by issue slots, B * n * m times.
constexpr int CHUNK = 8, MINE = 8;

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
plan_sum(REAL* out, const REAL* C, const REAL* p, const REAL* q, const REAL* rows, const REAL* columns, const REAL* costs,
         REAL cost_scale, long long parts, long long B, long long n, long long m) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, high = MINE * (blockDim.x / 32);
    REAL* kept_p = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* kept_rows = kept_p + CHUNK * high;
    REAL* kept_q = kept_rows + CHUNK * high;
    REAL* kept_columns = kept_q + CHUNK * 32;
    REAL* kept_costs = kept_columns + CHUNK * 32;
    long long down = (n + high - 1) / high, across = (m + 31) / 32, tiles = down * across;
    long long share = (B + parts - 1) / parts;
    for (long long unit = blockIdx.x; unit < parts * tiles; unit += gridDim.x) {
        long long part = unit / tiles, first = unit % tiles / across * high, j = unit % across * 32 + lane;
        long long i = first + warp * MINE, end = (part + 1) * share < B ? (part + 1) * share : B;
        REAL sum[MINE] = {}, cost[MINE];
#pragma unroll
        for (int r = 0; r < MINE; r++) cost[r] = i + r < n && j < m ? C[(i + r) * m + j] : REAL(0);
        for (long long start = part * share; start < end; start += CHUNK) {
            __syncthreads();  // all have used the last chunk
            for (int k = threadIdx.x; k < CHUNK * high; k += blockDim.x) {
                long long b = start + k / high, at = first + k % high;
                bool inside = b < end && at < n;
                kept_p[k] = inside ? p[b * n + at] * LOG2_E : -infinity();
                kept_rows[k] = inside ? rows[b * n + at] : REAL(0);
            }
            for (int k = threadIdx.x; k < CHUNK * 32; k += blockDim.x) {
                long long b = start + k / 32, at = j - lane + k % 32;
                bool inside = b < end && at < m;
                kept_q[k] = inside ? q[b * m + at] * LOG2_E : -infinity();
                kept_columns[k] = inside && columns ? columns[b * m + at] : REAL(0);
            }
            if (threadIdx.x < CHUNK) {
                long long b = start + threadIdx.x;
                kept_costs[threadIdx.x] = costs && b < end ? costs[b] : REAL(0);
            }
            __syncthreads();
#pragma unroll 2
            for (int k = 0; k < CHUNK; k++) {
                REAL logit = kept_q[k * 32 + lane], column = kept_columns[k * 32 + lane], scale = kept_costs[k];
                const Four<REAL>* ps = reinterpret_cast<const Four<REAL>*>(kept_p + k * high + warp * MINE);
                const Four<REAL>* ws = reinterpret_cast<const Four<REAL>*>(kept_rows + k * high + warp * MINE);
#pragma unroll
                for (int half = 0; half < MINE / GROUP; half++) {
                    Four<REAL> of_p = ps[half], of_rows = ws[half];
#pragma unroll
                    for (int g = 0; g < GROUP; g++) {
                        int r = half * GROUP + g;
                        REAL mass = power_of_two(multiply_add(cost[r], -cost_scale, logit) + of_p.at[g]);
                        sum[r] = multiply_add(mass, multiply_add(scale, cost[r], of_rows.at[g] + column), sum[r]);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < MINE; r++)  // no mass times a cost of +inf is NaN
            if (i + r < n && j < m) out[part * n * m + (i + r) * m + j] = cost[r] == infinity() ? REAL(0) : sum[r];
    }
}
