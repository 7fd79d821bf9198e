// uses: ragged_course.cuh, damping.cuh
// ragged_unbalanced: pairs of clouds of unequal sizes whose marginals have a price, solved to the end in one launch.
//
// As ragged.cu, with the updates of cusink/solver/unbalanced.py, whose formulas these are: the potentials are f + t and
// g - t, and after each g-update t takes the value of the highest dual objective. Potentials are in the unit of eps, of
// natural logarithms; the tile and the logits are in base 2. What is returned is made of g and t in double: f by one
// plain update, the distance of the column marginal from b exp(-(g - t) / rho_b) relative to its mass, the values. A
// pair of one cloud twice, whose prices are one, has one potential and no t.
//
// Per half-step a block needs n * m exp2 and as many loads of the tile, and for t another n + m exponentials in double.
// Costs are taken 4 times. Correct for any grid and any block that is a multiple of 32 (at most 256). Points must be
// finite; each side needs a weight above 0.

constexpr int DAMPED_THREADS = 256;  // with more, a block in double would spill
constexpr double MUCH_MORE = 40, LARGEST_EXPONENT = 350;  // as in cusink/solver/unbalanced.py
constexpr double LN2 = 0.69314718055994530942;

// A side on its way: what it is summed by, its potentials over eps, its damping, and eps over its price.
struct DampedSide {
    Points points;
    REAL* potential;
    Damping damping;
    double rate;
};

// What a weight carries beyond its share of the marginal, as mass: of a potential beside the softmin `image`.
__device__ inline double beyond_share(double weight, double potential, double image, double shift, double rate) {
    double excess = potential - image + rate * (potential + shift);
    return weight * (excess > MUCH_MORE ? exp(fmin(excess, LARGEST_EXPONENT)) : fabs(expm1(excess)));
}

// Update the kept side, over-relaxed by `excess`, or only measure it. The relative distance of its marginal from that
// of its price is returned if it is `wanted`, in all threads. `shift` is what is added to its potentials. All threads
// of the block must call this.
__device__ double damped_half_step(const REAL* tile, const DampedSide& kept, const DampedSide& summed, double shift,
                                   REAL excess, bool measure, bool wanted) {
    const Points& side = kept.points;
    Mass off = Mass::empty(), all = Mass::empty();
    int per_block = blockDim.x / LANES, padded = (side.size + per_block - 1) / per_block * per_block;
    for (int k = threadIdx.x / LANES; k < padded; k += per_block) {
        bool inside = k < side.size;
        REAL sum = log_sum(tile, REAL(1), side, summed.points, inside ? k : 0, inside);
        if (inside && threadIdx.x % LANES == 0 && side.weights[k] > 0) {
            REAL image = -sum * REAL(LN2), potential = kept.potential[k], weight = side.weights[k];
            if (!measure) {
                potential = kept.damping.step(potential, image, shift, excess);
                kept.potential[k] = potential;
                side.logits[k] = log_two(weight) + potential / REAL(LN2);
            }
            if (wanted) {
                off.add(kept.rate * potential, beyond_share(weight, potential, image, shift, kept.rate));
                all.add(kept.rate * potential, weight);
            }
        }
    }
    __syncthreads();
    if (!wanted) return 0;
    off = merge_block(off), all = merge_block(all);
    return off.sum > 0 ? off.sum / all.sum * exp(all.least - off.least) : 0;
}

// The t of the highest dual objective, over eps. All threads of the block must call this.
__device__ double best_shift_of(const DampedSide& rows, const DampedSide& columns) {
    Mass of_a = Mass::empty(), of_b = Mass::empty();
    for (int i = threadIdx.x; i < rows.points.size; i += blockDim.x)
        if (rows.points.weights[i] > 0) of_a.add(rows.rate * rows.potential[i], rows.points.weights[i]);
    for (int j = threadIdx.x; j < columns.points.size; j += blockDim.x)
        if (columns.points.weights[j] > 0) of_b.add(columns.rate * columns.potential[j], columns.points.weights[j]);
    return best_shift(merge_block(of_a), merge_block(of_b), 1 / rows.rate, 1 / columns.rate);
}

// What a side adds to the values: its price, the mass of its marginal, and the mean of f + eps log a under that, times
// it.
struct Shares {
    double price, marginal, logs;

    __device__ void add(double weight, double potential, double unshifted, double eps, double rate) {
        double fall = potential * rate / eps, carried = weight * exp(-fall);
        price += weight * (rate > 0 ? -expm1(-fall) * eps / rate : potential);
        marginal += carried, logs += carried * (unshifted + eps * log(weight));
    }
};

