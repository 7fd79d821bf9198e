// uses: held_kernel.cuh
// iterate: all iterations of a tile of small problems in one launch, with the kernel K in shared memory or registers.
//
// One iteration is one g-update and one f-update, over-relaxed by the omega of the problem. K enters as multiply-adds.
// The sum of an entry that is not certified (scaling.cuh) is taken again in the log domain. A block of one problem then
// absorbs: it takes the powers of 2 nearest to exp(f / eps) and exp(g / eps) out of the scalings and into a K made anew
// from C, so that scalings are near the weights, sums near 1, and all entries certified until potentials have moved by
// tens of powers of 2 once more. No digit is lost to powers of 2. Blocks of several problems share K and cannot.
// Method LOG keeps C - min C in shared memory and sums every entry in the log domain. count = 0 is one plain f-update.
// deviation (B,) is the distance of the last f-update from a plain one plus the marginal error of the columns at the
// end: for omega = 1 the L1 marginal error itself, for others a bound on it after one more plain f-update.
//
// With `states` a block repeats this up to `checks` times. After each time it checks which of its problems may stop,
// and chooses omega for the others (convergence.cuh). A problem that may stop no longer changes, and a block ends when
// all of its problems may stop. With `own_rules` a block of one problem measures the error after one plain f-update
// itself, and goes on where that misses the tolerance.
//
// A thread sums for 4 kept entries over a slice of the other side, 4 entries at a time: 4 wide loads of K (each for all
// P problems) and P of scalings for 16 P multiply-adds; LOG has 16 exp2 in their place. Per half-step a block of P
// problems reads n * m / 8 wavefronts of K and n * m / 512 * P of scalings, for P * n * m / 32 warp-wide multiply-adds,
// and meets at two barriers. State (u, p, v, q) as in scaling.cuh, in and out. Correct for any grid and any block that
// is a multiple of 32 (at most 256). HELD has the kernel of its one problem in registers, and its half-steps are those
// of held_kernel.cuh.

constexpr int ITERATE_THREADS = 256;
// To a multiprocessor. In double, two would spill from compute capability 10 on, where double is slow anyway.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int ITERATE_BLOCKS = sizeof(REAL) == sizeof(float) ? 2 : 1;
#else
constexpr int ITERATE_BLOCKS = 2;
#endif

// A side as a half-step has it. In float its fields are read at once, as each would be waited for; in double there are no
// registers for that.
template <bool COPIED>
struct SideAtHand {
    typedef const Side Type;
};
template <>
struct SideAtHand<false> {
    typedef const Side& Type;
};

// What a thread sums: GROUP kept entries from `lane` on, for the summed entries of a slice.
struct Share {
    int slice, lane;

    __device__ explicit Share(const Side& kept)
        : slice(int(threadIdx.x) / kept.lanes), lane(int(threadIdx.x) % kept.lanes) {}
};

// K as both sides read it: GROUP kept entries by GROUP summed ones, at(kept, summed) after `load`.
template <bool ROWS>
struct Piece {
    Four<REAL> line[GROUP];

    // `place` is the first entry, `step` the distance of two lines.
    __device__ void load(const REAL* place, int step) {
#pragma unroll
        for (int c = 0; c < GROUP; c++) line[c] = *reinterpret_cast<const Four<REAL>*>(place + c * step);
    }
    __device__ REAL at(int kept, int summed) const {
        return ROWS ? line[kept].at[summed] : line[summed].at[kept];
    }
};

// The same without a load of its own: exp2 in double takes the registers that the piece would.
template <bool ROWS>
struct PieceInPlace {
    const REAL* place;
    int step;

    __device__ void load(const REAL* from, int by) {
        place = from, step = by;
    }
    __device__ REAL at(int kept, int summed) const {
        return ROWS ? place[kept * step + summed] : place[summed * step + kept];
    }
};

