// Linear layers of plain rows in F16 or F32: out = x · wᵀ + bias, in the order of the CPU (16 lanes, then a tree). For goldens and for
// layers that are kept float: right, and as fast as a half-warp an output is.
//
// x [m, k] f32, w [n, k] f16 or f32, out [m, end − first] f32. Launch: grid (outputs / 16, m), 256 threads: 16 outputs of a row, 16 lanes
// each. Bound by the bytes of the weights, which every row reads anew.
#include "common.cuh"

DEVICE float widen(float w) { return w; }
DEVICE float widen(uint16_t w) { return half_to_float(w); }

template <class T> DEVICE void linear(const float *x, const T *w, const float *bias, float *out, int k, int first, int end, int residual) {
    int lane = threadIdx.x % LANES, n = first + blockIdx.x * 16 + threadIdx.x / LANES;
    const float *row = x + (uint64_t)blockIdx.y * k;
    // Outputs beyond the last repeat it, so that whole warps take part in the tree.
    const T *weights = w + (uint64_t)(n < end ? n : end - 1) * k;
    float sum = 0.0f;
    for (int i = lane; i < k; i += LANES) sum += row[i] * widen(weights[i]);
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
    if (lane != 0 || n >= end) return;
    if (bias) sum += bias[n];
    float *at = out + (uint64_t)blockIdx.y * (end - first) + (n - first);
    *at = residual ? *at + sum : sum;
}

KERNEL linear_f32(const float *x, const float *w, const float *bias, float *out, int k, int first, int end, int residual) {
    linear(x, w, bias, out, k, first, end, residual);
}

KERNEL linear_f16(const float *x, const uint16_t *w, const float *bias, float *out, int k, int first, int end, int residual) {
    linear(x, w, bias, out, k, first, end, residual);
}
