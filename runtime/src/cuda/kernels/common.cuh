// What every kernel file shares: types without a header, the INT8 rounding rule, the float order of `quant.rs`, and the few
// instructions that are written in PTX.
//
// These files are compiled twice: by NVRTC for the cards, with -fmad=false so that products and sums are rounded separately as on
// the CPU, and by a C++ compiler for the host, where `emulator.h` stands for the card (tests/emulator). So a kernel gives the same bits on
// both, and on both those of the scalar definition.
//
// Shared memory is declared by SHARED, since the emulator fills it with rubbish before each block.
#pragma once

#ifdef SACCADE_EMULATOR
#include "emulator.h"
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
template <class T> using Same = T;
#define SHARED(type, name) __shared__ __align__(16) Same<type> name
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define KERNEL extern "C" __global__ void
#endif

#define DEVICE static __device__ __forceinline__

// The whole warp.
#define WARP 0xffffffffu

// Accumulators of a float reduction: element i goes to lane i % 16, and `sum_lanes` adds them as a tree.
constexpr int LANES = 16;
// Output rows, consecutive inputs and bytes of a tile.
constexpr int TILE_N = 16, TILE_K = 4, TILE = 64;
// Tokens of a KV block.
constexpr int KV_BLOCK = 16;

#define MINUS_INFINITY __uint_as_float(0xff800000u)

DEVICE int round_up(int n, int to) { return (n + to - 1) / to * to; }
// Inputs after padding.
DEVICE int pad_k(int k) { return round_up(k, 32); }
// Outputs after padding.
DEVICE int pad_n(int n) { return round_up(n, TILE_N); }

// The larger one; a NaN in `b` is passed over.
DEVICE float larger(float a, float b) { return b > a ? b : a; }

// Magnitudes order as their bits do, with infinities and NaN above every number.
DEVICE uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

DEVICE bool is_finite(float x) { return magnitude(x) < 0x7f800000u; }

DEVICE float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// round_ties_even(x · inverse) within ±127, for a finite x: see `round_to_i8` of quant.rs.
DEVICE int8_t quantise(float x, float inverse) {
    return (int8_t)(uint8_t)(__float_as_uint(clamp(x * inverse, -127.0f, 127.0f) + 12582912.0f) & 0xff);
}

// 127 / amax, finite; 0 for a row of zeros and for one that is not finite, whose values all become 0.
DEVICE float inverse_scale(float amax) {
    if (amax == 0.0f || !is_finite(amax)) return 0.0f;
    float inverse = 127.0f / amax;
    return inverse > 3.40282347e38f ? 3.40282347e38f : inverse;
}

// amax / 127; NaN for a row that is not finite.
DEVICE float scale_of(float amax) {
    return is_finite(amax) ? amax / 127.0f : __uint_as_float(0x7fc00000u);
}

// A thread's values: those of `at(i)` from `from` on, every `step`-th; zeros from the n-th on. They are asked for together, so that a
// thread waits once.
struct Batch {
    static constexpr int LEN = 8;
    float value[LEN];
};

template <class At> DEVICE Batch load_batch(At at, int from, int step, int n) {
    Batch batch;
#pragma unroll
    for (int j = 0; j < Batch::LEN; j++) {
        int i = from + j * step;
        batch.value[j] = i < n ? at(i) : 0.0f;
    }
    return batch;
}

// 2ˣ as `exp2_f32` of quant.rs.
DEVICE float exp2_f32(float x) {
    x = clamp(x, -100.0f, 128.0f);
    float shifted = x + 12582912.0f;
    float r = x - (shifted - 12582912.0f);
    float p = 1.32764722e-3f;
    p = p * r + 9.67554133e-3f;
    p = p * r + 5.55071327e-2f;
    p = p * r + 2.40221197e-1f;
    p = p * r + 6.93146967e-1f;
    p = p * r + 1.00000007f;
    return p * __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
}

// eˣ as `exp_f32` of quant.rs.
DEVICE float exp_f32(float x) {
    x = clamp(x, -104.0f, 89.0f);
    float shifted = x * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int whole = (int)(__float_as_uint(shifted) - 0x4b400000u);
    int half = whole >> 1;
    return p * __uint_as_float((uint32_t)(half + 127) << 23) * __uint_as_float((uint32_t)(whole - half + 127) << 23);
}

// x · sigmoid(x).
DEVICE float silu(float x) { return x / (1.0f + exp2_f32(x * -1.44269504f)); }

// Folds the 16 lanes that threads 0 to 15 of a warp hold; thread 0 gets the result. Every thread of the warp must call it.
DEVICE float sum_lanes(float lane) {
    for (int step = 8; step > 0; step /= 2) lane += __shfl_down_sync(WARP, lane, step);
    return lane;
}
DEVICE float larger_lanes(float lane) {
    for (int step = 8; step > 0; step /= 2) lane = larger(lane, __shfl_down_sync(WARP, lane, step));
    return lane;
}

// The largest of all threads' values, for every thread. `room` has a place for each warp.
DEVICE uint32_t block_max(uint32_t value, uint32_t *room) {
    for (int step = 16; step > 0; step /= 2) {
        uint32_t other = __shfl_xor_sync(WARP, value, step);
        value = other > value ? other : value;
    }
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    for (int warp = 0; warp < (int)blockDim.x / 32; warp++) value = room[warp] > value ? room[warp] : value;
    __syncthreads();
    return value;
}

#ifndef SACCADE_EMULATOR

// c + Σ a · b over four INT8 values each.
DEVICE int32_t dp4a(int32_t a, int32_t b, int32_t c) {
    int32_t out;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

// An IEEE half as a single.
DEVICE float half_to_float(uint16_t half) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

// 16 bytes that are read once: weights that stream past.
DEVICE int4 load_streaming(const int4 *at) {
    int4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
    return v;
}

// Brings what lies at `at` near, without waiting for it.
DEVICE void prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// c += a · b: 16 × 32 by 32 × 8 INT8 values in the fragments of mma.m16n8k32.
#if __CUDA_ARCH__ >= 800
DEVICE void mma_s8(int32_t (&c)[4], const int32_t (&a)[4], const int32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies 16 bytes into shared memory in the background; where `live` is false it writes zeros and reads nothing.
DEVICE void copy_async16(void *to, const void *from, bool live) {
    uint32_t shared = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = live ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes));
}
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;"); }
// Waits until all but the newest N groups have arrived.
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }
#define HAS_MMA true
#else
// Cards before 8.0 have neither: the copies are plain ones.
DEVICE void copy_async16(void *to, const void *from, bool live) {
    *(int4 *)to = live ? *(const int4 *)from : make_int4(0, 0, 0, 0);
}
DEVICE void copy_async_commit() {}
template <int N> DEVICE void copy_async_wait() {}
// Not called: `HAS_MMA` is false.
DEVICE void mma_s8(int32_t (&)[4], const int32_t (&)[4], const int32_t (&)[2]) {}
#define HAS_MMA false
#endif

#endif
