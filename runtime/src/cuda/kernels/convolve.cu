// Convolutions, linear layers over many rows, and the products of attention, as one matrix product over patches that are gathered on the
// way into shared memory (implicit GEMM):
//
//   out[position, n] = bias[n] + Σ_i patch(position)[i] · w[n, i]
//
// x [time, height, width, channels] f32, patches (kt, kh, kw, channels) with zeros outside; w [n, k] f16 or f32, or f32 turned round,
// [k, n]: values of attention; bias [n] or null; out [positions, n] f32. A linear layer is the convolution of 1 × 1; heads of attention are
// a batch.
//
// The order is that of the CPU: input i of a sum goes to lane i % 16, and the lanes end in a tree. So 16 threads share a tile of 8 × 8
// outputs, each adding up the inputs of its lane for all of them, and exchange halves of the tile in the tree, whose 4 steps leave 4 outputs
// with each thread. Launch: grid (positions / 32, n / 32, batch), 256 threads; 32 inputs a stage, the next one fetched while one is
// multiplied. Bound by the rate of F32 products and sums, which stay two instructions each: 16 reads of shared memory are 128 of them.
#include "patch.cuh"

constexpr int BLOCK = 32, STAGE = 32, SIDE = 8, FETCHES = BLOCK * STAGE / 256;

struct Product {
    Patches patches;
    int n;
    int w_n, w_k; // weights from one output to the next, and from one input to the next
    int out_row;  // values from one position of the output to the next
    int x_batch, w_batch, out_batch;
};

struct Stage {
    float x[2][STAGE / LANES][BLOCK][LANES];
    float w[2][STAGE / LANES][BLOCK][LANES];
};

DEVICE float wide(float w) { return w; }
DEVICE float wide(uint16_t w) { return half_to_float(w); }

template <class T, bool TURNED> DEVICE void convolve(const Product &c, const float *x, const T *w, const float *bias, float *out) {
    SHARED(Stage, stage);
    SHARED(Corner[BLOCK], corners);
    const Patches &p = c.patches;
    int thread = threadIdx.x, warp = thread / 32, half = thread / LANES % 2, lane = thread % LANES;
    int first = blockIdx.x * BLOCK, first_n = blockIdx.y * BLOCK;
    x += (uint64_t)blockIdx.z * c.x_batch;
    w += (uint64_t)blockIdx.z * c.w_batch;
    out += (uint64_t)blockIdx.z * c.out_batch;
    // Positions beyond the last repeat it and are not stored.
    if (thread < BLOCK) corners[thread] = corner_of(p, first + thread < p.positions ? first + thread : p.positions - 1);
    __syncthreads();

    float acc[SIDE * SIDE], next_x[FETCHES], next_w[FETCHES];
#pragma unroll
    for (int i = 0; i < SIDE * SIDE; i++) acc[i] = 0.0f;
    // Inputs beyond the last are zeros, which change no sum: one that began with +0 is never −0.
    auto fetch = [&](int from) {
        int i = from + thread % STAGE;
        Tap tap = tap_of(p, i);
#pragma unroll
        for (int turn = 0; turn < FETCHES; turn++) {
            int row = thread / STAGE + turn * (256 / STAGE);
            next_x[turn] = i < p.k ? patch_value(x, p, corners[row], tap) : 0.0f;
            // Neighbouring threads read neighbouring weights: inputs, or outputs where the weights are turned round.
            int e = thread + turn * 256, n = first_n + (TURNED ? e % BLOCK : row), k = TURNED ? from + e / BLOCK : i;
            next_w[turn] = k < p.k && n < c.n ? wide(w[(uint64_t)n * c.w_n + (uint64_t)k * c.w_k]) : 0.0f;
        }
    };
    auto keep = [&](int room) {
#pragma unroll
        for (int turn = 0; turn < FETCHES; turn++) {
            int row = thread / STAGE + turn * (256 / STAGE), i = thread % STAGE, e = thread + turn * 256;
            stage.x[room][i / LANES][row][i % LANES] = next_x[turn];
            int n = TURNED ? e % BLOCK : row, k = TURNED ? e / BLOCK : i;
            stage.w[room][k / LANES][n][k % LANES] = next_w[turn];
        }
    };
    fetch(0);
    keep(0);
    __syncthreads();
    for (int from = 0, room = 0; from < p.k; from += STAGE, room ^= 1) {
        bool more = from + STAGE < p.k;
        if (more) fetch(from + STAGE);
#pragma unroll
        for (int part = 0; part < STAGE / LANES; part++) {
            float xs[SIDE], ws[SIDE];
#pragma unroll
            for (int i = 0; i < SIDE; i++) {
                xs[i] = stage.x[room][part][warp / 2 * SIDE + i][lane];
                // The halves of a warp take every second output: 32 different banks.
                ws[i] = stage.w[room][part][warp % 2 * 2 * SIDE + 2 * i + half][lane];
            }
#pragma unroll
            for (int i = 0; i < SIDE * SIDE; i++) acc[i] += xs[i / SIDE] * ws[i % SIDE];
        }
        if (more) keep(room ^ 1);
        __syncthreads();
    }

    // The tree: a thread keeps one half of what it has and gives the other half away.
#pragma unroll
    for (int step = LANES / 2, count = SIDE * SIDE / 2; step > 0; step /= 2, count /= 2) {
        bool upper = lane & step;
#pragma unroll
        for (int i = 0; i < SIDE * SIDE / 2; i++) {
            if (i >= count) break;
            float mine = upper ? acc[i + count] : acc[i], given = upper ? acc[i] : acc[i + count];
            acc[i] = mine + __shfl_xor_sync(WARP, given, step);
        }
    }
    int position = first + warp / 2 * SIDE + lane / 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int n = first_n + warp % 2 * 2 * SIDE + 2 * (lane % 2 * 4 + i) + half;
        if (position < p.positions && n < c.n) out[(uint64_t)position * c.out_row + n] = bias ? acc[i] + bias[n] : acc[i];
    }
}

KERNEL convolve_f32(Product c, const float *x, const float *w, const float *bias, float *out) { convolve<float, false>(c, x, w, bias, out); }

KERNEL convolve_f16(Product c, const float *x, const uint16_t *w, const float *bias, float *out) {
    convolve<uint16_t, false>(c, x, w, bias, out);
}

KERNEL convolve_turned(Product c, const float *x, const float *w, const float *bias, float *out) { convolve<float, true>(c, x, w, bias, out); }
