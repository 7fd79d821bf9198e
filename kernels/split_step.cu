// uses: scaling.cuh strip_products.cuh
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
// A block of 256 threads makes tiles of two strips of 80 problems x 160 kept indices, or of one strip x 320, where a
// second one has no problems. A warp has 80 x 40 of them. Per block of 32 summed indices it takes 150 products m16n8k16,
// 30 loads of four matrices, and 100 float operations twice to add what they gave; all warps copy 41 KiB for the next but
// one. Tiles are as large as registers allow, so that the L2 cache need not be read faster than it can.
//
// The sums of a tile go to global memory, from where its update is taken in pieces between the products of the next tile:
// in every second block of summed indices by the warps of the first strip, in the others by those of the second, so that
// of two warps that share a tensor core one goes on. Only the update of the last tile has no products beside it; what it
// reads is brought to the cache before. Bound by tensor cores: 3 B kept summed multiply-adds. Neighbouring thread blocks
// share a tile of K, which is read once from memory. Right for any grid; the block is SPLIT_THREADS. All C-contiguous.

constexpr int TILE = STRIP * TILE_COLUMNS;   // entries
constexpr int HALF = 3;                      // of M, for which there are registers at once
constexpr int TOGETHER = 2;                  // rows that a warp updates at once
constexpr int PAIRS_APART = STAGE_ROWS + 8;  // words from one pair of scales to the next, in other banks
constexpr int SCALES_AT_ONCE = 192;          // blocks whose scales have room where stages were
static_assert(SCALES_AT_ONCE / 2 * PAIRS_APART * 4 <= STAGES * STAGE_BYTES, "scales lie where stages were");
constexpr float LEAST_OVER_SCALES = 0x1p19f;
constexpr float MODERATE = 0x1p80f;  // a ratio times which a scaling in range is finite

// The tiles of a half-step: first all of two strips, then those of the last strip.
__device__ inline Tile tile_number(int tile, long long B, long long kept) {
    int pairs = int((B + STRIP - 1) / (2 * STRIP)), half = TILE_COLUMNS / 2, paired = pairs * int((kept + half - 1) / half);
    if (tile < paired) return {tile % pairs * 2LL * STRIP, tile / pairs * (long long)half, 2 * STRIP, half};
    return {pairs * 2LL * STRIP, (tile - paired) * (long long)TILE_COLUMNS, STRIP, TILE_COLUMNS};
}

// How many times 16 rows of a strip hold problems: all of the first of two strips, fewer in the last one. Not of the tile
// in shared memory, as a compiler has to see that products are skipped by all warps or by none.
__device__ inline int units_of(int tile, long long B, long long kept) {
    long long pairs = (B + STRIP - 1) / (2 * STRIP), half = TILE_COLUMNS / 2;
    return tile < pairs * ((kept + half - 1) / half) ? M : int((B - pairs * 2 * STRIP + 15) / 16);
}

struct alignas(16) FourFloats {
    float a, b, c, d;
};
struct alignas(16) FourWords {
    unsigned a, b, c, d;
};

// Two floats that are powers of 2, as bfloat16.
__device__ inline unsigned as_bfloats(float first, float second) {
    return __float_as_uint(first) >> 16 | (__float_as_uint(second) & 0xffff0000u);
}

// Bring the scales of a tile for `count` blocks of summed indices from `first` on to where its stages were: pairs of them
// as bfloat16, zero where there are none, (pairs, PAIRS_APART) for the rows of a stage.
__device__ inline void gather_scales(const PartsOf& x, const PartsOf& K, const Tile& tile, int first, int count,
                                     int blocks) {
    int warp = threadIdx.x / 32;
    for (int row = threadIdx.x % 32 * 4; row < tile.rows + tile.columns; row += 128) {
        bool is_x = row < tile.rows;
        long long padded = is_x ? x.padded : K.padded;
        const float* at = is_x ? x.scales + tile.b0 + row : K.scales + tile.k0 + (row - tile.rows);
        unsigned* to = reinterpret_cast<unsigned*>(dynamic_shared) + warp * PAIRS_APART + row;
        at += (first + 2 * warp) * padded;
        for (int block = first + 2 * warp; block < first + count; block += 2 * SPLIT_WARPS) {
            FourFloats one = {}, other = {};
            if (block < blocks) one = *reinterpret_cast<const FourFloats*>(at);
            if (block + 1 < blocks) other = *reinterpret_cast<const FourFloats*>(at + padded);
            *reinterpret_cast<FourWords*>(to) = {as_bfloats(one.a, other.a), as_bfloats(one.b, other.b),
                                                 as_bfloats(one.c, other.c), as_bfloats(one.d, other.d)};
            at += 2 * SPLIT_WARPS * padded;
            to += SPLIT_WARPS * PAIRS_APART;
        }
    }
}

