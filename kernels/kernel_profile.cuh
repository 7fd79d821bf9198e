// uses: online_softmax.cuh
// A radial kernel as a function of squared distances, for kernel_product.cu, which says what the forms are, and for
// strip_sums.cu.
constexpr REAL LOG2_E = REAL(1.4426950408889634), LN_2 = REAL(0.6931471805599453);

struct Profile {
    enum Form { LINEAR, ROOT };  // and any other
    long long form;
    REAL rate, shift, slope;

    // All threads have the same form, which is read once for COUNT pairs.
    template <int COUNT>
    __device__ void exponents(const REAL (&q)[COUNT], REAL (&base)[COUNT], REAL (&exponent)[COUNT]) const {
        if (form == LINEAR) {
#pragma unroll
            for (int g = 0; g < COUNT; g++) base[g] = 1, exponent[g] = rate * q[g];
        } else if (form == ROOT) {
#pragma unroll
            for (int g = 0; g < COUNT; g++) base[g] = square_root(q[g] + shift), exponent[g] = rate * base[g];
        } else {
#pragma unroll
            for (int g = 0; g < COUNT; g++) base[g] = q[g] + shift, exponent[g] = rate * log_two(base[g]);
        }
    }
};
