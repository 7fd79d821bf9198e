// uses: scaling.cuh
// A small problem in the shared memory of a block, for iterate.cu: its sides, and what K absorbs of its potentials.

// Four scalings in one shared load; rows of scalings are padded to it, and so are K's rows, with zeros.
__device__ inline int padded(int size) {
    return (size + GROUP - 1) / GROUP * GROUP;
}

// Rows of K begin on other banks: an odd number of wide loads apart.
__device__ inline int kernel_stride(int columns) {
    return sizeof(REAL) == sizeof(double) ? columns + 2 : columns + (columns / GROUP % 2 ? 0 : GROUP);
}

__device__ inline int smaller_int(int x, int y) {
    return x < y ? x : y;
}

__device__ inline int larger_int(int x, int y) {
    return x > y ? x : y;
}

struct IterateArguments {
    REAL *u, *p, *v, *q, *deviation;
    double* gauge;
    StopState* states;
    long long* taken;
    const REAL *C, *cost_minimum;
    const long long* cost_index;
    const REAL *a, *b, *omega;
    const double *mass, *own_rules;
    StopRules rules;
    double cost_scale;
    int method, count, checks, earlier_checks;
    long long cost_stride, B;
    int n, m;
};

// One side of a tile: its bins, and where they lie in dynamic shared memory, in REALs: scalings, logits and weights
// problem by problem in rows of `width`, the logarithms of the powers of 2 that K has absorbed, and the deviations.
struct Side {
    int size, width, scaling, logit, weights, absorbed, deviation;
    int lanes, slices, chunk;  // where it is kept: threads for a slice, slices of the other side, entries of each

    __device__ void share(int other_width) {
        lanes = width / GROUP;
        slices = larger_int(1, smaller_int(int(blockDim.x) / lanes, other_width / GROUP));
        chunk = (other_width / GROUP + slices - 1) / slices * GROUP;
    }
};

// Take the whole part of the logarithms of exp(f / eps) out of the scalings of a side; K has to be made anew.
__device__ inline void absorb(REAL* shared, const Side& side) {
    for (int k = threadIdx.x; k < side.width; k += blockDim.x) {
        REAL weight = shared[side.weights + k], logit = shared[side.logit + k], old = shared[side.absorbed + k];
        if (!(weight > 0) || !(magnitude(logit) < infinity())) continue;
        REAL by = nearest_whole(logit - log_two(weight));
        shared[side.scaling + k] = moved(shared[side.scaling + k], logit - by, old - by);
        shared[side.absorbed + k] = by;
    }
}

// An entry of K times 2^by for a whole number `by`. It is +inf where it exceeds what the certificate allows for.
__device__ inline REAL absorbed_entry(REAL cost, double cost_scale, REAL by) {
    REAL scale = REAL(cost_scale), rest = REAL(cost_scale - double(scale));
    REAL product = cost * scale;
    if (!(cost < infinity())) return 0;
    if (!(product < REAL(4194304))) return by > 0 ? infinity() : REAL(0);  // digits of the fraction end there
    REAL whole = nearest_whole(product);
    REAL fraction = (product - whole) + multiply_add(cost, rest, multiply_add(cost, scale, -product));
    REAL entry = power_of_two(Range<REAL>::SHIFT + by - whole) * power_of_two(-fraction);
    return entry <= 2 * power_of_two(REAL(Range<REAL>::SHIFT)) ? entry : infinity();
}