// Iterations of a pair; see `solve`. The shift t of both potentials, over eps, is theirs.
struct DampedSteps {
    const REAL* tile;
    DampedSide sources, targets;
    const Rules& rules;
    bool same;
    double& t;

    __device__ double iterate(int done, int count, double omega) const {
        double beyond = 0;
        REAL excess = REAL(omega - 1);
        for (int step = done; step < done + count; step++) {
            damped_half_step(tile, targets, sources, -t, excess, false, false);
            if (!same) {
                t = best_shift_of(sources, targets);
                bool wanted = step == done + count - 1 && excess > 0;
                beyond = damped_half_step(tile, sources, targets, t, excess, false, wanted);
                continue;
            }
            REAL share = rules.share(step);
            for (int i = threadIdx.x; i < sources.points.size; i += blockDim.x)
                if (sources.points.weights[i] > 0) {
                    REAL potential = sources.potential[i];
                    potential += share * (targets.potential[i] - potential);
                    sources.potential[i] = targets.potential[i] = potential;
                    REAL logit = log_two(sources.points.weights[i]) + potential / REAL(LN2);
                    sources.points.logits[i] = targets.points.logits[i] = logit;
                }
            __syncthreads();
        }
        return beyond;
    }
    __device__ double error() const {
        return damped_half_step(tile, targets, sources, -t, REAL(0), true, true);
    }
    __device__ void settle() const {
        if (!same) damped_half_step(tile, sources, targets, t, REAL(0), false, false);
    }
};

