// INT8 linear layers for many rows: out = (Σ q · w) · scale_x · scale_w + bias over `n16k4` tiles.
//
// A block of 4 warps computes 128 outputs of BM rows (INT8 rows: tokens · parts), 64 inputs at a time, which background copies bring into
// a ring of STAGES stages. A warp has 64 outputs × BM/2 rows. Weights are the A operand of `mma.m16n8k32` and rows the B operand, so that
// the two parts of a token are neighbours in a lane. The order of inputs and outputs inside a fragment is free, so they are dealt such
// that a lane reads 8 bytes (weights) and 16 bytes (rows) at a time:
//   * in a stretch of 64 inputs, lane t of four takes the quads 4t.. (a whole 16 bytes of a row) in two products,
//   * rows g and g + 8 of the A fragment are the neighbours 2g and 2g + 1 among 16 outputs.
// A stretch of 16 outputs × 64 inputs is 64 pieces of 16 bytes; piece p lies at p ^ 2·(p/16), which spreads the four quads that are read
// together over all banks.
//
// Launch: grid (groups of 128 outputs of all layers, rows / BM), 128 threads. Bound: the rate of INT8 products.
// Cards before 8.0 have no such instruction for 32 inputs: there the same tiles feed `dp4a` (`multiply_dp4a`).
#include "linear.cuh"

constexpr int BN = 128, BK = 64, STAGES = 3, THREADS = 128, GROUPS = BN / TILE_N;

template <int BM> struct Stage {
    int8_t weights[GROUPS][TILE_N * BK];
    int8_t rows[BM][BK];
};

// Group `i` of a block: of a gated pair, pairs of groups of the first and of the second layer alternate, so that a warp has both.
struct Block {
    int which;     // the layer, of a gated pair the first
    int first;     // its first group
    int end;       // groups of the layer
};

DEVICE int blocks_of(const Layers &layers, int which) {
    int groups = groups_of(layers.layer[which]), per_block = layers.gated ? GROUPS / 2 : GROUPS;
    return (groups + per_block - 1) / per_block;
}

DEVICE Block find_block(const Layers &layers) {
    int block = blockIdx.x, which = 0;
    for (; !layers.gated && which + 1 < layers.count && block >= blocks_of(layers, which); which++) block -= blocks_of(layers, which);
    int start = layers.layer[which].first / TILE_N;
    return {which, start + block * (layers.gated ? GROUPS / 2 : GROUPS), start + groups_of(layers.layer[which])};
}

// The layer and the group of outputs that group `i` of a block stands for.
DEVICE int group_at(const Layers &layers, const Block &block, int i, int &which) {
    if (!layers.gated) {
        which = block.which;
        return block.first + i;
    }
    which = i / 2 % 2;
    return block.first + i / 4 * 2 + i % 2;
}

template <int BM>
DEVICE void load_stage(Stage<BM> &stage, const Layers &layers, const Block &block, const int8_t *q, int rows, int from) {
    int k_padded = pad_k(layers.k);
    for (int i = threadIdx.x; i < GROUPS * 64; i += THREADS) {
        int piece = i % 64, which, group = group_at(layers, block, i / 64, which);
        // A quad of inputs is 4 pieces. Where the inputs end inside the stretch the rest is zero.
        bool live = group < block.end && from + piece / 4 * 4 < k_padded;
        const int8_t *at = layers.layer[which].tiles + ((uint64_t)group * k_padded + from) * TILE_N + piece * 16;
        copy_async16(&stage.weights[i / 64][(piece ^ 2 * (piece / 16)) * 16], live ? at : q, live);
    }
    for (int i = threadIdx.x; i < BM * 4; i += THREADS) {
        int row = blockIdx.y * BM + i / 4, input = from + i % 4 * 16;
        bool live = row < rows && input < k_padded;
        copy_async16(&stage.rows[i / 4][i % 4 * 16], live ? q + (uint64_t)row * k_padded + input : q, live);
    }
}

// One stage: acc += weights · rows, 4 fragments of outputs × BM/16 of rows.
template <int BM> DEVICE void multiply(const Stage<BM> &stage, int32_t (&acc)[4][BM / 16][4]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int32_t a[2][4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // Quad 4t + j, outputs 2g and 2g + 1.
            int piece = (4 * t + j) * 4 + g / 2;
            const int2 w = *(const int2 *)&stage.weights[warp % 2 * 4 + i][(piece ^ 2 * t) * 16 + g % 2 * 8];
            a[j / 2][i][j % 2 * 2] = w.x;
            a[j / 2][i][j % 2 * 2 + 1] = w.y;
        }
#pragma unroll
    for (int m = 0; m < BM / 16; m++) {
        const int4 x = *(const int4 *)&stage.rows[warp / 2 * (BM / 2) + m * 8 + g][t * 16];
        const int32_t low[2] = {x.x, x.y}, high[2] = {x.z, x.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            mma_s8(acc[i][m], a[0][i], low);
            mma_s8(acc[i][m], a[1][i], high);
        }
    }
}

