// uses: ragged.cuh, marginal_system.cuh
// ragged_adjoint: gradients of the values of pairs of clouds of unequal sizes, in one launch, one block per pair.
//
// The density of the plan of a pair is made from its potentials, with differences f + g - C in double, into shared
// memory where it fits, else into `scratch`. The marginal system is solved on it by conjugate gradients
// (marginal_system.cuh). Then all gradients follow: by weights, by eps, and by the points, for which the gradient by
// the costs takes the place of the density.
//
// Costs are taken 4 times, d multiply-adds each, and the points 2 n m d more. Bound by its barriers in small pairs, by
// two products of n m multiply-adds for an iteration in larger ones. Correct for any grid and any block that is a
// multiple of 32 (at most 256).

constexpr int ADJOINT_THREADS = 256;  // with more, a block in double has hardly the registers

// Whether the centres of both sides are farther from each other than `apart` times the size of the clouds: then what
// the system lacks would be multiplied by that. All threads of the block must call this.
__device__ bool lie_apart(const Between& between, const Exact& rows, const Exact& columns, double apart) {
    double distance = 0, spread = 0;
    for (long long c = 0; c < between.d; c++) {
        const double *x = between.x + c * between.x_stride, *y = between.y + c * between.y_stride;
        Sums number = Sums::empty(), first = Sums::empty(), second = Sums::empty();
        for (int i = threadIdx.x; i < rows.size; i += blockDim.x) {
            double step = rows.weights[i] > 0 ? x[i] - x[0] : 0;
            number.x += rows.weights[i] > 0, first.x += step, second.x += step * step;
        }
        for (int j = threadIdx.x; j < columns.size; j += blockDim.x) {
            double step = columns.weights[j] > 0 ? y[j] - y[0] : 0;
            number.y += columns.weights[j] > 0, first.y += step, second.y += step * step;
        }
        number = merge_block(number), first = merge_block(first), second = merge_block(second);
        double of_x = first.x / number.x, of_y = first.y / number.y, step = x[0] + of_x - (y[0] + of_y);
        distance += step * step;
        spread += fmax(second.x / number.x - of_x * of_x, 0.0) + fmax(second.y / number.y - of_y * of_y, 0.0);
    }
    return distance > apart * apart * spread;
}

// The slope of a distance by the coordinate c of x_i, over what `rates` has of it.
__device__ inline double slope(const Between& between, long long c, int i, int j) {
    double step = between.x[c * between.x_stride + i] - between.y[c * between.y_stride + j];
    return !between.cityblock ? step : step > 0 ? 1 : step < 0 ? -1 : 0;
}