template <bool DOUBLE, bool ROWS>
struct PieceForLogs {
    typedef Piece<ROWS> Type;
};
template <bool ROWS>
struct PieceForLogs<true, ROWS> {
    typedef PieceInPlace<ROWS> Type;
};

// parts (slices, PROBLEMS, kept.width): sums over s of scaling_s K_ks. Rows are kept `lanes` apart, columns side by
// side, so that the wide loads of a warp meet no bank twice.
template <int PROBLEMS, bool ROWS>
__device__ void multiply(REAL* parts, const REAL* K, int stride, const REAL* scalings, const Side& kept,
                         const Side& summed, const Share& share) {
    if (share.slice >= kept.slices) return;
    int begin = share.slice * kept.chunk, end = smaller_int(begin + kept.chunk, summed.width);
    int step = ROWS ? kept.lanes * stride : stride, forward = ROWS ? GROUP : GROUP * stride;
    for (int lane = share.lane; lane < kept.lanes; lane += blockDim.x) {
        const REAL* place = K + (ROWS ? lane * stride + begin : begin * stride + lane * GROUP);
        REAL sum[PROBLEMS][GROUP] = {};
#pragma unroll 1
        for (int s = begin; s < end; s += GROUP, place += forward) {
            Piece<ROWS> piece;
            piece.load(place, step);
#pragma unroll
            for (int t = 0; t < PROBLEMS; t++) {
                Four<REAL> factor = *reinterpret_cast<const Four<REAL>*>(scalings + t * summed.width + s);
#pragma unroll
                for (int c = 0; c < GROUP; c++)
#pragma unroll
                    for (int r = 0; r < GROUP; r++)
                        sum[t][r] = multiply_add(factor.at[c], piece.at(r, c), sum[t][r]);
            }
        }
#pragma unroll
        for (int t = 0; t < PROBLEMS; t++)
#pragma unroll
            for (int r = 0; r < GROUP; r++)
                parts[(share.slice * PROBLEMS + t) * kept.width + (ROWS ? lane + r * kept.lanes : lane * GROUP + r)] =
                    sum[t][r];
    }
}

// The same for method LOG: log2 of the sums over s of 2^(logit_s - scale * C_ks), with the shifts behind all parts.
template <int PROBLEMS, bool ROWS>
__device__ void add_in_logs(REAL* parts, const REAL* C, int stride, const REAL* logits, const Side& kept,
                            const Side& summed, const Share& share, REAL scale) {
    if (share.slice >= kept.slices) return;
    int begin = share.slice * kept.chunk, end = smaller_int(begin + kept.chunk, summed.width);
    int step = ROWS ? kept.lanes * stride : stride, forward = ROWS ? GROUP : GROUP * stride;
    int shifts = kept.slices * PROBLEMS * kept.width;
    for (int lane = share.lane; lane < kept.lanes; lane += blockDim.x) {
#pragma unroll 1
        for (int t = 0; t < PROBLEMS; t++) {
            const REAL* place = C + (ROWS ? lane * stride + begin : begin * stride + lane * GROUP);
            OnlineSoftmax state[GROUP];
#pragma unroll
            for (int r = 0; r < GROUP; r++) state[r] = OnlineSoftmax::empty();
#pragma unroll 1
            for (int s = begin; s < end; s += GROUP, place += forward) {
                typename PieceForLogs<sizeof(REAL) == sizeof(double), ROWS>::Type piece;
                piece.load(place, step);
                Four<REAL> logit = *reinterpret_cast<const Four<REAL>*>(logits + t * summed.width + s);
#pragma unroll
                for (int r = 0; r < GROUP; r++) {
                    REAL x[GROUP];
#pragma unroll
                    for (int c = 0; c < GROUP; c++) x[c] = multiply_add(piece.at(r, c), -scale, logit.at[c]);
                    state[r].push(x);
                }
            }
#pragma unroll
            for (int r = 0; r < GROUP; r++) {
                REAL* to = parts + (share.slice * PROBLEMS + t) * kept.width +
                           (ROWS ? lane + r * kept.lanes : lane * GROUP + r);
                to[0] = state[r].sum;
                to[shifts] = state[r].shift;
            }
        }
    }
}

