// A number of half precision, and what turns it into a float and back: an instruction each. NVRTC has no fp16 header. Numbers below
// the smallest normal half are kept, whatever -ftz says of floats.
struct Half {
    unsigned short bits;
};

#ifdef __CUDA_ARCH__
__device__ inline unsigned to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ inline float of_half(unsigned half) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short)half));
    return x;
}
#endif
