// uses: held_matrix.cuh, totals.cuh
// adjoint_held: what adjoint_at_once (at_once.cu) does, for problems of up to HELD_BINS bins on either side, with the
// density of the plan in registers.
//
// One block per problem. Thread k has entry k of both sides, and of all vectors. The marginal system is solved as in
// marginal_system.cuh, with the rows eliminated: an iteration takes two products from registers and two totals in
// double, which meet at 6 barriers. These bound it, and what a block waits for: see tests/wheels/waits.py. An
// entry of C is read once and takes some 20 instructions in double in all. Right for any grid; the block is
// HELD_THREADS.

constexpr double LN2 = 0.69314718055994530942;
constexpr int HELD_WARPS = HELD_THREADS / 32;

struct Pair {
    double x, y;
};

// Dynamic shared memory of a block; `held_adjoint_memory` in cusink/backends/cupy/fused_memory.py counts the same.
struct AdjointMemory {
    double f[HELD_THREADS], g[HELD_THREADS];
    Pair of_rows[HELD_THREADS];                   // sums of a row; then the solution x and y
    Pair of_columns[HELD_WARPS][HELD_THREADS];    // the same of a column, by the rows of a warp
    Pair totals[2][HELD_WARPS];
    REAL a[HELD_THREADS], b[HELD_THREADS], vector[HELD_THREADS], parts[HELD_PARTS];
};

// What thread k has of entry k of a side: its weight, 1 over the sum of its row or column of E times the other side's
// weights, the right-hand side, and the unknown.
struct AdjointEntry {
    REAL weight, factor, right, unknown;

    __device__ double mass() const {
        return weight > 0 ? double(weight) / double(factor) : 0;
    }
};

struct HeldSystem {
    HeldMatrix E;
    AdjointMemory& memory;
    AdjointEntry row, column;
    int turn;

    // Means of v under the plan over the partners of a row; v is of the columns.
    __device__ REAL mean_of_row(REAL v) {
        memory.vector[threadIdx.x] = column.weight * v;
        __syncthreads();
        E.multiply_rows(memory.parts, memory.vector);
        __syncthreads();
        return row.factor * sum_of_held<HELD_WIDE, ROW_PARTS>(memory.parts + threadIdx.x);
    }
    __device__ REAL mean_of_column(REAL v) {
        memory.vector[threadIdx.x] = row.weight * v;
        __syncthreads();
        E.multiply_columns(memory.parts, memory.vector);
        __syncthreads();
        return column.factor * sum_of_held<HELD_HIGH, COLUMN_PARTS>(memory.parts + threadIdx.x);
    }

    // Sums over all threads. Two calls write to two places, and two calls later all have read the first.
    __device__ Pair total(double x, double y) {
        x = warp_total(x), y = warp_total(y);
        turn ^= 1;
        if (threadIdx.x % 32 == 0) memory.totals[turn][threadIdx.x / 32] = {x, y};
        __syncthreads();
        Pair sum = {0, 0};
#pragma unroll
        for (int w = 0; w < HELD_WARPS; w++) sum.x += memory.totals[turn][w].x, sum.y += memory.totals[turn][w].y;
        return sum;
    }

    // As MarginalSystem::solve. Masses are relative to the squares of the right-hand sides, so that sums of squares and
    // their quotients are in the range of REAL.
    __device__ bool solve(double tol, int max_iter, int rounds) {
        double mass = column.mass();
        Pair sizes = total(mass * column.right * column.right + row.mass() * row.right * row.right, mass);
        double size = sizes.x > 0 ? sizes.x : 1, one_over_whole = size / sizes.y, target = tol * tol, reached = 0;
        REAL residual = 0;
        mass /= size;
        column.unknown = 0;
#pragma unroll 1
        for (int attempt = 0; attempt <= rounds; attempt++) {
            row.unknown = row.right - mean_of_row(column.unknown);
            residual = column.right - mean_of_column(row.unknown) - column.unknown;
            residual -= REAL(total(mass * residual, 0).x * one_over_whole);
            reached = total(mass * residual * residual, 0).x;
            if (reached <= target || attempt == rounds || !(size < 1e300)) break;
            REAL left = column.weight > 0 ? residual : REAL(0), direction = left;
            double now = reached;
#pragma unroll 1
            for (int turn = 0; turn < max_iter && now > target / 4; turn++) {
                REAL image = direction - mean_of_column(mean_of_row(direction));
                double curvature = total(mass * direction * image, 0).x;
                if (!(curvature > 0)) break;
                REAL length = REAL(now) / REAL(curvature);
                column.unknown += length * direction, left -= length * image;
                // The first sum is what rounding has added of constants, which the system does not see.
                Pair of_left = total(mass * left, mass * left * left);
                double drift = of_left.x * one_over_whole, next = of_left.y - drift * of_left.x;
                left = column.weight > 0 ? left - REAL(drift) : REAL(0);
                direction = left + REAL(next) / REAL(now) * direction;
                now = next;
            }
        }
        column.unknown += residual;  // one fixed-point step defines the unknown of empty bins
        row.unknown = row.right - mean_of_row(column.unknown);
        return reached <= target;
    }
};

