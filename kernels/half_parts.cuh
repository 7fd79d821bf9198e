// uses: online_softmax.cuh half.cuh
// Floats as two numbers of half precision, and products of them on tensor cores.
//
// A block is PARTS = 32 neighbours of a row of floats. With its scale s, the power of 2 with which the largest of them over s
// is in [2^14, 2^15) in magnitude, x = s (high + low) up to
//
//     s max(2^-22 |x| / s, 2^-25)
//
// since each half has 11 bits, and none below 2^-24. high high + high low + low high is then a product but for
// 3 2^-22 of it, and for 2^-25 (|x| / s + |y| / t) s t. A block is stored as its 32 high parts and then the low ones. A row
// is padded with zeros to whole blocks. A scale is no less than the smallest normal number, and 0 in a block of zeros. A block
// with an infinity has NaN in its parts, so that no sum over it is a number.
//
// mma and asynchronous copies need compute capability 8.0: an older device is never asked.
constexpr int PARTS = 32;
constexpr int HALVES = 2 * PARTS, CHUNK = 8;  // of a block, and of the 16 bytes that are copied and loaded at once

#ifdef __CUDA_ARCH__
// c (16, 8) += a (16, 16) b (16, 8): halves.
__device__ inline void tensor_core_half(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// The same for bfloat16: the upper halves of floats.
__device__ inline void tensor_core_bfloat(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
// Four matrices of 8 x 8 halves from shared memory, as fragments; lane 8 k + i points to row i of matrix k.
__device__ inline void load_matrices(unsigned (&fragments)[4], const Half* row) {
#if __CUDA_ARCH__ >= 800
    unsigned at = unsigned(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(at)
                 : "memory");
#endif
}
// The same number, of which a compiler knows nothing: it does not take apart how it was made, so that what is a constant more
// needs no register of its own.
__device__ inline int opaque(int x) {
    asm("" : "+r"(x));
    return x;
}
// The same in a loop, which a compiler takes for another number each time, and computes what follows from it again.
__device__ inline long long again(long long x) {
    asm volatile("" : "+l"(x));
    return x;
}
// The largest of the numbers of all lanes.
__device__ inline unsigned largest(unsigned x) {
    unsigned most = 0;
#if __CUDA_ARCH__ >= 800
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(x));
#endif
    return most;
}
// Copy 16 bytes to shared memory, some time before await_copies says that they are there; to this thread, so that others
// need a barrier too.
__device__ inline void copy_ahead(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    unsigned at = unsigned(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
#endif
}
__device__ inline void end_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Bring the line of an address to the cache of the device.
__device__ inline void fetch(const void* at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
// Wait for all copies but those between the last `LEFT` times of end_copies.
template <int LEFT>
__device__ inline void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
#endif

// Write the parts of a block, whose numbers the lanes have, and its scale. The whole warp must call this. An instruction less
// where no number is negative, which is the sign bit.
template <bool ANY_SIGN = false>
__device__ inline void write_parts(REAL value, Half* parts, float* scale) {
    int lane = threadIdx.x % 32;
    float x = float(value);
    unsigned most = largest(__float_as_uint(ANY_SIGN ? fabsf(x) : x));
    int exponent = int(most >> 23) - 14;          // of the scale, biased by 127
    exponent = exponent < 1 ? 1 : exponent;
    bool finite = most < 0x7f800000u;
    float scaled = x * (finite ? __uint_as_float(unsigned(254 - exponent) << 23) : 1.0f);
    unsigned high = to_half(scaled), mine = high | to_half(scaled - of_half(high)) << 16;
    // An even lane writes two high parts, the odd one beside it their low parts.
    unsigned other = __shfl_xor_sync(FULL_WARP, mine, 1);
    unsigned two = lane % 2 ? other >> 16 | (mine & 0xffff0000u) : (mine & 0xffffu) | other << 16;
    reinterpret_cast<unsigned*>(parts)[lane % 2 * 16 + lane / 2] = two;
    if (lane == 0) *scale = !most ? 0.0f : finite ? __uint_as_float(unsigned(exponent) << 23) : 1.0f;
}
