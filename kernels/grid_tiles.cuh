// uses: online_softmax.cuh
// Products with the matrix of one axis of a grid, in tiles: for any way to read the factor, and any use of the sums.
//
// K (n, n) of an axis with n cells is symmetric. The factor is `problems` arrays (lines, n), that axis last. The sum for
// array p, cell i and line l goes to p out_problem + i out_cell + l out_line: with (lines n, lines, 1) the axis becomes
// the first of its array, so that after a pass for each axis all are in their places. A grid of one axis is one array
// whose lines are its problems, with (0, 1, n).
//
// A block makes tiles of 32 x 32 sums from 32 cells at a time, a thread 4 x 4 of them: 16 multiply-adds for two wide loads
// of shared memory. To bring 16 entries of each operand there takes a thread some 300 instructions beside the 600 of its 512
// multiply-adds, with 16 loads in flight. The sums then go through shared memory, so that a thread has all its sums of one line, whose
// problem is looked up once, and that lanes write lines side by side. Right for any grid; a block has PRODUCT_THREADS.
// Lines that are missing from a tile cost as much as others: an axis with few lines leaves lanes idle.
//
// An Input says what is read of the factor.
//     void begin(of_line, p, l0, shape)   the whole block: a number for each of 32 lines, in shared memory
//     REAL read(at, of_line)              of the factor's entry `at`
// An Output says what becomes of the sums.
//     Line line(b)                        what all sums of a line share, for problem b
//     Line none()                         the same for no line
//     void write(line, place, sum)        one sum
//     void end(line, lives, together, part)   the whole warp: after the last sum of a line, if there `lives` one; whether
//                                         all lines of the warp are `together` in one problem, and the number of the warp
//                                         among the 2 ceil(n / 32) ceil(lines / 32) of that problem
constexpr int TILE = 32, EACH = 4, PRODUCT_THREADS = (TILE / EACH) * (TILE / EACH), STEP = PRODUCT_THREADS / 32;

struct Shape {
    long long problems, lines, n, out_problem, out_cell, out_line;

    __device__ bool one_axis() const {
        return out_problem == 0;
    }
    __device__ long long problem(long long p, long long l) const {
        return one_axis() ? l : p;
    }
};

// Where a sum belongs: its entry of the output, its line among all lines, its cell, the number of its line, and whether
// it is the first of its problem.
struct Place {
    long long at, line, cell;
    REAL of_line;
    bool first;
};

// How many of `count` are in a tile.
__device__ inline int least(long long count) {
    return count < TILE ? int(count) : TILE;
}

template <class Input, class Output>
__device__ void multiply_axis(const REAL* K, const Shape& shape, const Input& input, const Output& output) {
    __shared__ Four<REAL> of_K[TILE][TILE / EACH], of_x[TILE][TILE / EACH + 1];  // [summed cell][kept cell or line]
    __shared__ REAL of_line[TILE];
    const long long lines = shape.lines, n = shape.n;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = threadIdx.x / (TILE / EACH), column = threadIdx.x % (TILE / EACH);
    long long cell_tiles = (n + TILE - 1) / TILE, line_tiles = (lines + TILE - 1) / TILE;
    for (long long unit = blockIdx.x; unit < shape.problems * cell_tiles * line_tiles; unit += gridDim.x) {
        long long p = unit / (cell_tiles * line_tiles), rest = unit % (cell_tiles * line_tiles);
        long long i0 = rest / line_tiles * TILE, l0 = rest % line_tiles * TILE;
        __syncthreads();  // the sums of the tile before, and the numbers of its lines, have been read
        input.begin(of_line, p, l0, shape);
        REAL total[EACH][EACH] = {};
        int kept = least(n - i0), lines_here = least(lines - l0);
        for (long long j0 = 0; j0 < n; j0 += TILE) {
            int summed = least(n - j0);
            bool in_K = lane < kept, in_x = lane < summed;
            const REAL* from_K = K + (j0 + warp) * n + i0 + lane;  // K is symmetric: a row of it is a column
            long long from_x = (p * lines + l0 + warp) * n + j0 + lane;
            __syncthreads();  // the cells before have been read
#pragma unroll 8
            for (int k = 0; k < TILE; k += STEP) {
                REAL kernel = in_K && k + warp < summed ? from_K[0] : REAL(0);
                REAL factor = in_x && k + warp < lines_here ? input.read(from_x, of_line[k + warp]) : REAL(0);
                of_K[k + warp][lane / EACH].at[lane % EACH] = kernel;
                of_x[lane][(k + warp) / EACH].at[(k + warp) % EACH] = factor;
                from_K += STEP * n, from_x += STEP * n;
            }
            __syncthreads();
#pragma unroll 8
            for (int k = 0; k < TILE; k++) {
                Four<REAL> kernel = of_K[k][row], factor = of_x[k][column];
#pragma unroll
                for (int s = 0; s < EACH; s++)
#pragma unroll
                    for (int t = 0; t < EACH; t++)
                        total[s][t] = multiply_add(kernel.at[s], factor.at[t], total[s][t]);
            }
        }
        __syncthreads();  // the last cells have been read
#pragma unroll
        for (int s = 0; s < EACH; s++) {
            Four<REAL> sums;
#pragma unroll
            for (int t = 0; t < EACH; t++) sums.at[t] = total[s][t];
            of_x[row * EACH + s][column] = sums;
        }
        __syncthreads();
        long long l = l0 + lane;
        bool lives = l < lines;
        typename Output::Line line = lives ? output.line(shape.problem(p, l)) : Output::none();
#pragma unroll 1  // the code of some outputs is long
        for (int k = warp; k < TILE; k += PRODUCT_THREADS / 32) {
            if (!lives || i0 + k >= n) continue;
            long long at = p * shape.out_problem + (i0 + k) * shape.out_cell + l * shape.out_line;
            bool first = i0 + k == 0 && (l == 0 || shape.one_axis());
            Place place = {at, p * lines + l, i0 + k, of_line[lane], first};
            output.write(line, place, of_x[k][lane / EACH].at[lane % EACH]);
        }
        output.end(line, lives, !shape.one_axis(), rest * (PRODUCT_THREADS / 32) + warp);
    }
}

// An output that is the sums.
struct Sums {
    REAL* out;

    struct Line {};
    __device__ Line line(long long) const {
        return {};
    }
    __device__ static Line none() {
        return {};
    }
    __device__ void write(Line&, const Place& place, REAL sum) const {
        out[place.at] = sum;
    }
    __device__ void end(const Line&, bool, bool, long long) const {}
};
