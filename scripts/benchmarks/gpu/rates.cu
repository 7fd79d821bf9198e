// What the device can do at best, to compare the kernels with: exponentials per second.

extern "C" __global__ void exp_rate(REAL* out, int rounds) {
    // out (grid * block,); 8 independent chains per thread, so that the latency of one is hidden behind the others
    REAL x[8];
    #pragma unroll
    for (int k = 0; k < 8; k++) x[k] = (REAL)(threadIdx.x + k) / 1024;
    for (int round = 0; round < rounds; round++) {
        #pragma unroll
        for (int k = 0; k < 8; k++) x[k] = exp2(-x[k]);  // falls to a fixed point near 0.64: no overflow, no denormals
    }
    REAL sum = 0;
    #pragma unroll
    for (int k = 0; k < 8; k++) sum += x[k];
    out[(long long)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
