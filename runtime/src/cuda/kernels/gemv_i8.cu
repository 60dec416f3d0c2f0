// INT8 linear layers for few rows: out = (Σ q · w) · scale_x · scale_w + bias over `n16k4` tiles, every weight byte read once.
//
// A block has 16 outputs; its 8 warps share the inputs. A lane reads 16 bytes, 4 outputs × 4 inputs, and multiplies them by the same
// 4 inputs of every row with `dp4a`; lanes with the same outputs, then warps, add up. Launch: one block of 256 threads for each group
// of 16 wanted outputs, of all layers one after the other (of a gated pair, of the first).
// Bound: the bytes of the tiles at the speed of memory.
//
// Two ways in: rows quantised before (`gemv_i8_ROWS`, INT8 rows = tokens · parts, 1 to 16), and one token of floats that every block
// norms and quantises for itself (`gemv_f32_PARTS`), which costs it a microsecond and saves a launch.
#include "linear.cuh"
#include "rows.cuh"

constexpr int WARPS = 8;

// The sums of 16 outputs for each row, put together from all warps: sums[ROWS][16].
template <int ROWS> DEVICE void dot_group(const int8_t *tiles, const int8_t *q, int k_padded, int rows, int32_t (*room)[ROWS][TILE_N]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int32_t acc[ROWS][4];
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < 4; j++) acc[r][j] = 0;
    // 8 quads of inputs, 512 bytes of tiles, a warp and turn.
#pragma unroll(ROWS <= 4 ? 4 : 16 / ROWS)
    for (int turn = warp; turn < k_padded / 32; turn += WARPS) {
        int4 w = load_streaming((const int4 *)(tiles + (uint64_t)turn * 8 * TILE) + lane);
        int quad = turn * 8 + lane / 4;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            // Rows beyond the last repeat it and are not stored.
            int32_t x = ((const int32_t *)(q + (uint64_t)(r < rows ? r : rows - 1) * k_padded))[quad];
            acc[r][0] = dp4a(w.x, x, acc[r][0]);
            acc[r][1] = dp4a(w.y, x, acc[r][1]);
            acc[r][2] = dp4a(w.z, x, acc[r][2]);
            acc[r][3] = dp4a(w.w, x, acc[r][3]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            for (int step = 4; step < 32; step *= 2) acc[r][j] += __shfl_xor_sync(WARP, acc[r][j], step);
            if (lane < 4) room[warp][r][lane * 4 + j] = acc[r][j];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TILE_N; i += blockDim.x) {
        int32_t sum = 0;
        for (int w = 0; w < WARPS; w++) sum += room[w][i / TILE_N][i % TILE_N];
        room[0][i / TILE_N][i % TILE_N] = sum;
    }
    __syncthreads();
}

// The layer and group of this block.
DEVICE int find_group(const Layers &layers, int &which) {
    int group = blockIdx.x;
    for (which = 0; !layers.gated && which + 1 < layers.count && group >= groups_of(layers.layer[which]); which++)
        group -= groups_of(layers.layer[which]);
    return layers.layer[which].first / TILE_N + group;
}

template <int ROWS> DEVICE void products(const Layers &layers, const int8_t *q, const float *x_scale, int rows) {
    SHARED(int32_t[WARPS][ROWS][TILE_N], first);
    SHARED(int32_t[WARPS][ROWS][TILE_N], second);
    int which, k_padded = pad_k(layers.k);
    int group = find_group(layers, which);
    uint64_t at = (uint64_t)group * TILE_N * k_padded;
    dot_group<ROWS>(layers.layer[which].tiles + at, q, k_padded, rows, first);
    if (layers.gated) dot_group<ROWS>(layers.layer[1].tiles + at, q, k_padded, rows, second);
    for (int i = threadIdx.x; i < rows / layers.parts * TILE_N; i += blockDim.x) {
        int token = i / TILE_N, j = i % TILE_N, row = token * layers.parts;
        int32_t sums[2] = {first[0][row][j], layers.parts == 2 ? first[0][row + 1][j] : 0};
        int32_t other[2] = {0, 0};
        if (layers.gated) {
            other[0] = second[0][row][j];
            other[1] = layers.parts == 2 ? second[0][row + 1][j] : 0;
        }
        store(layers, which, token, group * TILE_N + j, sums, other, x_scale + row);
    }
}

#define GEMV_I8(ROWS)                                                                                                                      \
    KERNEL gemv_i8_##ROWS(Layers layers, const int8_t *q, const float *x_scale, int rows) { products<ROWS>(layers, q, x_scale, rows); }
GEMV_I8(1)
GEMV_I8(2)
GEMV_I8(4)
GEMV_I8(8)
GEMV_I8(16)

// x [k] f32, one token; k floats and parts · pad_k(k) bytes of dynamic shared memory.
#define GEMV_F32(PARTS)                                                                                                                    \
    KERNEL gemv_f32_##PARTS(Layers layers, const float *x, const float *norm, float eps) {                                                 \
        DYNAMIC_SHARED(memory);                                                                                                            \
        float *row = (float *)memory;                                                                                                      \
        int8_t *q = (int8_t *)memory + round_up(layers.k * 4, 16);                                                                         \
        SHARED(RowRoom, room);                                                                                                             \
        SHARED(float[PARTS], scale);                                                                                                       \
        load_row(x, norm, eps, layers.k, row, room);                                                                                       \
        quantise_row(row, layers.k, PARTS, q, scale, room);                                                                                \
        products<PARTS>(layers, q, scale, PARTS);                                                                                          \
    }
GEMV_F32(1)
GEMV_F32(2)
