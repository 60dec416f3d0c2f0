// Small operations on rows of floats that are not fused into a product.
//
//   rms_norm_rows    y = x / √(mean x² + eps) · norm, or y += that (families that norm what comes out)
//   silu_multiply    gate = silu(gate) · up
//   check_finite     flag |= 1 where a value is not a number or infinite
//   guide_logits     out = free + guidance · (guided − free) of the logits that `ids` names
//
// x [rows, k] f32. Launch: a block of 256 threads a row (`rms_norm_rows`, k floats of dynamic shared memory), or 256 threads over all values.
// `guide_logits`: logits [2, width] f32, free and guided; ids [n] below width; out [n]. Source: Ho and Salimans 2022 (arXiv:2207.12598).
#include "rows.cuh"

KERNEL rms_norm_rows(const float *x, const float *norm, float eps, int k, float *y, int add) {
    DYNAMIC_SHARED(memory);
    SHARED(RowRoom, room);
    float *row = (float *)memory;
    load_row(x + (uint64_t)blockIdx.x * k, norm, eps, k, row, room);
    float *out = y + (uint64_t)blockIdx.x * k;
    for (int i = threadIdx.x; i < k; i += blockDim.x) out[i] = add ? out[i] + row[i] : row[i];
}

KERNEL silu_multiply(float *gate, const float *up, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = silu(gate[i]) * up[i];
}

KERNEL check_finite(const float *x, int n, uint32_t *flag) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && !is_finite(x[i])) atomicOr(flag, 1u);
}

KERNEL guide_logits(const float *logits, int width, const int *ids, int n, float guidance, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int at = ids[i];
    float free = logits[at], guided = logits[width + at];
    out[i] = free + guidance * (guided - free);
}
