// uses: point_reduction.cuh
// A reduction over costs made from points of many coordinates: their products on tensor cores, for any Term.
//
// s = |x|^2 + |y|^2 - 2 x y, clamped at 0, for points that are centred. Tensor cores multiply tf32 numbers, which have
// 11 of the 24 bits of a float, and add in float. With `terms` 3 each number is split into two of them, high and low,
// and high * high + high * low + low * high keeps 22 bits of each product; with 1 there is no second part: 3 times
// fewer products, and errors of 1e-3 of the largest |x| |y|.
//
// For near points the result is mostly rounding: their distance is recomputed from differences. From a share CLOSE of
// |x|^2 + |y|^2 on, the lost digits do no harm.
//
// One block per problem and BAND kept points; each warp takes BAND summed points at a time, as 2 x 4 fragments of
// m16n8k8, and all merge at the end. Dynamic shared memory, in REAL, with d8 the coordinates in full eights:
//     d8 * (BAND + PAD) kept | d8 * (BAND * warps + PAD) summed | BAND * warps norms | BAND * warps Summed
// and in its place at the end one State for each lane and row of a fragment.
constexpr int MOST_PRODUCT_THREADS = 256;  // per block: the sums of a warp take many registers
constexpr REAL CLOSE = REAL(1e-2);
constexpr int BAND = 32, PAD = 8;  // rows 8 apart in their banks: the lanes of a fragment never meet in one

struct Split {
    unsigned high, low;
};

__device__ inline Split split(REAL value) {
    float x = float(value);
    unsigned high = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    return {high, __float_as_uint(x - __uint_as_float(high)) + 0x1000u};
}

#ifdef __CUDA_ARCH__
__device__ inline void tensor_core_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800  // an older device is never asked
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// Products of 32 kept and 32 summed points: sums[m][n] is the lane's part of rows 16 m and columns 8 n of them.
__device__ inline void multiply_points(float (&sums)[2][4][4], const REAL* mine, const REAL* others, int stride, int d8,
                                       int terms) {
    int row = threadIdx.x % 32 / 4, k = threadIdx.x % 4;
    for (int c = k; c < d8; c += 8) {
        Split b[4][2];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            b[n][0] = split(others[c * stride + 8 * n + row]);
            b[n][1] = split(others[(c + 4) * stride + 8 * n + row]);
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const REAL* x = mine + c * (BAND + PAD) + 16 * m + row;
            const REAL* next = x + 4 * (BAND + PAD);
            Split a[4] = {split(x[0]), split(x[8]), split(next[0]), split(next[8])};
            unsigned high[4] = {a[0].high, a[1].high, a[2].high, a[3].high};
            unsigned low[4] = {a[0].low, a[1].low, a[2].low, a[3].low};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                unsigned other_high[2] = {b[n][0].high, b[n][1].high}, other_low[2] = {b[n][0].low, b[n][1].low};
                if (terms == 3) {  // the small ones first
                    tensor_core_tf32(sums[m][n], low, other_high);
                    tensor_core_tf32(sums[m][n], high, other_low);
                }
                tensor_core_tf32(sums[m][n], high, other_high);
            }
        }
    }
}

// |x - y|^2 from the differences of coordinates that lie `x_stride` and `y_stride` apart.
__device__ inline REAL squared_distance(const REAL* x, int x_stride, const REAL* y, int y_stride, int d) {
    REAL sum = 0;
#pragma unroll 1
    for (int c = 0; c < d; c++) {
        REAL difference = x[c * x_stride] - y[c * y_stride];
        sum = multiply_add(difference, difference, sum);
    }
    return sum;
}

// Points first ... first + count of P (points, d), by coordinate: tile (d8, count + PAD), zero where there is none.
__device__ inline void load_padded(REAL* tile, const REAL* P, long long first, long long points, int count, int d,
                                   int d8) {
    for (int k = threadIdx.x; k < count * d8; k += blockDim.x) {
        int point = k / d8, c = k % d8;
        tile[c * (count + PAD) + point] = first + point < points && c < d ? P[(first + point) * d + c] : REAL(0);
    }
}

