// uses: small_problem.cuh, held_matrix.cuh
// Half-steps of a block of one problem with its kernel K in registers, for iterate.cu. A block alone waits most of the
// time; its half-steps are short by what they do not wait for, see tests/wheels/waits.py.

// 1 / x to rounding, or 0 for an x above 2^126. A quotient by it takes no branch, and is the rounded one for operands
// and results well within the range.
__device__ inline float reciprocal(float x) {
    float rough = __fdividef(1.0f, x);
    return multiply_add(rough, multiply_add(-x, rough, 1.0f), rough);
}
__device__ inline double reciprocal(double x) {
    return 1 / x;
}
__device__ inline REAL quotient(REAL x, REAL y, REAL reciprocal_of_y) {
    REAL rough = x * reciprocal_of_y;
    return multiply_add(multiply_add(-y, rough, x), reciprocal_of_y, rough);
}

// `in_range` by one comparison: numbers of one sign are in the order of their bits.
__device__ inline bool in_range_by_bits(float scaling) {
    constexpr unsigned LEAST = 0x00800000u, MOST = unsigned(127 + 46) << 23;  // of Limits::tiny and of Range::CAP
    return __float_as_uint(scaling) - LEAST <= MOST - LEAST;
}
__device__ inline bool in_range_by_bits(double scaling) {
    return in_range(scaling);
}

// Make K. All costs are asked for before one is waited for. Lines then go round, so that what makes an entry is
// compiled for one line, and not for all.
__device__ inline void load_held(HeldMatrix& held, const REAL* C, const Side& row, const Side& column,
                                 const REAL* shared, REAL minimum, double cost_scale, bool absorbed) {
    int first_row = threadIdx.x / HELD_WIDE, first_column = threadIdx.x % HELD_WIDE;
#pragma unroll
    for (int r = 0; r < HELD_ROWS; r++)
#pragma unroll
        for (int c = 0; c < HELD_COLUMNS; c++) {
            int i = first_row + r * HELD_HIGH, j = first_column + c * HELD_WIDE;
            held.at[r][c] = i < row.size && j < column.size ? C[i * column.size + j] - minimum : infinity();
        }
#pragma unroll 1
    for (int i = first_row; i < HELD_BINS; i += HELD_HIGH) {
        REAL high = absorbed ? shared[row.absorbed + i] : REAL(0), line[HELD_COLUMNS];
        bool carries = !absorbed || shared[row.weights + i] > 0;
#pragma unroll
        for (int c = 0; c < HELD_COLUMNS; c++) {
            int j = first_column + c * HELD_WIDE;
            bool counts = carries && (!absorbed || shared[column.weights + j] > 0);
            REAL by = absorbed ? high + shared[column.absorbed + j] : REAL(0);
            line[c] = counts ? absorbed_entry(held.at[0][c], cost_scale, by) : REAL(0);
        }
#pragma unroll
        for (int r = 0; r < HELD_ROWS; r++)
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++) held.at[r][c] = r + 1 < HELD_ROWS ? held.at[r + 1][c] : line[c];
    }
}

// Logits of a side, which is in shared memory with HELD_THREADS scalings, logits and weights: of an entry in range its
// scaling tells, and only of others the logit is stored.
struct HeldLogits {
    const REAL *side, *absorbed;

    __device__ REAL operator[](long long k) const {
        REAL scaling = side[k];
        return in_range(scaling) ? log_in_range(scaling) + absorbed[k] : side[HELD_THREADS + k];
    }
};

// What thread k has at hand of entry k of a side.
struct HeldEntry {
    REAL weight, reciprocal, scaling, least;  // 1 / weight; the least certified sum

    __device__ void load(REAL* side, int terms) {
        int k = threadIdx.x;
        weight = side[2 * HELD_THREADS + k], scaling = side[k];
        reciprocal = ::reciprocal(weight), least = least_certified(terms);
        if (!(weight > 0)) side[HELD_THREADS + k] = -infinity();
    }
};

// What one problem with K in registers carries from one round of half-steps to the next.
struct HeldCourse {
    HeldMatrix kernel;
    bool stale, absorbed;  // whether the kernel has to be made, and with what it has absorbed
    int resting, taken;    // half-steps since it was made, and of the problem
};

struct HeldStep {
    bool last, measure;  // as in HalfStep of iterate.cu
    REAL omega;
};

