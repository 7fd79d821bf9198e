// uses: online_softmax.cuh
// Two ways in which a reduction goes through all pairs of points, for few and for many coordinates.
//
// Every lane keeps one point x_i, the warps of a block share out the points y_j and merge at the end. A Term
// defines the sum:
//     State                             of the output at a kept point, with merge(other)
//     HAS_SLOPES                        whether State has slope[], which gets factor_j * (x_i - y_j) of every pair
//     REAL   row(i)                     the logit of the kept point i, counted through all problems
//     REAL   value(j), logit(j)         those of the summed point j
//     void   push(state, q, value, logit, row, factor)   GROUP squared distances q; sets as many factors
//     void   write(i, state)            and write_slope(i, coordinate, slope), if it has slopes
// Pairs beyond the end have the value 0 and the logit -inf. Offsets are 64-bit.

constexpr int NEAR = 4;    // coordinates that fit into one wide load
constexpr int COORDINATES = 16;  // that are staged at once where there are more than NEAR

// A summed point in shared memory.
struct alignas(16) Source {
    REAL at[NEAR];
    REAL value, logit;
};

// At most NEAR coordinates: x_i in registers, one y_j per thread in shared memory (dynamic: a Source per thread, which
// no State exceeds).
template <class Term>
__device__ void walk_near(const Term& term, const REAL* x, const REAL* y, long long B, long long n, long long m,
                          long long d) {
    Source* tile = reinterpret_cast<Source*>(dynamic_shared);
    typename Term::State* parts = reinterpret_cast<typename Term::State*>(dynamic_shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    long long tiles = (n + 31) / 32;
    for (long long unit = blockIdx.x; unit < B * tiles; unit += gridDim.x) {
        long long b = unit / tiles, i = unit % tiles * 32 + lane;
        bool inside = i < n;
        long long kept = b * n + (inside ? i : 0);
        REAL own[NEAR];
#pragma unroll
        for (int k = 0; k < NEAR; k++) own[k] = k < d ? x[kept * d + k] : REAL(0);
        REAL row = term.row(kept);
        typename Term::State state = Term::State::empty();
        for (long long first = 0; first < m; first += blockDim.x) {
            long long j = first + threadIdx.x, summed = b * m + (j < m ? j : 0);
            __syncthreads();  // the last tile, or the merged states, have been read
            Source mine;
#pragma unroll
            for (int k = 0; k < NEAR; k++) mine.at[k] = k < d ? y[summed * d + k] : REAL(0);
            mine.value = j < m ? term.value(summed) : REAL(0);
            mine.logit = j < m ? term.logit(summed) : -infinity();
            tile[threadIdx.x] = mine;
            __syncthreads();
            long long left = m - first;
            int count = left < blockDim.x ? int(left) : int(blockDim.x);
            for (int s = warp * GROUP; s < count; s += warps * GROUP) {
                REAL q[GROUP], value[GROUP], logit[GROUP], factor[GROUP];
#pragma unroll
                for (int g = 0; g < GROUP; g++) {
                    const Source& source = tile[s + g];
                    q[g] = 0;
#pragma unroll
                    for (int k = 0; k < NEAR; k++) {
                        REAL difference = own[k] - source.at[k];
                        q[g] = multiply_add(difference, difference, q[g]);
                    }
                    value[g] = source.value;
                    logit[g] = source.logit;
                }
                term.push(state, q, value, logit, row, factor);
                if constexpr (Term::HAS_SLOPES) {
#pragma unroll
                    for (int g = 0; g < GROUP; g++)
#pragma unroll
                        for (int k = 0; k < NEAR; k++)
                            state.slope[k] = multiply_add(factor[g], own[k] - tile[s + g].at[k], state.slope[k]);
                }
            }
        }
        __syncthreads();
        parts[threadIdx.x] = state;
        __syncthreads();
        if (warp == 0 && inside) {
            for (int w = 1; w < warps; w++) state.merge(parts[w * 32 + lane]);
            term.write(kept, state);
            if constexpr (Term::HAS_SLOPES) {
#pragma unroll
                for (int k = 0; k < NEAR; k++)
                    if (k < d) term.write_slope(kept, k, state.slope[k]);
            }
        }
    }
}

// Any number of coordinates, COORDINATES of them at a time: GROUP points y_j per warp are staged by coordinate, 32
// points x_i by row (rows of COORDINATES + 1: no bank conflict). With slopes a block computes those of COORDINATES
// coordinates, which it stages last, so that it still has them when the factors are known. Dynamic shared memory in
// REALs: y COORDINATES * sources | x 32 * (COORDINATES + 1) | values, logits: sources each; or one State per thread,
// whichever is more.
template <class Term>
__device__ void walk_wide(const Term& term, const REAL* x, const REAL* y, long long B, long long n, long long m,
                          long long d) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, sources = GROUP * warps;
    REAL* y_tile = reinterpret_cast<REAL*>(dynamic_shared);
    REAL* x_tile = y_tile + COORDINATES * sources;
    REAL* values = x_tile + 32 * (COORDINATES + 1);
    REAL* logits = values + sources;
    const Four<REAL>* groups = reinterpret_cast<const Four<REAL>*>(y_tile);
    typename Term::State* parts = reinterpret_cast<typename Term::State*>(dynamic_shared);
    long long tiles = (n + 31) / 32, stages = (d + COORDINATES - 1) / COORDINATES;
    long long shares = Term::HAS_SLOPES ? stages : 1;
    for (long long unit = blockIdx.x; unit < B * tiles * shares; unit += gridDim.x) {
        long long share = unit % shares, b = unit / shares / tiles, i0 = unit / shares % tiles * 32, i = i0 + lane;
        bool inside = i < n;
        long long kept = b * n + (inside ? i : 0);
        REAL row = term.row(kept);
        typename Term::State state = Term::State::empty();
        for (long long first = 0; first < m; first += sources) {
            REAL q[GROUP] = {0, 0, 0, 0}, value[GROUP], logit[GROUP], factor[GROUP];
            for (long long c = 1; c <= stages; c++) {
                long long k0 = (share + c) % stages * COORDINATES;
                __syncthreads();  // the last coordinates, or the merged states, have been read
                for (int t = threadIdx.x; t < COORDINATES * sources; t += blockDim.x) {
                    long long j = first + t / COORDINATES, k = k0 + t % COORDINATES;
                    y_tile[t % COORDINATES * sources + t / COORDINATES] =
                        j < m && k < d ? y[(b * m + j) * d + k] : REAL(0);
                }
                for (int t = threadIdx.x; t < COORDINATES * 32; t += blockDim.x) {
                    long long r = i0 + t / COORDINATES, k = k0 + t % COORDINATES;
                    x_tile[t / COORDINATES * (COORDINATES + 1) + t % COORDINATES] =
                        r < n && k < d ? x[(b * n + r) * d + k] : REAL(0);
                }
                if (c == 1 && int(threadIdx.x) < sources) {
                    long long j = first + threadIdx.x;
                    values[threadIdx.x] = j < m ? term.value(b * m + j) : REAL(0);
                    logits[threadIdx.x] = j < m ? term.logit(b * m + j) : -infinity();
                }
                __syncthreads();
#pragma unroll
                for (int k = 0; k < COORDINATES; k++) {
                    REAL own = x_tile[lane * (COORDINATES + 1) + k];
                    Four<REAL> other = groups[k * warps + warp];
#pragma unroll
                    for (int g = 0; g < GROUP; g++) {
                        REAL difference = own - other.at[g];
                        q[g] = multiply_add(difference, difference, q[g]);
                    }
                }
            }
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                value[g] = values[warp * GROUP + g];
                logit[g] = logits[warp * GROUP + g];
            }
            term.push(state, q, value, logit, row, factor);
            if constexpr (Term::HAS_SLOPES) {
#pragma unroll
                for (int k = 0; k < COORDINATES; k++) {
                    REAL own = x_tile[lane * (COORDINATES + 1) + k];
                    Four<REAL> other = groups[k * warps + warp];
#pragma unroll
                    for (int g = 0; g < GROUP; g++)
                        state.slope[k] = multiply_add(factor[g], own - other.at[g], state.slope[k]);
                }
            }
        }
        __syncthreads();
        parts[threadIdx.x] = state;
        __syncthreads();
        if (warp == 0 && inside) {
            for (int w = 1; w < warps; w++) state.merge(parts[w * 32 + lane]);
            if (share == 0) term.write(kept, state);
            if constexpr (Term::HAS_SLOPES) {
#pragma unroll
                for (int k = 0; k < COORDINATES; k++)
                    if (share * COORDINATES + k < d) term.write_slope(kept, share * COORDINATES + k, state.slope[k]);
            }
        }
    }
}
