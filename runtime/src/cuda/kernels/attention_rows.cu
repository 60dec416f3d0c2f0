// Attention over the INT8 arena of many rows: see `attention.cuh`. A warp has up to 16 queries, a unit's of one key head, for itself.
//
// It goes through their keys once for the largest score and the largest scale of a value, and again, with the scores computed anew, for
// the exponentials, their sum and the weighted sum of DIMS · 16 dimensions, as often as there are so many. So nothing is kept for each
// key, however many there are. A lane has the scores of two tokens of every panel, which are two of the 16 lanes that the CPU adds
// exponentials in, so the sums have its bits.
//
// q, out and the rest as `attention_i8`. Launch: grid (units / warps, rounded up, n_kv_heads, chunks of 16 heads of a group), up to 4
// warps, which read the same panels at about the same time. Dynamic shared memory: 16 · (pad_k(head_dim) + 16) bytes a warp. Bound by the
// instructions of the exponentials.
#include "attention.cuh"

// Of a pair of panels, the weights' tokens; 16 bytes more put columns on different banks.
constexpr int STRIDE = 2 * KV_BLOCK + 16;

struct WarpRoom {
    Queries queries;
    __align__(16) int8_t weights[2 * QUERIES][STRIDE]; // both parts of each query
};

// Goes through the panels that a warp's queries see: `each(at, is_last, panel, scores)` gets block `at` of a segment, whether it is
// the segment's last, and the lane's scores.
template <class Each>
DEVICE void walk(const Asked &a, const AttentionShape &shape, const Step &lists, const float *modality_bias, const float *q, int8_t *q8,
                 Queries &queries, Each each) {
    int before = 0;
    for (int i = 0; i < a.s.segments; i++) {
        const Segment segment = a.segments[i];
        const bool is_own = i + 1 == a.s.segments;
        const int blocks = blocks_of(a, segment, is_own, before);
        __syncwarp();
        turn_queries(a, shape, lists, modality_bias, q, segment, 0, 1, q8, queries);
        __syncwarp();
        for (int at = 0; at < blocks; at++) {
            int panel = panel_at(a, shape, before + at);
            float scores[2][4];
            panel_scores(a, shape, segment, is_own, at, panel, q8, queries, scores);
            each(at, at + 1 == blocks, panel, scores);
        }
        before += blocks;
    }
}

template <int DIMS>
DEVICE void attend(const AttentionShape &shape, const Unit &unit, const Step &lists, const float *modality_bias, const float *q, float *out,
                   int8_t *q8, WarpRoom &room) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Asked a = asked_of(shape, unit, lists, blockIdx.z);

    // A lane's four queries: 2t, 2t + 1, and the same plus 8.
    float largest[4], c[4];
    uint32_t scale[4];
#pragma unroll
    for (int n = 0; n < 4; n++) largest[n] = MINUS_INFINITY, scale[n] = 0;
    walk(a, shape, lists, modality_bias, q, q8, room.queries, [&](int, bool, int panel, const float(&scores)[2][4]) {
        const float2 value_scale = *(const float2 *)&a.s.scales[panel].value[2 * g];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int n = i / 4 * 2 + i % 2;
            float score = scores[i / 4][i % 4];
            largest[n] = larger(largest[n], score);
            uint32_t bits = score == MINUS_INFINITY ? 0 : magnitude(i % 4 < 2 ? value_scale.x : value_scale.y);
            scale[n] = bits > scale[n] ? bits : scale[n];
        }
    });