// Add to G of the warp's entries, in ROWS times 16 rows from row0 on, the products of the scales of `count` blocks.
template <int ROWS>
__device__ inline void multiply_scales(float (&sums)[ROWS][N][4], int row0, int column0, int count) {
    int lane = threadIdx.x % 32;
    const unsigned* pairs = reinterpret_cast<const unsigned*>(dynamic_shared) + lane % 4 * PAIRS_APART + lane / 4;
    for (int first = 0; first < count; first += 16) {
        unsigned of_K[N][2];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < 2; r++) of_K[n][r] = pairs[4 * r * PAIRS_APART + column0 + 8 * n];
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
            unsigned of_x[4];
#pragma unroll
            for (int r = 0; r < 4; r++) of_x[r] = pairs[r / 2 * 4 * PAIRS_APART + row0 + 16 * m + r % 2 * 8];
#pragma unroll
            for (int n = 0; n < N; n++) tensor_core_bfloat(sums[m][n], of_x, of_K[n]);
        }
        pairs += 8 * PAIRS_APART;
    }
}

// Write the sums of the rows 16 FIRST to 16 LAST of the warp to those of the tile (rows, columns); -1, which nothing
// certifies, where G is too large. By all threads.
template <int FIRST, int LAST>
__device__ inline void store_sums(float* sums, const WarpSums& total, const PartsOf& x, const PartsOf& K, const Tile& tile,
                                  int blocks) {
    int lane = threadIdx.x % 32, row0 = tile.row_of(threadIdx.x / 32), column0 = tile.column_of(threadIdx.x / 32);
    float least[LAST - FIRST][N][4] = {};
    for (int first = 0; first < blocks; first += SCALES_AT_ONCE) {
        int left = (blocks - first + 15) / 16 * 16, count = left < SCALES_AT_ONCE ? left : SCALES_AT_ONCE;
        if (FIRST == 0 || blocks > SCALES_AT_ONCE) {  // or they are there already
            __syncthreads();  // all have used what is in their place
            gather_scales(x, K, tile, first, count, blocks);
            __syncthreads();
        }
        multiply_scales(least, row0 + 16 * FIRST, tile.rows + column0, count);
    }
#pragma unroll
    for (int m = FIRST; m < LAST; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e += 2) {
                auto certain = [&](int c) {
                    float sum = total[m][n][c];
                    return sum >= LEAST_OVER_SCALES * least[m - FIRST][n][c] ? sum : -1.0f;
                };
                int row = row0 + 16 * m + lane / 4 + e / 2 * 8, column = column0 + 8 * n + lane % 4 * 2;
                *reinterpret_cast<TwoFloats*>(sums + row * tile.columns + column) = {certain(e), certain(e + 1)};
            }
}

// parts (padded, blocks, 64), scales (blocks, padded) of K = 2^SHIFT exp(-(C - minimum) / eps) for a shared C with its smallest
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

// parts (padded, blocks, 64), scales (blocks, padded) of scalings (B, n). One warp per block.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
split_scalings(Half* parts, float* scales, const REAL* scaling, long long B, long long n, long long padded) {
    long long blocks = (n + PARTS - 1) / PARTS;
    for (long long unit = first_warp(); unit < B * blocks; unit += all_warps()) {
        long long b = unit / blocks, block = unit % blocks, i = block * PARTS + threadIdx.x % 32;
        REAL value = i < n ? scaling[b * n + i] : REAL(0);
        write_parts(value, parts + unit * HALVES, scales + block * padded + b);
    }
}

// What a launch changes and what its updates need, as `split_step` takes them.
struct Side {
    REAL *scaling, *logit;
    Half* parts;
    float* scales;
    REAL* deviation;
    int* repaired;
    const REAL *weights, *logits, *C, *minimum, *omega;
    REAL cost_scale;
    long long kept_stride, summed_stride, B, kept, summed, padded, measured;
};

// The tile whose updates are under way: in shared memory, as registers are scarce.
struct Pending {
    long long b0, k0;
    int columns, rows, pieces;  // of its sums; rows and pieces of 32 kept indices that exist

    __device__ static Pending of(const Tile& tile, long long B, long long kept) {
        long long rows = B - tile.b0, columns = kept - tile.k0;
        return {tile.b0, tile.k0, tile.columns, rows < tile.rows ? int(rows) : tile.rows,
                columns < tile.columns ? int((columns + PARTS - 1) / PARTS) : tile.columns / PARTS};
    }
};

// The sums over the lanes of two numbers: of the first in the lanes below 16, of the second in the others.
__device__ inline REAL two_warp_sums(REAL first, REAL second) {
    bool lower = threadIdx.x % 32 < 16;
    REAL mine = lower ? first : second;
    mine += __shfl_xor_sync(FULL_WARP, lower ? second : first, 16);
#pragma unroll
    for (int step = 8; step; step /= 2) mine += __shfl_xor_sync(FULL_WARP, mine, step);
    return mine;
}

