// uses: cost_reduction.cuh
// A reduction over costs that are not stored but recreated from points, for any Term of cost_reduction.cuh.
//
// C_ks = s ** exponent, with s the squared Euclidean or the city-block distance of kept point k and summed point s. Any
// factor is in the points. Differences are taken before squares, so that near points keep their digits.
//
// One block per problem and 32 * KEPT kept points: each lane holds KEPT of them, and the warps share out the summed points
// and merge at the end, so that few points still fill the machine. Per term for d = 3: 6 instructions for the distance, 1
// exp2, 4 others, 1 shared load; the exponential unit takes 8 issue slots for each exp2. Dynamic shared memory, in REAL:
//     d * (32 * KEPT + GROUP) kept points | d * (32 * warps + GROUP) summed points | 32 * warps Summed
// and in its place at the end one State for each kept point and warp.
constexpr int KEPT = sizeof(REAL) == sizeof(float) ? 2 : 1;  // NVRTC 13 spills with 2 points in double

enum Norm { SQUARED = 0, CITYBLOCK = 1 };
enum Power { ONE, ROOT, ANY };  // exponents that the compiler knows, and all others

// kept (B or 1, kept, d) and summed (B or 1, summed, d), with the stride between problems, 0 for shared points.
struct PointPairs {
    const REAL* kept;
    const REAL* summed;
    long long kept_stride, summed_stride;
    int d, norm;
    REAL exponent;

    template <int POWER = ANY>
    __device__ REAL cost(REAL s) const {
        if (POWER == ONE || exponent == REAL(1)) return s;
        if (POWER == ROOT || exponent == REAL(0.5)) return square_root(s);
        return s > REAL(0) ? power_of_two(exponent * log_two(s)) : REAL(0);
    }
    // The same in place for several, with one branch for all of them.
    template <int COUNT>
    __device__ void costs(REAL (&s)[COUNT]) const {
        if (exponent == REAL(1)) return;
#pragma unroll
        for (int k = 0; k < COUNT; k++) s[k] = cost(s[k]);
    }
};

template <int NORM>
__device__ inline REAL add_coordinate(REAL s, REAL difference) {
    return NORM == SQUARED ? multiply_add(difference, difference, s) : s + magnitude(difference);
}

// Which points make a tile: all of them in their order, a tile after the other. near_tiles.cuh has another rule.
struct InOrder {
    long long first;

    __device__ void open(const PointPairs&, long long, long long, long long, long long) {
        first = 0;
    }
    __device__ bool more(long long summed) const {
        return first < summed;
    }
    // The states of the kept points of this thread, whose results are less by `length`.
    template <class State>
    __device__ void advance(const State (&)[KEPT], const REAL (&)[KEPT], int theirs) {
        first += theirs;
    }
    // The point of a slot of the tile; none is there from `summed` on.
    template <class Slot>
    __device__ long long place(Slot slot) const {
        return first + slot;
    }
    // Whether one may be in a slot or in those of its warp after it.
    __device__ bool reaches(int slot, long long summed) const {
        return first + slot < summed;
    }
    // The slots up to the last one with a point.
    __device__ int count(long long summed, int theirs) const {
        return summed - first < theirs ? int(summed - first) : theirs;
    }
};

// `count` points of P (points, d), by coordinate: tile (d, count + GROUP), zero where there is none. Without the GROUP
// between them all coordinates of a point would lie in one bank.
template <class Tiles>
__device__ inline void load_points(REAL* tile, const REAL* P, const Tiles& tiles, long long points, int count, int d) {
    int point = threadIdx.x / d, c = threadIdx.x % d, down = blockDim.x / d, across = blockDim.x % d;
    for (; point < count; point += down) {
        tile[c * (count + GROUP) + point] = tiles.place(point) < points ? P[tiles.place(point) * d + c] : REAL(0);
        c += across;
        if (c >= d) {
            c -= d;
            point++;
        }
    }
}

