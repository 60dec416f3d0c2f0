// The patches of an INT8 convolution as rows of activations, from where `gemm_i8` multiplies them:
//
//   q = round(patch · 127/amax),   scale = amax/127   (and again of what rounding left, where there are two parts)
//
// x [time, height, width, channels] f32 → q [positions, parts, pad_k(k)] i8, scale [positions, parts] f32, of the positions from `first`
// on. Launch: a block of 256 threads a position; k floats of dynamic shared memory. Bound by latency: a patch is a few KB.
#include "patch.cuh"
#include "rows.cuh"

KERNEL quantise_patches(Patches p, const float *x, int first, int parts, int8_t *q, float *scale) {
    DYNAMIC_SHARED(memory);
    float *row = (float *)memory;
    SHARED(RowRoom, room);
    int i = blockIdx.x;
    Corner corner = corner_of(p, first + i);
    for (int at = threadIdx.x; at < p.k; at += blockDim.x) row[at] = patch_value(x, p, corner, tap_of(p, at));
    __syncthreads();
    quantise_row(row, p.k, parts, q + (uint64_t)i * parts * pad_k(p.k), scale + (uint64_t)i * parts, room);
}