// The sum of the parts of an entry, so many at once that one waits for shared memory once.
__device__ inline REAL sum_of_parts(const REAL* part, int slices, int step) {
    constexpr int AT_ONCE = sizeof(REAL) == sizeof(float) ? 8 : 4;
    REAL sum = 0;
#pragma unroll 1
    for (int first = 0; first < slices; first += AT_ONCE) {
        REAL x[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) x[k] = first + k < slices ? part[(first + k) * step] : REAL(0);
#pragma unroll
        for (int k = 1; k < AT_ONCE; k *= 2)
#pragma unroll
            for (int i = 0; i < AT_ONCE; i += 2 * k) x[i] += x[i + k];
        sum += x[0];
    }
    return sum;
}

// What a half-step does: relax by omega, or not if it is `plain`; leave its deviations if it is one of the `last` of a round; and
// only measure. A block of one problem has its omega, and whether it has stopped, at hand.
struct HalfStep {
    bool plain, last, measure, stopped;
    REAL omega;
};

// Update (or only measure) the kept side of all problems that have not stopped. Returns for all threads whether a block
// of one problem should absorb. All threads of the block must call this.
template <int PROBLEMS>
__device__ bool update_side(const REAL* parts, REAL* shared, const Side& kept, const Side& summed,
                            const REAL* omega, const int* stopped, int method, const HalfStep& step_of,
                            const Costs& costs) {
    constexpr bool AT_HAND = PROBLEMS == 1 && sizeof(REAL) == sizeof(float);
    int lane = threadIdx.x % 32, warps = blockDim.x / 32, tiles = (kept.width + 31) / 32;
    int slices = kept.slices;
    bool absorbs = false, plain = step_of.plain, measure = step_of.measure;
#pragma unroll 1
    for (int unit = threadIdx.x / 32; unit < PROBLEMS * tiles; unit += warps) {
        int t = unit % PROBLEMS, k = unit / PROBLEMS * 32 + lane, at = t * kept.width + k;
        bool inside = k < kept.width;
        REAL weight = inside ? shared[kept.weights + at] : REAL(0);
        const REAL* part = parts + t * kept.width + (inside ? k : 0);
        int step = PROBLEMS * kept.width;
        Entry entry = {REAL(0), -infinity(), REAL(0)};
        REAL by = PROBLEMS == 1 && inside ? shared[kept.absorbed + k] : REAL(0);
        // Relative to what K has absorbed of this entry.
        Entry old = {inside ? shared[kept.scaling + at] : REAL(0), inside ? shared[kept.logit + at] - by : REAL(0), REAL(0)};
        REAL factor = plain ? REAL(1) : AT_HAND ? step_of.omega : omega[t];
        if (method == LOG) {
            OnlineSoftmax state = OnlineSoftmax::empty();
#pragma unroll 1
            for (int slice = 0; slice < slices; slice++)
                state.merge({part[(slices + slice) * step], part[slice * step]});
            if (weight > 0) entry = updated_by_log(old, state.value(), weight, factor, measure);
        } else {
            REAL sum = sum_of_parts(part, slices, step);
            bool fails = weight > 0 && !certified(sum, summed.size);
            if (method == SCALING) {
                if (fails) entry = {old.scaling, old.logit, infinity()};  // the host sees the error
            } else if (__ballot_sync(FULL_WARP, fails)) {
                REAL logarithm = log_sum(fails, costs, k, summed.size, shared + summed.logit + t * summed.width);
                if (fails) entry = updated_by_log(old, logarithm + shift_of(method) + by, weight, factor, measure);
                absorbs = absorbs || (fails && logarithm > -infinity());
            }
            if (weight > 0 && !fails) entry = updated_by_sum(old, sum, weight, factor, measure, true);
        }
        if (inside && !measure && !(AT_HAND ? step_of.stopped : stopped[t])) {
            shared[kept.scaling + at] = entry.scaling;
            shared[kept.logit + at] = entry.logit + by;
        }
        if (step_of.last) {
            REAL total = warp_sum(entry.deviation);
            if (lane == 0) shared[kept.deviation + unit] = total;
        }
    }
    if (PROBLEMS == 1) return __syncthreads_or(absorbs);
    __syncthreads();
    return false;
}

