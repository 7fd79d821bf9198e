// uses: convergence.cuh
// Half-steps of a pair in the log domain, by one block, on a tile of its costs: right for any range of C / eps.
//
// An entry is summed by LANES lanes, which merge in 3 shuffles; a half-step of n by m entries needs n * m exp2 and as many
// loads of the tile. The logit of an entry without weight is -inf, and stays.

constexpr int LANES = 8;  // of a warp, that sum one entry together

// One side of a pair: its logits log2(weight) + potential * log2(e) / eps, its weights, and the stride of the tile.
struct Points {
    int size, stride;
    const REAL* weights;
    REAL* logits;
};

// log2 sum_s 2^(logits_s) K_ks of one entry, in all LANES lanes of it. The whole warp must call this.
__device__ inline REAL log_sum(const REAL* tile, REAL scale, const Points& kept, const Points& summed, int k,
                               bool inside) {
    int lane = threadIdx.x % LANES;
    OnlineSoftmax state = OnlineSoftmax::empty();
    for (int first = lane; first < summed.size; first += GROUP * LANES) {
        REAL term[GROUP];
#pragma unroll
        for (int c = 0; c < GROUP; c++) {
            int s = first + c * LANES;
            bool there = inside && s < summed.size;
            term[c] = there ? multiply_add(tile[k * kept.stride + s * summed.stride], -scale, summed.logits[s])
                            : -infinity();
        }
        state.push(term);
    }
    REAL highest = state.shift;
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        highest = larger(highest, __shfl_xor_sync(FULL_WARP, highest, offset));
    REAL sum = state.sum * power_of_two(state.shift - highest);
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, offset);
    return highest + log_two(sum);
}

// Update the kept side by omega, or only measure it; return the deviation of its old values, as mass, in all threads.
// All threads of the block must call this.
__device__ REAL half_step(const REAL* tile, REAL scale, const Points& kept, const Points& summed, REAL omega,
                          bool measure) {
    REAL deviation = 0;
    int per_block = blockDim.x / LANES, padded = (kept.size + per_block - 1) / per_block * per_block;
    for (int k = threadIdx.x / LANES; k < padded; k += per_block) {
        bool inside = k < kept.size;
        REAL sum = log_sum(tile, scale, kept, summed, inside ? k : 0, inside);
        if (inside && threadIdx.x % LANES == 0 && kept.weights[k] > 0) {
            REAL weight = kept.weights[k], plain = log_two(weight) - sum;
            REAL ratio = power_of_two(kept.logits[k] - plain);  // old scaling / plain new one
            REAL taken = relaxation(omega, ratio);
            deviation += weight * magnitude(1 - (measure ? ratio : taken));
            if (!measure) kept.logits[k] = plain + log_two(taken);
        }
    }
    PlainSum total = merge_block(PlainSum{deviation});  // its barriers also show the new logits to all
    __syncthreads();
    return total.sum;
}
