// uses: ragged_course.cuh
// ragged: pairs of clouds of unequal sizes, solved to the end in one launch, one block per pair.
//
// The costs of a pair, times log2(e) / eps, are made once into a tile, in shared memory where they fit, else in
// `scratch`. All iterations run on it in the log domain (pair_steps.cuh), over-relaxed, in REAL. After `check_every`
// of them a pair checks whether it may stop and chooses its omega (ragged_course.cuh). What is returned is then made of
// its g alone, in double, from costs taken anew in double: the exact f-update, the potentials in their gauge, and cost
// and marginal error of the plan of these very potentials, with what rounding adds. So `error` holds whatever REAL is;
// a pair that misses its tolerance says so, and is solved otherwise.
//
// A pair of one cloud twice has one potential, by averaging as in cusink/solver/symmetric.py, with one half-step for
// each iteration. It is solved as any other pair of this cloud twice, to the last bit, so that all terms of its
// divergence cancel. Its values are those of g and the f-update, its potentials the mean of both.
//
// Per half-step a block needs n * m exp2 and as many loads of the tile: bound by the exponential unit, in small pairs
// by latency. Costs are taken 3 times, d multiply-adds and loads of coordinates for each, which lie side by side (d,
// points). All threads know the sums of the block, and take the same branches. Correct for any grid and any block that
// is a multiple of 32 (at most 512). Points must be finite; each side needs a weight above 0.

// Iterations of a pair; see `solve`.
struct PlainSteps {
    const REAL* tile;
    Points sources, targets;
    const Rules& rules;
    bool same;

    __device__ double iterate(int done, int count, double omega) const {
        REAL beyond = 0;
        for (int step = done; step < done + count; step++) {
            half_step(tile, REAL(1), targets, sources, REAL(omega), false);
            if (!same) {
                beyond = half_step(tile, REAL(1), sources, targets, REAL(omega), false);
                continue;
            }
            REAL share = rules.share(step);
            for (int i = threadIdx.x; i < sources.size; i += blockDim.x)
                if (sources.weights[i] > 0) {
                    REAL old = sources.logits[i];
                    sources.logits[i] = targets.logits[i] = old + share * (targets.logits[i] - old);
                }
            __syncthreads();
        }
        return beyond;
    }
    __device__ double error() const {
        return half_step(tile, REAL(1), targets, sources, REAL(1), true);
    }
    __device__ void settle() const {
        if (!same) half_step(tile, REAL(1), sources, targets, REAL(1), false);
    }
};