// Arguments as those of adjoint_at_once.
extern "C" __global__ void __launch_bounds__(HELD_THREADS, 2)
adjoint_held(REAL* grad_a, REAL* grad_b, REAL* grad_C, REAL* out_x, REAL* out_y, REAL* grad_eps, int* converged,
             double* facts, const REAL* given_a, const REAL* given_b, const double* given_f, const double* given_g,
             const REAL* given_C, const signed char* solved, const REAL* of_cost, const REAL* of_values,
             double cost_number, double values_number, double eps, double cost_scale, double tol, int max_iter,
             int rounds, long long cost_stride, long long B, int n, int m) {
    AdjointMemory& memory = *reinterpret_cast<AdjointMemory*>(dynamic_shared);
    int k = threadIdx.x, lane = k % 32, warp = k / 32, first_row = k / HELD_WIDE, first_column = k % HELD_WIDE;
    double one_over_eps = 1 / eps;
    for (long long word = first_thread(); 4 * word < B; word += all_threads()) converged[word] = 0x01010101;
    for (int s = k; s < HELD_PARTS; s += HELD_THREADS) memory.parts[s] = 0;  // all are read, also what nobody writes
    HeldSystem system = {{}, memory, {}, {}, 0};
    HeldMatrix& E = system.E;
    for (long long problem = blockIdx.x; problem < B; problem += gridDim.x) {
        const REAL* C = given_C + problem * cost_stride;
        double w = of_cost ? double(of_cost[problem]) : cost_number;
        double level = of_values ? double(of_values[problem]) : values_number;
        bool is_row = k < n, is_column = k < m;
        double f = is_row ? given_f[problem * n + k] : 0, g = is_column ? given_g[problem * m + k] : 0;
        REAL a = is_row ? given_a[problem * n + k] : REAL(0), b = is_column ? given_b[problem * m + k] : REAL(0);
        memory.f[k] = f, memory.g[k] = g, memory.a[k] = a, memory.b[k] = b;
        // All costs are asked for before one is waited for.
#pragma unroll
        for (int r = 0; r < HELD_ROWS; r++)
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++) {
                int i = first_row + r * HELD_HIGH, j = first_column + c * HELD_WIDE;
                E.at[r][c] = i < n && j < m ? C[i * m + j] : infinity();
            }
        __syncthreads();
        // E, and its sums and means of log E over rows and columns. Lines go round, as in load_held.
        Pair of_column[HELD_COLUMNS] = {};
#pragma unroll 1
        for (int i = first_row; i < HELD_BINS; i += HELD_HIGH) {
            REAL line[HELD_COLUMNS];
            Pair of_row = {0, 0};
            double of_i = memory.f[i], weight = memory.a[i];
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++) {
                int j = first_column + c * HELD_WIDE;
                REAL cost = E.at[0][c], other = memory.b[j];
                bool counts = (cost < infinity()) & ((weight > 0) | (other > 0));
                // Without a branch, which would keep the entries of a line apart.
                double difference = of_i + memory.g[j] - double(counts ? cost : REAL(0));
                line[c] = power_of_two(counts ? REAL(difference * cost_scale) : -infinity());
                double entry = double(line[c]), moment = entry * difference;
                of_row.x += entry * double(other), of_row.y += moment * double(other);
                of_column[c].x += entry * weight, of_column[c].y += moment * weight;
            }
#pragma unroll
            for (int offset = HELD_WIDE / 2; offset > 0; offset /= 2) {
                of_row.x += __shfl_xor_sync(FULL_WARP, of_row.x, offset);
                of_row.y += __shfl_xor_sync(FULL_WARP, of_row.y, offset);
            }
            if (first_column == 0) memory.of_rows[i] = of_row;
#pragma unroll
            for (int r = 0; r < HELD_ROWS; r++)
#pragma unroll
                for (int c = 0; c < HELD_COLUMNS; c++) E.at[r][c] = r + 1 < HELD_ROWS ? E.at[r + 1][c] : line[c];
        }
