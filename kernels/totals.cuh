// uses: online_softmax.cuh
// Sums and maxima in double, whatever REAL is: for what a result claims.

__device__ inline double warp_total(double x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}
__device__ inline double warp_highest(double x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmax(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

struct Total {
    double sum;

    __device__ static Total empty() {
        return {0};
    }
    __device__ void merge_warp() {
        sum = warp_total(sum);
    }
};

// All threads of the block end with the sum, and must call this.
__device__ inline double block_total(double x) {
    return merge_block(Total{x}).sum;
}
