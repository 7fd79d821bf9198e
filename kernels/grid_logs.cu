// uses: grid_tiles.cuh damping.cuh
// Sinkhorn iterations between the cells of a grid on potentials: log-sum-exp along one axis after the other.
//
// A line of logits x is an exponential of each, a product with K = exp(-C / eps) of its axis, and a logarithm of each
// sum: with the largest logit of the line taken out before. Every line so has a scale of its own, which reaches as far as
// the dtype does within one line. Where a sum of n terms is below `floor` = (3 n + 1) times the smallest number over
// its rounding, underflow of K, of an exponential or of a product may have taken digits: there its log-sum-exp is taken
// from C. That is rare where costs within a line are below 670 eps in double, 60 eps in float.
//
// A half-step is a pass for each axis, grid_log_product for all but the last, and grid_log_step, which updates the side: an
// iteration is 2 launches for each axis. Bound by multiply-adds: n_k of them for a sum, and 1/32 n_k exponentials, as a
// block uses each for 32 sums. Iterations are in double: potentials keep the digits that scalings lost. In float a softmin
// alone is taken, as for barycenters.
//
// With `reach` (docs/unbalanced.md) grid_damped_step is the last pass. It leaves the mass of its marginal in a part for each
// warp, an exponential for each cell, and the first pass of the next half-step makes the shift of them: block b for problem
// b. So an iteration is 2 launches for each axis there too; on a line, whose only pass is the last, and 1 for the shift.
//
// Nothing allocates, so that all may be captured. Right for any grid, and any block that is a multiple of 32 (at most
// 512), but grid_log_product and grid_log_step, whose block is PRODUCT_THREADS. All arrays C-contiguous.

// An input of exponentials of scale * x (lines, n) over the largest one of their line.
struct Exponentials {
    const REAL* x;
    REAL scale;

    __device__ void begin(REAL* of_line, long long p, long long l0, const Shape& shape) const {
        for (int k = threadIdx.x / 32; k < TILE; k += PRODUCT_THREADS / 32) {
            const REAL* mine = x + (p * shape.lines + l0 + k) * shape.n;
            REAL most = Limits<REAL>::lowest;  // a line of -inf has exponentials of 0 with it, and never NaN
            if (l0 + k < shape.lines)
                for (long long j = threadIdx.x % 32; j < shape.n; j += 32) most = larger(most, mine[j] * scale);
            most = warp_maximum(most);
            if (threadIdx.x % 32 == 0) of_line[k] = most;
        }
    }
    __device__ REAL read(long long at, REAL of_line) const {
        return power_of_two(multiply_add(x[at], scale, -of_line));
    }
};

// The base-2 logarithms of sums over such an input.
struct Logarithms {
    const REAL *x, *C;
    REAL scale, rate, floor;
    long long n;

    __device__ REAL of(const Place& place, REAL sum) const {
        if (sum >= floor) return place.of_line + log_two(sum);
        if (place.of_line == Limits<REAL>::lowest) return -infinity();
        const REAL *mine = x + place.line * n, *costs = C + place.cell * n;
        OnlineSoftmax state = OnlineSoftmax::empty();
#pragma unroll 1  // rare
        for (long long j = 0; j < n; j += GROUP) {
            REAL terms[GROUP];
#pragma unroll
            for (int c = 0; c < GROUP; c++)
                terms[c] = j + c < n ? multiply_add(costs[j + c], -rate, mine[j + c] * scale) : -infinity();
            state.push(terms);
        }
        return state.value();
    }
};

struct LogSums {
    REAL* out;
    Logarithms logarithms;
    REAL value_scale;

    struct Line {};
    __device__ Line line(long long) const {
        return {};
    }
    __device__ static Line none() {
        return {};
    }
    __device__ void write(Line&, const Place& place, REAL sum) const {
        out[place.at] = value_scale * logarithms.of(place, sum);
    }
    __device__ void end(const Line&, bool, bool, long long) const {}
};