// D is the dimension where the compiler is to know it, 0 elsewhere.
template <int D, int NORM, int POWER, class Tiles, class Term>
__device__ void reduce_points_of(const Term& term, const PointPairs& points, Tiles tiles, long long B, long long kept,
                                 long long summed) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    constexpr int MINE = 32 * KEPT;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, theirs = blockDim.x;
    int d = D ? D : points.d, apart = theirs + GROUP;
    REAL* mine = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* others = mine + d * (MINE + GROUP);
    Summed* values = reinterpret_cast<Summed*>(others + d * apart);
    const Four<Summed>* groups = reinterpret_cast<const Four<Summed>*>(values);
    State* parts = reinterpret_cast<State*>(dynamic_shared);
    long long blocks = (kept + MINE - 1) / MINE;
    for (long long block = blockIdx.x; block < B * blocks; block += gridDim.x) {
        long long b = block / blocks, k = block % blocks * MINE + lane;
        load_points(mine, points.kept + b * points.kept_stride, InOrder{k - lane}, kept, MINE, d);
        State state[KEPT];
#pragma unroll
        for (int r = 0; r < KEPT; r++) state[r] = k + 32 * r < kept ? term.start(b, k + 32 * r) : State::empty();
        const REAL length[KEPT] = {};
        for (tiles.open(points, b, k - lane, kept, summed); tiles.more(summed); tiles.advance(state, length, theirs)) {
            __syncthreads();  // the last tile has been used
            load_points(others, points.summed + b * points.summed_stride, tiles, summed, theirs, d);
            values[threadIdx.x] =
                tiles.place(threadIdx.x) < summed ? term.read(b, tiles.place(threadIdx.x)) : Term::nothing();
            __syncthreads();
            for (int s = 32 * warp; s < 32 * warp + 32 && tiles.reaches(s, summed); s += GROUP) {
                REAL cost[KEPT][GROUP] = {};
#pragma unroll(D ? D : 2)
                for (int c = 0; c < d; c++) {
                    Four<REAL> other = *reinterpret_cast<const Four<REAL>*>(others + c * apart + s);
#pragma unroll
                    for (int r = 0; r < KEPT; r++) {
                        REAL x = mine[c * (MINE + GROUP) + 32 * r + lane];
#pragma unroll
                        for (int g = 0; g < GROUP; g++) {
                            REAL difference = x - other.at[g];
                            cost[r][g] = add_coordinate<NORM>(cost[r][g], difference);
                        }
                    }
                }
                Four<Summed> group = groups[s / GROUP];
#pragma unroll
                for (int r = 0; r < KEPT; r++) {
#pragma unroll
                    for (int g = 0; g < GROUP; g++) cost[r][g] = points.template cost<POWER>(cost[r][g]);
                    term.push(state[r], cost[r], group.at);
                }
            }
        }
        __syncthreads();  // all have used the points
#pragma unroll
        for (int r = 0; r < KEPT; r++) parts[(warp * KEPT + r) * 32 + lane] = state[r];
        __syncthreads();
        if (warp == 0) {
#pragma unroll
            for (int r = 0; r < KEPT; r++) {
                for (int w = 1; w < warps; w++) state[r].merge(parts[(w * KEPT + r) * 32 + lane]);
                if (k + 32 * r < kept) term.write(b, k + 32 * r, state[r]);
            }
        }
        __syncthreads();  // the next tile writes the points again
    }
}

// Squared distances in 2 or 3 coordinates, in float: |x|^2 and |y|^2 are taken once for each point and not for each pair,
//     logit - scale |x - y|^2 = (logit - |y|^2) + 2 x y - |x|^2        for points times the root of scale,
// about the first kept point of the tile. That loses digits of |x|^2 + |y|^2, as logits of that size have lost already;
// where one exceeds FAR, its tile is taken by differences. Per term for d = 3: 3 multiply-adds, 1 exp2, 2 additions.
constexpr REAL FAR = 512;  // in powers of 2: 3 roundings of twice that are 2e-4

template <int D>
struct KeptPoints {
    REAL twice[KEPT][D], length[KEPT];  // 2 x and |x|^2
};

// One tile of summed points: `apart` by differences of the points as they are, else by products.
template <bool APART, int D, class Term>
__device__ void walk_tile(typename Term::State (&state)[KEPT], const Term& term, const KeptPoints<D>& mine,
                          const REAL* kept, const long long (&place)[KEPT], const REAL* others,
                          const typename Term::Summed* values, int theirs, int count) {
    typedef typename Term::Summed Summed;
    int begin = threadIdx.x / 32 * 32;
    if (begin >= count) return;
    const Four<REAL>* points = reinterpret_cast<const Four<REAL>*>(others + begin);
    const Four<Summed>* groups = reinterpret_cast<const Four<Summed>*>(values + begin);
    int step = theirs / GROUP;
#pragma unroll(APART ? 1 : 2)
    for (int s = 0; s < 32 / GROUP; s++, points++, groups++) {  // what lies behind the last point adds nothing
        Four<REAL> other[D];
#pragma unroll
        for (int c = 0; c < D; c++) other[c] = points[c * step];
        Four<Summed> group = *groups;
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
            REAL x[GROUP];
            if (APART) {
                REAL cost[GROUP] = {};
#pragma unroll
                for (int c = 0; c < D; c++)
#pragma unroll
                    for (int g = 0; g < GROUP; g++)
                        cost[g] = add_coordinate<SQUARED>(cost[g], kept[place[r] * D + c] - other[c].at[g]);
#pragma unroll
                for (int g = 0; g < GROUP; g++)
                    x[g] = multiply_add(cost[g], -term.cost_scale, Term::exponent(group.at[g])) + mine.length[r];
            } else {
#pragma unroll
                for (int g = 0; g < GROUP; g++) x[g] = Term::exponent(group.at[g]);
#pragma unroll
                for (int c = 0; c < D; c++)
#pragma unroll
                    for (int g = 0; g < GROUP; g++) x[g] = multiply_add(mine.twice[r][c], other[c].at[g], x[g]);
            }
            Term::push_exponents(state[r], x, group.at);
        }
    }
}