// K (or C - min C for method LOG) into shared memory, zero (or +inf) where it is padded. Where a problem has absorbed,
// bins without weight have no entries, as no sum needs them.
__device__ inline void load_kernel(REAL* K, const REAL* C, int stride, const Side& row, const Side& column,
                                   const REAL* shared, REAL minimum, double cost_scale, int method, bool absorbed) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int i = threadIdx.x / 32; i < row.width; i += warps) {
        REAL high = absorbed ? shared[row.absorbed + i] : REAL(0);
        bool carries = !absorbed || shared[row.weights + i] > 0;
#pragma unroll 1
        for (int j = lane; j < stride; j += 32) {
            REAL cost = i < row.size && j < column.size ? C[(long long)i * column.size + j] - minimum : infinity();
            bool counts = carries && (!absorbed || (j < column.size && shared[column.weights + j] > 0));
            REAL by = absorbed && j < column.size ? high + shared[column.absorbed + j] : REAL(0);
            K[i * stride + j] = method == LOG ? cost : counts ? absorbed_entry(cost, cost_scale, by) : REAL(0);
        }
    }
}

// Whether an entry with weight has left the range of its scaling.
__device__ inline bool out_of_range(const REAL* shared, const Side& side) {
    bool found = false;
    for (int k = threadIdx.x; k < side.width; k += blockDim.x)
        found = found || (shared[side.weights + k] > 0 && magnitude(shared[side.logit + k]) < infinity() &&
                          !in_range(shared[side.scaling + k]));
    return found;
}