struct LogUpdate {
    REAL *potential, *logits, *kept_plain;
    const REAL *weights, *excess;
    Logarithms logarithms;
    REAL value_scale, eps;

    struct Line {
        REAL past;
    };
    __device__ Line line(long long b) const {
        return {excess[b]};
    }
    __device__ static Line none() {
        return {REAL(0)};
    }
    __device__ void write(const Line& line, const Place& place, REAL sum) const {
        REAL value = value_scale * logarithms.of(place, sum), weight = weights[place.at];
        if (kept_plain != nullptr) kept_plain[place.at] = value;
        if (weight > 0 && line.past > 0) {
            double beyond = -double(line.past) * expm1(fmin(double(potential[place.at] - value) / eps, 80.0));
            value += REAL(eps * log1p(fmax(beyond, double(line.past) - 1)));
        }
        potential[place.at] = value;
        logits[place.at] = weight > 0 ? REAL(log(double(weight))) + value / eps : -infinity();
    }
    __device__ void end(const Line&, bool, bool, long long) const {}
};

// The parts (B, parts) of the mass of a marginal.
struct Parts {
    Mass* of;
    long long count;

    __device__ Mass whole(long long b) const {
        Mass mass = Mass::empty();
        for (long long k = threadIdx.x; k < count; k += blockDim.x) {
            Mass part = of[b * count + k];
            if (part.sum > 0) mass.add(part.least, part.sum);
        }
        return merge_block(mass);
    }
};

struct DampedUpdate {
    REAL *potential, *logits, *kept_image;
    Parts parts;
    const REAL *weights, *log_weights, *excess;
    const double* shift;
    Logarithms logarithms;
    REAL value_scale;
    Damping damping;
    double rho;

    struct Line {
        Mass mass;
        double shift;
        long long b;
        REAL past;
    };
    __device__ Line line(long long b) const {
        return {Mass::empty(), shift[b], b, excess == nullptr ? REAL(0) : excess[b]};
    }
    __device__ static Line none() {
        return {Mass::empty(), 0, 0, REAL(0)};
    }
    __device__ void write(Line& line, const Place& place, REAL sum) const {
        REAL image = value_scale * logarithms.of(place, sum), weight = weights[place.at], value = 0;
        if (kept_image != nullptr) kept_image[place.at] = image;
        if (weight > 0) {
            value = damping.step(potential[place.at], image, line.shift, line.past);
            if (parts.of != nullptr) line.mass.add(double(value) / rho, double(weight));
        }
        potential[place.at] = value;
        logits[place.at] = log_weights[place.at] + value / REAL(damping.eps);
    }
    __device__ void end(Line& line, bool, bool, long long part) const {
        if (parts.of == nullptr) return;
        line.mass.merge_warp();
        if (threadIdx.x % 32 == 0) parts.of[line.b * parts.count + part] = line.mass;
    }
};

// out = value_scale * log2 of the products along one axis of exp2(logit_scale * x), x (problems, lines, n), see
// grid_tiles.cuh; K = exp2(-rate * C) (n, n). Unless it is null, shift (problems,) receives the t of the masses of both
// marginals, each in parts (problems, parts), with prices rho.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
grid_log_product(REAL* out, const REAL* K, const REAL* C, const REAL* x, REAL logit_scale, REAL rate, REAL floor,
                 REAL value_scale, double* shift, double* parts_a, double* parts_b, double rho_a, double rho_b,
                 long long parts, long long problems, long long lines, long long n, long long out_problem,
                 long long out_cell, long long out_line) {
    Shape shape = {problems, lines, n, out_problem, out_cell, out_line};
    for (long long b = blockIdx.x; shift != nullptr && b < problems; b += gridDim.x) {
        Mass of_a = Parts{reinterpret_cast<Mass*>(parts_a), parts}.whole(b);
        Mass of_b = Parts{reinterpret_cast<Mass*>(parts_b), parts}.whole(b);
        double best = best_shift(of_a, of_b, rho_a, rho_b);
        if (threadIdx.x == 0) shift[b] = best;
    }
    Logarithms logarithms = {x, C, logit_scale, rate, floor, n};
    multiply_axis(K, shape, Exponentials{x, logit_scale}, LogSums{out, logarithms, value_scale});
}