// f (N,), g (M,) of all points; values (6, K): cost, reg_cost, entropy of both sides, error, mass, and by how much the
// potentials differ on both sides; outcome (2, K): iterations, and 1 for a pair within the tolerance, 2 for one that is
// steep or slow, 0 for one that REAL has too few digits for. From the table (pairs, COLUMNS); eps (K,); points x (d,
// N), y (d, M) and weights a (N,), b (M,). `rounding` is that of an exponent relative to the largest.
// Shared: p | q | a | b | tile, of the largest pair. One block per pair.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
ragged(double* f, double* g, double* values, long long* outcome, REAL* scratch, const long long* table,
       const double* every_eps, const double* x, const double* y, const double* given_a, const double* given_b,
       int cityblock, int root, double factor, double tol, double steepest, double carried, double rounding,
       double level, double progress, double begin_steep, double first_omega, double first_omega_if_steep,
       double steep_above, double steep_below, double nearly_all, double plain_if_one_bin, double largest_omega,
       double first_share, double second_share, int stalled_checks, int least_observed, int max_iter, int check_every,
       long long pairs, long long K, long long N, long long M, long long d) {
    Rules rules = {tol, steepest, carried, rounding, level, progress, begin_steep, first_omega, first_omega_if_steep,
                   steep_above, steep_below, nearly_all, plain_if_one_bin, largest_omega, first_share, second_share,
                   stalled_checks, least_observed, max_iter, check_every};
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long at = blockIdx.x; at < pairs; at += gridDim.x) {
        Place place = Place::of(table, at);
        int n = place.n, m = place.m, stride = m | 1;  // odd: no bank conflict along either axis
        double eps = every_eps[place.pair], scale = LOG2_E / eps;
        Between between = {x + place.row, y + place.column, N, M, d, cityblock, root, factor};
        REAL* p = reinterpret_cast<REAL*>(dynamic_shared);
        REAL *q = p + n, *a = q + m, *b = a + n, *tile = place.tile < 0 ? b + m : scratch + place.tile;
        Exact rows = {n, given_a + place.row, 0, f + place.row, a};
        Exact columns = {m, given_b + place.column, 0, g + place.column, b};
        Facts facts = fill(tile, stride, between, rows, columns, eps, nearly_all);
        rows.mass = facts.mass.x, columns.mass = facts.mass.y;
        enter(rows, a, p);
        enter(columns, b, q);
        PlainSteps steps = {tile, {n, stride, a, p}, {m, 1, b, q}, rules, facts.same};
        // One plain iteration solves a pair with one point on a side.
        Course course = solve(steps, rules, facts, n == 1 || m == 1);
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
        if (facts.same)
            for (int i = threadIdx.x; i < n; i += blockDim.x)
                rows.potential[i] = columns.potential[i] = (rows.potential[i] + columns.potential[i]) / 2;
        double lift = eps / 2 * log(rows.mass);  // by which potentials of mass 1 are too large
        Sums total = Sums::empty(), number = Sums::empty();
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            if (rows.weights[i] > 0) total.x += rows.potential[i] - lift, number.x += 1;
        for (int j = threadIdx.x; j < m; j += blockDim.x)
            if (columns.weights[j] > 0) total.y += columns.potential[j] - lift, number.y += 1;
        total = merge_block(total), number = merge_block(number);
        double constant = (total.y - total.x) / (number.x + number.y);
        // The dual value and the entropy; potentials that are no numbers, on both sides.
        Sums value = Sums::empty(), odd = Sums::empty();
        Most highest = Most::empty(), lowest = Most::empty();  // of the potentials, and of what they are below 0
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            double potential = rows.potential[i] + constant - lift, weight = rows.weight(i);
            rows.potential[i] = potential;
            if (!(fabs(potential) < infinity())) odd.x += 1;
            if (!(weight > 0)) continue;
            highest.x = fmax(highest.x, potential), lowest.x = fmax(lowest.x, -potential);
            value.x += weight * potential, value.y -= weight * log(weight);
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double potential = columns.potential[j] - constant - lift, weight = columns.weight(j);
            columns.potential[j] = potential;
            if (!(fabs(potential) < infinity())) odd.y += 1;
            if (!(weight > 0)) continue;
            highest.y = fmax(highest.y, potential), lowest.y = fmax(lowest.y, -potential);
            value.x += weight * potential, value.y -= weight * log(weight);
        }
        value = merge_block(value), odd = merge_block(odd);
        highest = merge_block(highest), lowest = merge_block(lowest);
        double more = log2(rows.mass);  // what `lift` took from both
        Sums plan = Sums::empty();      // its cost, and by how much its columns miss their weights
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
            double* out = values + place.pair;
            double size = fmax(highest.x, lowest.x) + fmax(highest.y, lowest.y);
            double error = plan.y + rules.added(fmax(facts.exponent, size / eps));
            bool reached = facts.fits(rules) && error <= tol && odd.x + odd.y == 0;
            out[0] = rows.mass * plan.x, out[K] = rows.mass * value.x;
            out[2 * K] = rows.mass * (value.y - 2 * log(rows.mass)), out[3 * K] = error, out[4 * K] = rows.mass;
            out[5 * K] = highest.x + lowest.x + highest.y + lowest.y;
            outcome[place.pair] = course.done, outcome[K + place.pair] = reached ? 1 : course.slow ? 2 : 0;
        }
        __syncthreads();
    }
}
