// uses: point_reduction.cuh strip_products.cuh
// A reduction over costs made from points of many coordinates: their products on tensor cores, for any Term, in float.
//
// s = |x|^2 + |y|^2 - 2 x y, for points that are centred. Each coordinate is two numbers of half precision (half_parts.cuh),
// with a scale for 32 coordinates of a point, which `split_points` makes once for a solve. With `terms` 3 a product keeps 22
// bits; with 1 it is that of the high parts alone, which have 11 bits as tf32 has, with errors of 1e-3 of the largest |x| |y|.
//
// For near points the result is mostly rounding: their distance is recomputed from differences. A Close says below which
// distance, by |x|^2 + |y|^2: for costs that are a share of it, as the lost digits do no harm from there on.
//
// A thread block has a strip of 80 kept points and goes through the others 320 at a time: products as in strip_products.cuh, by
// blocks of 32 coordinates, then a warp has 80 x 40 of them in registers, a lane 10 in each of 10 rows. For each of those it
// takes 1 exp2 and 10 others. Copies of the next blocks of coordinates go on meanwhile. All warps merge at the end. Bound by
// tensor cores and issue slots, one after the other. Dynamic shared memory:
//     STAGES stages | STRIP squared lengths of kept points | TILE_COLUMNS of the others | TILE_COLUMNS Summed
// and in their place at the end one State for each lane and row of a warp.
constexpr int COLUMNS = 2 * N;  // of a lane, in each of its rows: in two neighbours of every 8

// The points of one side: about the origin, their squared lengths, and what split_points makes of them, padded to whole tiles.
// Those of two problems lie `stride` apart, or are the same where that is 0.
struct SplitPoints {
    const REAL *points, *lengths;
    const Half* parts;
    const float* scales;
    long long stride, size;

    __device__ SplitPoints of(long long b, int d) const {
        long long own = stride ? b : 0, rows = own * padded() * ((d + PARTS - 1) / PARTS);
        return {points + own * stride, lengths + own * size, parts + rows * HALVES, scales + rows, stride, size};
    }
    __device__ long long padded() const {
        return (size + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    }
    __device__ long long within(long long k) const {
        return k < size ? k : size - 1;
    }
    // Finite, so that no cost is infinity less infinity: a point without weight may be anywhere.
    __device__ REAL length(long long k) const {
        return k < size ? smaller(lengths[k], REAL(1e38)) : REAL(0);
    }
};

struct CloseShare {
    __device__ REAL below(REAL both) const {
        return REAL(1e-2) * both;
    }
};

// |x - y|^2 from the differences of d coordinates.
__device__ inline REAL squared_distance(const REAL* x, const REAL* y, int d) {
    REAL sum = 0;
#pragma unroll 4
    for (int c = 0; c < d; c++) sum = multiply_add(x[c] - y[c], x[c] - y[c], sum);
    return sum;
}

// Which blocks of coordinates of the summed points are copied next, and to which stage.
struct Copies {
    Tile tile;
    int block, stage;

    __device__ void next(const SplitPoints& x, const SplitPoints& y, int blocks) {
        if (tile.k0 < y.size)
            copy_block(Stage::number(stage), {x.parts, x.scales, x.padded()}, {y.parts, y.scales, y.padded()}, tile,
                       block, blocks);
        end_copies();  // of none too: await_copies counts these
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (++block == blocks) {
            block = 0;
            tile.k0 += TILE_COLUMNS;
        }
    }
};

// Add the costs of a strip from row k0 on and of the warp's columns, from `first` on, whose products are `total`. The lanes of
// a warp have the rows lane / 4 + 8 r.
template <class Term, class Close>
__device__ inline void push_strip(typename Term::State (&states)[2 * M], const Term& term, const Close& near, const PointPairs& pairs,
                                  const WarpSums& total, const SplitPoints& x, const SplitPoints& y, long long k0,
                                  long long first, const REAL* own_lengths, const REAL* lengths,
                                  const typename Term::Summed* values) {
    int lane = threadIdx.x % 32, column = threadIdx.x / 32 * WARP_COLUMNS + lane % 4 * 2;
    auto place = [&](int c) { return column + c / 2 * 8 + c % 2; };
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        typename Term::Summed at[COLUMNS];
        REAL cost[COLUMNS], length = own_lengths[lane / 4 + 8 * r];
        bool close = false;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            at[c] = values[place(c)];
            REAL both = length + lengths[place(c)];
            cost[c] = multiply_add(REAL(-2), REAL(total[r / 2][c / 2][r % 2 * 2 + c % 2]), both);
            close = close || !(cost[c] >= near.below(both));  // one below zero too, or of infinities
        }
        if (close) {
            // As if k0 were unknown: its products with d for all rows would take the registers. What is behind the last
            // point, in a tile with one that is no number, is taken for the last one.
            const REAL* mine = x.points + x.within(again(k0) + lane / 4 + 8 * r) * pairs.d;
            unsigned which = 0;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
                which |= unsigned(!(cost[c] >= near.below(length + lengths[place(c)]))) << c;
#pragma unroll 1
            for (int c = 0; c < COLUMNS; c++) {
                if (!(which >> c & 1)) continue;
                REAL distance = squared_distance(mine, y.points + y.within(first + place(c)) * pairs.d, pairs.d);
#pragma unroll
                for (int k = 0; k < COLUMNS; k++) cost[k] = k == c ? distance : cost[k];
            }
        }
        pairs.costs(cost);
        term.push(states[r], cost, at);
    }
}

