// Small operations on the values of activation maps [places, channels] f32. A thread a value, 256 a block; bound by memory.
//
//   silu_map        y = x · sigmoid(x)
//   gelu_map        x = x · Φ(x), as `gelu` of quant.rs
//   add_maps        x += y
//   add_table       x += table, whose rows lie in F16 or F32
//   channel_norm    y = swish((x − mean) · weight / √(variance + eps) + bias): batch norm after training
//   enlarge_map     every place as two by two: out [frames · 2 · height, 2 · width, channels]
#include "common.cuh"

#define FOR_VALUE(i, n)                                                                                                                    \
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;                                                                                    \
    if (i >= (n)) return

KERNEL silu_map(const float *x, float *y, uint32_t n) {
    FOR_VALUE(i, n);
    y[i] = silu(x[i]);
}

KERNEL gelu_map(float *x, uint32_t n) {
    FOR_VALUE(i, n);
    float value = x[i], z = fabsf(value) * 0.707106781f, t = 1.0f / (1.0f + 0.3275911f * z);
    float series = 1.0614054f;
    series = series * t + -1.4531521f;
    series = series * t + 1.4214138f;
    series = series * t + -0.28449674f;
    series = series * t + 0.2548296f;
    float tail = 0.5f * (series * t) * exp_f32(-(z * z));
    x[i] = value * (value < 0.0f ? tail : 1.0f - tail);
}

KERNEL add_maps(float *x, const float *y, uint32_t n) {
    FOR_VALUE(i, n);
    x[i] += y[i];
}

KERNEL add_table(float *x, const void *table, int half, uint32_t n) {
    FOR_VALUE(i, n);
    x[i] += half ? half_to_float(((const uint16_t *)table)[i]) : ((const float *)table)[i];
}

KERNEL channel_norm(const float *x, float *y, const float *weight, const float *bias, const float *mean, const float *variance, float eps,
                    int channels, uint32_t n) {
    FOR_VALUE(i, n);
    int c = i % channels;
    y[i] = silu((x[i] - mean[c]) * (weight[c] / sqrtf(variance[c] + eps)) + bias[c]);
}

KERNEL enlarge_map(const float *x, float *y, int width, int channels, uint32_t n) {
    FOR_VALUE(i, n);
    uint32_t c = i % channels, place = i / channels, column = place % (2 * width), row = place / (2 * width);
    y[i] = x[(row / 2 * width + column / 2) * channels + c];
}
