// uses: scaling.cuh half_parts.cuh
// Half-steps of many problems that share a large cost: the product of their scalings with K on tensor cores, and the
// update of what it gives, in one launch.
//
// Scalings, logits, K and the update as in scaling.cuh, in float: sums[b][k] = sum_s x[b][s] K[k][s] for scalings x
// (B, summed) of one side and the K (kept, summed) of the other. Both are stored as parts of half precision (half_parts.cuh)
// with a scale for each block of 32 summed indices, (blocks, rows) for whole tiles of rows. Tensor cores truncate as they
// add. So the sum over a block is taken from zero, and added to the others, times its scales, by float units, which round.
//
// Range. A sum S over n terms is right to rounding where it is certified as in scaling.cuh (times of scales below the
// smallest number lose less than what is allowed there) and besides
//
//     S >= 2^19 G        G = sum over blocks of scale scale
//
// since the parts lose 32 (2^15 + 2^15) 2^-25 = 2^-4 scale scale in a block, and 3 2^-22 S. G is one more product, of
// scales as bfloat16, which hold any power of 2. What is not certified is log-sum-exp, as in scaling_update. `repaired`
// counts those entries: where they are many, the host goes back to products in float.
//
// A block of 128 threads makes tiles of 64 problems x 128 kept indices, a warp 32 x 64 of them. Per block of 32 summed
// indices a warp takes 96 products m16n8k16, 24 loads of four matrices, 128 float operations to add what
// they gave, and copies of 24 KiB for the next but one; two thread blocks fit on a multiprocessor of 164 KiB or more, so that
// one multiplies while the other updates. Bound by tensor cores: 3 B kept summed multiply-adds. Neighbouring thread blocks
// share a tile of K, which is read once from memory. Right for any grid; the block is SPLIT_THREADS. All C-contiguous.

constexpr int SPLIT_ROWS = 64, SPLIT_COLUMNS = 128, SPLIT_THREADS = 128, STAGES = 3;
constexpr int STAGE_ROWS = SPLIT_ROWS + SPLIT_COLUMNS, STAGE_BYTES = STAGE_ROWS * (2 * HALVES + 4);
constexpr int SUMS = SPLIT_COLUMNS + 4;                             // from one row of sums to the next
constexpr float LEAST_OVER_SCALES = 0x1p19f;

// Rows of parts (rows, blocks, HALVES), scales (blocks, padded).
struct PartsOf {
    const Half* parts;
    const float* scales;
    long long rows, padded;
};

// Where 16 bytes of a row of a tile lie: in an order by which 8 rows never meet in a bank.
__device__ inline int placed(int row, int chunk) {
    return row * HALVES + (chunk ^ row % 8) * CHUNK;
}

// A block of summed indices of a tile: rows of x, then those of K, and their scales.
struct Stage {
    Half* parts;  // (STAGE_ROWS, HALVES), as `placed`
    float* scales;

    __device__ static Stage number(int k) {
        Half* start = reinterpret_cast<Half*>(dynamic_shared + k * STAGE_BYTES);
        return {start, reinterpret_cast<float*>(start + STAGE_ROWS * HALVES)};
    }
    // Copy a block of `count` rows from row `first` on, as rows `to` and on; rows that are missing are copies of the last one.
    __device__ void copy(const PartsOf& from, long long first, int to, int count, long long block, long long blocks) const {
        const int chunk = threadIdx.x % 8;
#pragma unroll
        for (int row = threadIdx.x / 8; row < count; row += SPLIT_THREADS / 8) {
            long long r = first + row < from.rows ? first + row : from.rows - 1;
            copy_ahead(parts + placed(to + row, chunk), from.parts + (r * blocks + block) * HALVES + chunk * CHUNK);
        }
        int at = threadIdx.x * 4;
        if (at < count) copy_ahead(scales + to + at, from.scales + block * from.padded + first + at);
    }
};

// What a warp has of 32 problems and 64 kept indices: sums[m][n] is the lane's part of rows 16 m and columns 8 n.
typedef float WarpSums[2][8][4];