#pragma unroll
        for (int c = 0; c < HELD_COLUMNS; c++) {
            of_column[c].x += __shfl_xor_sync(FULL_WARP, of_column[c].x, HELD_WIDE);
            of_column[c].y += __shfl_xor_sync(FULL_WARP, of_column[c].y, HELD_WIDE);
            if (lane < HELD_WIDE) memory.of_columns[warp][first_column + c * HELD_WIDE] = of_column[c];
        }
        __syncthreads();
        // The right-hand sides are w times the means of log E.
        system.row = {a, REAL(0), REAL(0), REAL(0)}, system.column = {b, REAL(0), REAL(0), REAL(0)};
        double scale = w * one_over_eps;
        if (is_row) {
            Pair sum = memory.of_rows[k];
            system.row.factor = REAL(1 / sum.x), system.row.right = REAL(scale * sum.y / sum.x);
        }
        if (is_column) {
            Pair sum = {0, 0};
#pragma unroll
            for (int v = 0; v < HELD_WARPS; v++) sum.x += memory.of_columns[v][k].x, sum.y += memory.of_columns[v][k].y;
            system.column.factor = REAL(1 / sum.x), system.column.right = REAL(scale * sum.y / sum.x);
        }
        bool reached = system.solve(tol, max_iter, rounds);
        double x = system.row.unknown, y = system.column.unknown;
        double by_a = level * f - eps * x, by_b = level * g - eps * y;
        Pair sums = system.total(is_row ? by_a : 0, is_column ? by_b : 0);
        if (is_row) out_x[problem * n + k] = REAL(x), grad_a[problem * n + k] = REAL(by_a - sums.x / n);
        if (is_column) out_y[problem * m + k] = REAL(y), grad_b[problem * m + k] = REAL(by_b - sums.y / m);
        memory.of_rows[k] = {x, y};
        __syncthreads();
        double by_eps = 0;
#pragma unroll 1
        for (int i = first_row; i < HELD_BINS; i += HELD_HIGH) {
            REAL line[HELD_COLUMNS];
            double weight = memory.a[i], rest = level - memory.of_rows[i].x;
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++) {
                int j = first_column + c * HELD_WIDE;
                REAL entry = E.at[0][c];
                // From C it would wait for memory. Where E is 0, P is.
                double ratio = double(log_two(larger(entry, Limits<REAL>::tiny))) * LN2;
                double P = weight * double(memory.b[j]) * double(entry);
                double gradient = P * (w * ratio + (rest - memory.of_rows[j].y));
                by_eps += (gradient - w * P) * ratio;
                line[c] = REAL(gradient);
            }
            REAL* to = grad_C + problem * cost_stride + i * m + first_column;
#pragma unroll
            for (int c = 0; c < HELD_COLUMNS; c++)
                if ((grad_C != nullptr) & (i < n) & (first_column + c * HELD_WIDE < m)) to[c * HELD_WIDE] = line[c];
#pragma unroll
            for (int r = 0; r + 1 < HELD_ROWS; r++)
#pragma unroll
                for (int c = 0; c < HELD_COLUMNS; c++) E.at[r][c] = E.at[r + 1][c];
        }
        by_eps = system.total(by_eps, 0).x;
        if (k == 0) {
            grad_eps[problem] = REAL(by_eps);
            facts[problem * 3] = reached && by_eps - by_eps == 0;
            facts[problem * 3 + 1] = fabs(w) <= 1e30 && fabs(level) <= 1e30 ? 0 : 1;
            facts[problem * 3 + 2] = solved[problem];
        }
        __syncthreads();
    }
}
