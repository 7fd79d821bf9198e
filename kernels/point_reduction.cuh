// uses: cost_reduction.cuh
// A reduction over costs that are not stored but recreated from points, for any Term of cost_reduction.cuh.
//
// C_ks = s ** exponent, with s the squared Euclidean or the city-block distance of kept point k and summed point s. Any
// factor is in the points. Differences are taken before squares, so that near points keep their digits.
//
// One block per problem and 32 * KEPT kept points: each lane holds KEPT of them, and the warps share out the summed points
// and merge at the end, so that few points still fill the machine. Per term for d = 3: 6 instructions for the distance, 1
// exp2, 4 others, 1 shared load; the exponential unit takes 8 issue slots for each exp2. Dynamic shared memory, in REAL:
//     d * 32 * KEPT kept points | d * 32 * warps summed points | 32 * warps Summed
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
};

template <int NORM>
__device__ inline REAL add_coordinate(REAL s, REAL difference) {
    return NORM == SQUARED ? multiply_add(difference, difference, s) : s + magnitude(difference);
}

// Points first ... first + count of P (points, d), by coordinate: tile (d, count), zero behind the last point.
__device__ inline void load_points(REAL* tile, const REAL* P, long long first, long long points, int count, int d) {
    for (int k = threadIdx.x; k < count * d; k += blockDim.x) {
        int point = k / d, c = k % d;
        tile[c * count + point] = first + point < points ? P[(first + point) * d + c] : REAL(0);
    }
}

// D is the dimension where the compiler is to know it, 0 elsewhere.
template <int D, int NORM, int POWER, class Term>
__device__ void reduce_points_of(const Term& term, const PointPairs& points, long long B, long long kept,
                                 long long summed) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    constexpr int MINE = 32 * KEPT;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, theirs = blockDim.x;
    int d = D ? D : points.d;
    REAL* mine = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* others = mine + d * MINE;
    Summed* values = reinterpret_cast<Summed*>(others + d * theirs);
    const Four<Summed>* groups = reinterpret_cast<const Four<Summed>*>(values);
    State* parts = reinterpret_cast<State*>(dynamic_shared);
    long long tiles = (kept + MINE - 1) / MINE;
    for (long long tile = blockIdx.x; tile < B * tiles; tile += gridDim.x) {
        long long b = tile / tiles, k = tile % tiles * MINE + lane;
        load_points(mine, points.kept + b * points.kept_stride, k - lane, kept, MINE, d);
        State state[KEPT];
#pragma unroll
        for (int r = 0; r < KEPT; r++) state[r] = k + 32 * r < kept ? term.start(b, k + 32 * r) : State::empty();
        for (long long first = 0; first < summed; first += theirs) {
            __syncthreads();  // the last tile has been used
            load_points(others, points.summed + b * points.summed_stride, first, summed, theirs, d);
            values[threadIdx.x] = first + threadIdx.x < summed ? term.read(b, first + threadIdx.x) : Term::nothing();
            __syncthreads();
            for (int s = 32 * warp; s < 32 * warp + 32 && first + s < summed; s += GROUP) {
                REAL cost[KEPT][GROUP] = {};
#pragma unroll(D ? D : 2)
                for (int c = 0; c < d; c++) {
                    Four<REAL> other = *reinterpret_cast<const Four<REAL>*>(others + c * theirs + s);
#pragma unroll
                    for (int r = 0; r < KEPT; r++) {
                        REAL x = mine[c * MINE + 32 * r + lane];
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

template <int D, class Term>
__device__ void reduce_near_points(const Term& term, const PointPairs& points, long long B, long long kept,
                                   long long summed) {
    if (points.exponent == REAL(1))
        reduce_points_of<D, SQUARED, ONE>(term, points, B, kept, summed);
    else
        reduce_points_of<D, SQUARED, ROOT>(term, points, B, kept, summed);
}

// The compiler knows the dimensions 2 and 3, with squared or plain distances, for terms that are used often enough to be
// worth its time: no branch is left in the loop.
template <class Term>
__device__ void reduce_points(const Term& term, const PointPairs& points, long long B, long long kept,
                              long long summed) {
    bool common = Term::OFTEN && (points.exponent == REAL(1) || points.exponent == REAL(0.5));
    if (points.norm == CITYBLOCK)
        reduce_points_of<0, CITYBLOCK, ANY>(term, points, B, kept, summed);
    else if (common && points.d == 2)
        reduce_near_points<Term::OFTEN ? 2 : 0>(term, points, B, kept, summed);
    else if (common && points.d == 3)
        reduce_near_points<Term::OFTEN ? 3 : 0>(term, points, B, kept, summed);
    else
        reduce_points_of<0, SQUARED, ANY>(term, points, B, kept, summed);
}
