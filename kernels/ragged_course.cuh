// uses: ragged.cuh
// How a block solves its pair, whatever its half-steps are: what it looks at first, and the loop with its stopping
// test.

// What Python passes: when a pair may stop and what rounding costs it, and how it goes on its way.
struct Rules {
    double tol, steepest, carried, rounding, level, progress;
    double begin_steep, first_omega, first_omega_if_steep, steep_above, steep_below, nearly_all, plain_if_one_bin;
    double largest_omega, first_share, second_share;
    int stalled_checks, least_observed, max_iter, check_every;

    // What rounding adds to an error where an exponent is as large as this.
    __device__ double added(double exponent) const {
        return carried + expm1(fmin(rounding * exponent, 700.0));
    }
    // The share of the step to the f-update that an average takes, see STEPS in cusink/convergence/rules.py.
    __device__ REAL share(int step) const {
        return REAL(step % 2 == 0 ? second_share : first_share);
    }
    __device__ bool steep(double steepness) const {
        return steepness >= steep_above && steepness < steep_below;
    }
};

// What the block finds in its pair: the masses, the largest cost and the range of the costs over eps, whether nearly
// all weight of a side is in one point, and whether both clouds are the same.
struct Facts {
    Sums mass;
    double exponent, steepness;
    bool one_bin, same;

    __device__ bool fits(const Rules& rules) const {
        return exponent <= rules.steepest && rules.added(exponent) <= rules.tol / 2;
    }
};

// Make the tile: costs times log2(e) / eps. All threads of the block must call this.
__device__ inline Facts fill(REAL* tile, int stride, const Between& between, const Exact& rows, const Exact& columns,
                             double eps, double nearly_all) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Sums mass = Sums::empty(), differ = {rows.size == columns.size ? 0.0 : 1.0, 0};
    Most heaviest = Most::empty(), range = Most::empty();  // of the costs: -low and high
    for (int i = threadIdx.x; i < rows.size; i += blockDim.x)
        mass.x += rows.weights[i], heaviest.x = fmax(heaviest.x, rows.weights[i]);
    for (int j = threadIdx.x; j < columns.size; j += blockDim.x)
        mass.y += columns.weights[j], heaviest.y = fmax(heaviest.y, columns.weights[j]);
    for (int i = warp; i < rows.size; i += warps)
        for (int j = lane; j < columns.size; j += 32) {
            double cost = between.cost(i, j);
            tile[i * stride + j] = REAL(cost * (LOG2_E / eps));
            if (i == j && (cost > 0 || rows.weights[i] != columns.weights[i])) differ.x += 1;
            if (rows.weights[i] > 0 && columns.weights[j] > 0)
                range.x = fmax(range.x, -cost), range.y = fmax(range.y, cost);
        }
    mass = merge_block(mass), heaviest = merge_block(heaviest), range = merge_block(range);
    differ = merge_block(differ);
    bool one_bin = heaviest.x >= nearly_all * mass.x || heaviest.y >= nearly_all * mass.y;
    return {mass, range.y / eps, (range.x + range.y) / eps, one_bin, differ.x == 0};
}

// The weights of a side in REAL, and its logits before the first iteration. No barrier.
__device__ inline void enter(const Exact& side, REAL* weights, REAL* logits) {
    for (int k = threadIdx.x; k < side.size; k += blockDim.x)
        weights[k] = REAL(side.weight(k)), logits[k] = log_two(weights[k]);
}

// How a pair went: iterations, the bound of the error at the last check, whether it `ended` and did not run out of
// iterations, or is slow: nothing but more of them would help.
struct Course {
    int done;
    double bound;
    bool ended, slow;
};

// Iterate until the pair may stop. `steps.iterate(done, count, omega)` makes `count` iterations after `done` others and
// returns what the last f-update leaves as error of the rows, `steps.settle()` makes these exact, and `steps.error()`
// is that of the columns. `plain` begins without over-relaxation; a pair of one cloud twice never has any. All threads
// of the block must call this.
template <typename Steps>
__device__ Course solve(const Steps& steps, const Rules& rules, const Facts& facts, bool plain) {
    __shared__ StopState state;  // of the pair; shared memory saves registers
    double infinite = double(infinity());
    bool steep = rules.steep(facts.steepness), one_bin = facts.one_bin && facts.steepness >= rules.steep_above;
    // In float, half of the tolerance is for what the costs lose when they are rounded.
    double tol = (sizeof(REAL) == sizeof(float) ? rules.tol / 2 : rules.tol) - rules.added(facts.exponent);
    StopRules stop = {tol, rules.level * (1 + facts.exponent), rules.progress,
                      steep ? rules.first_omega_if_steep : rules.first_omega, rules.largest_omega,
                      rules.stalled_checks, !facts.same, rules.least_observed};
    if (threadIdx.x == 0) {
        double omega = steep && !one_bin && !plain && !facts.same ? rules.begin_steep : 1;
        state = {omega, infinite, infinite, 0, 0, 0, infinite, one_bin ? -rules.plain_if_one_bin : 0};
    }
    __syncthreads();
    int checks = 0, most = facts.fits(rules) ? rules.max_iter : 0;
    Course course = {0, infinite, false, false};
    while (course.done < most && !course.ended) {
        int count = most - course.done < rules.check_every ? most - course.done : rules.check_every;
        double beyond = steps.iterate(course.done, count, state.omega);
        course.done += count;
        course.bound = steps.error() + beyond;
        if (threadIdx.x == 0) stop.observe(state, course.bound, count, checks);
        checks++;
        __syncthreads();
        if (!state.stopped) continue;
        steps.settle();
        double left = steps.error();
        course.ended = left <= stop.tol || state.stopped == 2 || !(course.bound < infinite);
        // Else the bound promised too much, or rounding made the error exceed it.
        if (threadIdx.x == 0 && !course.ended) stop.refuse(state, checks);
    }
    course.slow = most == 0 || (!course.ended && course.bound > stop.level);
    __syncthreads();  // the next pair writes the state again
    return course;
}
