// Operations on whole rows of floats, in the order of the CPU.
//
//   layer_norm     y = (x − mean) / √(variance + eps) · weight + bias, sums one after the other. A warp a row, 4 a block; 4 · n floats of
//                  dynamic shared memory.
//   softmax_rows   x = e^(factor · x − max) / Σ, sums in 16 lanes. 16 threads a row, 16 rows a block.
//
// x [rows, n] f32. Bound by latency (layer_norm) and by memory (softmax_rows).
#include "common.cuh"

KERNEL layer_norm(const float *x, float *y, const float *weight, const float *bias, float eps, int rows, int n) {
    DYNAMIC_SHARED(memory);
    int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    float *values = (float *)memory + threadIdx.x / 32 * n;
    for (int i = lane; i < n; i += 32) values[i] = x[(uint64_t)row * n + i];
    __syncwarp();
    float mean = 0.0f, variance = 0.0f;
    for (int i = 0; i < n; i++) mean += values[i];
    mean /= (float)n;
    for (int i = 0; i < n; i++) variance += (values[i] - mean) * (values[i] - mean);
    float inverse = 1.0f / sqrtf(variance / (float)n + eps);
    for (int i = lane; i < n; i += 32) y[(uint64_t)row * n + i] = (values[i] - mean) * inverse * weight[i] + bias[i];
}

KERNEL softmax_rows(float *x, float factor, int rows, int n) {
    int lane = threadIdx.x % LANES, row = blockIdx.x * 16 + threadIdx.x / LANES;
    // Rows beyond the last repeat it, so that whole warps take part in the tree, and are not stored.
    bool live = row < rows;
    float *values = x + (uint64_t)(live ? row : rows - 1) * n;
    float max = -__uint_as_float(0x7f800000u);
    for (int i = lane; i < n; i += LANES) max = larger(max, values[i] * factor);
    for (int step = LANES / 2; step > 0; step /= 2) max = larger(max, __shfl_xor_sync(WARP, max, step));
    float sum = 0.0f;
    for (int i = lane; i < n; i += LANES) sum += exp_f32(values[i] * factor - max);
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(WARP, sum, step);
    float inverse = 1.0f / sum;
    if (!live) return;
    for (int i = lane; i < n; i += LANES) values[i] = exp_f32(values[i] * factor - max) * inverse;
}
