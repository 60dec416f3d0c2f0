// The rate of INT8 products with everything in registers: what a card can do at most with the instruction that `gemm_i8` uses.
//
// Launch: any grid, 256 threads; each warp does `rounds` · 8 products of 16 × 8 × 32 (or, on cards before 8.0, as many multiplications with
// `dp4a`).
// The operands are bytes without a pattern, other ones in every thread and every round: products of zeros, or of what was there before,
// draw less power, and a card that is at its limit of power clocks higher with them. Six instructions a round make them, beside 8 products
// of at least four cycles each. `out` gets a sum that nobody reads, so that the work is done.
#include "common.cuh"

// Bits of which each depends on all of `x`: Wellons' hash `lowbias32`.
DEVICE uint32_t hash(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// The next word of a linear congruential generator.
DEVICE int32_t next(int32_t word) { return (int32_t)((uint32_t)word * 1664525u + 1013904223u); }

KERNEL peak_int8(int rounds, int *out) {
    int32_t acc[8][4], a[4], b[2];
    uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) acc[i][j] = i + j;
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = (int32_t)hash(6 * thread + i);
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = (int32_t)hash(6 * thread + 4 + i);
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (HAS_MMA) {
                mma_s8(acc[i], a, b);
            } else {
                // A warp's share of 4,096 multiplications is 128 a lane: 32 of these.
                for (int j = 0; j < 32; j++) acc[i][j % 4] = dp4a(a[j % 4], b[j % 2], acc[i][j % 4]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = next(a[i]);
#pragma unroll
        for (int i = 0; i < 2; i++) b[i] = next(b[i]);
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) sum += acc[i][j];
    if (sum == 0x7fffffff) *out = sum;
}
