// uses: ragged.cuh, marginal_system.cuh
// ragged_adjoint: gradients of the values of pairs of clouds of unequal sizes, in one launch, one block per pair.
//
// The density of the plan of a pair is made from its potentials, with differences f + g - C in double, into shared
// memory where it fits, else into `scratch`. The marginal system is solved on it by conjugate gradients
// (marginal_system.cuh), unless the cost has no cotangent. Then all gradients follow: by weights, by eps, by the prices
// of the marginals, and by the points, for which the gradient by the costs takes the place of the density.
//
// With prices rho the system is x + kappa_a R y = h and kappa_b S' x + y = k with kappa = 1 / (1 + eps / rho), where h
// is kappa_a times w (mean of log(P / a b') + f / rho_a), and k alike. The unknowns X of cusink/gradients/unbalanced.py
// are in it: x = w f / eps - kappa_a (c / eps - kappa_b X) with the means c of w C. So all numbers are as small as
// those without a price, and the gradient by the costs keeps its form.
//
// Costs are taken 4 times (2 without a system), d multiply-adds each, and the points 2 n m d more. Bound by barriers in
// small pairs, by two products of n m multiply-adds for an iteration in larger ones. Correct for any grid and any block
// that is a multiple of 32 (at most 256).

constexpr int ADJOINT_THREADS = 256;  // with more, a block in double has hardly the registers
constexpr double SMALL_SHARE = 1e-2;  // as in cusink/gradients/prices.py

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

// What a side takes of the price of its marginal: the share 1 / (1 + eps / rho) of its means, and its potential f + t.
// Without a price rho is inf.
struct Price {
    double eps, rho, shift;

    __device__ double share() const {
        return 1 / (1 + eps / rho);
    }
    // exp(-(f + t) / rho), by which a marginal differs from its weights.
    __device__ double kept(double potential) const {
        return exp(-(potential + shift) / rho);
    }
    // What a point of this weight has in the density: without one, what makes the sum of its row or column 1. Only
    // means over that count, and they would have no digits far from the other side.
    __device__ double inside(double potential, double weight) const {
        return weight > 0 ? potential : potential + eps / rho * (potential + shift);
    }
    // The derivative of the objective by a weight, without the other side's mass.
    __device__ double gain(double potential) const {
        double moved = (potential + shift) / rho;
        return (rho < double(infinity()) ? -rho * expm1(-moved) : potential + shift) - eps * exp(-moved);
    }
    // The derivative of the objective by the price, of a unit of weight: 1 - (1 + x) exp(-x), by a series for small x.
    __device__ double unmet(double potential) const {
        double x = (potential + shift) / rho;
        if (fabs(x) < SMALL_SHARE) return x * x * (0.5 - x * (1 / 3.0 - x * (1 / 8.0 - x * (1 / 30.0 - x / 144))));
        return -expm1(-x) - x * exp(-x);
    }
};