// The update of an entry whose sum is certified where nothing is relaxed or measured.
__device__ inline Entry plain_by_sum(REAL sum, REAL weight) {
    REAL scaling = weight / sum;
    return {capped(scaling), in_range(scaling) ? log_in_range(scaling) : log_two(weight) - log_two(sum), REAL(0)};
}

// The updates of a tile that are left to this warp: of every SPLIT_WARPS-th row, a piece of TOGETHER rows after the other.
// What the next piece reads is under way since the one before.
struct Updates {
    int row, piece;
    REAL sum[TOGETHER], scaling[TOGETHER], weight[TOGETHER], omega[TOGETHER];

    __device__ bool left(const Pending& of) const {
        return row < of.rows;
    }
    // Where the lane's entry of the next piece lies, in its first row.
    __device__ long long place(const Pending& of, const Side& side) const {
        return (of.b0 + row) * side.kept + of.k0 + piece * PARTS + threadIdx.x % 32;
    }
    __device__ void load(const Pending& of, const Side& side, const float* sums) {
        int column = piece * PARTS + threadIdx.x % 32;
        long long at = place(of, side);
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            int at_row = row + r * SPLIT_WARPS;
            bool exists = at_row < of.rows, inside = exists && of.k0 + column < side.kept;
            sum[r] = inside ? REAL(sums[at_row * of.columns + column]) : REAL(0);
            scaling[r] = inside ? side.scaling[at + r * SPLIT_WARPS * side.kept] : REAL(0);
            weight[r] = inside ? side.weights[at + r * SPLIT_WARPS * side.kept] : REAL(0);
            omega[r] = exists ? side.omega[of.b0 + at_row] : REAL(1);
        }
    }
    // Take a piece. The whole warp must call this.
    __device__ void take(const Pending& of, const Side& side, const float* sums) {
        int lane = threadIdx.x % 32;
        int kept_blocks = int((again(side.kept) + PARTS - 1) / PARTS);
        long long b = of.b0 + row, at = place(of, side), k = of.k0 + piece * PARTS + lane, block = k / PARTS;
        REAL logarithm[TOGETHER] = {}, off[TOGETHER];
        bool fails[TOGETHER];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) fails[r] = weight[r] > 0 && !certified(sum[r], again(side.summed));
        if (__ballot_sync(FULL_WARP, fails[0] || fails[1])) {
            Costs costs = {side.C, again(side.kept_stride), again(side.summed_stride), side.minimum[0], side.cost_scale};
#pragma unroll 1  // rare
            for (int r = 0; r < TOGETHER; r++) {
                bool mine = r ? fails[1] : fails[0];
                int lost = __popc(__ballot_sync(FULL_WARP, mine));
                if (lane == 0) side.repaired[again(blockIdx.x) * SPLIT_WARPS + row % SPLIT_WARPS] += lost;
                const REAL* logits = side.logits + (b + r * SPLIT_WARPS) * side.summed;
                (r ? logarithm[1] : logarithm[0]) = log_sum(mine, costs, k, side.summed, logits) + shift_of(AUTO);
            }
        }
#pragma unroll
        for (int r = 0; r < TOGETHER; r++) {
            long long here = at + r * SPLIT_WARPS * side.kept, row_here = b + r * SPLIT_WARPS;
            Entry old = {scaling[r], REAL(0), REAL(0)}, entry = {REAL(0), -infinity(), REAL(0)};
            if (weight[r] > 0) {
                bool plain = omega[r] == 1 && !side.measured && !fails[r];
                // Only here an update needs the logit: with a scaling in range and a moderate sum the ratio is finite.
                bool needs = fails[r] || !in_range(old.scaling) || !(sum[r] < weight[r] * MODERATE);
                if (!plain && needs) old.logit = side.logit[here];
                entry = plain ? plain_by_sum(sum[r], weight[r])
                        : fails[r] ? updated_by_log(old, logarithm[r], weight[r], omega[r], false)
                                   : updated_by_sum(old, sum[r], weight[r], omega[r], false);
            }
            off[r] = entry.deviation;
            if (row + r * SPLIT_WARPS >= of.rows) break;  // the whole warp
            if (k < side.kept) {
                side.scaling[here] = entry.scaling;
                side.logit[here] = entry.logit;
            }
            write_parts(entry.scaling, side.parts + (row_here * kept_blocks + block) * HALVES,
                        side.scales + block * side.padded + row_here);
        }
        if (side.measured) {  // for all threads
            REAL both = two_warp_sums(off[0], off[1]);
            int second = lane / 16;
            if (lane % 16 == 0 && row + second * SPLIT_WARPS < of.rows)
                side.deviation[(b + second * SPLIT_WARPS) * kept_blocks + block] = both;
        }
        if (++piece == of.pieces) {
            piece = 0;
            row += TOGETHER * SPLIT_WARPS;
        }
        if (left(of)) load(of, side, sums);
    }
};