template <int D, class Tiles, class Term>
__device__ void reduce_by_products(const Term& term, const PointPairs& points, Tiles tiles, long long B, long long kept,
                                   long long summed) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    constexpr int MINE = 32 * KEPT;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, theirs = blockDim.x;
    REAL* others = reinterpret_cast<REAL*>(dynamic_shared) + D * MINE;
    Summed* values = reinterpret_cast<Summed*>(others + D * theirs);
    State* parts = reinterpret_cast<State*>(dynamic_shared);
    REAL scale = square_root(term.cost_scale);
    long long blocks = (kept + MINE - 1) / MINE;
    for (long long block = blockIdx.x; block < B * blocks; block += gridDim.x) {
        long long b = block / blocks, start = block % blocks * MINE, k = start + lane, place[KEPT];
        const REAL* X = points.kept + b * points.kept_stride;
        const REAL* Y = points.summed + b * points.summed_stride;
        REAL centre[D];
#pragma unroll
        for (int c = 0; c < D; c++) centre[c] = X[start * D + c];
        KeptPoints<D> mine;
        bool far = false;
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
            place[r] = k + 32 * r < kept ? k + 32 * r : start;
            mine.length[r] = 0;
#pragma unroll
            for (int c = 0; c < D; c++) {
                REAL x = (X[place[r] * D + c] - centre[c]) * scale;
                mine.twice[r][c] = 2 * x;
                mine.length[r] = multiply_add(x, x, mine.length[r]);
            }
            far = far || !(mine.length[r] < FAR);
        }
        far = __ballot_sync(FULL_WARP, far) != 0;  // all warps keep the same points
        State state[KEPT];
#pragma unroll
        for (int r = 0; r < KEPT; r++) {
            if (far) mine.length[r] = 0;
            state[r] = k + 32 * r < kept ? term.start(b, k + 32 * r) : State::empty();
            Term::begin(state[r], mine.length[r]);
        }
        for (tiles.open(points, b, start, kept, summed); tiles.more(summed); tiles.advance(state, mine.length, theirs)) {
            long long j = tiles.place(threadIdx.x);
            bool inside = j < summed;
            REAL length = 0, other[D];
#pragma unroll
            for (int c = 0; c < D; c++) {
                other[c] = inside ? Y[j * D + c] : centre[c];
                REAL y = (other[c] - centre[c]) * scale;
                length = multiply_add(y, y, length);
            }
            bool apart = __syncthreads_or(far || !(length < FAR));  // the last tile has been used
#pragma unroll
            for (int c = 0; c < D; c++)
                others[c * theirs + threadIdx.x] = apart ? other[c] : (other[c] - centre[c]) * scale;
            Summed value = inside ? term.read(b, j) : Term::nothing();
            values[threadIdx.x] = apart ? value : Term::lowered(value, length);
            __syncthreads();
            int count = tiles.count(summed, theirs);
            if (apart)
                walk_tile<true, D>(state, term, mine, X, place, others, values, theirs, count);
            else
                walk_tile<false, D>(state, term, mine, X, place, others, values, theirs, count);
        }
        __syncthreads();  // all have used the points
#pragma unroll
        for (int r = 0; r < KEPT; r++) parts[(warp * KEPT + r) * 32 + lane] = state[r];
        __syncthreads();
        if (warp == 0) {
#pragma unroll
            for (int r = 0; r < KEPT; r++) {
                for (int w = 1; w < warps; w++) state[r].merge(parts[(w * KEPT + r) * 32 + lane]);
                Term::end(state[r], mine.length[r]);
                if (k + 32 * r < kept) term.write(b, k + 32 * r, state[r]);
            }
        }
        __syncthreads();  // the next tile writes the points again
    }
}

template <int D, class Tiles, class Term>
__device__ void reduce_near_points(const Term& term, const PointPairs& points, const Tiles& tiles, long long B,
                                   long long kept, long long summed) {
    if (points.exponent == REAL(1)) {
        if constexpr (D > 0 && sizeof(REAL) == sizeof(float))
            reduce_by_products<D>(term, points, tiles, B, kept, summed);
        else
            reduce_points_of<D, SQUARED, ONE>(term, points, tiles, B, kept, summed);
    } else
        reduce_points_of<D, SQUARED, ROOT>(term, points, tiles, B, kept, summed);
}

// The compiler knows the dimensions 2 and 3, with squared or plain distances, for terms that are used often enough to be
// worth its time: no branch is left in the loop.
template <class Term, class Tiles = InOrder>
__device__ void reduce_points(const Term& term, const PointPairs& points, long long B, long long kept, long long summed,
                              const Tiles& tiles = Tiles()) {
    bool common = Term::OFTEN && (points.exponent == REAL(1) || points.exponent == REAL(0.5));
    if (points.norm == CITYBLOCK)
        reduce_points_of<0, CITYBLOCK, ANY>(term, points, tiles, B, kept, summed);
    else if (common && points.d == 2)
        reduce_near_points<Term::OFTEN ? 2 : 0>(term, points, tiles, B, kept, summed);
    else if (common && points.d == 3)
        reduce_near_points<Term::OFTEN ? 3 : 0>(term, points, tiles, B, kept, summed);
    else
        reduce_points_of<0, SQUARED, ANY>(term, points, tiles, B, kept, summed);
}