// kept_norms (B or 1, kept) and summed_norms (B or 1, summed) are the |x|^2.
template <class Term>
__device__ void reduce_point_products(const Term& term, const PointPairs& points, const REAL* kept_norms,
                                      const REAL* summed_norms, int terms, long long B, long long kept,
                                      long long summed) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, theirs = blockDim.x;
    int row = lane / 4, column = 2 * (lane % 4), d = points.d, d8 = (d + 7) / 8 * 8;
    REAL* mine = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* others = mine + d8 * (BAND + PAD);
    REAL* norms = others + d8 * (theirs + PAD);
    Summed* values = reinterpret_cast<Summed*>(norms + theirs);
    State* parts = reinterpret_cast<State*>(dynamic_shared);
    long long tiles = (kept + BAND - 1) / BAND;
    for (long long tile = blockIdx.x; tile < B * tiles; tile += gridDim.x) {
        long long b = tile / tiles, k0 = tile % tiles * BAND;
        load_padded(mine, points.kept + b * points.kept_stride, k0, kept, BAND, d, d8);
        State state[4];  // of the rows row, row + 8, row + 16, row + 24
        REAL norm[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            long long k = k0 + row + 8 * r;
            state[r] = k < kept ? term.start(b, k) : State::empty();
            norm[r] = k < kept ? kept_norms[(points.kept_stride ? b * kept : 0) + k] : REAL(0);
        }
        for (long long first = 0; first < summed; first += theirs) {
            __syncthreads();  // the last points have been used
            load_padded(others, points.summed + b * points.summed_stride, first, summed, theirs, d, d8);
            long long s = first + threadIdx.x;
            norms[threadIdx.x] = s < summed ? summed_norms[(points.summed_stride ? b * summed : 0) + s] : REAL(0);
            values[threadIdx.x] = s < summed ? term.read(b, s) : Term::nothing();
            __syncthreads();
            if (first + BAND * warp >= summed) continue;  // the whole warp, to the next barrier
            float sums[2][4][4] = {};
            multiply_points(sums, mine, others + BAND * warp, theirs + PAD, d8, terms);
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                Summed group[GROUP];
                REAL other[GROUP];
                int places[GROUP];
#pragma unroll
                for (int g = 0; g < GROUP; g++) {
                    places[g] = BAND * warp + 8 * (n + g / 2) + column + g % 2;
                    group[g] = values[places[g]];
                    other[g] = norms[places[g]];
                }
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    REAL cost[GROUP];
#pragma unroll
                    for (int g = 0; g < GROUP; g++) {
                        REAL product = sums[r / 2][n + g / 2][r % 2 * 2 + g % 2], both = norm[r] + other[g];
                        REAL s = larger(multiply_add(REAL(-2), product, both), REAL(0));
                        if (s < CLOSE * both)
                            s = squared_distance(mine + row + 8 * r, BAND + PAD, others + places[g], theirs + PAD, d);
                        cost[g] = points.cost(s);
                    }
                    term.push(state[r], cost, group);
                }
            }
        }
        __syncthreads();  // all have used the points
#pragma unroll
        for (int r = 0; r < 4; r++) parts[(warp * 4 + r) * 32 + lane] = state[r];
        __syncthreads();
        if (warp == 0 && k0 + lane < kept) {
            // Row `lane` of the band is in part lane / 8, in the four lanes of its row there.
            State whole = term.start(b, k0 + lane);
            for (int w = 0; w < warps; w++)
                for (int l = 0; l < 4; l++) whole.merge(parts[(w * 4 + lane / 8) * 32 + lane % 8 * 4 + l]);
            term.write(b, k0 + lane, whole);
        }
        __syncthreads();  // the next tile writes the points again
    }
}
