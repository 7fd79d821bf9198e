// The baseline of kernels.py: the reduction of T. Viehmann, "Implementation of batched Sinkhorn iterations for
// entropy-regularized Wasserstein loss" (2019), section 4, written anew from its description.
//
//     out_bj = w_bj - logsumexp_i (in_bi - C_ij / eps),        in = log u, w = log nu, out = log v (or the other way round)
//
// As there: one block per output (b, j), the reduction over i split amongst its threads, maximum and sum in one pass, and
// no tiling, so that every problem reads the whole of C again.

#define WARP 32

struct Partial {
    REAL max, sum;  // sum_i exp(x_i - max); (-inf, 0) for no terms
};

__device__ REAL minus_infinity() { return (REAL)__longlong_as_double((long long)0xfff0000000000000ULL); }

__device__ Partial merge(Partial s, Partial t) {
    const REAL max = s.max > t.max ? s.max : t.max;
    if (max == minus_infinity()) return s;  // neither has a term; -inf - -inf would be NaN
    return {max, s.sum * (REAL)exp(s.max - max) + t.sum * (REAL)exp(t.max - max)};
}

__device__ Partial add(Partial s, REAL x) {
    if (x > s.max) return {x, s.sum * (REAL)exp(s.max - x) + 1};
    if (x > minus_infinity()) s.sum += (REAL)exp(x - s.max);
    return s;
}

__device__ Partial merge_warp(Partial s) {
    for (int step = WARP / 2; step > 0; step /= 2)
        s = merge(s, {__shfl_xor_sync(0xffffffffu, s.max, step), __shfl_xor_sync(0xffffffffu, s.sum, step)});
    return s;
}

extern "C" __global__ void report_half_step(REAL* out, const REAL* C, const REAL* in, const REAL* w, REAL rate,
                                            int outputs, int inputs, int out_stride, int in_stride) {
    // out, w (B, outputs); in (B, inputs); rate = 1 / eps; C_ij at i * in_stride + j * out_stride
    // grid B * outputs, block a multiple of 32
    __shared__ Partial partial[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const long long b = blockIdx.x / outputs, j = blockIdx.x % outputs;

    Partial s = {minus_infinity(), 0};
    for (int i = threadIdx.x; i < inputs; i += blockDim.x)
        s = add(s, in[b * inputs + i] - C[(long long)i * in_stride + j * out_stride] * rate);
    s = merge_warp(s);
    if (lane == 0) partial[warp] = s;
    __syncthreads();
    if (warp == 0) {
        s = merge_warp(lane < warps ? partial[lane] : Partial{minus_infinity(), 0});
        if (lane == 0) out[b * outputs + j] = w[b * outputs + j] - (s.max + (REAL)log(s.sum));
    }
}
