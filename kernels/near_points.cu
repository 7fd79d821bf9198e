// uses: near_tiles.cuh reduction_terms.cuh
// softmin between points that are sorted so that neighbours follow each other, for large clouds of few coordinates: a
// block leaves out the tiles of summed points that provably add less than a rounding; near_tiles.cuh says how it knows.
//
// tiles are the summed points by TILE_POINTS; d is MOST_NEAR at most; the points are the same for all problems. Correct
// for any grid and any block that is a multiple of 32 (at most 512, and 256 for softmin_near). All arrays C-contiguous;
// `out` overlaps no input.

// out (2, d, tiles): middles and halves of the boxes of points y (size, d), in any order. One warp per tile, bound by bytes
// of y; once for a solve.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
tile_boxes(REAL* out, const REAL* y, int d, long long size) {
    long long tiles = (size + TILE_POINTS - 1) / TILE_POINTS;
    for (long long tile = first_warp(); tile < tiles; tile += all_warps()) {
        long long j = tile * TILE_POINTS + threadIdx.x % 32;
        for (int c = 0; c < d; c++) {
            REAL at = y[(j < size ? j : tile * TILE_POINTS) * d + c];
            REAL middle = REAL(0.5) * warp_maximum(at) - REAL(0.5) * warp_maximum(-at);
            REAL half = warp_maximum(magnitude(at - middle));
            if (threadIdx.x % 32 == 0) {
                out[c * tiles + tile] = middle;
                out[(d + c) * tiles + tile] = half;
            }
        }
    }
}

// out (B, 1 + d, tiles): for each tile max_j (logit_j - t v_j), with the roundings of that, and slopes t that follow the
// logits, of y (size, d), boxes (2, d, tiles) and logits (B, size) times logit_scale. One warp per problem and tile,
// about 40 shuffles for each coordinate; before each softmin.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
tile_bounds(REAL* out, const REAL* y, const REAL* boxes, const REAL* logits, REAL logit_scale, REAL exponent, int norm,
            int d, long long B, long long size) {
    long long tiles = (size + TILE_POINTS - 1) / TILE_POINTS;
    bool slopes = has_slopes(norm, exponent);
    for (long long unit = first_warp(); unit < B * tiles; unit += all_warps()) {
        long long b = unit / tiles, tile = unit % tiles, j = tile * TILE_POINTS + threadIdx.x % 32;
        REAL* bounds = out + b * (1 + d) * tiles + tile;
        bool inside = j < size;
        REAL logit[1] = {inside ? logits[b * size + j] * logit_scale : -infinity()}, v[1];
        bool counts[1] = {magnitude(logit[0]) < infinity()};
        REAL left = logit[0], terms = magnitude(left);
        for (int c = 0; c < d; c++) {
            v[0] = y[(inside ? j : size - 1) * d + c] - boxes[c * tiles + tile];
            REAL slope = slopes ? fitted_slope(logit, v, counts) : REAL(0);
            left -= slope * v[0];
            terms += magnitude(slope * v[0]);
            if (threadIdx.x % 32 == 0) bounds[(1 + c) * tiles] = slope;
        }
        bool known = magnitude(left) < infinity() || (!counts[0] && logit[0] < 0);
        // What is not known must be looked at.
        REAL highest = warp_maximum(!known ? infinity() : counts[0] ? left + MARGIN * terms : -infinity());
        if (threadIdx.x % 32 == 0) bounds[0] = highest;
    }
}

// out (B, kept); x (kept, d); y (summed, d); logits (B, summed); bounds (B, 1 + d, tiles) and boxes (2, d, tiles) of y.
// One block per problem and 32 * KEPT kept points, bound by the pairs of the tiles that it takes, as softmin_points is by
// all.
extern "C" __global__ void __launch_bounds__(NEAR_THREADS, NEAR_BLOCKS)
softmin_near(REAL* out, const REAL* x, const REAL* y, const REAL* logits, const REAL* bounds, const REAL* boxes,
             REAL cost_scale, REAL logit_scale, REAL value_scale, REAL exponent, int norm, int d, long long B,
             long long kept, long long summed) {
    __shared__ NearRows rows;
    Softmin term = {out, logits, cost_scale, logit_scale, value_scale, kept, summed};
    NearTiles tiles = {bounds, boxes, &rows, cost_scale};
    reduce_points(term, {x, y, 0, 0, d, norm, exponent}, B, kept, summed, tiles);
}