// grad_a (N,), grad_b (M,) of mean zero over each item; grad_x (N, d), grad_y (M, d); grad_eps (K,); solved (K,): whether
// all of these can be used. From table (pairs, COLUMNS), eps, points and weights as in `ragged`, potentials f (N,) and g
// (M,), and cotangents (K,): of the cost, of all values together, and of the entropic cost. Clouds that `lie_apart` are
// not solved; with 0 for `apart` none do.
// Shared: the vectors of the system | E, of the largest pair. One block per pair.
extern "C" __global__ void __launch_bounds__(ADJOINT_THREADS, 1)
ragged_adjoint(double* grad_a, double* grad_b, double* grad_x, double* grad_y, double* grad_eps, long long* solved,
               REAL* scratch, const long long* table, const double* every_eps, const double* x, const double* y,
               const double* given_a, const double* given_b, const double* f, const double* g, const double* of_cost,
               const double* of_values, const double* of_entropic, int cityblock, int root, double factor, double tol,
               double apart, int max_iter, int rounds, long long pairs, long long N, long long M, long long d) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (long long at = blockIdx.x; at < pairs; at += gridDim.x) {
        Place place = Place::of(table, at);
        long long pair = place.pair, row = place.row, column = place.column;
        int n = place.n, m = place.m;
        double eps = every_eps[pair], scale = LOG2_E / eps;
        double w = of_cost[pair], level = of_values[pair], entropic = of_entropic[pair];
        Between between = {x + row, y + column, N, M, d, cityblock, root, factor};
        REAL* vectors = reinterpret_cast<REAL*>(dynamic_shared);
        int count = 4 * (n + m) + (n < m ? 3 * n + m : 3 * m + n);
        REAL* E = place.tile < 0 ? vectors + count : scratch + place.tile;
        MarginalSystem system = MarginalSystem::at(E, vectors, n, m);
        int stride = system.stride;
        const double *of_f = f + row, *of_g = g + column;
        Sums mass = Sums::empty();
        for (int i = threadIdx.x; i < n; i += blockDim.x) mass.x += given_a[row + i];
        for (int j = threadIdx.x; j < m; j += blockDim.x) mass.y += given_b[column + j];
        mass = merge_block(mass);
        Exact rows = {n, given_a + row, mass.x, nullptr, nullptr};
        Exact columns = {m, given_b + column, mass.y, nullptr, nullptr};
        for (int i = threadIdx.x; i < n; i += blockDim.x) system.a[i] = REAL(rows.weight(i));
        for (int j = threadIdx.x; j < m; j += blockDim.x) system.b[j] = REAL(columns.weight(j));
        double more = log2(mass.x);  // the density of a plan of mass 1
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                bool counts = rows.weights[i] > 0 || columns.weights[j] > 0;
                double exponent = (of_f[i] + of_g[j] - between.cost(i, j)) * scale + more;
                E[i * stride + j] = counts ? REAL(exp2(exponent)) : REAL(0);
            }
        __syncthreads();
        // The right-hand sides are w times the means of log(P / a b').
        for (int i = warp; i < n; i += warps) {
            double sum = 0, mean = 0;
            for (int j = lane; j < m; j += 32) {
                double share = double(E[i * stride + j]) * columns.weight(j);
                if (share > 0) sum += share, mean += share * ((of_f[i] + of_g[j] - between.cost(i, j)) / eps);
            }
            sum = warp_total(sum), mean = warp_total(mean);
            if (lane == 0) system.of_rows[i] = REAL(1 / sum), system.h[i] = REAL(w * mean / sum);
        }
        for (int j = warp; j < m; j += warps) {
            double sum = 0, mean = 0;
            for (int i = lane; i < n; i += 32) {
                double share = double(E[i * stride + j]) * rows.weight(i);
                if (share > 0) sum += share, mean += share * ((of_f[i] + of_g[j] - between.cost(i, j)) / eps);
            }
            sum = warp_total(sum), mean = warp_total(mean);
            if (lane == 0) system.of_columns[j] = REAL(1 / sum), system.k[j] = REAL(w * mean / sum);
        }
        __syncthreads();
        bool reached = system.solve(tol, max_iter, rounds);
        if (apart > 0) reached = reached && !lie_apart(between, rows, columns, apart);
        // By weights, and what their entropies add to the gradient by eps.
        Sums mean = Sums::empty(), entropy = Sums::empty();
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            double weight = rows.weights[i], logarithm = weight > 0 ? log(weight) : 0;
            double gradient = level * of_f[i] - eps * double(system.x[i]);
            if (weight > 0) gradient += entropic * eps * (logarithm + 1);
            grad_a[row + i] = gradient, mean.x += gradient, entropy.x += weight * logarithm;
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double weight = columns.weight(j) * mass.x, logarithm = weight > 0 ? log(weight) : 0;
            double gradient = level * of_g[j] - eps * double(system.y[j]);
            if (weight > 0) gradient += entropic * eps * (logarithm + 1);
            grad_b[column + j] = gradient, mean.y += gradient, entropy.y += weight * logarithm;
        }
        mean = merge_block(mean), entropy = merge_block(entropy);
        for (int i = threadIdx.x; i < n; i += blockDim.x) grad_a[row + i] -= mean.x / n;
        for (int j = threadIdx.x; j < m; j += blockDim.x) grad_b[column + j] -= mean.y / m;
        // The gradient by the costs, times what of their slopes all coordinates have in common, in place of E.
        Sums by_eps = Sums::empty();
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                double cost = between.cost(i, j), ratio = (of_f[i] + of_g[j] - cost) / eps;
                double share = rows.weight(i) * columns.weight(j), P = 0, gradient = 0;
                if (share > 0) {
                    P = mass.x * share * double(E[i * stride + j]);
                    gradient = P * (level + w * ratio - double(system.x[i]) - double(system.y[j]));
                    by_eps.x += (gradient - w * P) * ratio;
                }
                double rate = cityblock ? factor : root ? (cost > 0 ? factor * factor / cost : 0) : 2 * factor;
                E[i * stride + j] = REAL(gradient * rate);
            }
        by_eps = merge_block(by_eps);  // its barriers also show E to all
        __syncthreads();
        for (int i = warp; i < n; i += warps)
            for (long long c = 0; c < d; c++) {
                double sum = 0;
                for (int j = lane; j < m; j += 32) sum += double(E[i * stride + j]) * slope(between, c, i, j);
                sum = warp_total(sum);
                if (lane == 0) grad_x[(row + i) * d + c] = sum;
            }
        for (int j = warp; j < m; j += warps)
            for (long long c = 0; c < d; c++) {
                double sum = 0;
                for (int i = lane; i < n; i += 32) sum -= double(E[i * stride + j]) * slope(between, c, i, j);
                sum = warp_total(sum);
                if (lane == 0) grad_y[(column + j) * d + c] = sum;
            }
        if (threadIdx.x == 0) {
            double total = by_eps.x + entropic * (entropy.x + entropy.y);
            grad_eps[pair] = total;
            bool finite = fabs(total) < infinity() && fabs(mean.x) < infinity() && fabs(mean.y) < infinity();
            solved[pair] = reached && finite;
        }
        __syncthreads();
    }
}