// The same with `dp4a`: a lane computes what it would hold of the fragments.
template <int BM> DEVICE void multiply_dp4a(const Stage<BM> &stage, int32_t (&acc)[4][BM / 16][4]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int quad = 0; quad < BK / 4; quad++) {
        int2 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int piece = quad * 4 + g / 2;
            w[i] = *(const int2 *)&stage.weights[warp % 2 * 4 + i][(piece ^ 2 * (quad / 4)) * 16 + g % 2 * 8];
        }
#pragma unroll
        for (int m = 0; m < BM / 16; m++) {
            int row = warp / 2 * (BM / 2) + m * 8 + 2 * t;
            int32_t x0 = *(const int32_t *)&stage.rows[row][quad * 4], x1 = *(const int32_t *)&stage.rows[row + 1][quad * 4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                acc[i][m][0] = dp4a(w[i].x, x0, acc[i][m][0]);
                acc[i][m][1] = dp4a(w[i].x, x1, acc[i][m][1]);
                acc[i][m][2] = dp4a(w[i].y, x0, acc[i][m][2]);
                acc[i][m][3] = dp4a(w[i].y, x1, acc[i][m][3]);
            }
        }
    }
}

// Sums of a lane: outputs 2g and 2g + 1 of a group, rows 2t and 2t + 1 of eight. They go through shared memory, eight rows of each half
// of the block at a time, and from there by whole rows.
template <int BM>
DEVICE void store_all(const Layers &layers, const Block &block, const float *x_scale, int rows, int32_t (&acc)[4][BM / 16][4],
                      int32_t (*room)[8][BN]) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < BM / 16; m++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                room[warp / 2][2 * t + j % 2][(warp % 2 * 4 + i) * TILE_N + 2 * g + j / 2] = acc[i][m][j];
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < 16 / layers.parts * BN; i += THREADS) {
            int column = i % BN, local = i / BN * layers.parts, which, group = group_at(layers, block, column / TILE_N, which);
            int row = blockIdx.y * BM + local / 8 * (BM / 2) + m * 8 + local % 8;
            if (row >= rows || group >= block.end || (layers.gated && which == 1)) continue;
            int32_t(*at)[BN] = &room[local / 8][local % 8];
            int32_t sums[2] = {at[0][column], layers.parts == 2 ? at[1][column] : 0}, other[2] = {0, 0};
            if (layers.gated) {
                other[0] = at[0][column + 2 * TILE_N];
                if (layers.parts == 2) other[1] = at[1][column + 2 * TILE_N];
            }
            store(layers, which, row / layers.parts, group * TILE_N + column % TILE_N, sums, other, x_scale + row);
        }
    }
}

template <int BM> DEVICE void gemm(const Layers &layers, const int8_t *q, const float *x_scale, int rows) {
    DYNAMIC_SHARED(memory);
    Stage<BM> *ring = (Stage<BM> *)memory;
    Block block = find_block(layers);
    int32_t acc[4][BM / 16][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int m = 0; m < BM / 16; m++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][m][j] = 0;
    int turns = (pad_k(layers.k) + BK - 1) / BK;
    for (int turn = 0; turn < STAGES - 1; turn++) {
        if (turn < turns) load_stage(ring[turn], layers, block, q, rows, turn * BK);
        copy_async_commit();
    }
    for (int turn = 0; turn < turns; turn++) {
        copy_async_wait<STAGES - 2>();
        // Everybody's copies have arrived, and nobody reads the stage any more that is filled next.
        __syncthreads();
        int next = turn + STAGES - 1;
        if (next < turns) load_stage(ring[next % STAGES], layers, block, q, rows, next * BK);
        copy_async_commit();
        if (HAS_MMA) {
            multiply(ring[turn % STAGES], acc);
        } else {
            multiply_dp4a(ring[turn % STAGES], acc);
        }
    }
    store_all<BM>(layers, block, x_scale, rows, acc, (int32_t(*)[8][BN])memory);
}

#define GEMM_I8(BM)                                                                                                                        \
    KERNEL __launch_bounds__(THREADS) gemm_i8_##BM(Layers layers, const int8_t *q, const float *x_scale, int rows) {                       \
        gemm<BM>(layers, q, x_scale, rows);                                                                                                \
    }
GEMM_I8(32)
GEMM_I8(64)
GEMM_I8(128)