// The products of one block of summed indices, from zero: of the rows from row0 on with those from column0 on.
__device__ inline void multiply_block(WarpSums& sums, const Half* parts, int row0, int column0) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < 4; k += 2) {  // chunks of the high parts; those of the low ones are 4 further
        unsigned high[2][4], low[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            int row = row0 + 16 * m + lane % 16, chunk = k + lane / 16;
            load_matrices(high[m], parts + placed(row, chunk));
            load_matrices(low[m], parts + placed(row, chunk + 4));
        }
#pragma unroll
        for (int n = 0; n < 8; n += 2) {
            unsigned other_high[4], other_low[4];
            int row = column0 + 8 * n + lane / 16 * 8 + lane % 8, chunk = k + lane / 8 % 2;
            load_matrices(other_high, parts + placed(row, chunk));
            load_matrices(other_low, parts + placed(row, chunk + 4));
#pragma unroll
            for (int next = 0; next < 2; next++) {
                unsigned b_high[2] = {other_high[2 * next], other_high[2 * next + 1]};
                unsigned b_low[2] = {other_low[2 * next], other_low[2 * next + 1]};
#pragma unroll
                for (int m = 0; m < 2; m++) {  // the small ones first
                    tensor_core_half(sums[m][n + next], low[m], b_high);
                    tensor_core_half(sums[m][n + next], high[m], b_low);
                    tensor_core_half(sums[m][n + next], high[m], b_high);
                }
            }
        }
    }
}

// Two floats that are powers of 2, as bfloat16.
__device__ inline unsigned as_bfloats(float first, float second) {
    return __float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000u);
}

// G of the warp's entries: the products of all scales.
__device__ inline void multiply_scales(WarpSums& sums, const PartsOf& x, const PartsOf& K, long long b0, long long k0,
                                       long long blocks) {
    int row = threadIdx.x % 32 / 4;
    for (long long first = threadIdx.x % 4 * 2; first < (blocks + 15) / 16 * 16; first += 16) {
        auto scales = [&](const PartsOf& of, long long r, long long block) {
            const float* at = of.scales + block * of.padded + r;
            return as_bfloats(block < blocks ? at[0] : 0.0f, block + 1 < blocks ? at[of.padded] : 0.0f);
        };
        unsigned a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 4; r++) a[m][r] = scales(x, b0 + 16 * m + row + r % 2 * 8, first + r / 2 * 8);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            unsigned b[2] = {scales(K, k0 + 8 * n + row, first), scales(K, k0 + 8 * n + row, first + 8)};
#pragma unroll
            for (int m = 0; m < 2; m++) tensor_core_bfloat(sums[m][n], a[m], b);
        }
    }
}

// parts (kept, blocks, 64), scales (blocks, padded) of K = 2^SHIFT exp(-(C - minimum) / eps) for a shared C with its smallest
// entry minimum (1,); the strides of C say which of its axes is kept. One warp per block.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
split_kernel(Half* parts, float* scales, const REAL* C, const REAL* minimum, double cost_scale, long long kept_stride,
             long long summed_stride, long long kept, long long summed, long long padded) {
    long long blocks = (summed + PARTS - 1) / PARTS;
    for (long long unit = first_warp(); unit < kept * blocks; unit += all_warps()) {
        long long k = unit / blocks, block = unit % blocks, s = block * PARTS + threadIdx.x % 32;
        REAL entry = s < summed ? kernel_entry(C[k * kept_stride + s * summed_stride] - minimum[0], cost_scale) : REAL(0);
        if (!(entry >= Limits<REAL>::tiny)) entry = 0;
        write_parts(entry, parts + unit * HALVES, scales + block * padded + k);
    }
}

// parts (B, blocks, 64), scales (blocks, padded) of scalings (B, n). One warp per block.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
split_scalings(Half* parts, float* scales, const REAL* scaling, long long B, long long n, long long padded) {
    long long blocks = (n + PARTS - 1) / PARTS;
    for (long long unit = first_warp(); unit < B * blocks; unit += all_warps()) {
        long long b = unit / blocks, block = unit % blocks, i = block * PARTS + threadIdx.x % 32;
        REAL value = i < n ? scaling[b * n + i] : REAL(0);
        write_parts(value, parts + unit * HALVES, scales + block * padded + b);
    }
}

