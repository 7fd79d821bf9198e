// How far the device's exp2 and log2 are off: both of every number of an array, and the short logarithm of split_step.cu.

extern "C" __global__ void exp_and_log(REAL* powers, REAL* logs, const REAL* x, long long count) {
    // powers, logs, x (count,); any grid, any block
    for (long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x; k < count; k += gridDim.x * (long long)blockDim.x) {
        powers[k] = sizeof(REAL) == 4 ? REAL(exp2f(float(x[k]))) : REAL(exp2(double(x[k])));
        REAL size = x[k] < 0 ? -x[k] : x[k];
        logs[k] = sizeof(REAL) == 4 ? REAL(log2f(float(size))) : REAL(log2(double(size)));
    }
}

extern "C" __global__ void short_log(REAL* logs, const REAL* mantissas, long long count) {
    // logs, mantissas (count,), these from 1 to below 2; any grid, any block
    for (long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x; k < count; k += gridDim.x * (long long)blockDim.x)
        logs[k] = __log2f(float(mantissas[k]));
}
