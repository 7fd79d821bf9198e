// uses: online_softmax.cuh
// Sums and maxima over a warp in double, whatever REAL is: for what a result claims.

__device__ inline double warp_total(double x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}
__device__ inline double warp_highest(double x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmax(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}
