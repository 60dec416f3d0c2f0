// A picture into the input of a network: every byte of channel c as level[c][byte], which is what its mean, deviation and scale make of it.
//
// rgb [pixels, 3] u8, levels [3, 256] f32 → x [pixels, 3] f32. A thread a value, 256 a block. Bound by memory.
#include "common.cuh"

KERNEL pixels_to_map(const uint8_t *rgb, const float *levels, float *x, uint32_t n) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = levels[i % 3 * 256 + rgb[i]];
}
