// The largest logit of each row, the first of equals; what is never said is passed over.
//
// logits [rows, n] f32 → best [rows] u64: the index in the low 32 bits, inverted so that the first of equals is the larger one; 0 where every value
// is −∞, and `flag |= 1` where one is not a number. Launch: grid (values / 1024, rows), 256 threads; `best` is zeroed before.
#include "step.cuh"

// Floats in the order of unsigned integers; never 0.
DEVICE uint32_t ordered(float x) {
    uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

KERNEL argmax(float *logits, int n, const int *unsaid, int n_unsaid, unsigned long long *best, uint32_t *flag) {
    const float minus_infinity = __uint_as_float(0xff800000u);
    float *row = logits + (uint64_t)blockIdx.y * n;
    unsigned long long largest = 0;
    int end = (blockIdx.x + 1) * 1024 < (unsigned)n ? (blockIdx.x + 1) * 1024 : n;
    for (int i = blockIdx.x * 1024 + threadIdx.x; i < end; i += blockDim.x) {
        float x = row[i];
        if (!is_finite(x)) atomicOr(flag, 1u);
        for (int j = 0; j < n_unsaid; j++)
            if (unsaid[j] == i) row[i] = x = minus_infinity;
        if (x == minus_infinity) continue;
        unsigned long long key = (unsigned long long)ordered(x) << 32 | (0xffffffffu - (uint32_t)i);
        largest = key > largest ? key : largest;
    }
    uint32_t high = warp_max((uint32_t)(largest >> 32));
    uint32_t low = warp_max((uint32_t)(largest >> 32) == high ? (uint32_t)largest : 0);
    if (threadIdx.x % 32 == 0 && high) atomicMax(&best[blockIdx.y], (unsigned long long)high << 32 | low);
}
