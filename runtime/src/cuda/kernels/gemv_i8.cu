// INT8 linear layers for few rows: out = (Σ q · w) · scale_x · scale_w + bias over `n16k4` tiles, every weight byte read once.
//
// A block has 16 outputs; its 8 warps share the inputs. A lane reads 16 bytes, 4 outputs × 4 inputs, and multiplies them by the same
// 4 inputs of every row with `dp4a`; lanes with the same outputs, then warps, add up. Launch: one block of 256 threads for each group
// of 16 wanted outputs, of all layers one after the other (of a gated pair, of the first).
// Bound: the bytes of the tiles at the speed of memory. A warp asks for its next tiles before it multiplies those that came, the first
// ones before the block has its inputs, and those of a gated pair's second layer during the first: in small layers the wait for memory is
// longer than the transfer.
//
// Two ways in: rows quantised before (`gemv_i8_ROWS`, INT8 rows = tokens · parts, 1 to 16), and one token of floats that every block
// norms and quantises for itself (`gemv_f32_PARTS`), which saves a launch.
#include "linear.cuh"
#include "rows.cuh"

constexpr int WARPS = 8;

// Tiles on their way to a warp: N turns of 8 quads of inputs, 512 bytes each. Turns behind the last are zeros.
template <int N> struct Ahead {
    int4 tiles[N];
};

// Turns of a warp that are asked for at once; what rows need for their sums is not there for tiles.
template <int ROWS> constexpr int AHEAD = ROWS <= 8 ? 4 : 2;

template <int N> DEVICE Ahead<N> load_ahead(const int8_t *tiles, int turn, int turns) {
    Ahead<N> ahead;
#pragma unroll
    for (int i = 0; i < N; i++) {
        int at = turn + i * WARPS;
        const int4 *lane = (const int4 *)(tiles + (uint64_t)at * 8 * TILE) + threadIdx.x % 32;
        ahead.tiles[i] = at < turns ? load_streaming(lane) : make_int4(0, 0, 0, 0);
    }
    return ahead;
}

// Adds up N values of the lanes that differ in the bits from STEP down to 4: at each step a lane gives half of its values away and gets
// the other half's. It ends with N / 8 sums (at least one) in front, of the values from the one on that is returned.
template <int N, int STEP = 16> DEVICE int fold_lanes(int32_t *acc) {
    if constexpr (STEP < 4) {
        return 0;
    } else {
        // A single value is added on both sides.
        constexpr int KEPT = (N + 1) / 2;
        bool upper = N > 1 && threadIdx.x & STEP;
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            int32_t low = acc[i], high = acc[i + N - KEPT];
            acc[i] = (upper ? high : low) + __shfl_xor_sync(WARP, upper ? low : high, STEP);
        }
        return (upper ? KEPT : 0) + fold_lanes<KEPT, STEP / 2>(acc);
    }
}

// The sums of 16 outputs for each row, put together from all warps: sums[ROWS][16]. `ahead` holds the first turns of `tiles`, and in the
// end those of `following`, if there is one.
template <int ROWS, int N>
DEVICE void dot_group(const int8_t *tiles, const int8_t *following, Ahead<N> &ahead, const int8_t *q, int k_padded, int rows,
                      int32_t (*room)[ROWS][TILE_N]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, turns = k_padded / 32;
    int32_t acc[ROWS * 4];
#pragma unroll
    for (int i = 0; i < ROWS * 4; i++) acc[i] = 0;
    for (int turn = warp; turn < turns; turn += N * WARPS) {
        Ahead<N> here = ahead;
        int next = turn + N * WARPS;
        if (next < turns) {
            ahead = load_ahead<N>(tiles, next, turns);
        } else if (following) {
            ahead = load_ahead<N>(following, warp, turns);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = turn + i * WARPS;
            int4 w = here.tiles[i];
            int quad = (at < turns ? at : turn) * 8 + lane / 4;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // Rows beyond the last repeat it and are not stored.
                int32_t x = ((const int32_t *)(q + (uint64_t)(r < rows ? r : rows - 1) * k_padded))[quad];
                acc[r * 4] = dp4a(w.x, x, acc[r * 4]);
                acc[r * 4 + 1] = dp4a(w.y, x, acc[r * 4 + 1]);
                acc[r * 4 + 2] = dp4a(w.z, x, acc[r * 4 + 2]);
                acc[r * 4 + 3] = dp4a(w.w, x, acc[r * 4 + 3]);
            }
        }
    }
    int first = fold_lanes<ROWS * 4>(acc);
