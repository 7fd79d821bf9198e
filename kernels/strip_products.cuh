// uses: half_parts.cuh
// Products of many rows with many others on tensor cores, of numbers that are two halves each (half_parts.cuh).
//
// A thread block of 256 threads makes a tile of two strips of 80 rows of x by 160 rows of K, or of one strip by 320. A warp has
// 80 x 40 products of them. For each block of 32 summed indices it takes 150 products m16n8k16 and 30 loads of four
// matrices. Tensor cores truncate as they add. So the sum over a block is taken from zero, and added to the others, times
// its scales, by float units, which round: 100 operations twice. All warps copy 41 KiB for the next block but one. Tiles
// are as large as registers allow, so that the L2 cache need not be read faster than it can.
constexpr int STRIP = 80, WARP_COLUMNS = 40, SPLIT_THREADS = 256, SPLIT_WARPS = 8, STAGES = 3;
constexpr int TILE_COLUMNS = WARP_COLUMNS * SPLIT_WARPS;  // of one strip; half of them where there are two
constexpr int STAGE_ROWS = STRIP + TILE_COLUMNS;          // at most
constexpr int STAGE_BYTES = STAGE_ROWS * (2 * HALVES + 4);
constexpr int M = STRIP / 16, N = WARP_COLUMNS / 8;  // products of a warp, by rows and by columns

// Parts (padded, blocks, HALVES) of rows, whole tiles of them, and scales (blocks, padded).
struct PartsOf {
    const Half* parts;
    const float* scales;
    long long padded;
};

// A tile: its first problem and kept index, problems and kept indices.
struct Tile {
    long long b0, k0;
    int rows, columns;

    // Where the sums of a warp begin.
    __device__ int row_of(int warp) const {
        return rows == STRIP ? 0 : warp / (SPLIT_WARPS / 2) * STRIP;
    }
    __device__ int column_of(int warp) const {
        return (rows == STRIP ? warp : warp % (SPLIT_WARPS / 2)) * WARP_COLUMNS;
    }
};

struct alignas(8) TwoFloats {
    float first, second;
};

// Where 16 bytes of a row of a stage lie: in an order by which 8 rows never meet in a bank.
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
};

// Copy 5 `step` rows, `apart` from each other, to those of a stage from `row` on, by threads for 32 rows.
__device__ inline void copy_rows(const Half* from, Half* parts, int row, int step, long long apart) {
    Half* to = parts + placed(row, threadIdx.x % 8);
#pragma unroll
    for (int k = 0; k < 5; k++) copy_ahead(to + k * step * HALVES, from + k * step * apart);
}

// Copy a block of summed indices of a tile.
__device__ inline void copy_block(const Stage& stage, const PartsOf& x, const PartsOf& K, const Tile& tile, int block,
                                  int blocks) {
    constexpr int AT_ONCE = SPLIT_THREADS / 8;
    int thread = threadIdx.x, row = thread / 8, four = thread * 4, rows = tile.rows;
    long long apart = again(blocks) * HALVES, first = row * apart + block * HALVES + thread % 8 * CHUNK;
    const Half* of_K = K.parts + tile.k0 * apart + first;
    if (row < rows / 5) copy_rows(x.parts + tile.b0 * apart + first, stage.parts, row, rows / 5, apart);
    copy_rows(of_K, stage.parts, rows + row, AT_ONCE, apart);
    if (tile.columns == TILE_COLUMNS)
        copy_rows(of_K + 5 * AT_ONCE * apart, stage.parts, rows + 5 * AT_ONCE + row, AT_ONCE, apart);
    const float* scales = four < rows ? x.scales + block * x.padded + tile.b0 + four
                                      : K.scales + block * K.padded + tile.k0 + (four - rows);
    if (four < rows + tile.columns) copy_ahead(stage.scales + four, scales);
}

// What a warp has of a strip and 40 kept indices: sums[m][n] is the lane's part of rows 16 m and columns 8 n.
typedef float WarpSums[M][N][4];

// Add the products of one block of summed indices: of 16 `units` rows from row0 on with those from column0 on, multiples
// of 8. That there may be fewer units also keeps a compiler from loading all of them ahead, for which it has no registers.
// Unless products are `fine`, they are those of the high parts alone.
__device__ inline void multiply_block(WarpSums& total, const Stage& stage, int units, int row0, int column0,
                                      bool fine = true) {
    int lane = threadIdx.x % 32;
    // Where the lane's rows have a chunk: all else is constant.
    int chunk_x = lane / 16 ^ lane % 8, chunk_K = (lane / 8 % 2 | lane / 16 * 4) ^ lane % 8;
    auto place_x = [&](int c) { return opaque((row0 + lane % 16) * HALVES + (chunk_x ^ c) * CHUNK); };
    auto place_K = [&](int c) { return opaque((column0 + lane % 8) * HALVES + (chunk_K ^ c) * CHUNK); };
    const int of_high[2] = {place_x(0), place_x(2)}, of_low[2] = {place_x(4), place_x(6)};
    const int of_both[2] = {place_K(0), place_K(2)};
    unsigned of_K[N][2][4];  // halves of 16 summed indices: high parts, then low ones
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) load_matrices(of_K[n][k], stage.parts + of_both[k] + 8 * n * HALVES);
#pragma unroll
    for (int m = 0; m < M; m++) {
        if (m >= units) break;
        float part[N][4] = {};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            unsigned high[4], low[4] = {};
            load_matrices(high, stage.parts + of_high[k] + 16 * m * HALVES);
            if (fine) load_matrices(low, stage.parts + of_low[k] + 16 * m * HALVES);
#pragma unroll
            for (int product = 0; product < 3; product++) {  // the small ones first
                if (product < 2 && !fine) continue;
#pragma unroll
                for (int n = 0; n < N; n++) {
                    int part_K = product == 1 ? 2 : 0;
                    unsigned other[2] = {of_K[n][k][part_K], of_K[n][k][part_K + 1]};
                    tensor_core_half(part[n], product == 0 ? low : high, other);
                }
            }
        }
        // Read again for each m: registers are scarcer than reads.
        const float* scale_x = stage.scales + row0 + 16 * m + lane / 4;
#pragma unroll
        for (int n = 0; n < N; n++) {
            auto scale_K = *reinterpret_cast<const TwoFloats*>(stage.scales + column0 + 8 * n + lane % 4 * 2);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                // Not by the product of both scales, which may be below the smallest number where the sum is not.
                float other = e % 2 ? scale_K.second : scale_K.first;
                total[m][n][e] = fmaf(part[n][e] * scale_x[e / 2 * 8], other, total[m][n][e]);
            }
        }
    }
}

