// uses: online_softmax.cuh half.cuh
// Three ways in which a reduction over one axis of the cost goes through memory, for any term.
//
// A Term defines the sum: its State, the values it reads for one summed index (Summed), and the output.
//     Summed nothing()                  adds nothing to any state
//     Summed read(b, s)                 of problem b at the summed index s
//     State  start(b, k)                of the output at the kept index k
//     void   push(state, cost, summed)  GROUP costs and as many Summed
//     void   write(b, k, state)
// With axis 1 row i of C is kept and j is summed over; with axis 0 column j is kept and i is summed over. Offsets are
// 64-bit.

// A cost as it is stored: in half precision too.
__device__ inline REAL to_real(REAL x) {
    return x;
}
__device__ inline REAL to_real(Half half) {
    return of_half(half.bits);
}

// The costs of problem b: the shared matrix (stride 0), or its own, which cost_index finds after problems were dropped.
template <class Cost>
__device__ inline const Cost* cost_of(const Cost* C, const long long* cost_index, long long cost_stride, long long b) {
    return C + (cost_index ? cost_index[b] : b) * cost_stride;
}

// Axis 1, one block per row: threads read consecutive j, GROUP loads in flight each.
template <class Term, class Cost>
__device__ void reduce_rows(const Term& term, const Cost* C, const long long* cost_index, long long cost_stride,
                            long long B, long long n, long long m) {
    for (long long row = blockIdx.x; row < B * n; row += gridDim.x) {
        long long b = row / n, i = row % n;
        const Cost* c = cost_of(C, cost_index, cost_stride, b) + i * m;
        typename Term::State state = term.start(b, i);
        for (long long first = threadIdx.x; first < m; first += GROUP * blockDim.x) {
            REAL cost[GROUP];
            typename Term::Summed summed[GROUP];
#pragma unroll
            for (int k = 0; k < GROUP; k++) {
                long long j = first + k * (long long)blockDim.x;
                cost[k] = j < m ? to_real(c[j]) : REAL(0);
                summed[k] = j < m ? term.read(b, j) : Term::nothing();
            }
            term.push(state, cost, summed);
        }
        state = merge_block(state);
        if (threadIdx.x == 0) term.write(b, i, state);
    }
}

// Axis 0, one block per problem and 32 columns: lanes read consecutive j, the warps share out i and merge at the end.
// Dynamic shared memory: one State per thread.
template <class Term, class Cost>
__device__ void reduce_columns(const Term& term, const Cost* C, const long long* cost_index, long long cost_stride,
                               long long B, long long n, long long m) {
    typename Term::State* parts = reinterpret_cast<typename Term::State*>(dynamic_shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    long long tiles = (m + 31) / 32;
    for (long long tile = blockIdx.x; tile < B * tiles; tile += gridDim.x) {
        long long b = tile / tiles, j = tile % tiles * 32 + lane;
        bool inside = j < m;
        const Cost* c = cost_of(C, cost_index, cost_stride, b) + (inside ? j : 0);
        typename Term::State state = term.start(b, inside ? j : 0);
        for (long long first = warp; first < n; first += GROUP * warps) {
            REAL cost[GROUP];
            typename Term::Summed summed[GROUP];
#pragma unroll
            for (int k = 0; k < GROUP; k++) {
                long long i = first + k * warps;
                cost[k] = i < n ? to_real(c[i * m]) : REAL(0);
                summed[k] = i < n ? term.read(b, i) : Term::nothing();
            }
            term.push(state, cost, summed);
        }
        parts[threadIdx.x] = state;
        __syncthreads();
        if (warp == 0 && inside) {
            for (int w = 1; w < warps; w++) state.merge(parts[w * 32 + lane]);
            term.write(b, j, state);
        }
        __syncthreads();  // the next tile writes 'parts' again
    }
}

// Either axis, a cost that all problems share: a block computes TILE_PROBLEMS problems per warp and TILE kept indices,
// one per lane, and reads each TILE x TILE piece of C once for all of them. The piece is read along j for either axis,
// and is used by row or by column from shared memory (rows of TILE + 1: no bank conflict either way), so no transposed
// copy is needed. Per term and thread: 1 exp2 + 5 arithmetic instructions + 1/2 shared load (4 costs and 4 vectors for
// 16 terms), below the 8 issue slots of one exp2 on the exponential unit, which is therefore the bound. Dynamic shared
// memory: TILE * (TILE + 1) REAL, then warps * TILE_PROBLEMS * TILE Summed.
constexpr int TILE = 32, TILE_PROBLEMS = 4;

template <int axis, class Term, class Cost>
__device__ void reduce_tiles(const Term& term, const Cost* C, long long B, long long n, long long m) {
    typedef typename Term::Summed Summed;
    typedef typename Term::State State;
    REAL* piece = reinterpret_cast<REAL*>(dynamic_shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Summed* values = reinterpret_cast<Summed*>(piece + TILE * (TILE + 1)) + warp * TILE_PROBLEMS * TILE;
    const Four<Summed>* groups = reinterpret_cast<const Four<Summed>*>(values);
    long long kept = axis ? n : m, summed = axis ? m : n;
    long long kept_tiles = (kept + TILE - 1) / TILE, step = (long long)warps * TILE_PROBLEMS;
    long long tiles = kept_tiles * ((B + step - 1) / step);
    for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        long long b = tile / kept_tiles * step + warp * TILE_PROBLEMS, k = tile % kept_tiles * TILE + lane;
        State state[TILE_PROBLEMS];
#pragma unroll
        for (int r = 0; r < TILE_PROBLEMS; r++)
            state[r] = b + r < B && k < kept ? term.start(b + r, k) : State::empty();
        for (long long first = 0; first < summed; first += TILE) {
            __syncthreads();  // the last piece has been used
            long long i0 = axis ? k - lane : first, j = (axis ? first : k - lane) + lane;
            for (int r = warp; r < TILE; r += warps)
                piece[r * (TILE + 1) + lane] = i0 + r < n && j < m ? to_real(C[(i0 + r) * m + j]) : REAL(0);
#pragma unroll
            for (int r = 0; r < TILE_PROBLEMS; r++)
                values[r * TILE + lane] =
                    b + r < B && first + lane < summed ? term.read(b + r, first + lane) : Term::nothing();
            __syncthreads();
            for (int s = 0; s < TILE; s += GROUP) {
                REAL cost[GROUP];
#pragma unroll
                for (int c = 0; c < GROUP; c++)
                    cost[c] = axis ? piece[lane * (TILE + 1) + s + c] : piece[(s + c) * (TILE + 1) + lane];
#pragma unroll
                for (int r = 0; r < TILE_PROBLEMS; r++) {
                    Four<Summed> group = groups[(r * TILE + s) / GROUP];
                    term.push(state[r], cost, group.at);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < TILE_PROBLEMS; r++)
            if (b + r < B && k < kept) term.write(b + r, k, state[r]);
    }
}
