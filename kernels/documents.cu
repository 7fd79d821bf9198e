// uses: pair_steps.cuh
// documents: distances between items that each have a few points of their own, one block per pair, in one launch.
//
// The costs between the points of a pair are read or recreated once, into a tile in shared memory (or in `scratch`,
// where it does not fit), times log2(e) / eps. Then all iterations run on it in the log domain, right for any range of
// C / eps: a g-update and an f-update by online log-sum-exp, over-relaxed. After `check_every` of them each pair checks
// whether it may stop, and chooses its own omega (convergence.cuh). At the end come one plain f-update, the two values,
// and the marginal error of the columns.
//
// Per half-step a block needs n * m exp2 and as many loads from shared memory; an entry is summed by LANES lanes, which
// merge in 3 shuffles. All threads know the sums of the block, and take the same branches. Correct for any grid and any
// block that is a multiple of 32 (at most 512); items must have at least one point, and weights that are not 0.

constexpr int COORDINATES = 8;  // of the points, that are staged at once
constexpr int SQUARED = 0, CITYBLOCK = 1, STORED = 2;

// Items by offsets into places and weights; a place is a row of `points` (d,), or a row or column of a stored cost.
struct Collection {
    const long long *offsets, *places;
    const REAL *weights, *points;
};

struct DocumentArguments {
    REAL *cost, *reg_cost, *error;
    long long* n_iter;
    REAL* scratch;
    const long long *rows, *columns;
    Collection a, b;
    int kind;
    double factor, exponent, cost_scale, omega;
    StopRules rules;
    int max_iter, check_every;
    long long pairs, d;
    int most_rows, most_columns, stage_outside;
};

__device__ inline REAL cost_of(REAL s, const DocumentArguments& x) {
    REAL cost = x.exponent == 1.0 ? s : power_of_two(REAL(x.exponent) * log_two(s));
    return cost * REAL(x.factor);
}

// tile (n, stride): the costs of the pair. All threads of the block must call this.
__device__ void fill_tile(REAL* tile, REAL* staged, const DocumentArguments& x, const long long* row_places,
                          const long long* column_places, int n, int m, int stride) {
    if (x.kind == STORED) {
        for (int e = threadIdx.x; e < n * m; e += blockDim.x)
            tile[e / m * stride + e % m] = x.a.points[row_places[e / m] * x.d + column_places[e % m]];
        __syncthreads();
        return;
    }
    const int width = COORDINATES + 1;  // odd: no bank conflict
    for (int e = threadIdx.x; e < n * stride; e += blockDim.x) tile[e] = 0;
    for (long long first = 0; first < x.d; first += COORDINATES) {
        int count = x.d - first < COORDINATES ? int(x.d - first) : COORDINATES;
        for (int e = threadIdx.x; e < (n + m) * COORDINATES; e += blockDim.x) {
            int point = e / COORDINATES, k = e % COORDINATES;
            const REAL* coordinates = point < n ? x.a.points + row_places[point] * x.d
                                                : x.b.points + column_places[point - n] * x.d;
            staged[point * width + k] = k < count ? coordinates[first + k] : REAL(0);
        }
        __syncthreads();
        for (int e = threadIdx.x; e < n * m; e += blockDim.x) {
            const REAL *u = staged + e / m * width, *v = staged + (n + e % m) * width;
            REAL sum = tile[e / m * stride + e % m];
#pragma unroll
            for (int k = 0; k < COORDINATES; k++) {
                REAL step = u[k] - v[k];
                sum = x.kind == CITYBLOCK ? sum + magnitude(step) : multiply_add(step, step, sum);
            }
            tile[e / m * stride + e % m] = sum;
        }
        __syncthreads();
    }
    for (int e = threadIdx.x; e < n * m; e += blockDim.x) {
        int at = e / m * stride + e % m;
        tile[at] = cost_of(tile[at], x);
    }
    __syncthreads();
}