// As `ragged`, and values (7, K) with the t of each pair; f and g are without it. The prices are rho_a and rho_b, one
// of them may be inf; no_reach times eps stands for larger ones in over-relaxation.
// Shared: p | q | a | b | f / eps | g / eps | tile, of the largest pair. One block per pair.
extern "C" __global__ void __launch_bounds__(DAMPED_THREADS, 1)
ragged_unbalanced(double* f, double* g, double* values, long long* outcome, REAL* scratch, const long long* table,
                  const double* every_eps, const double* x, const double* y, const double* given_a,
                  const double* given_b, int cityblock, int root, double factor, double tol, double steepest,
                  double carried, double rounding, double level, double progress, double begin_steep,
                  double first_omega, double first_omega_if_steep, double steep_above, double steep_below,
                  double nearly_all, double plain_if_one_bin, double largest_omega, double first_share,
                  double second_share, double rho_a, double rho_b, double no_reach, int stalled_checks,
                  int least_observed, int max_iter, int check_every, long long pairs, long long K, long long N,
                  long long M, long long d) {
    Rules rules = {tol, steepest, carried, rounding, level, progress, begin_steep, first_omega, first_omega_if_steep,
                   steep_above, steep_below, nearly_all, plain_if_one_bin, largest_omega, first_share, second_share,
                   stalled_checks, least_observed, max_iter, check_every};
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long at = blockIdx.x; at < pairs; at += gridDim.x) {
        Place place = Place::of(table, at);
        int n = place.n, m = place.m, stride = m | 1;  // odd: no bank conflict along either axis
        double eps = every_eps[place.pair], scale = LOG2_E / eps;
        double rate_a = eps / rho_a, rate_b = eps / rho_b;
        Between between = {x + place.row, y + place.column, N, M, d, cityblock, root, factor};
        REAL* p = reinterpret_cast<REAL*>(dynamic_shared);
        REAL *q = p + n, *a = q + m, *b = a + n, *of_f = b + m, *of_g = of_f + n;
        REAL* tile = place.tile < 0 ? of_g + m : scratch + place.tile;
        Exact rows = {n, given_a + place.row, 1, f + place.row, a};
        Exact columns = {m, given_b + place.column, 1, g + place.column, b};
        Facts facts = fill(tile, stride, between, rows, columns, eps, nearly_all);
        facts.same = facts.same && rho_a == rho_b;
        enter(rows, a, p);
        enter(columns, b, q);
        for (int i = threadIdx.x; i < n; i += blockDim.x) of_f[i] = 0;
        for (int j = threadIdx.x; j < m; j += blockDim.x) of_g[j] = 0;
        __syncthreads();
        Damping of_a = Damping::of(1, 1, 1 / rate_a, fmin(1 / rate_a, no_reach));
        Damping of_b = Damping::of(1, 1, 1 / rate_b, fmin(1 / rate_b, no_reach));
        DampedSide sources = {{n, stride, a, p}, of_f, of_a, rate_a}, targets = {{m, 1, b, q}, of_g, of_b, rate_b};
        double t = facts.same ? 0 : best_shift_of(sources, targets);
        DampedSteps steps = {tile, sources, targets, rules, facts.same, t};
        Course course = solve(steps, rules, facts, false);
        t *= eps;
        for (int j = threadIdx.x; j < m; j += blockDim.x) columns.potential[j] = b[j] > 0 ? double(of_g[j]) * eps : 0;
        __syncthreads();
        Shares of_rows = {0, 0, 0}, of_columns = {0, 0, 0};
        Most highest = Most::empty(), lowest = Most::empty();  // of the potentials, and of what they are below 0
        Sums odd = Sums::empty(), plan = Sums::empty();  // potentials that are no numbers, on both sides; the cost
        for (int i = warp; i < n; i += warps) {
            double image = soft_minimum<true>(between, columns, i, scale), weight = rows.weights[i];
            double potential = (image - rate_a * t) / (1 + rate_a);
            if (lane > 0) continue;
            rows.potential[i] = potential;
            if (!(fabs(potential) < infinity())) odd.x += 1;
            if (!(weight > 0)) continue;
            of_rows.add(weight, potential + t, potential, eps, rate_a);
            highest.x = fmax(highest.x, potential), lowest.x = fmax(lowest.x, -potential);
        }
        __syncthreads();
        if (facts.same) {
            for (int i = threadIdx.x; i < n; i += blockDim.x)
                if (a[i] > 0) rows.potential[i] = (rows.potential[i] + columns.potential[i]) / 2;
            __syncthreads();
        }
        Mass off = Mass::empty(), all = Mass::empty();
        for (int j = warp; j < m; j += warps) {
            double image = soft_minimum<false>(between, rows, j, scale), weight = columns.weights[j];
            double updated = b[j] > 0 ? columns.potential[j] : (image + rate_b * t) / (1 + rate_b);
            double potential = facts.same && b[j] > 0 ? rows.potential[j] : updated;  // the mean, as above
            if (weight > 0)
#pragma unroll 1
                for (int i = lane; i < n; i += 32) {
                    if (!(rows.weights[i] > 0)) continue;
                    double cost = between.cost(i, j);
                    plan.x += rows.weights[i] * weight * exp2((rows.potential[i] + potential - cost) * scale) * cost;
                }
            __syncwarp();  // all lanes have read it
            if (lane > 0) continue;
            columns.potential[j] = potential;
            if (!(fabs(potential) < infinity())) odd.y += 1;
            if (!(weight > 0)) continue;
            of_columns.add(weight, updated - t, updated, eps, rate_b);
            highest.y = fmax(highest.y, potential), lowest.y = fmax(lowest.y, -potential);
            off.add(rate_b * potential / eps, beyond_share(weight, potential / eps, image / eps, -t / eps, rate_b));
            all.add(rate_b * potential / eps, weight);
        }
        off = merge_block(off), all = merge_block(all), odd = merge_block(odd), plan = merge_block(plan);
        highest = merge_block(highest), lowest = merge_block(lowest);
        Sums price = merge_block(Sums{of_rows.price, of_columns.price});
        Sums marginal = merge_block(Sums{of_rows.marginal, of_columns.marginal});
        Sums logs = merge_block(Sums{of_rows.logs, of_columns.logs});
        if (threadIdx.x == 0) {
            double* out = values + place.pair;
            double size = fmax(highest.x, lowest.x) + fmax(highest.y, lowest.y);
            double error = rules.added(fmax(facts.exponent, size / eps)) + 0x1p-52 * rate_b * fabs(t / eps);
            if (off.sum > 0) error += off.sum / all.sum * exp(all.least - off.least);
            double reg_cost = price.x + price.y + eps * (facts.mass.x * facts.mass.y - marginal.x);
            // <P, C> - eps H(P), by the means of both sides: both marginals have one mass.
            double entropic_cost = logs.x + marginal.x / marginal.y * logs.y;
            bool finite = odd.x + odd.y == 0 && fabs(reg_cost) < infinity() && fabs(entropic_cost) < infinity();
            bool reached = facts.fits(rules) && error <= tol && finite;
            out[0] = plan.x, out[K] = reg_cost, out[2 * K] = (reg_cost - entropic_cost) / eps, out[3 * K] = error;
            out[4 * K] = facts.mass.x, out[5 * K] = highest.x + lowest.x + highest.y + lowest.y, out[6 * K] = t;
            outcome[place.pair] = course.done, outcome[K + place.pair] = reached ? 1 : course.slow ? 2 : 0;
        }
        __syncthreads();
    }
}