// grad_a (N,), grad_b (M,), of mean zero over each item without prices; grad_x (N, d), grad_y (M, d); grad_eps (K,);
// grad_reach (K, 2); solved (K,): whether all of these can be used. From table (pairs, COLUMNS), eps, points and
// weights as in `ragged`, potentials f (N,) and g (M,) with their shifts (K,), and cotangents (K,): of the cost, of all
// values together, and of the entropic cost, which is 0 with prices. Clouds that `lie_apart` are not solved; with 0 for
// `apart` none do. Both prices are inf where marginals are met, and shifts are 0 then.
// Shared: the vectors of the system | E, of the largest pair. One block per pair.
extern "C" __global__ void __launch_bounds__(ADJOINT_THREADS, 1)
ragged_adjoint(double* grad_a, double* grad_b, double* grad_x, double* grad_y, double* grad_eps,
               double* grad_reach, long long* solved, REAL* scratch, const long long* table, const double* every_eps,
               const double* x, const double* y, const double* given_a, const double* given_b, const double* f,
               const double* g, const double* shifts, const double* of_cost, const double* of_values,
               const double* of_entropic, int cityblock, int root, double factor, double rho_a, double rho_b,
               double tol, double apart, int max_iter, int rounds, long long pairs, long long N, long long M,
               long long d) {
    bool balanced = !(rho_a < double(infinity())) && !(rho_b < double(infinity()));
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
        double whole = balanced ? mass.x : 1;  // without prices the plan is that of masses of 1, times this
        Exact rows = {n, given_a + row, whole, nullptr, nullptr};
        Exact columns = {m, given_b + column, balanced ? mass.y : 1, nullptr, nullptr};
        Price of_a = {eps, rho_a, shifts[pair]}, of_b = {eps, rho_b, -shifts[pair]};
        double share_a = of_a.share(), share_b = of_b.share();
        system.share_rows = REAL(share_a), system.share_columns = REAL(share_b);
        system.slack = (eps / rho_a + eps / rho_b + eps / rho_a * (eps / rho_b)) * share_a * share_b;
        for (int i = threadIdx.x; i < n; i += blockDim.x) system.a[i] = REAL(rows.weight(i));
        for (int j = threadIdx.x; j < m; j += blockDim.x) system.b[j] = REAL(columns.weight(j));
        double more = log2(whole);
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                double weight = rows.weights[i], other = columns.weights[j];
                double potentials = of_a.inside(of_f[i], weight) + of_b.inside(of_g[j], other);
                double exponent = (potentials - between.cost(i, j)) * scale + more;
                E[i * stride + j] = weight > 0 || other > 0 ? REAL(exp2(exponent)) : REAL(0);
            }
        __syncthreads();
        bool reached = true;
        if (w != 0) {
            // The right-hand sides: w times the means of log(P / a b'), and what prices take of potentials.
            for (int i = warp; i < n; i += warps) {
                double sum = 0, mean = 0;
                for (int j = lane; j < m; j += 32) {
                    double share = double(E[i * stride + j]) * columns.weight(j);
                    if (!(share > 0)) continue;
                    sum += share, mean += share * ((of_f[i] + of_g[j] - between.cost(i, j)) / eps);
                }
                sum = warp_total(sum), mean = warp_total(mean);
                if (lane > 0) continue;
                system.of_rows[i] = REAL(1 / sum), system.h[i] = REAL(w * share_a * (mean / sum + of_f[i] / rho_a));
            }
            for (int j = warp; j < m; j += warps) {
                double sum = 0, mean = 0;
                for (int i = lane; i < n; i += 32) {
                    double share = double(E[i * stride + j]) * rows.weight(i);
                    if (!(share > 0)) continue;
                    sum += share, mean += share * ((of_f[i] + of_g[j] - between.cost(i, j)) / eps);
                }
                sum = warp_total(sum), mean = warp_total(mean);
                if (lane > 0) continue;
                system.of_columns[j] = REAL(1 / sum), system.k[j] = REAL(w * share_b * (mean / sum + of_g[j] / rho_b));
            }
            __syncthreads();
            reached = system.solve(tol, max_iter, rounds);
        } else {  // no system
            for (int i = threadIdx.x; i < n; i += blockDim.x) system.x[i] = 0;
            for (int j = threadIdx.x; j < m; j += blockDim.x) system.y[j] = 0;
            __syncthreads();
        }
        if (apart > 0) reached = reached && !lie_apart(between, rows, columns, apart);
        // By weights, by the prices, and what entropies add to the gradient by eps.
        Sums mean = Sums::empty(), entropy = Sums::empty(), by_price = Sums::empty();
        double first = level - w;  // the cotangent of the objective, with prices
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            double weight = rows.weights[i], logarithm = weight > 0 ? log(weight) : 0;
            double through = w * of_f[i] - eps * double(system.x[i]), gradient = first * of_f[i] + through;
            if (!balanced) {
                through *= of_a.kept(of_f[i]);
                gradient = first * (of_a.gain(of_f[i]) + eps * mass.y) + through / share_a;
                double moved = (of_f[i] + of_a.shift) / rho_a / rho_a;
                by_price.x += weight * (through * moved + first * of_a.unmet(of_f[i]));
            }
            if (weight > 0) gradient += entropic * eps * (logarithm + 1);
            grad_a[row + i] = gradient, mean.x += gradient, entropy.x += weight * logarithm;
        }
        for (int j = threadIdx.x; j < m; j += blockDim.x) {
            double weight = columns.weight(j) * whole, logarithm = weight > 0 ? log(weight) : 0;
            double through = w * of_g[j] - eps * double(system.y[j]), gradient = first * of_g[j] + through;
            if (!balanced) {
                through *= of_b.kept(of_g[j]);
                gradient = first * (of_b.gain(of_g[j]) + eps * mass.x) + through / share_b;
                double moved = (of_g[j] + of_b.shift) / rho_b / rho_b;
                by_price.y += weight * (through * moved + first * of_b.unmet(of_g[j]));
            }
            if (weight > 0) gradient += entropic * eps * (logarithm + 1);
            grad_b[column + j] = gradient, mean.y += gradient, entropy.y += weight * logarithm;
        }
        mean = merge_block(mean), entropy = merge_block(entropy), by_price = merge_block(by_price);
        if (balanced) {
            for (int i = threadIdx.x; i < n; i += blockDim.x) grad_a[row + i] -= mean.x / n;
            for (int j = threadIdx.x; j < m; j += blockDim.x) grad_b[column + j] -= mean.y / m;
        }
        // The gradient by the costs, times what of their slopes all coordinates have in common, in place of E.
        Sums by_eps = Sums::empty();  // and the mass of the plan
        for (int i = warp; i < n; i += warps)
            for (int j = lane; j < m; j += 32) {
                double cost = between.cost(i, j), ratio = (of_f[i] + of_g[j] - cost) / eps;
                double share = rows.weight(i) * columns.weight(j), P = 0, gradient = 0;
                if (share > 0) {
                    P = whole * share * double(E[i * stride + j]);
                    gradient = P * (level + w * ratio - double(system.x[i]) - double(system.y[j]));
                    by_eps.x += (gradient - w * P) * ratio, by_eps.y += P;
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
            if (!balanced) total += first * (mass.x * mass.y - by_eps.y);
            grad_eps[pair] = total;
            grad_reach[2 * pair] = by_price.x, grad_reach[2 * pair + 1] = by_price.y;
            bool finite = fabs(total) < infinity() && fabs(mean.x) < infinity() && fabs(mean.y) < infinity();
            finite = finite && fabs(by_price.x) < infinity() && fabs(by_price.y) < infinity();
            solved[pair] = reached && finite;
        }
        __syncthreads();
    }
}