// cost, reg_cost, error (P,) and n_iter (P,) of the pairs (rows[k], columns[k]); items in a and b by offsets (A + 1,),
// places and weights; x and y (points, d), or for kind 2 x the cost (V, d) and y unused; scratch null, or a tile of
// most_rows * (most_columns | 1) for each block. tol < 0: exactly max_iter iterations. One block per pair.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
documents(REAL* cost, REAL* reg_cost, REAL* error, long long* n_iter, REAL* scratch, const long long* rows,
          const long long* columns, const long long* a_offsets, const long long* a_places, const REAL* a_weights,
          const REAL* x_points, const long long* b_offsets, const long long* b_places, const REAL* b_weights,
          const REAL* y_points, int kind, double factor, double exponent, double cost_scale, double omega, double tol,
          double level, double progress, double first_omega, double largest_omega, int stalled_checks, int adaptive,
          int least_observed, int max_iter, int check_every, long long pairs, long long d, int most_rows, int most_columns,
          int stage_outside) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    DocumentArguments x = {cost, reg_cost, error, n_iter, scratch, rows, columns,
                           {a_offsets, a_places, a_weights, x_points}, {b_offsets, b_places, b_weights, y_points},
                           kind, factor, exponent, cost_scale, omega, rules, max_iter, check_every, pairs, d,
                           most_rows, most_columns, stage_outside};
    // Dynamic shared memory: p | q | a | b | coordinates | tile; `configure_documents` in
    // cusink/backends/cupy/launch.py counts the same. Where they do not fit, the tile and after it the coordinates lie
    // in `scratch`.
    REAL* p = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* q = p + x.most_rows;
    REAL* a = q + x.most_columns;
    REAL* b = a + x.most_rows;
    long long tile_size = x.most_rows * (long long)(x.most_columns | 1);
    long long staged_size = (x.most_rows + x.most_columns) * (COORDINATES + 1);
    REAL* outside = x.scratch + blockIdx.x * (tile_size + (x.stage_outside ? staged_size : 0));
    REAL* staged = x.stage_outside ? outside + tile_size : b + x.most_columns;
    REAL* tile = x.scratch ? outside : staged + staged_size;
    __shared__ StopState state;  // of the pair; shared memory saves registers
    REAL scale = REAL(x.cost_scale);
    for (long long pair = blockIdx.x; pair < x.pairs; pair += gridDim.x) {
        long long row = x.rows[pair], column = x.columns[pair];
        long long from = x.a.offsets[row], to = x.b.offsets[column];
        int n = int(x.a.offsets[row + 1] - from), m = int(x.b.offsets[column + 1] - to);
        int stride = m | 1;  // odd: no bank conflict along either axis
        REAL mass = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            a[i] = x.a.weights[from + i];
            p[i] = log_two(a[i]);
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            b[j] = x.b.weights[to + j];
            q[j] = log_two(b[j]);
            mass += b[j];
        }
        mass = merge_block(PlainSum{mass}).sum;
        // One plain iteration solves a pair with one point on a side.
        if (threadIdx.x == 0) state = {x.rules.adaptive && (n == 1 || m == 1) ? 1 : x.omega, infinity(), infinity(), 0, 0, 0, infinity(), 0};
        fill_tile(tile, staged, x, x.a.places + from, x.b.places + to, n, m, stride);
        Points sources = {n, stride, a, p}, targets = {m, 1, b, q};
        REAL left = 0;
        int done = 0, checks = 0;
        while (done < x.max_iter) {
            int count = x.rules.tol < 0 || x.max_iter - done < x.check_every ? x.max_iter - done : x.check_every;
            REAL beyond = 0, omega = REAL(state.omega);
            for (int step = 0; step < count; step++) {
                half_step(tile, scale, targets, sources, omega, false);
                beyond = half_step(tile, scale, sources, targets, omega, false);
            }
            done += count;
            if (x.rules.tol < 0) break;
            double bound = (half_step(tile, scale, targets, sources, REAL(1), true) + beyond) / mass;
            if (threadIdx.x == 0) x.rules.observe(state, bound, count, checks);
            checks++;
            __syncthreads();
            if (state.stopped) {
                half_step(tile, scale, sources, targets, REAL(1), false);
                left = half_step(tile, scale, targets, sources, REAL(1), true) / mass;
                if (left <= x.rules.tol || state.stopped == 2 || !(bound < infinity())) break;
                // Else the bound promised too much, or rounding made the error exceed it.
                if (threadIdx.x == 0) x.rules.refuse(state, checks);
            }
        }
        // If the last update was plain, this one changes nothing.
        half_step(tile, scale, sources, targets, REAL(1), false);
        left = half_step(tile, scale, targets, sources, REAL(1), true) / mass;
        REAL moved = 0, dual = 0;
        for (int e = threadIdx.x; e < n * m; e += blockDim.x) {
            REAL c = tile[e / m * stride + e % m];
            REAL share = power_of_two(multiply_add(c, -scale, p[e / m] + q[e % m]));
            moved += share > 0 ? share * c : REAL(0);  // a forbidden pair carries nothing and costs nothing
        }
        for (int i = threadIdx.x; i < n; i += blockDim.x) dual += a[i] * (p[i] - log_two(a[i]));
        for (int j = threadIdx.x; j < m; j += blockDim.x) dual += b[j] * (q[j] - log_two(b[j]));
        moved = merge_block(PlainSum{moved}).sum;
        dual = merge_block(PlainSum{dual}).sum;
        if (threadIdx.x == 0) {
            x.cost[pair] = moved;
            x.reg_cost[pair] = dual / scale;
            x.error[pair] = left;
            x.n_iter[pair] = done;
        }
        __syncthreads();  // the next pair writes the state again
    }
}
