// Rows of activations become INT8, with the norm before them where there is one.
//
//   x' = x / √(mean x² + eps) · norm,   q = round(x' · 127/amax),   scale = amax/127
//
// and, with two parts, the same again of what rounding left: x' − q · scale.
//
// x [rows, k] f32, norm [k] f32 or null → q [rows, parts, pad_k(k)] i8 (tails zero), scale [rows, parts] f32.
// One block of 256 threads a row; k floats of dynamic shared memory. Bound by latency: a row is a few KB.
#include "rows.cuh"

KERNEL quantise_rows(const float *x, const float *norm, float eps, int k, int parts, int8_t *q, float *scale) {
    DYNAMIC_SHARED(memory);
    float *row = (float *)memory;
    SHARED(RowRoom, room);
    int i = blockIdx.x;
    load_row(x + (uint64_t)i * k, norm, eps, k, row, room);
    quantise_row(row, k, parts, q + (uint64_t)i * parts * pad_k(k), scale + i * parts, room);
}
