// The online log-sum-exp that the kernels share, and the reductions over a warp and over a block.
//
// Everything is in base 2: the hardware has exp2, and the factor log2(e) is folded into scales that are multiplied
// anyway. REAL (float or double) is defined on the command line of the compiler. NVRTC has no headers, hence no
// INFINITY and no limits.

#ifndef REAL
#define REAL float
#endif

// Dynamic shared memory; each kernel states its layout.
extern __shared__ __align__(16) unsigned char dynamic_shared[];

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int GROUP = 4;  // terms that are pushed at once
constexpr int MOST_THREADS = 512;  // per block: leaves each thread 128 registers, so that double never spills

// GROUP values that lie together, for one wide load.
template <class T>
struct alignas(16) Four {
    T at[GROUP];
};

template <class T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float lowest = -3.402823466e+38f;
    static constexpr float tiny = 1.175494351e-38f;
};
template <>
struct Limits<double> {
    static constexpr double lowest = -1.7976931348623157e+308;
    static constexpr double tiny = 2.2250738585072014e-308;
};

// Kernels with a warp (a thread) per item start here and step by the whole grid, so that any grid is right.
__device__ inline long long first_warp() {
    return blockIdx.x * (long long)(blockDim.x / 32) + threadIdx.x / 32;
}
__device__ inline long long all_warps() {
    return gridDim.x * (long long)(blockDim.x / 32);
}
__device__ inline long long first_thread() {
    return blockIdx.x * (long long)blockDim.x + threadIdx.x;
}
__device__ inline long long all_threads() {
    return gridDim.x * (long long)blockDim.x;
}

__device__ inline REAL infinity() {
    return REAL(__longlong_as_double(0x7ff0000000000000LL));
}

// With -ftz=true the float exp2f is one instruction of the exponential unit.
__device__ inline float power_of_two(float x) {
    return exp2f(x);
}
__device__ inline double power_of_two(double x) {
    return exp2(x);
}
__device__ inline float log_two(float x) {
    return log2f(x);
}
__device__ inline double log_two(double x) {
    return log2(x);
}
__device__ inline float larger(float x, float y) {
    return fmaxf(x, y);
}
__device__ inline double larger(double x, double y) {
    return fmax(x, y);
}
__device__ inline float smaller(float x, float y) {
    return fminf(x, y);
}
__device__ inline double smaller(double x, double y) {
    return fmin(x, y);
}
__device__ inline float multiply_add(float x, float y, float z) {
    return fmaf(x, y, z);
}
__device__ inline double multiply_add(double x, double y, double z) {
    return fma(x, y, z);
}

__device__ inline float magnitude(float x) {
    return fabsf(x);
}
__device__ inline double magnitude(double x) {
    return fabs(x);
}
__device__ inline float square_root(float x) {
    return sqrtf(x);
}
__device__ inline double square_root(double x) {
    return sqrt(x);
}
__device__ inline float nearest_whole(float x) {
    return rintf(x);
}
__device__ inline double nearest_whole(double x) {
    return rint(x);
}

__device__ inline REAL warp_sum(REAL x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_WARP, x, offset);
    return x;
}
__device__ inline REAL warp_maximum(REAL x) {
    for (int offset = 16; offset > 0; offset /= 2) x = larger(x, __shfl_xor_sync(FULL_WARP, x, offset));
    return x;
}

// log2 of a sum of powers of two, in one pass. The terms -inf and the empty sum need no guard anywhere else, because
// the shift starts at the lowest finite number: -inf - shift is -inf and never NaN.
struct OnlineSoftmax {
    static constexpr REAL MOST = 65536;
    REAL shift, sum;  // sum of 2^(x - shift); the shift is one of the terms, and none is larger by more than log2(MOST)

    __device__ static OnlineSoftmax empty() {
        return {Limits<REAL>::lowest, REAL(0)};
    }

    // One exp2 per term, of an even number of them. In float, whether terms are too large for the shift is seen from their sum,
    // which is infinite at the first group: one comparison for all, and a new shift is rare once the first groups have
    // passed. In double exp2 is long code, of which four more would take the registers: there the shift is the running maximum.
    template <int COUNT>
    __device__ void push(const REAL (&x)[COUNT]) {
        REAL more = sizeof(REAL) == sizeof(float) ? sum_of(x) : REAL(0);
        if (sizeof(REAL) == sizeof(double) || more > MOST) {
            REAL highest = x[0];
#pragma unroll
            for (int k = 1; k < COUNT; k++) highest = larger(highest, x[k]);
            if (highest > shift) {
                sum *= power_of_two(shift - highest);
                shift = highest;
            }
            more = sum_of(x);
        }
        sum += more;
    }

    template <int COUNT>
    __device__ REAL sum_of(const REAL (&x)[COUNT]) const {
        REAL all = power_of_two(x[0] - shift) + power_of_two(x[1] - shift);
#pragma unroll
        for (int k = 2; k < COUNT; k += 2) all += power_of_two(x[k] - shift) + power_of_two(x[k + 1] - shift);
        return all;
    }

    __device__ void merge(const OnlineSoftmax& other) {
        REAL highest = larger(shift, other.shift);
        sum = sum * power_of_two(shift - highest) + other.sum * power_of_two(other.shift - highest);
        shift = highest;
    }

    // All lanes end with the warp's state. The largest shift first: one exp2 per lane instead of one or two per merge.
    __device__ void merge_warp() {
        REAL highest = warp_maximum(shift);
        sum = warp_sum(sum * power_of_two(shift - highest));
        shift = highest;
    }

    // -inf where every term was zero, as log2(0) is -inf.
    __device__ REAL value() const {
        return shift + log_two(sum);
    }
};

// A sum that is already scaled, with the same verbs.
struct PlainSum {
    REAL sum;

    __device__ static PlainSum empty() {
        return {REAL(0)};
    }
    __device__ void merge(const PlainSum& other) {
        sum += other.sum;
    }
    __device__ void merge_warp() {
        sum = warp_sum(sum);
    }
};

struct Minimum {
    REAL least;

    __device__ static Minimum empty() {
        return {infinity()};
    }
    __device__ void merge(const Minimum& other) {
        least = smaller(least, other.least);
    }
    __device__ void merge_warp() {
        least = -warp_maximum(-least);
    }
};

// All threads of the block end with the state of the block. All threads of the block must call this.
template <class State>
__device__ State merge_block(State state) {
    __shared__ State parts[MOST_THREADS / 32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    state.merge_warp();
    if (warps == 1) return state;
    if (lane == 0) parts[warp] = state;
    __syncthreads();
    state = lane < warps ? parts[lane] : State::empty();
    state.merge_warp();
    __syncthreads();  // the next call writes 'parts' again
    return state;
}