// A half-step as `update_side` of iterate.cu takes it. What it needs of its own entry is at hand, and it makes nothing
// that only rare ways need. A half-step with sums out of range leaves its number in `failed`; the next one, whose
// products are in vain then, returns true and is to be taken again.
template <bool ROWS>
__device__ inline bool take_held_half_step(HeldCourse& course, HeldEntry& mine, REAL* shared, const Side* sides,
                                           REAL* parts, int* failed, const HeldStep& step, const IterateArguments& x,
                                           const REAL* C, REAL minimum) {
    REAL *rows = shared, *columns = shared + 3 * HELD_THREADS, *absorbed = columns + 3 * HELD_THREADS;
    const HeldLogits of_rows = {rows, absorbed}, of_columns = {columns, absorbed + HELD_THREADS};
    int k = threadIdx.x, lane = k % 32;
    // Not after every failure: where not even a K of its own holds a problem, its entries fail for ever.
    bool in_vain = *failed == course.taken && course.resting > 2;
    if (ROWS)
        course.kernel.multiply_rows(parts, columns);
    else
        course.kernel.multiply_columns(parts, rows);
    bool carries = mine.weight > 0, usable = in_range(mine.scaling) & (mine.reciprocal >= Limits<REAL>::tiny);
    if (in_vain) {
        __syncthreads();
        return true;
    }
    __syncthreads();
    course.resting++, course.taken++;
    REAL sum = sum_of_held<ROWS ? HELD_WIDE : HELD_HIGH, ROWS ? ROW_PARTS : COLUMN_PARTS>(parts + k);
    REAL ratio = mine.scaling * quotient(sum, mine.weight, mine.reciprocal), relaxed = relaxation(step.omega, ratio);
    bool certain = (sum > mine.least) & (sum < infinity());
    bool doubtful = carries & !(usable & certain & (ratio < infinity()));
    REAL updated = quotient(mine.weight, sum, reciprocal(sum)) * relaxed;
    Entry entry = {carries ? updated : REAL(0), -infinity(), REAL(0)};
    REAL* kept = ROWS ? rows : columns;
    if (!step.measure) kept[k] = entry.scaling;
    bool unusual = doubtful | !in_range_by_bits(carries ? updated : REAL(1));
    if (__any_sync(FULL_WARP, unusual | step.last)) {
        bool fails = carries & !certain;
        REAL by = absorbed[(ROWS ? 0 : HELD_THREADS) + k];
        Entry old = {mine.scaling, kept[HELD_THREADS + k] - by, REAL(0)};
        if (in_range(mine.scaling)) old.logit = log_in_range(mine.scaling);
        if (unusual && certain) entry = updated_by_sum(old, sum, mine.weight, step.omega, step.measure, true);
        if (x.method == SCALING) {
            if (fails) entry = {old.scaling, old.logit, infinity()};  // the host sees the error
        } else if (__any_sync(FULL_WARP, fails)) {
            Costs costs = {C, ROWS ? (long long)x.m : 1, ROWS ? 1 : (long long)x.m, minimum, REAL(x.cost_scale)};
            REAL logarithm = log_sum(fails, costs, k, ROWS ? x.m : x.n, ROWS ? of_columns : of_rows);
            logarithm += shift_of(x.method) + by;
            if (fails) entry = updated_by_log(old, logarithm, mine.weight, step.omega, step.measure);
            if (fails && logarithm > -infinity() && !step.measure) atomicMax(failed, course.taken);
        }
        if (unusual && !step.measure) kept[k] = entry.scaling, kept[HELD_THREADS + k] = entry.logit + by;
        if (step.last) {
            if (carries && !unusual) entry.deviation = mine.weight * magnitude(1 - (step.measure ? ratio : relaxed));
            REAL total = warp_sum(entry.deviation);
            if (lane == 0) shared[sides[ROWS].deviation + k / 32] = total;
        }
    }
    if (!step.measure) mine.scaling = entry.scaling;
    __syncthreads();
    return false;
}

// The half-steps of a round of one problem with K in registers.
__device__ inline void take_held_round(HeldCourse& course, const IterateArguments& x, const REAL* C, REAL minimum,
                                       REAL* shared, const Side* sides, REAL* parts, int* failed, bool plain,
                                       REAL omega) {
    REAL *rows = shared, *columns = shared + 3 * HELD_THREADS, *absorbed = columns + 3 * HELD_THREADS;
    const HeldLogits of_rows = {rows, absorbed}, of_columns = {columns, absorbed + HELD_THREADS};
    int k = threadIdx.x, left = plain ? 1 : x.count;  // updates of the rows
    HeldStep step = {left <= 1, false, plain ? REAL(1) : omega};
    bool of_row = plain;
    while (true) {
        if (course.stale)
            load_held(course.kernel, C, sides[1], sides[0], shared, minimum, x.cost_scale, course.absorbed);
        course.stale = false;
        HeldEntry row, column;
        row.load(rows, x.m);
        column.load(columns, x.n);
#pragma unroll 1
        while (true) {
            if (of_row) {
                if (take_held_half_step<true>(course, row, shared, sides, parts, failed, step, x, C, minimum)) break;
                left--, step.measure = left == 0, of_row = false;
            }
            if (take_held_half_step<false>(course, column, shared, sides, parts, failed, step, x, C, minimum)) break;
            of_row = true, step.last = left <= 1;
            if (left == 0) break;
        }
        rows[HELD_THREADS + k] = of_rows[k], columns[HELD_THREADS + k] = of_columns[k];
        if (of_row && left == 0) return;
        absorb(shared, sides[0]);
        absorb(shared, sides[1]);
        __syncthreads();
        course.stale = course.absorbed = true, course.resting = 0;
    }
}