template <int PROBLEMS, bool HELD = false>
__device__ void iterate(const IterateArguments& x) {
    __shared__ Side sides[2];
    __shared__ REAL omega[PROBLEMS];
    __shared__ int stopped[PROBLEMS];
    __shared__ int trying;  // whether the next round is a plain f-update and a measurement
    // Dynamic shared memory: K | u | p | a | v | q | b | absorbed rows | absorbed columns | deviations | parts;
    // with HELD there is no K, and a number before the parts;
    // `shared_memory` and `held_memory` in cusink/backends/cupy/fused_memory.py count the same.
    int warps = blockDim.x / 32, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int rows = HELD ? HELD_THREADS : padded(x.n), columns = HELD ? HELD_THREADS : padded(x.m);
    int stride = kernel_stride(columns);
    int row_tiles = (rows + 31) / 32, column_tiles = (columns + 31) / 32;
    REAL* K = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* u = K + (HELD ? 0 : rows * stride);
    REAL* p = u + PROBLEMS * rows;
    REAL* a = p + PROBLEMS * rows;
    REAL* v = a + PROBLEMS * rows;
    REAL* q = v + PROBLEMS * columns;
    REAL* b = q + PROBLEMS * columns;
    REAL* absorbed = b + PROBLEMS * columns;
    REAL* deviations = absorbed + (PROBLEMS == 1 ? rows + columns : 0);
    REAL* parts = deviations + padded(PROBLEMS * (row_tiles + column_tiles)) + (HELD ? GROUP : 0);
    int* failed = reinterpret_cast<int*>(parts - GROUP);  // see take_held_half_step
    if (threadIdx.x == 0) {
        // The kept side changes with each half-step; shared memory saves registers.
        sides[0] = {x.m, columns, int(v - K), int(q - K), int(b - K), int(absorbed - K) + rows,
                    int(deviations - K) + PROBLEMS * row_tiles, 0, 0, 0};
        sides[1] = {x.n, rows, int(u - K), int(p - K), int(a - K), int(absorbed - K), int(deviations - K), 0, 0, 0};
        sides[0].share(rows);
        sides[1].share(columns);
    }
    if (HELD)
        for (int k = threadIdx.x; k < HELD_PARTS; k += HELD_THREADS) parts[k] = 0;
    __syncthreads();
    const Share of_columns(sides[0]), of_rows(sides[1]);
    REAL scale = REAL(x.cost_scale);
    bool own_cost = x.cost_stride != 0, loaded = false;
    HeldCourse course;
    for (long long b0 = blockIdx.x * (long long)PROBLEMS; b0 < x.B; b0 += gridDim.x * (long long)PROBLEMS) {
        int problems = x.B - b0 < PROBLEMS ? int(x.B - b0) : PROBLEMS;
        long long place = own_cost ? (x.cost_index ? x.cost_index[b0] : b0) : 0;
        const REAL* C = x.C + place * x.cost_stride;
        REAL minimum = x.cost_minimum[place];
        for (int t = warp; t < PROBLEMS; t += warps) {
#pragma unroll 1
            for (int i = lane; i < rows; i += 32) {
                bool inside = t < problems && i < x.n;
                u[t * rows + i] = inside ? x.u[(b0 + t) * x.n + i] : REAL(0);
                p[t * rows + i] = inside ? x.p[(b0 + t) * x.n + i] : -infinity();
                a[t * rows + i] = inside ? x.a[(b0 + t) * x.n + i] : REAL(0);
                if (PROBLEMS == 1) absorbed[i] = 0;
            }
#pragma unroll 1
            for (int j = lane; j < columns; j += 32) {
                bool inside = t < problems && j < x.m;
                v[t * columns + j] = inside ? x.v[(b0 + t) * x.m + j] : REAL(0);
                q[t * columns + j] = inside ? x.q[(b0 + t) * x.m + j] : -infinity();
                b[t * columns + j] = inside ? x.b[(b0 + t) * x.m + j] : REAL(0);
                if (PROBLEMS == 1) absorbed[rows + j] = 0;
            }
        }
        int t = threadIdx.x;
        if (t == 0) trying = 0;
        if (HELD && t == 0) *failed = -1;
        if (t < PROBLEMS) {
            stopped[t] = t >= problems;
            omega[t] = stopped[t] ? REAL(1) : x.states ? REAL(x.states[b0 + t].omega) : x.omega[b0 + t];
        }
        __syncthreads();
        bool has_absorbed = false;
        if (PROBLEMS == 1 && x.method == AUTO) {
            has_absorbed = __syncthreads_or(out_of_range(K, sides[0]) || out_of_range(K, sides[1]));
            if (has_absorbed) {
                absorb(K, sides[0]);
                absorb(K, sides[1]);
                __syncthreads();
            }
        }
        if (HELD)
            course.stale = !loaded || own_cost || has_absorbed, course.absorbed = has_absorbed,
            course.resting = 2, course.taken = 0;
        else if (!loaded || own_cost || has_absorbed)
            load_kernel(K, C, stride, sides[1], sides[0], K, minimum, x.cost_scale, x.method, has_absorbed);
        loaded = !has_absorbed;
        __syncthreads();
        int resting = 2;  // half-steps since K was made
#pragma unroll 1
        for (int check = 0; check < x.checks;) {
            bool trial = PROBLEMS == 1 && trying, plain = x.count == 0 || trial;
            // Half-steps alternate, g first; the last one only measures. One copy of the update serves both sides.
            int last = plain ? 2 : 2 * x.count;
            const REAL relaxation = omega[0];
            const bool rests = stopped[0];
            if (HELD) {
                take_held_round(course, x, C, minimum, K, sides, parts, failed, plain, relaxation);
                has_absorbed = course.absorbed, loaded = loaded && !has_absorbed;
            }
#pragma unroll 1
            for (int half = plain ? 1 : 0; !HELD && half <= last; half++) {
                bool of_row = half & 1;
                SideAtHand<sizeof(REAL) == sizeof(float)>::Type kept = sides[of_row], summed = sides[!of_row];
                if (x.method == LOG && of_row)
                    add_in_logs<PROBLEMS, true>(parts, K, stride, q, kept, summed, of_rows, scale);
                else if (x.method == LOG)
                    add_in_logs<PROBLEMS, false>(parts, K, stride, p, kept, summed, of_columns, scale);
                else if (of_row)
                    multiply<PROBLEMS, true>(parts, K, stride, v, kept, summed, of_rows);
                else
                    multiply<PROBLEMS, false>(parts, K, stride, u, kept, summed, of_columns);
                __syncthreads();
                Costs costs = {C, of_row ? (long long)x.m : 1, of_row ? 1 : (long long)x.m, minimum, scale};
                HalfStep step = {plain, half + 2 >= last, half == last, rests, relaxation};
                bool absorbs = update_side<PROBLEMS>(parts, K, kept, summed, omega, stopped, x.method, step, costs);
                resting++;
                // Not after every failure: where not even a K of its own holds a problem, its entries fail for ever.
                if (PROBLEMS == 1 && absorbs && resting > 2 && half < last) {
                    absorb(K, sides[0]);
                    absorb(K, sides[1]);
                    __syncthreads();
                    load_kernel(K, C, stride, sides[1], sides[0], K, minimum, x.cost_scale, x.method, true);
                    has_absorbed = true, loaded = false, resting = 0;
                    __syncthreads();
                }
            }
            if (t < problems && !stopped[t]) {
                REAL total = 0;
                for (int c = 0; c < row_tiles; c++) total += K[sides[1].deviation + c * PROBLEMS + t];
                for (int c = 0; c < column_tiles; c++) total += K[sides[0].deviation + c * PROBLEMS + t];
                x.deviation[b0 + t] = total;
                if (x.states) {
                    StopState state = x.states[b0 + t];
                    double error = double(total) / x.mass[b0 + t];
                    StopRules rules = x.rules;
                    if (x.own_rules) {
                        const double* own = x.own_rules + (b0 + t) * 3;
                        rules.tol = own[0], rules.level = own[1], rules.first_omega = own[2];
                    }
                    if (trial) {
                        state.stopped = error <= rules.tol;
                        if (!(error <= rules.tol)) StopRules::refuse(state, x.earlier_checks + check + 1);
                    } else {
                        rules.observe(state, error, x.count, x.earlier_checks + check);
                        if (!(error < 1e300)) state.stopped = 1;  // the problem left the range of method SCALING
                    }
                    x.states[b0 + t] = state;
                    x.taken[b0 + t] = (check + 1) * (long long)x.count;
                    bool tries = PROBLEMS == 1 && x.own_rules && !trial && state.stopped == 1 && error < 1e300;
                    if (PROBLEMS == 1) trying = tries;
                    stopped[t] = state.stopped != 0 && !tries;
                    omega[t] = REAL(state.omega);
                }
            }
            __syncthreads();
            if (PROBLEMS == 1 && trying) continue;  // all threads agree
            check++;
            bool ended = true;
#pragma unroll
            for (int k = 0; k < PROBLEMS; k++) ended = ended && stopped[k];
            if (ended || check == x.checks) break;  // all threads agree
            if (has_absorbed) continue;                 // nothing is far from 1
            for (int k = warp; k < problems; k += warps) {
                if (stopped[k]) continue;
                REAL level = balance(u + k * rows, p + k * rows, x.n, v + k * columns, q + k * columns, x.m);
                if (lane == 0) x.gauge[b0 + k] += level;
            }
            __syncthreads();
        }
        for (int t = warp; t < problems; t += warps) {
#pragma unroll 1
            for (int i = lane; i < x.n; i += 32) {
                REAL logit = p[t * rows + i], by = PROBLEMS == 1 ? absorbed[i] : REAL(0);
                x.u[(b0 + t) * x.n + i] = by == 0 ? u[t * rows + i] : moved(u[t * rows + i], logit, by);
                x.p[(b0 + t) * x.n + i] = logit;
            }
#pragma unroll 1
            for (int j = lane; j < x.m; j += 32) {
                REAL logit = q[t * columns + j], by = PROBLEMS == 1 ? absorbed[rows + j] : REAL(0);
                x.v[(b0 + t) * x.m + j] = by == 0 ? v[t * columns + j] : moved(v[t * columns + j], logit, by);
                x.q[(b0 + t) * x.m + j] = logit;
            }
        }
        __syncthreads();  // the next tile writes the state again
    }
}