#pragma unroll
    for (int i = 0; i < (ROWS + 1) / 2; i++) {
        int value = first + i;
        room[warp][value / 4][lane % 4 * 4 + value % 4] = acc[i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * TILE_N; i += blockDim.x) {
        int32_t sum = 0;
        for (int w = 0; w < WARPS; w++) sum += room[w][i / TILE_N][i % TILE_N];
        room[0][i / TILE_N][i % TILE_N] = sum;
    }
    __syncthreads();
}

// A block's part of the layers: which one, which group of outputs, and their tiles.
struct Part {
    int which, group;
    const int8_t *tiles, *second; // of a gated pair, those of its second layer
};

DEVICE Part part_of(const Layers &layers) {
    Part part = {0, (int)blockIdx.x, nullptr, nullptr};
    while (!layers.gated && part.which + 1 < layers.count && part.group >= groups_of(layers.layer[part.which]))
        part.group -= groups_of(layers.layer[part.which++]);
    const Layer &layer = layers.layer[part.which];
    part.group += layer.first / TILE_N;
    uint64_t at = (uint64_t)part.group * TILE_N * pad_k(layers.k);
    part.tiles = layer.tiles + at;
    if (layers.gated) part.second = layers.layer[1].tiles + at;
    // What the sums will be multiplied by is on its way, too.
    if (threadIdx.x == 0) prefetch(layer.scale + part.group * TILE_N);
    if (threadIdx.x == 1 && layers.gated) prefetch(layers.layer[1].scale + part.group * TILE_N);
    return part;
}

template <int ROWS> DEVICE Ahead<AHEAD<ROWS>> first_tiles(const Layers &layers, const Part &part) {
    return load_ahead<AHEAD<ROWS>>(part.tiles, threadIdx.x / 32, pad_k(layers.k) / 32);
}

template <int ROWS>
DEVICE void products(const Layers &layers, const Part &part, Ahead<AHEAD<ROWS>> ahead, const int8_t *q, const float *x_scale, int rows) {
    SHARED(int32_t[WARPS][ROWS][TILE_N], first);
    SHARED(int32_t[WARPS][ROWS][TILE_N], second);
    int k_padded = pad_k(layers.k);
    dot_group<ROWS>(part.tiles, part.second, ahead, q, k_padded, rows, first);
    if (part.second) dot_group<ROWS>(part.second, nullptr, ahead, q, k_padded, rows, second);
    for (int i = threadIdx.x; i < rows / layers.parts * TILE_N; i += blockDim.x) {
        int token = i / TILE_N, j = i % TILE_N, row = token * layers.parts;
        int32_t sums[2] = {first[0][row][j], layers.parts == 2 ? first[0][row + 1][j] : 0};
        int32_t other[2] = {0, 0};
        if (part.second) {
            other[0] = second[0][row][j];
            other[1] = layers.parts == 2 ? second[0][row + 1][j] : 0;
        }
        store(layers, part.which, token, part.group * TILE_N + j, sums, other, x_scale + row);
    }
}

// Blocks a multiprocessor: as many as the registers of ROWS let through without keeping some in memory.
#define GEMV_I8(ROWS, BLOCKS)                                                                                                              \
    KERNEL __launch_bounds__(WARPS * 32, BLOCKS) gemv_i8_##ROWS(Layers layers, const int8_t *q, const float *x_scale, int rows) {          \
        Part part = part_of(layers);                                                                                                       \
        products<ROWS>(layers, part, first_tiles<ROWS>(layers, part), q, x_scale, rows);                                                   \
    }
GEMV_I8(1, 4)
GEMV_I8(2, 3)
GEMV_I8(4, 3)
GEMV_I8(8, 2)
GEMV_I8(16, 1)

// x [k] f32, one token; k floats and parts · pad_k(k) bytes of dynamic shared memory.
#define GEMV_F32(PARTS, BLOCKS)                                                                                                            \
    KERNEL __launch_bounds__(WARPS * 32, BLOCKS)                                                                                           \
        gemv_f32_##PARTS(Layers layers, const float *x, const float *norm, float eps) {                                                    \
        DYNAMIC_SHARED(memory);                                                                                                            \
        float *row = (float *)memory;                                                                                                      \
        int8_t *q = (int8_t *)memory + round_up(layers.k * 4, 16);                                                                         \
        SHARED(RowRoom, room);                                                                                                             \
        SHARED(float[PARTS], scale);                                                                                                       \
        Part part = part_of(layers);                                                                                                       \
        Ahead<AHEAD<PARTS>> ahead = first_tiles<PARTS>(layers, part);                                                                      \
        load_row(x, norm, eps, layers.k, row, room);                                                                                       \
        quantise_row(row, layers.k, PARTS, q, scale, room);                                                                                \
        products<PARTS>(layers, part, ahead, q, scale, PARTS);                                                                             \
    }
GEMV_F32(1, 4)
GEMV_F32(2, 3)
