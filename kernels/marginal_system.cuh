// uses: totals.cuh
// The marginal system of cusink/gradients/system.py, x + R y = h and S' x + y = k, for one problem by one block: by
// conjugate gradients, with the longer side eliminated. Where marginals have a price, R and S' are multiplied by shares
// below 1.
//
// R and S' are means under the plan, of which E = exp((f + g - C) / eps) is the density: in shared memory where it
// fits, in rows of an odd length, so that neither side meets a bank twice. An iteration takes two products of n m
// multiply-adds and 8 barriers, which bound it where n m is small. Right for any block that is a multiple of 32.

struct MarginalSystem {
    REAL* E;  // (n, stride)
    int stride, n, m;
    // Weights, 1 / sum_j E_ij b_j and its like of columns, right-hand sides, unknowns.
    REAL *a, *of_rows, *h, *x, *b, *of_columns, *k, *y;
    REAL *residual, *direction, *image, *between;  // of the shorter side, and the last of the longer one
    REAL share_rows, share_columns;                // factors of R and S'
    double slack;                                  // 1 less their product, the eigenvalue of constants

    // REALs of all vectors: 4 of n | 4 of m | 3 of the shorter side | 1 of the longer one.
    __device__ static MarginalSystem at(REAL* E, REAL* vectors, int n, int m) {
        int shorter = n < m ? n : m;
        MarginalSystem out;
        out.E = E, out.stride = m | 1, out.n = n, out.m = m;
        out.a = vectors, out.of_rows = out.a + n, out.h = out.of_rows + n, out.x = out.h + n;
        out.b = out.x + n, out.of_columns = out.b + m, out.k = out.of_columns + m, out.y = out.k + m;
        out.residual = out.y + m, out.direction = out.residual + shorter, out.image = out.direction + shorter;
        out.between = out.image + shorter;
        out.share_rows = out.share_columns = 1, out.slack = 0;
        return out;
    }

    // out_i = sum_j E_ij b_j v_j / sum_j E_ij b_j, or the same of columns; a warp for each. No barrier.
    __device__ void mean(REAL* out, const REAL* v, bool rows) const {
        int lane = threadIdx.x % 32, kept = rows ? n : m, summed = rows ? m : n;
        const REAL *weights = rows ? b : a, *factor = rows ? of_rows : of_columns;
        for (int k = threadIdx.x / 32; k < kept; k += blockDim.x / 32) {
            REAL sum = 0;
            for (int s = lane; s < summed; s += 32)
                sum = multiply_add(E[rows ? k * stride + s : s * stride + k], weights[s] * v[s], sum);
            sum = warp_sum(sum);
            if (lane == 0) out[k] = sum * factor[k];
        }
    }

    // Write x and y, and return whether they solve the system up to `tol`, relative. All threads of the block must call
    // this, after a barrier.
    __device__ bool solve(double tol, int max_iter, int rounds) const {
        bool eliminates_rows = n >= m;
        int own = eliminates_rows ? m : n, other = eliminates_rows ? n : m;
        const REAL *of_other = eliminates_rows ? h : k, *of_own = eliminates_rows ? k : h;
        REAL *unknown = eliminates_rows ? y : x, *eliminated = eliminates_rows ? x : y;
        const REAL *own_weight = eliminates_rows ? b : a, *own_factor = eliminates_rows ? of_columns : of_rows;
        const REAL *other_weight = eliminates_rows ? a : b, *other_factor = eliminates_rows ? of_rows : of_columns;
        REAL other_share = eliminates_rows ? share_rows : share_columns;
        REAL own_share = eliminates_rows ? share_columns : share_rows;
        double size = 0, mass = 0;
        for (int s = threadIdx.x; s < own; s += blockDim.x) {
            double weight = double(own_weight[s]) / double(own_factor[s]);
            size += weight * of_own[s] * of_own[s], mass += weight, unknown[s] = 0;
        }
        for (int s = threadIdx.x; s < other; s += blockDim.x)
            size += double(other_weight[s]) / double(other_factor[s]) * of_other[s] * of_other[s];
        size = block_total(size), mass = block_total(mass);
        double target = tol * tol * size, reached = 0;
        int left = max_iter;
#pragma unroll 1
        for (int attempt = 0; attempt <= rounds; attempt++) {
            mean(eliminated, unknown, eliminates_rows);
            __syncthreads();
            for (int s = threadIdx.x; s < other; s += blockDim.x)
                eliminated[s] = of_other[s] - other_share * eliminated[s];
            __syncthreads();
            mean(residual, eliminated, !eliminates_rows);
            __syncthreads();
            double constant = 0;
            for (int s = threadIdx.x; s < own; s += blockDim.x) {
                residual[s] = of_own[s] - own_share * residual[s] - unknown[s];
                constant += double(own_weight[s]) / double(own_factor[s]) * residual[s];
            }
            constant = block_total(constant) / mass;
            reached = 0;
            for (int s = threadIdx.x; s < own; s += blockDim.x) {
                residual[s] -= REAL(constant);
                if (slack > 0) unknown[s] += REAL(constant / slack);
                direction[s] = own_weight[s] > 0 ? residual[s] : REAL(0);
                reached += double(own_weight[s]) / double(own_factor[s]) * residual[s] * residual[s];
            }
            reached = block_total(reached);
            if (reached <= target || attempt == rounds || !(size < 1e300)) break;
            double now = reached;
            // `image` holds the residual of the iteration, and `between` the products.
            for (int s = threadIdx.x; s < own; s += blockDim.x) image[s] = direction[s];
            __syncthreads();
#pragma unroll 1
            for (int turn = 0; turn < left && now > target / 4; turn++) {
                mean(between, direction, eliminates_rows);
                __syncthreads();
                mean(residual, between, !eliminates_rows);
                __syncthreads();
                double curvature = 0;
                for (int s = threadIdx.x; s < own; s += blockDim.x) {
                    residual[s] = direction[s] - own_share * other_share * residual[s];
                    curvature += double(own_weight[s]) / double(own_factor[s]) * direction[s] * residual[s];
                }
                curvature = block_total(curvature);
                if (!(curvature > 0)) break;
                REAL length = REAL(now / curvature);
                double drift = 0;
                for (int s = threadIdx.x; s < own; s += blockDim.x) {
                    unknown[s] += length * direction[s], image[s] -= length * residual[s];
                    drift += double(own_weight[s]) / double(own_factor[s]) * image[s];
                }
                drift = block_total(drift) / mass;
                double next = 0;
                for (int s = threadIdx.x; s < own; s += blockDim.x) {
                    image[s] = own_weight[s] > 0 ? image[s] - REAL(drift) : REAL(0);
                    next += double(own_weight[s]) / double(own_factor[s]) * image[s] * image[s];
                }
                next = block_total(next);
                REAL share = REAL(next / now);
                now = next;
                for (int s = threadIdx.x; s < own; s += blockDim.x) direction[s] = image[s] + share * direction[s];
                __syncthreads();
            }
            __syncthreads();
        }
        // One fixed-point step defines the unknown of empty bins.
        for (int s = threadIdx.x; s < own; s += blockDim.x) unknown[s] += residual[s];
        __syncthreads();
        mean(eliminated, unknown, eliminates_rows);
        __syncthreads();
        for (int s = threadIdx.x; s < other; s += blockDim.x)
            eliminated[s] = of_other[s] - other_share * eliminated[s];
        __syncthreads();
        return reached <= target;
    }
};
