// uses: pair_steps.cuh, totals.cuh
// What the kernels for pairs of clouds of unequal sizes share: where a pair is, and its costs and potentials in double.

constexpr double LOWEST = -1.7976931348623157e+308;
constexpr double LOG2_E = 1.44269504088896340736;
constexpr int COLUMNS = 6;

// A row of the table (pairs, COLUMNS) of those to be solved: the pair, its first point and number of points of each
// side, and its tile, a place in `scratch` or -1 for shared memory.
struct Place {
    long long pair, row, column, tile;
    int n, m;

    __device__ static Place of(const long long* table, long long at) {
        const long long* own = table + at * COLUMNS;
        return {own[0], own[1], own[3], own[5], int(own[2]), int(own[4])};
    }
};

// Two sums of a block.
struct Sums {
    double x, y;

    __device__ static Sums empty() {
        return {0, 0};
    }
    __device__ void merge_warp() {
        x = warp_total(x), y = warp_total(y);
    }
};

// Two maxima of a block.
struct Most {
    double x, y;

    __device__ static Most empty() {
        return {LOWEST, LOWEST};
    }
    __device__ void merge_warp() {
        x = warp_highest(x), y = warp_highest(y);
    }
};

// Costs between the points of a pair: coordinate c of point i of x is x[c * x_stride + i].
struct Between {
    const double *x, *y;
    long long x_stride, y_stride, d;
    int cityblock, root;
    double factor;

    __device__ double cost(int i, int j) const {
        double sum = 0;
#pragma unroll 1
        for (long long c = 0; c < d; c++) {
            double step = x[c * x_stride + i] - y[c * y_stride + j];
            sum = cityblock ? sum + fabs(step) : fma(step, step, sum);
        }
        return (root ? sqrt(sum) : sum) * factor;
    }
};

// One side of a pair in double: its weights (size,), their sum, and its potentials; `light` says where they are 0 in
// REAL.
struct Exact {
    int size;
    const double* weights;
    double mass;
    double* potential;
    const REAL* light;

    __device__ double weight(int k) const {
        return weights[k] / mass;
    }
};

// The soft minimum of the costs of point k over the points of the other side, by a warp.
template <bool ROWS>
__device__ inline double soft_minimum(const Between& between, const Exact& summed, int k, double scale) {
    double highest = LOWEST, sum = 0;
#pragma unroll 1
    for (int s = threadIdx.x % 32; s < summed.size; s += 32) {
        if (!(summed.light[s] > 0)) continue;
        double term = (summed.potential[s] - (ROWS ? between.cost(k, s) : between.cost(s, k))) * scale;
        if (term > highest) {
            sum *= exp2(highest - term);
            highest = term;
        }
        sum += summed.weight(s) * exp2(term - highest);
    }
    double top = warp_highest(highest);
    sum = warp_total(sum * exp2(highest - top));
    return -(top + log2(sum)) / scale;
}
