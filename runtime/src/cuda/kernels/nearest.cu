// The nearest vector of a code book for each place of a map: the lowest i with the least Σ (x − book[i])², the sums one value after the
// other as on the CPU; NaN where no distance is below infinity.
//
// x [places, k] f32, book [n, k] f16 or f32 → codes [places] f32. With `unit` both are made of length one first.
// Launch: grid places / 32, 256 threads. A warp has four places, a lane two of the 64 codes that are looked at together. Bound by compute.
#include "common.cuh"

// Places of a block, codes at a time, values of both that lie in shared memory.
constexpr int PLACES = 32, CODES = 64, STAGE = 32;

struct Room {
    float x[PLACES][STAGE];
    // One more, so that neighbouring values of a vector lie in different banks.
    float book[STAGE][CODES + 1];
    float x_norm[PLACES], book_norm[CODES];
};

DEVICE float widen(float x) { return x; }
DEVICE float widen(uint16_t x) { return half_to_float(x); }

// What a vector is divided by: as `l2_normalise`.
template <class T> DEVICE float norm_of(const T *x, int k) {
    float squares = 0.0f;
    for (int i = 0; i < k; i++) squares += widen(x[i]) * widen(x[i]);
    float norm = sqrtf(squares);
    return !is_finite(norm) ? __uint_as_float(0x7fc00000u) : norm < 1e-12f ? 1e-12f : norm;
}

template <class T> DEVICE void nearest(const float *x, const T *book, int unit, int places, int n, int k, float *codes) {
    SHARED(Room, room);
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, first = blockIdx.x * PLACES;
    // Places and codes beyond the last repeat it. These places are not stored, these codes are not looked at.
    auto place_of = [&](int i) { return x + (uint64_t)(first + i < places ? first + i : places - 1) * k; };
    auto code_of = [&](int code) { return book + (uint64_t)(code < n ? code : n - 1) * k; };
    if (thread < PLACES) room.x_norm[thread] = unit ? norm_of(place_of(thread), k) : 1.0f;
    float best[4];
    uint32_t found[4];
#pragma unroll
    for (int i = 0; i < 4; i++) best[i] = __uint_as_float(0x7f800000u), found[i] = 0xffffffffu;
    for (int from = 0; from < n; from += CODES) {
        if (thread < CODES) room.book_norm[thread] = unit ? norm_of(code_of(from + thread), k) : 1.0f;
        float distance[2][4] = {};
        for (int at = 0; at < k; at += STAGE) {
            int i = at + lane, count = k - at < STAGE ? k - at : STAGE;
            __syncthreads();
#pragma unroll
            for (int row = warp; row < PLACES; row += 8)
                room.x[row][lane] = i < k ? place_of(row)[i] / room.x_norm[row] : 0.0f;
#pragma unroll
            for (int row = warp; row < CODES; row += 8)
                room.book[lane][row] = i < k ? widen(code_of(from + row)[i]) / room.book_norm[row] : 0.0f;
            __syncthreads();
#pragma unroll 4
            for (int d = 0; d < count; d++) {
                float e[2] = {room.book[d][lane], room.book[d][lane + 32]};
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    float difference = room.x[4 * warp + j % 4][d] - e[j / 4];
                    distance[j / 4][j % 4] += difference * difference;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int code = from + j / 4 * 32 + lane;
            if (code < n && distance[j / 4][j % 4] < best[j % 4]) best[j % 4] = distance[j / 4][j % 4], found[j % 4] = code;
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        for (int step = 16; step > 0; step /= 2) {
            float other = __shfl_xor_sync(WARP, best[i], step);
            uint32_t code = __shfl_xor_sync(WARP, found[i], step);
            if (other < best[i] || (other == best[i] && code < found[i])) best[i] = other, found[i] = code;
        }
        int place = first + 4 * warp + i;
        if (lane == 0 && place < places) codes[place] = found[i] == 0xffffffffu ? __uint_as_float(0x7fc00000u) : (float)found[i];
    }
}

KERNEL nearest_f32(const float *x, const float *book, int unit, int places, int n, int k, float *codes) {
    nearest(x, book, unit, places, n, k, codes);
}

KERNEL nearest_f16(const float *x, const uint16_t *book, int unit, int places, int n, int k, float *codes) {
    nearest(x, book, unit, places, n, k, codes);
}
