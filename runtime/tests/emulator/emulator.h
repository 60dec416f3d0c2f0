// A card in C++: enough of CUDA's language for the kernels to be compiled for the host and run there.
//
// Every thread of a block is a fibre. Fibres switch at barriers, shuffles, votes and matrix products, in an order that a seed shuffles, so
// that a missing barrier shows as a difference between seeds. Shared memory is filled with rubbish before each block, background copies
// arrive when they are waited for and not before, and a barrier that some thread never reaches ends the launch with a sentence.
// Blocks run one after the other, in shuffled order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define KERNEL extern "C" __attribute__((visibility("default"))) void
// Both ways are compiled; the emulated card says which it has.
#define HAS_MMA emulator::has_mma
template <class T> using Same = T;
#define SHARED(type, name) Same<type> &name = *(Same<type> *)emulator::shared(sizeof(Same<type>))
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::dynamic_shared()

struct dim3 {
    unsigned x, y, z;
};
struct int2 {
    int x, y;
};
struct int4 {
    int x, y, z, w;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {
extern dim3 thread_idx, block_idx, block_dim, grid_dim;
// Whether the card has matrix instructions and background copies.
extern bool has_mma;
// The next array that the block declares: each thread asks for the same ones in the same order.
void *shared(std::size_t bytes);
unsigned char *dynamic_shared();
void barrier();
// What a lane gives takes at most so many bytes.
constexpr int EXCHANGED = 32;
// Where every lane of the warp puts what it gives, and which lane this is.
struct Exchange {
    char (*given)[EXCHANGED];
    int lane;
};
Exchange exchange();
// Waits until every lane has put something there.
void arrive();
// Gives `value` to the warp, and returns what every lane gave.
template <class T> const char (*exchange(const T &value))[EXCHANGED] {
    static_assert(sizeof(T) <= EXCHANGED, "lanes give little");
    Exchange e = exchange();
    std::memcpy(e.given[e.lane], &value, sizeof(T));
    arrive();
    return e.given;
}
void copy_async(void *to, const void *from, int bytes);
void commit();
void wait(int newest);
} // namespace emulator

#define threadIdx emulator::thread_idx
#define blockIdx emulator::block_idx
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) {
    emulator::exchange('\0');
}
template <class T> T emulated_shuffle(T value, int lane) {
    T got;
    std::memcpy(&got, emulator::exchange(value)[lane], sizeof(T));
    return got;
}
inline int emulated_lane() { return (int)(emulator::thread_idx.x % 32); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return emulated_shuffle(value, emulated_lane() ^ mask); }
template <class T> T __shfl_down_sync(unsigned, T value, int delta) {
    int lane = emulated_lane() + delta;
    return emulated_shuffle(value, lane < 32 ? lane : emulated_lane());
}
template <class T> T __shfl_sync(unsigned, T value, int lane) { return emulated_shuffle(value, lane % 32); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline int dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return c;
}
inline unsigned atomicOr(unsigned *at, unsigned value) {
    unsigned old = *at;
    *at |= value;
    return old;
}
template <class T> T atomicAdd(T *at, T value) {
    T old = *at;
    *at += value;
    return old;
}
// Every write is seen by all at once here.
inline void __threadfence() {}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __ballot_sync(unsigned, int vote) {
    char mine = vote != 0;
    auto given = emulator::exchange(mine);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= (unsigned)given[lane][0] << lane;
    return votes;
}
inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, bits = (uint32_t)(half & 0x7fff) << 13;
    uint32_t special = bits >= 0x7c00u << 13 ? 0x7f800000u : 0;
    uint32_t scaled = __float_as_uint(__uint_as_float(bits) * __uint_as_float((127u + 112) << 23));
    return __uint_as_float(scaled | special | sign);
}
inline int4 load_streaming(const int4 *at) { return *at; }
inline void prefetch(const void *) {}
inline void copy_async16(void *to, const void *from, bool live) { emulator::copy_async(to, live ? from : nullptr, 16); }
inline void copy_async_commit() { emulator::commit(); }
template <int N> void copy_async_wait() { emulator::wait(N); }

// Fragments as PTX has them (mma.m16n8k32): lane = 4 · g + t holds of A the rows g and g + 8 at inputs 4t.. and 16 + 4t.., of B the
// column g at the same inputs, of C rows g and g + 8 at columns 2t and 2t + 1.
inline void mma_s8(int32_t (&c)[4], const int32_t (&a)[4], const int32_t (&b)[2]) {
    struct {
        int32_t of[6];
    } mine = {{a[0], a[1], a[2], a[3], b[0], b[1]}};
    auto given = emulator::exchange(mine);
    int lane = emulated_lane(), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = i / 2, column = 2 * t + i % 2;
        for (int quad = 0; quad < 8; quad++) {
            const int32_t *of_a = (const int32_t *)given[4 * g + quad % 4];
            const int32_t *of_b = (const int32_t *)given[4 * column + quad % 4];
            c[i] = dp4a(of_a[row + 2 * (quad / 4)], of_b[4 + quad / 4], c[i]);
        }
    }
}
