// uses: point_reduction.cuh
// Which tiles of summed points a block takes where points that lie together follow each other: those that may count.
//
// A tile is 32 points in a row, with a box around them; the rows of a block have one too. The middles of both are D
// apart, u and v are positions about them. With any slopes s and t, for squared distances,
//     logit_j - scale |x_i - y_j|^2 - floor_i <= max_j (logit_j - t v_j) - min_i (floor_i - s u_i)
//                                                + max_uv (t v - s u - scale |D + u - v|^2),
// of which the last is a sum over coordinates with a closed form. Slopes that follow the potentials make it hardly larger
// than the truth, also where the plan sends points far. For other costs s and t are 0, and the cost is that of the nearest
// points of the boxes.
//
// floor_i is the log-sum of row i over the first tiles that were taken, one of each warp: of its tiles the one with the
// largest bound about the middle of the rows. It is no more than the whole log-sum, whatever the logits are. So what is
// left out of a sum of m terms is less than 2^-TAIL of it, if the bound of each tile that is left out is below
// -log2(m) - TAIL. That is less than a rounding of the sum. The bound has its own roundings in: MARGIN of all its terms.
//
// A block looks at the bounds of all tiles, some 25 * d instructions for 32 * 32 * KEPT pairs, and lists those it takes.

constexpr int TILE_POINTS = 32;
constexpr int MOST_NEAR = 8;                 // coordinates; of more, boxes of points that lie together are not small
constexpr int NEAR_THREADS = 256;            // of a block at most
constexpr int NEAR_BLOCKS = sizeof(REAL) == sizeof(float) ? 2 : 1;  // of a multiprocessor: double takes more registers
constexpr int LISTED = 4 * NEAR_THREADS;     // tiles that are listed at a time
constexpr REAL TAIL = sizeof(REAL) == sizeof(float) ? 27 : 56;
constexpr REAL MARGIN = sizeof(REAL) == sizeof(float) ? REAL(1) / (1 << 18) : REAL(1) / (1LL << 46);

// What a block knows of its rows, in shared memory: floors by warp and row; the box and slopes; the tiles that it takes.
struct NearRows {
    REAL floors[NEAR_THREADS * KEPT];
    REAL middle[MOST_NEAR], half[MOST_NEAR], slope[MOST_NEAR], least;
    int list[LISTED], seeds[NEAR_THREADS / 32], votes[NEAR_THREADS / 32];
};

// The largest s u + t v - scale (D + u - v)^2 of |u| <= a and |v| <= b. By w = u - v it is concave: at `corner` both are at
// the end to which s + t pulls, and on either side one of them stays there.
__device__ inline REAL largest_on_boxes(REAL s, REAL t, REAL scale, REAL D, REAL a, REAL b) {
    bool up = s + t >= 0;
    REAL corner = up ? a - b : b - a, value = up ? s * a + t * b : -(s * a + t * b);
    REAL below = up ? s : -t, above = up ? -t : s;  // slopes by w
    REAL rate = REAL(0.5) / scale;
    REAL left = smaller(larger(below * rate - D, -(a + b)), corner);
    REAL right = larger(smaller(above * rate - D, a + b), corner);
    REAL on_left = below * (left - corner) - scale * (D + left) * (D + left);
    REAL on_right = above * (right - corner) - scale * (D + right) * (D + right);
    return value + larger(on_left, on_right);
}

// The slope by v of the values of a warp, N in each lane, of those that count; 0 where there is none.
template <int N>
__device__ inline REAL fitted_slope(const REAL (&value)[N], const REAL (&v)[N], const bool (&counts)[N]) {
    REAL count = 0, values = 0, places = 0, products = 0, squares = 0;
#pragma unroll
    for (int r = 0; r < N; r++) {
        count += counts[r] ? REAL(1) : REAL(0);
        values += counts[r] ? value[r] : REAL(0);
        places += counts[r] ? v[r] : REAL(0);
    }
    count = warp_sum(count);
    REAL level = warp_sum(values) / count, middle = warp_sum(places) / count;
#pragma unroll
    for (int r = 0; r < N; r++) {
        REAL offset = counts[r] ? v[r] - middle : REAL(0);
        products += counts[r] ? offset * (value[r] - level) : REAL(0);
        squares += offset * offset;
    }
    REAL slope = warp_sum(products) / warp_sum(squares);
    return magnitude(slope) < infinity() ? slope : REAL(0);
}