// Bring what the updates of a tile read to the cache of the device, in as many steps as there are `blocks`, by one warp.
__device__ inline void fetch_ahead(const Side& side, const Tile& tile, int step, int steps) {
    constexpr int LINE = 128 / sizeof(REAL);
    int lines = tile.columns / LINE + 1, all = tile.rows * lines;  // of an array: a row may begin within a line
    int unit = (step - steps) * 32 + all + threadIdx.x % 32;
    if (unit >= 0 && unit < all) {
        long long b = tile.b0 + unit / lines, k = tile.k0 + unit % lines * LINE;
        long long at = b * side.kept + (k < side.kept ? k : side.kept - 1);
        if (b < side.B) {
            fetch(side.scaling + at);
            fetch(side.weights + at);
        }
    }
}

// scaling, logit (B, kept) in place, and their parts: parts (padded_x, kept blocks, 64), scales (kept blocks, padded_x);
// deviation (B, kept blocks), as in scaling_update, if it is `measured`; repaired (thread blocks, 8), how many entries of
// each warp were not certified; sums (thread blocks, TILE), of the tile whose update is under way. From the parts of the
// scalings x of the other side, summed blocks, and those of K, kept rows; weights (B, kept); logits (B, summed) of the
// other side; C (n, m), minimum (1,), omega (B,). Dynamic shared memory: STAGES stages.
extern "C" __global__ void __launch_bounds__(SPLIT_THREADS, 1)
split_step(REAL* scaling, REAL* logit, Half* parts, float* scales, REAL* deviation, int* repaired, float* sums,
           const Half* x_parts, const float* x_scales, const Half* K_parts, const float* K_scales,
           const REAL* weights, const REAL* logits, const REAL* C, const REAL* minimum, const REAL* omega, REAL cost_scale,
           long long kept_stride, long long summed_stride, long long B, long long kept, long long summed,
           long long padded_x, long long padded_K, long long tiles, long long measured) {
    PartsOf x = {x_parts, x_scales, padded_x};
    PartsOf K = {K_parts, K_scales, padded_K};
    Side side = {scaling, logit, parts, scales, deviation, repaired, weights, logits, C, minimum, omega,
                 cost_scale, kept_stride, summed_stride, B, kept, summed, padded_x, measured};
    int blocks = int((summed + PARTS - 1) / PARTS), warp = threadIdx.x / 32;
    sums += blockIdx.x * (long long)TILE;
    __shared__ Tile tile;
    __shared__ Pending pending;
    if (threadIdx.x == 0) pending.rows = 0;
    if (threadIdx.x % 32 == 0) repaired[blockIdx.x * SPLIT_WARPS + warp] = 0;
    Updates updates = {};
    for (int number = blockIdx.x;; number += gridDim.x) {
        bool more = number < tiles;
        int units = units_of(number, B, kept);
        WarpSums total = {};
        if (threadIdx.x == 0) tile = tile_number(number, again(B), again(kept));
        __syncthreads();
        if (more) {
            const int row0 = tile.row_of(warp), column0 = tile.column_of(warp);
            auto copy = [&](int block) {
                if (block < blocks) copy_block(Stage::number(block % STAGES), x, K, tile, block, blocks);
                end_copies();  // of none too: await_copies counts these
            };
#pragma unroll
            for (int k = 0; k < STAGES - 1; k++) copy(k);
#pragma unroll 1
            for (int block = 0; block < blocks; block++) {
                await_copies<STAGES - 2>();
                __syncthreads();  // this block is there for all, and all have used the one before
                copy(block + STAGES - 1);
                if ((block + warp / 4) % 2 == 0 && updates.left(pending)) updates.take(pending, side, sums);
                if (warp == 0) fetch_ahead(side, tile, block, blocks);
                multiply_block(total, Stage::number(block % STAGES), units, row0, tile.rows + column0);
            }
        }
        while (updates.left(pending)) updates.take(pending, side, sums);
        if (!more) break;
        __syncthreads();  // all have used the last stage, and the sums of the tile before
        if (threadIdx.x == 0) pending = Pending::of(tile, B, kept);
        store_sums<0, HALF>(sums, total, x, K, tile, blocks);
        store_sums<HALF, M>(sums, total, x, K, tile, blocks);
        __syncthreads();  // all sums of the tile are there
        updates.row = warp;
        updates.piece = 0;
        updates.load(pending, side, sums);
    }
}
