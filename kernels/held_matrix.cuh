// uses: online_softmax.cuh
// A matrix of a small problem in the registers of a block, and its products with a vector of either side.
//
// Thread (i, j) of 8 x 16 holds the entries of rows i, i + 8, ... and of columns j, j + 16, ..., and multiplies both
// sides with them, so that a product reads nothing of the matrix from shared memory. Sums of 8 or 16 threads for each
// entry, the parts, go through shared memory. More threads would have more parts.

constexpr int HELD_HIGH = 8, HELD_WIDE = 16, HELD_THREADS = HELD_HIGH * HELD_WIDE;
constexpr int HELD_ROWS = sizeof(REAL) == sizeof(float) ? 14 : 8, HELD_COLUMNS = HELD_ROWS / 2;  // of a thread
constexpr int HELD_BINS = HELD_ROWS * HELD_HIGH;
// From the parts of one thread to those of the next: the stores of a warp meet no bank twice in float.
constexpr int COLUMN_PARTS = HELD_BINS, ROW_PARTS = HELD_BINS + 2;
// All threads read parts, those behind the last bin too, of an entry without weight.
constexpr int HELD_PARTS = (HELD_WIDE - 1) * ROW_PARTS + HELD_THREADS;

struct HeldMatrix {
    REAL at[HELD_ROWS][HELD_COLUMNS];

    // parts (8, COLUMN_PARTS): sums over the rows of a thread of vector_i times entry (i, j).
    __device__ void multiply_columns(REAL* parts, const REAL* vector) const {
        int i = threadIdx.x / HELD_WIDE, j = threadIdx.x % HELD_WIDE;
        REAL factor[HELD_ROWS];
#pragma unroll
        for (int r = 0; r < HELD_ROWS; r++) factor[r] = vector[i + r * HELD_HIGH];
#pragma unroll
        for (int c = 0; c < HELD_COLUMNS; c++) {
            REAL sum = 0;
#pragma unroll
            for (int r = 0; r < HELD_ROWS; r++) sum = multiply_add(factor[r], at[r][c], sum);
            parts[i * COLUMN_PARTS + j + c * HELD_WIDE] = sum;
        }
    }

    // parts (16, ROW_PARTS): sums over the columns of a thread of vector_j times entry (i, j).
    __device__ void multiply_rows(REAL* parts, const REAL* vector) const {
        int i = threadIdx.x / HELD_WIDE, j = threadIdx.x % HELD_WIDE;
        REAL factor[HELD_COLUMNS];
#pragma unroll
        for (int c = 0; c < HELD_COLUMNS; c++) factor[c] = vector[j + c * HELD_WIDE];
#pragma unroll
        for (int r = 0; r < HELD_ROWS; r++) {
            REAL sum = 0;
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++) sum = multiply_add(factor[c], at[r][c], sum);
            parts[j * ROW_PARTS + i + r * HELD_HIGH] = sum;
        }
    }
};

// The sum of the parts of an entry, which are all read before any is waited for.
template <int PARTS, int STEP>
__device__ inline REAL sum_of_held(const REAL* part) {
    REAL x[PARTS];
#pragma unroll
    for (int k = 0; k < PARTS; k++) x[k] = part[k * STEP];
#pragma unroll
    for (int k = 1; k < PARTS; k *= 2)
#pragma unroll
        for (int i = 0; i < PARTS; i += 2 * k) x[i] += x[i + k];
    return x[0];
}