// scaling, logit (B, kept) in place, and their parts: parts (B, kept blocks, 64), scales (kept blocks, padded_x); deviation (B,
// kept blocks), as in scaling_update; repaired (thread blocks, 4), how many entries of each warp were not certified. From the parts
// of the scalings x of the other side, summed blocks, and those of K, kept rows; weights (B, kept); logits (B, summed) of
// the other side; C (n, m), minimum (1,), omega (B,). Dynamic shared memory: STAGES stages, and in their place the sums.
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 2)
split_step(REAL* scaling, REAL* logit, Half* parts, float* scales, REAL* deviation, int* repaired,
           const Half* x_parts, const float* x_scales, const Half* K_parts, const float* K_scales,
           const REAL* weights, const REAL* logits, const REAL* C, const REAL* minimum, const REAL* omega, REAL cost_scale,
           long long kept_stride, long long summed_stride, long long B, long long kept, long long summed,
           long long padded_x, long long padded_K) {
    PartsOf x = {x_parts, x_scales, B, padded_x};
    PartsOf K = {K_parts, K_scales, kept, padded_K};
    Costs costs = {C, kept_stride, summed_stride, minimum[0], cost_scale};
    long long row_tiles = (B + SPLIT_ROWS - 1) / SPLIT_ROWS, column_tiles = (kept + SPLIT_COLUMNS - 1) / SPLIT_COLUMNS;
    long long blocks = (summed + PARTS - 1) / PARTS, kept_blocks = (kept + PARTS - 1) / PARTS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = warp / 2 * 32, column0 = warp % 2 * 64;
    float* sums = reinterpret_cast<float*>(dynamic_shared);
    int lost = 0;
    for (long long tile = blockIdx.x; tile < row_tiles * column_tiles; tile += gridDim.x) {
        long long b0 = tile % row_tiles * SPLIT_ROWS, k0 = tile / row_tiles * SPLIT_COLUMNS;
        auto copy = [&](long long block) {
            if (block < blocks) {
                Stage stage = Stage::number(int(block % STAGES));
                stage.copy(x, b0, 0, SPLIT_ROWS, block, blocks);
                stage.copy(K, k0, SPLIT_ROWS, SPLIT_COLUMNS, block, blocks);
            }
            end_copies();  // of none too: await_copies counts these
        };
        WarpSums total = {};
#pragma unroll
        for (int k = 0; k < STAGES - 1; k++) copy(k);
#pragma unroll 1
        for (long long block = 0; block < blocks; block++) {
            await_copies<STAGES - 2>();
            __syncthreads();  // this block is there for all, and all have used the one before
            copy(block + STAGES - 1);
            Stage stage = Stage::number(int(block % STAGES));
            WarpSums part = {};
            multiply_block(part, stage.parts, row0, SPLIT_ROWS + column0);
            const float *of_x = stage.scales + row0 + lane / 4, *of_K = stage.scales + SPLIT_ROWS + column0 + lane % 4 * 2;
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int n = 0; n < 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        total[m][n][e] = fmaf(part[m][n][e], of_x[16 * m + e / 2 * 8] * of_K[8 * n + e % 2], total[m][n][e]);
        }
        __syncthreads();  // all have used the last stage
        WarpSums least = {};
        multiply_scales(least, x, K, b0 + row0, k0 + column0, blocks);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float sum = total[m][n][e];
                    bool certain = sum >= LEAST_OVER_SCALES * least[m][n][e];
                    int row = row0 + 16 * m + lane / 4 + e / 2 * 8, column = column0 + 8 * n + lane % 4 * 2 + e % 2;
                    sums[row * SUMS + column] = certain ? sum : -1.0f;  // which nothing certifies
                }
        __syncthreads();
        long long k = k0 + 32 * warp + lane, kept_block = k0 / PARTS + warp;
        bool inside = k < kept;
#pragma unroll 1
        for (int r = 0; r < SPLIT_ROWS && b0 + r < B && kept_block < kept_blocks; r++) {
            long long b = b0 + r, at = b * kept + k;
            Entry old = {inside ? scaling[at] : REAL(0), inside ? logit[at] : REAL(0), REAL(0)};
            REAL sum = REAL(sums[r * SUMS + 32 * warp + lane]), weight = inside ? weights[at] : REAL(0);
            lost += __popc(__ballot_sync(FULL_WARP, weight > 0 && !certified(sum, summed)));
            Entry entry = half_step(old, sum, weight, omega[b], false, AUTO, costs, k, summed, logits + b * summed);
            if (inside) {
                scaling[at] = entry.scaling;
                logit[at] = entry.logit;
            }
            write_parts(entry.scaling, parts + (b * kept_blocks + kept_block) * HALVES,
                        scales + kept_block * padded_x + b);
            REAL off = warp_sum(entry.deviation);
            if (lane == 0) deviation[b * kept_blocks + kept_block] = off;
        }
        __syncthreads();  // the next tile copies to where the sums are
    }
    if (lane == 0) repaired[blockIdx.x * 4 + warp] = lost;
}
