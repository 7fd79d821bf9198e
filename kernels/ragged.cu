// uses: ragged.cuh
// ragged: pairs of clouds of unequal sizes, solved to the end in one launch, one block per pair.
//
// The costs of a pair, times log2(e) / eps, are made once into a tile, in shared memory where they fit, else in
// `scratch`. All iterations run on it in the log domain (pair_steps.cuh), over-relaxed, in REAL. After `check_every`
// of them a pair checks whether it may stop and chooses its omega (convergence.cuh). What is returned is then made of
// its g alone, in double, from costs taken anew in double: the exact f-update, the potentials in their gauge, and cost
// and marginal error of the plan of these very potentials, with what rounding adds. So `error` holds whatever REAL is;
// a pair that misses its tolerance says so, and is solved otherwise.
//
// Per half-step a block needs n * m exp2 and as many loads of the tile: bound by the exponential unit, in small pairs
// by latency. Costs are taken 3 times, d multiply-adds and loads of coordinates for each, which lie side by side (d,
// points). All threads know the sums of the block, and take the same branches. Correct for any grid and any block that
// is a multiple of 32 (at most 512). Points must be finite; each side needs a weight above 0.

// f (N,), g (M,) of all points; values (5, K): cost, reg_cost, entropy of both sides, error and mass; outcome (2, K):
// iterations, and 1 for a pair within the tolerance, 2 for one that is steep or slow, 0 for one that REAL has too few
// digits for. From table (pairs, COLUMNS) of those to be solved, the tile of each as a place in `scratch` or -1 for
// shared memory; eps (K,); points x (d, N), y (d, M) and weights a (N,), b (M,). `rounding` is that of an exponent
// relative to the largest.
// Shared: p | q | a | b | tile, of the largest pair. One block per pair.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
ragged(double* f, double* g, double* values, long long* outcome, REAL* scratch, const long long* table,
       const double* every_eps, const double* x, const double* y, const double* given_a, const double* given_b,
       int cityblock, int root, double factor, double tol, double steepest, double carried, double rounding,
       double level, double progress, double begin_steep, double first_omega, double first_omega_if_steep,
       double steep_above, double steep_below, double nearly_all, double plain_if_one_bin, double largest_omega,
       int stalled_checks, int least_observed, int max_iter, int check_every, long long pairs, long long K, long long N,
       long long M, long long d) {
    Beginning beginning = {begin_steep, first_omega, first_omega_if_steep, steep_above, steep_below, nearly_all,
                           plain_if_one_bin};
    __shared__ StopState state;  // of the pair; shared memory saves registers
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long at = blockIdx.x; at < pairs; at += gridDim.x) {
        const long long* own = table + at * COLUMNS;
        long long k = own[0], row = own[1], column = own[3], place = own[5];
        int n = int(own[2]), m = int(own[4]), stride = m | 1;  // odd: no bank conflict along either axis
        double eps = every_eps[k], scale = 1.44269504088896340736 / eps;
        Between between = {x + row, y + column, N, M, d, cityblock, root, factor};
        REAL* p = reinterpret_cast<REAL*>(dynamic_shared);
        REAL *q = p + n, *a = q + m, *b = a + n, *tile = place < 0 ? b + m : scratch + place;
        Exact rows = {n, given_a + row, 0, f + row, a}, columns = {m, given_b + column, 0, g + column, b};
        Sums mass = Sums::empty();
        Most heaviest = Most::empty(), range = Most::empty();  // of the costs: -low and high
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            mass.x += rows.weights[i], heaviest.x = fmax(heaviest.x, rows.weights[i]);
        for (int j = threadIdx.x; j < m; j += blockDim.x)
            mass.y += columns.weights[j], heaviest.y = fmax(heaviest.y, columns.weights[j]);
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                double cost = between.cost(i, j);
                tile[i * stride + j] = REAL(cost * scale);
                if (rows.weights[i] > 0 && columns.weights[j] > 0)
                    range.x = fmax(range.x, -cost), range.y = fmax(range.y, cost);
            }
        mass = merge_block(mass), heaviest = merge_block(heaviest), range = merge_block(range);
        rows.mass = mass.x, columns.mass = mass.y;
        for (int i = threadIdx.x; i < n; i += blockDim.x) a[i] = REAL(rows.weight(i)), p[i] = log_two(a[i]);
        for (int j = threadIdx.x; j < m; j += blockDim.x) b[j] = REAL(columns.weight(j)), q[j] = log_two(b[j]);
        double exponent = range.y / eps, steepness = (range.x + range.y) / eps;
        double added = carried + expm1(fmin(rounding * exponent, 700.0));
        bool fits = exponent <= steepest && added <= tol / 2;
        bool one_bin = heaviest.x >= beginning.nearly_all * mass.x || heaviest.y >= beginning.nearly_all * mass.y;
        // In float, half of the tolerance is for what the costs lose when they are rounded.
        StopRules rules = {(sizeof(REAL) == sizeof(float) ? tol / 2 : tol) - added, level * (1 + exponent), progress,
                           beginning.chosen_first(steepness), largest_omega, stalled_checks, 1, least_observed};
        // One plain iteration solves a pair with one point on a side.
        if (threadIdx.x == 0) state = beginning.state(steepness, one_bin, n == 1 || m == 1);
        __syncthreads();
        Points sources = {n, stride, a, p}, targets = {m, 1, b, q};
        int done = 0, checks = 0, most = fits ? max_iter : 0;
        double bound = infinity();
        bool ended = false;
        while (done < most) {
            int count = most - done < check_every ? most - done : check_every;
            REAL beyond = 0, omega = REAL(state.omega);
            for (int step = 0; step < count; step++) {
                half_step(tile, REAL(1), targets, sources, omega, false);
                beyond = half_step(tile, REAL(1), sources, targets, omega, false);
            }
            done += count;
            bound = half_step(tile, REAL(1), targets, sources, REAL(1), true) + beyond;
            if (threadIdx.x == 0) rules.observe(state, bound, count, checks);
            checks++;
            __syncthreads();
            if (state.stopped) {
                half_step(tile, REAL(1), sources, targets, REAL(1), false);
                REAL left = half_step(tile, REAL(1), targets, sources, REAL(1), true);
                ended = left <= rules.tol || state.stopped == 2 || !(bound < infinity());
                if (ended) break;
                // Else the bound promised too much, or rounding made the error exceed it.
                if (threadIdx.x == 0) rules.refuse(state, checks);
            }
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x)
            columns.potential[j] = b[j] > 0 ? (double(q[j]) - log2(double(b[j]))) / scale : 0;
        __syncthreads();
        for (int i = warp; i < n; i += warps) {
            double potential = soft_minimum<true>(between, columns, i, scale);
            if (lane == 0) rows.potential[i] = potential;
        }
        __syncthreads();
        for (int j = warp; j < m; j += warps) {
            if (b[j] > 0) continue;
            double potential = soft_minimum<false>(between, rows, j, scale);
            if (lane == 0) columns.potential[j] = potential;
        }
        __syncthreads();
        double lift = eps / 2 * log(mass.x);  // by which potentials of mass 1 are too large
        Sums total = Sums::empty(), number = Sums::empty();
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            if (rows.weights[i] > 0) total.x += rows.potential[i] - lift, number.x += 1;
        for (int j = threadIdx.x; j < m; j += blockDim.x)
            if (columns.weights[j] > 0) total.y += columns.potential[j] - lift, number.y += 1;
        total = merge_block(total), number = merge_block(number);
        double constant = (total.y - total.x) / (number.x + number.y);
        // The dual value and the entropy; potentials that are no numbers, on both sides.
        Sums value = Sums::empty(), odd = Sums::empty();
        Most size = {0, 0};
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            double potential = rows.potential[i] + constant - lift, weight = rows.weight(i);
            rows.potential[i] = potential;
            if (!(fabs(potential) < infinity())) odd.x += 1;
            if (!(weight > 0)) continue;
            size.x = fmax(size.x, fabs(potential));
            value.x += weight * potential, value.y -= weight * log(weight);
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double potential = columns.potential[j] - constant - lift, weight = columns.weight(j);
            columns.potential[j] = potential;
            if (!(fabs(potential) < infinity())) odd.y += 1;
            if (!(weight > 0)) continue;
            size.y = fmax(size.y, fabs(potential));
            value.x += weight * potential, value.y -= weight * log(weight);
        }
        value = merge_block(value), odd = merge_block(odd), size = merge_block(size);
        double more = log2(mass.x);  // what `lift` took from both
        Sums plan = Sums::empty();   // its cost, and by how much its columns miss their weights
        for (int j = warp; j < m; j += warps) {
            double sum = 0, weight = columns.weight(j);
            if (weight > 0)
#pragma unroll 1
                for (int i = lane; i < n; i += 32) {
                    if (!(rows.weights[i] > 0)) continue;
                    double cost = between.cost(i, j);
                    double potentials = rows.potential[i] + columns.potential[j];
                    double entry = rows.weight(i) * weight * exp2((potentials - cost) * scale + more);
                    sum += entry, plan.x += entry * cost;
                }
            sum = warp_total(sum);
            if (lane == 0) plan.y += fabs(sum - weight);
        }
        plan = merge_block(plan);
        if (threadIdx.x == 0) {
            double largest = fmax(exponent, (size.x + size.y) / eps);
            double error = plan.y + carried + expm1(fmin(rounding * largest, 700.0));
            bool reached = fits && error <= tol && odd.x + odd.y == 0;
            bool slow = !fits || (!ended && bound > rules.level);
            values[k] = mass.x * plan.x, values[K + k] = mass.x * value.x;
            values[2 * K + k] = mass.x * (value.y - 2 * log(mass.x)), values[3 * K + k] = error;
            values[4 * K + k] = mass.x;
            outcome[k] = done, outcome[K + k] = reached ? 1 : slow ? 2 : 0;
        }
        __syncthreads();  // the next pair writes the state again
    }
}