// u, p (B, n) and v, q (B, m) in place; deviation (B,); C (n, m) with cost_stride 0 or (costs, n, m), cost_minimum of
// each cost; cost_index (B,) or null; a (B, n), b (B, m). Without states (null): omega (B,), and checks = 1. With them:
// gauge (B,) and states (B, 8) in place, taken (B,) iterations, mass (B,); earlier_checks of these problems came before
// this launch. own_rules (B, 3) or null: tol, level and first_omega of each problem. One problem per block.
extern "C" __global__ void __launch_bounds__(ITERATE_THREADS, ITERATE_BLOCKS)
iterate_1(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, const double* own_rules, double tol, double level, double progress,
          double first_omega, double largest_omega, int stalled_checks, int adaptive, int least_observed,
          double cost_scale, int method, int count, int checks, int earlier_checks, long long cost_stride, long long B,
          int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<1>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, own_rules, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B,
                n, m});
}

// The same with K in registers, for up to HELD_BINS bins on either side and no method LOG; the block is HELD_THREADS.
extern "C" __global__ void __launch_bounds__(HELD_THREADS, ITERATE_BLOCKS)
iterate_held(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
             const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
             const REAL* omega, const double* mass, const double* own_rules, double tol, double level, double progress,
             double first_omega, double largest_omega, int stalled_checks, int adaptive, int least_observed,
             double cost_scale, int method, int count, int checks, int earlier_checks, long long cost_stride, long long B,
             int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<1, true>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum,
                      cost_index, a, b, omega, mass, own_rules, rules, cost_scale, method, count, checks, earlier_checks,
                      cost_stride, B, n, m});
}