// Slopes are for squared distances.
__device__ inline bool has_slopes(int norm, REAL exponent) {
    return norm == SQUARED && exponent == REAL(1);
}

// The Tiles (see point_reduction.cuh) that may count; points are the same for all problems. all_bounds (B, 1 + d, tiles)
// hold the first term of the bound and t, boxes (2, d, tiles) the middles and halves of the summed points.
struct NearTiles {
    const REAL* all_bounds;
    const REAL* boxes;
    NearRows* rows;
    REAL cost_scale;
    PointPairs points;
    const REAL* bounds;
    long long start, kept, summed;
    int all, scanned, listed, at;
    bool begun;

    // The first tile of each warp is where its bound about the middle of the rows is the largest.
    __device__ void open(const PointPairs& given, long long b, long long first_row, long long of_kept,
                         long long of_summed) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
        points = given;
        start = first_row;
        kept = of_kept;
        summed = of_summed;
        all = int((summed + TILE_POINTS - 1) / TILE_POINTS);
        bounds = all_bounds + b * (1 + points.d) * all;
        if (warp == 0) find_box();
        __syncthreads();
        REAL highest = -infinity();
        int best = all;
        for (int first = 0; first < all; first += blockDim.x) {
            int tile = first + lane * warps + warp;  // neighbours go to different warps
            REAL size, bound = tile < all ? largest(tile, REAL(0), size) : -infinity();
            if (bound > highest) {
                highest = bound;
                best = tile;
            }
        }
        unsigned votes = __ballot_sync(FULL_WARP, highest == warp_maximum(highest));
        if (votes && lane == __popc((votes & (0u - votes)) - 1)) rows->seeds[warp] = rows->list[warp] = best;
        __syncthreads();
        listed = warps;
        scanned = at = 0;
        begun = false;
    }
    __device__ bool more(long long) const {
        return at < listed;
    }
    __device__ long long place(int slot) const {
        int k = at + slot / TILE_POINTS;
        return (k < listed ? rows->list[k] : all) * (long long)TILE_POINTS + slot % TILE_POINTS;
    }
    __device__ bool reaches(int slot, long long) const {
        return at + slot / TILE_POINTS < listed;
    }
    __device__ int count(long long, int) const {
        return TILE_POINTS * (listed - at);
    }

    template <class State>
    __device__ void advance(const State (&state)[KEPT], const REAL (&length)[KEPT], int theirs) {
        at += theirs / 32;
        if (at < listed) return;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = theirs / 32;
        if (!begun) {
#pragma unroll
            for (int r = 0; r < KEPT; r++)
                rows->floors[(warp * KEPT + r) * 32 + lane] = state[r].value() - length[r];
            __syncthreads();
            if (warp == 0) find_floor();
            begun = true;
        }
        __syncthreads();  // all have used the list, and the floor is there
        listed = at = 0;
        REAL limit = -(log_two(REAL(summed)) + TAIL);
        while (scanned < all && listed + theirs <= LISTED) {
            int tile = scanned + threadIdx.x;
            bool near = tile < all && bounds[tile] != -infinity();
            if (near) {
                REAL size, bound = largest(tile, REAL(1), size) - rows->least;
                near = !(multiply_add(MARGIN, size + magnitude(rows->least), bound) < limit);
            }
            for (int w = 0; near && w < warps; w++) near = rows->seeds[w] != tile;
            unsigned votes = __ballot_sync(FULL_WARP, near);
            if (lane == 0) rows->votes[warp] = __popc(votes);
            __syncthreads();
            int before = listed;
            for (int w = 0; w < warps; w++) {
                before += w < warp ? rows->votes[w] : 0;
                listed += rows->votes[w];
            }
            if (near) rows->list[before + __popc(votes & ((1u << lane) - 1))] = tile;
            scanned += theirs;
            __syncthreads();  // the list is there, and all have used the votes
        }
    }

    // A bound of all exponents of a tile less the floors, without the least of these; `share` of the rows' box. And the sum
    // of the sizes of its terms, which is not finite where the bound means nothing.
    __device__ REAL largest(int tile, REAL share, REAL& size) const {
        REAL total = bounds[tile], gap = 0;
        bool slopes = has_slopes(points.norm, points.exponent);
        size = magnitude(total);
        for (int c = 0; c < points.d; c++) {
            REAL half = share * rows->half[c], width = boxes[(points.d + c) * (long long)all + tile];
            REAL apart = rows->middle[c] - boxes[c * (long long)all + tile];
            REAL reach = magnitude(apart) + half + width;
            if (slopes) {
                REAL s = -share * rows->slope[c], t = bounds[(1 + c) * (long long)all + tile];
                total += largest_on_boxes(s, t, cost_scale, apart, half, width);
                size += REAL(4) * cost_scale * reach * reach + REAL(4) * (magnitude(s) + magnitude(t)) * reach;
            } else {
                REAL between = larger(magnitude(apart) - half - width - MARGIN * reach, REAL(0));
                gap = points.norm == SQUARED ? add_coordinate<SQUARED>(gap, between)
                                             : add_coordinate<CITYBLOCK>(gap, between);
            }
        }
        if (!slopes) {
            REAL least = cost_scale * points.cost(gap);
            total -= least;
            size += REAL(8) * least;
        }
        return total;
    }

    // The kept points of a warp, KEPT in each lane, in one coordinate; that of the first point beyond the last one.
    __device__ void coordinate(int c, REAL (&x)[KEPT], bool (&inside)[KEPT]) const {
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
            long long k = start + 32 * r + threadIdx.x % 32;
            inside[r] = k < kept;
            x[r] = points.kept[(inside[r] ? k : start) * points.d + c];
        }
    }

    __device__ void find_box() {
        for (int c = 0; c < points.d; c++) {
            REAL x[KEPT], lowest = infinity(), highest = -infinity(), half = 0;
            bool inside[KEPT];
            coordinate(c, x, inside);
#pragma unroll
            for (int r = 0; r < KEPT; r++) {
                lowest = smaller(lowest, x[r]);
                highest = larger(highest, x[r]);
            }
            REAL middle = REAL(0.5) * warp_maximum(highest) - REAL(0.5) * warp_maximum(-lowest);
#pragma unroll
            for (int r = 0; r < KEPT; r++) half = larger(half, magnitude(x[r] - middle));
            half = warp_maximum(half);
            if (threadIdx.x % 32 == 0) {
                rows->middle[c] = middle;
                rows->half[c] = half;
                rows->slope[c] = 0;
            }
        }
    }

    // Slopes of the floors, and the least of what is left of them.
    __device__ void find_floor() {
        int lane = threadIdx.x % 32, warps = blockDim.x / 32;
        REAL floor[KEPT], left[KEPT], size[KEPT], x[KEPT], least = infinity();
        bool inside[KEPT];
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
            floor[r] = rows->floors[r * 32 + lane];
            for (int w = 1; w < warps; w++) floor[r] = larger(floor[r], rows->floors[(w * KEPT + r) * 32 + lane]);
            left[r] = floor[r];
            size[r] = magnitude(floor[r]);
        }
        for (int c = 0; c < points.d; c++) {
            coordinate(c, x, inside);
#pragma unroll
            for (int r = 0; r < KEPT; r++) x[r] -= rows->middle[c];
            REAL slope = has_slopes(points.norm, points.exponent) ? fitted_slope(floor, x, inside) : REAL(0);
            if (lane == 0) rows->slope[c] = slope;
#pragma unroll
            for (int r = 0; r < KEPT; r++) {
                left[r] -= slope * x[r];
                size[r] += magnitude(slope * x[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < KEPT; r++)
            if (inside[r])
                least = smaller(least, magnitude(left[r]) < infinity() ? left[r] - MARGIN * size[r] : -infinity());
        least = -warp_maximum(-least);
        if (lane == 0) rows->least = least;
    }
};
