// The rate of INT8 products with everything in registers: what a card can do at most with the instruction that `gemm_i8` uses.
//
// Launch: any grid, 256 threads; each warp does `rounds` · 8 products of 16 × 8 × 32 (or, on Volta, as many multiplications with `dp4a`).
// `out` gets a sum that nobody reads, so that the work is done.
#include "common.cuh"

KERNEL peak_int8(int rounds, int *out) {
    int32_t acc[8][4];
    int seed = threadIdx.x;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) acc[i][j] = seed + i + j;
    const int32_t a[4] = {seed, seed + 1, seed + 2, seed + 3}, b[2] = {seed + 4, seed + 5};
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
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) sum += acc[i][j];
    if (sum == 0x7fffffff) *out = sum;
}