#pragma unroll
    for (int n = 0; n < 4; n++) {
        for (int step = 4; step < 32; step *= 2) {
            largest[n] = larger(largest[n], __shfl_xor_sync(WARP, largest[n], step));
            uint32_t other = __shfl_xor_sync(WARP, scale[n], step);
            scale[n] = other > scale[n] ? other : scale[n];
        }
        c[n] = weight_factor(__uint_as_float(scale[n]));
    }

    for (int dims = 0; dims < pad_n(shape.head_dim) / TILE_N; dims += DIMS) {
        const int wanted = pad_n(shape.head_dim) / TILE_N - dims;
        float sum[4][2];
        int32_t acc[DIMS][4][4];
#pragma unroll
        for (int n = 0; n < 4; n++) sum[n][0] = sum[n][1] = 0.0f;
#pragma unroll
        for (int i = 0; i < DIMS * 16; i++) acc[i / 16][i / 4 % 4][i % 4] = 0;
        int first_panel = 0;
        walk(a, shape, lists, modality_bias, q, q8, room.queries, [&](int at, bool is_last, int panel, const float(&scores)[2][4]) {
            const float2 value_scale = *(const float2 *)&a.s.scales[panel].value[2 * g];
            const bool is_first = at % 2 == 0;
            int8_t *tokens = &room.weights[0][0] + at % 2 * KV_BLOCK + 2 * g;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int query = n / 2 * 8 + 2 * t + n % 2;
                int8_t parts[2][2];
#pragma unroll
                for (int token = 0; token < 2; token++) {
                    float score = scores[n / 2][token * 2 + n % 2], e = exp2_f32(score - largest[n]);
                    sum[n][token] += e;
                    weight_parts(e, score, token == 0 ? value_scale.x : value_scale.y, c[n], &parts[0][token], &parts[1][token]);
                }
#pragma unroll
                for (int part = 0; part < 2; part++)
                    *(uint16_t *)(tokens + (query * 2 + part) * STRIDE) = (uint16_t)(parts[part][0] | parts[part][1] << 8);
            }
            if (is_first) first_panel = panel;
            if (is_first && !is_last) return;
            // Panels are weighed in pairs; one that is not there weighs nothing.
            if (is_first) *(int4 *)(&room.weights[lane][KV_BLOCK]) = make_int4(0, 0, 0, 0);
            __syncwarp();
            if (HAS_MMA) {
                const Weights weights = weights_at(a, &room.weights[0][0], STRIDE);
#pragma unroll
                for (int first = 0; first < DIMS; first += AHEAD) {
                    // What lies behind the last dimension repeats it and is not stored.
                    Pair pairs[AHEAD];
#pragma unroll
                    for (int i = 0; i < AHEAD; i++)
                        pairs[i] = pair_at(a, shape, first_panel, panel, dims + (first + i < wanted ? first + i : wanted - 1));
#pragma unroll
                    for (int i = 0; i < AHEAD; i++) weigh_pair(a, pairs[i], weights, acc[first + i]);
                }
            } else {
#pragma unroll
                for (int d = 0; d < DIMS; d++)
                    if (d < wanted) weigh_panels(a, shape, first_panel, panel, dims + d, &room.weights[0][0], STRIDE, acc[d]);
            }
            __syncwarp();
        });

        // Sums of 16 tokens as a tree: tokens 8 apart first, neighbours, which a lane has both, last.
#pragma unroll
        for (int n = 0; n < 4; n++) {
            for (int step = 16; step >= 4; step /= 2) {
                sum[n][0] += __shfl_down_sync(WARP, sum[n][0], step);
                sum[n][1] += __shfl_down_sync(WARP, sum[n][1], step);
            }
            int query = n / 2 * 8 + 2 * t + n % 2;
            if (g == 0) room.queries.scale[query] = weight_scale(c[n], __uint_as_float(scale[n]), sum[n][0] + sum[n][1]);
        }
        __syncwarp();
#pragma unroll
        for (int d = 0; d < DIMS; d++) store_sums(a, shape, dims + d, acc[d], room.queries, out);
    }
}

#define ATTENTION_ROWS(DIMS)                                                                                                               \
    KERNEL __launch_bounds__(WARPS * 32, 2)                                                                                                \
        attention_i8_rows_##DIMS(AttentionShape shape, const Unit *units, int count, Step lists, const float *modality_bias,               \
                                 const float *q, float *out) {                                                                             \
        DYNAMIC_SHARED(memory);                                                                                                            \
        SHARED(WarpRoom[WARPS], rooms);                                                                                                    \
        int warp = threadIdx.x / 32, unit = blockIdx.x * (blockDim.x / 32) + warp;                                                         \
        if (unit >= count) return;                                                                                                         \
        int8_t *q8 = (int8_t *)memory + warp * QUERIES * (pad_k(shape.head_dim) + 16);                                                     \
        attend<DIMS>(shape, units[unit], lists, modality_bias, q, out, q8, rooms[warp]);                                                   \
    }
ATTENTION_ROWS(4)
ATTENTION_ROWS(8)