// The last pass of a half-step: the potential (B, n) of a side goes to that product, or past it by excess (B,), and
// logits (B, n) to those of it; weights (B, n). A bin without weight goes to the product. kept_plain (B, n) receives the
// product, unless it is null.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
grid_log_step(REAL* potential, REAL* logits, REAL* kept_plain, const REAL* K, const REAL* C, const REAL* x,
              const REAL* weights, const REAL* excess, REAL logit_scale, REAL rate, REAL floor, REAL value_scale, REAL eps,
              long long problems, long long lines, long long n, long long out_problem, long long out_cell,
              long long out_line) {
    Shape shape = {problems, lines, n, out_problem, out_cell, out_line};
    Logarithms logarithms = {x, C, logit_scale, rate, floor, n};
    LogUpdate update = {potential, logits, kept_plain, weights, excess, logarithms, value_scale, eps};
    multiply_axis(K, shape, Exponentials{x, logit_scale}, update);
}

// The last pass of a half-step with `reach`: as damped_update in unbalanced.cu with that product for `image`, which
// kept_image (B, n) receives, unless it is null. potential, logits, weights, log_weights (B, n); shift (B,), excess (B,) or
// null; parts (B, parts) of the mass of the marginal, or null. Where there are parts, the grid has several axes.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 1)
grid_damped_step(REAL* potential, REAL* logits, REAL* kept_image, double* of_mass, const REAL* K, const REAL* C,
                 const REAL* x, const REAL* weights, const REAL* log_weights, const double* shift, const REAL* excess,
                 REAL logit_scale, REAL rate, REAL floor, REAL value_scale, double sign, double eps, double rho, double fall,
                 long long parts, long long problems, long long lines, long long n, long long out_problem,
                 long long out_cell, long long out_line) {
    Shape shape = {problems, lines, n, out_problem, out_cell, out_line};
    Logarithms logarithms = {x, C, logit_scale, rate, floor, n};
    Parts masses = {reinterpret_cast<Mass*>(of_mass), parts};
    Damping damping = Damping::of(sign, eps, rho, fall);
    DampedUpdate update = {potential, logits, kept_image, masses,    weights,     log_weights,
                           excess,    shift,  logarithms, value_scale, damping, rho};
    multiply_axis(K, shape, Exponentials{x, logit_scale}, update);
}

// logits (B, n) = log weights + potential / eps; -inf for a bin without weight. Bound by bytes.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_logits(REAL* logits, const REAL* weights, const REAL* potential, REAL eps, long long B, long long n) {
    for (long long at = first_thread(); at < B * n; at += all_threads())
        logits[at] = weights[at] > 0 ? REAL(log(double(weights[at]))) + potential[at] / eps : -infinity();
}

// error (B,) = sum_j w_j |1 - exp((before_j - after_j) / eps)| over the mass, weights w, before and after (B, n); added
// where `adds`. `most` bounds exponents; beyond it the marginal is taken with its weight in the exponent, which may be
// too small for the product. Bound by bytes; one block has a problem.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
grid_log_error(double* error, const REAL* weights, const REAL* before, const REAL* after, REAL eps, double most, int adds,
               long long B, long long n) {
    for (long long b = blockIdx.x; b < B; b += gridDim.x) {
        REAL off = 0, mass = 0;
        for (long long at = b * n + threadIdx.x; at < (b + 1) * n; at += blockDim.x) {
            if (!(weights[at] > 0)) continue;
            double weight = weights[at], step = double(before[at] - after[at]) / eps;
            off += REAL(step > most ? exp(fmin(step + log(weight), most / 2)) : weight * fabs(1 - exp(step)));
            mass += weights[at];
        }
        off = merge_block(PlainSum{off}).sum;
        mass = merge_block(PlainSum{mass}).sum;
        if (threadIdx.x == 0) error[b] = (adds ? error[b] : 0) + double(off / mass);
    }
}