// The same for a shared C (cost_stride 0): two problems per block, each entry of K read once for both.
extern "C" __global__ void __launch_bounds__(ITERATE_THREADS, ITERATE_BLOCKS)
iterate_2(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, const double* own_rules, double tol, double level, double progress,
          double first_omega, double largest_omega, int stalled_checks, int adaptive, int least_observed,
          double cost_scale, int method, int count, int checks, int earlier_checks, long long cost_stride, long long B,
          int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<2>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, own_rules, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B,
                n, m});
}

// The same for a shared C (cost_stride 0): four problems per block.
extern "C" __global__ void __launch_bounds__(ITERATE_THREADS, ITERATE_BLOCKS)
iterate_4(REAL* u, REAL* p, REAL* v, REAL* q, REAL* deviation, double* gauge, double* states, long long* taken,
          const REAL* C, const REAL* cost_minimum, const long long* cost_index, const REAL* a, const REAL* b,
          const REAL* omega, const double* mass, const double* own_rules, double tol, double level, double progress,
          double first_omega, double largest_omega, int stalled_checks, int adaptive, int least_observed,
          double cost_scale, int method, int count, int checks, int earlier_checks, long long cost_stride, long long B,
          int n, int m) {
    StopRules rules = {tol, level, progress, first_omega, largest_omega, stalled_checks, adaptive, least_observed};
    iterate<4>({u, p, v, q, deviation, gauge, reinterpret_cast<StopState*>(states), taken, C, cost_minimum, cost_index,
                a, b, omega, mass, own_rules, rules, cost_scale, method, count, checks, earlier_checks, cost_stride, B,
                n, m});
}