// A strip of kept points, from k0 on, of problem b: all threads of the block must call this.
template <class Term, class Close>
__device__ void reduce_strip(const Term& term, const Close& near, const PointPairs& pairs, const SplitPoints& x,
                             const SplitPoints& y, int terms, long long b, long long k0) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, blocks = (pairs.d + PARTS - 1) / PARTS;
    int units = x.size - k0 < STRIP ? int((x.size - k0 + 15) / 16) : M;
    REAL* own_lengths = reinterpret_cast<REAL*>(dynamic_shared + STAGES * STAGE_BYTES);
    REAL* lengths = own_lengths + STRIP;
    Summed* values = reinterpret_cast<Summed*>(lengths + TILE_COLUMNS);
    if (threadIdx.x < STRIP) own_lengths[threadIdx.x] = x.length(k0 + threadIdx.x);
    State states[2 * M];
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        long long k = k0 + lane / 4 + 8 * r;
        states[r] = k < x.size ? term.start(b, k) : State::empty();
    }
    Copies copies = {{k0, 0, STRIP, TILE_COLUMNS}, 0, 0};
#pragma unroll
    for (int k = 0; k < STAGES - 1; k++) copies.next(x, y, blocks);
    int stage = 0;
    for (long long first = 0; first < y.size; first += TILE_COLUMNS) {
        WarpSums total = {};
#pragma unroll 1
        for (int block = 0; block < blocks; block++) {
            await_copies<STAGES - 2>();
            __syncthreads();  // this block is there for all, and all have used the one before
            copies.next(x, y, blocks);
            if (block == 0)
                for (int k = threadIdx.x; k < TILE_COLUMNS; k += SPLIT_THREADS) {
                    lengths[k] = y.length(first + k);
                    values[k] = first + k < y.size ? term.read(b, first + k) : Term::nothing();
                }
            multiply_block(total, Stage::number(stage), units, 0, STRIP + warp * WARP_COLUMNS, terms == 3);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        if (blocks == 1) __syncthreads();  // else there was a barrier since they were written
        push_strip(states, term, near, pairs, total, x, y, k0, first, own_lengths, lengths, values);
    }
    State* parts = reinterpret_cast<State*>(dynamic_shared);
    __syncthreads();  // all have used the last stage
#pragma unroll
    for (int r = 0; r < 2 * M; r++) parts[(warp * 2 * M + r) * 32 + lane] = states[r];
    __syncthreads();
    int row = threadIdx.x;
    if (row < STRIP && k0 + row < x.size) {
        // It is in part row / 8, in four neighbouring lanes.
        State whole = term.start(b, k0 + row);
#pragma unroll 1
        for (int w = 0; w < SPLIT_WARPS; w++)
            for (int l = 0; l < 4; l++) whole.merge(parts[(w * 2 * M + row / 8) * 32 + row % 8 * 4 + l]);
        term.write(b, k0 + row, whole);
    }
    __syncthreads();  // the next strip writes there again
}

// The whole reduction, for any grid of blocks of SPLIT_THREADS; nothing in double.
template <class Term, class Close>
__device__ void reduce_point_products(const Term& term, const Close& near, const SplitPoints& x, const SplitPoints& y,
                                      int terms, REAL exponent, int norm, int d, long long B) {
    if constexpr (sizeof(REAL) == sizeof(float)) {
        PointPairs pairs = {x.points, y.points, x.stride, y.stride, d, norm, exponent};
        long long strips = (x.size + STRIP - 1) / STRIP;
        for (long long unit = blockIdx.x; unit < B * strips; unit += gridDim.x) {
            long long b = unit / strips;
            reduce_strip(term, near, pairs, x.of(b, d), y.of(b, d), terms, b, unit % strips * STRIP);
        }
    }
}
