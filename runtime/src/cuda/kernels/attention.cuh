// Grouped-query attention over the INT8 arena: what its kernels have alike. Few keys are seen by one block a unit (`attention_i8.cu`), long
// contexts by several (`attention_split.cu`), and of many rows a warp has a unit for itself (`attention_rows.cu`).
//
//   s = q · kᵀ · scales + bias (in bits),  e = 2^(s − max),  t = round(e · v_scale · c) in 14 bits,  out = Σ t · v / (c · Σ e)
//
// exactly as attention.rs and kernels/attention.rs of the CPU have it: queries are turned towards each visible segment and quantised anew
// for it, weights are two INT8 rows, sums of exponentials run in 16 lanes over the blocks. A unit is up to 16 queries that share a key
// head: the heads of its group, of one row or several. Panels are the A operand of the matrix product (16 tokens or 16 dimensions), queries
// or weights the B operand; token or dimension pairs are neighbours, so that a lane reads 8 bytes at a time. A block has 4 warps.
#pragma once
#include "step.cuh"

constexpr int WARPS = 4, QUERIES = 16;

// One query turned towards a segment, and quantised: q8 [pad_k]. A warp does it.
DEVICE void turn(const float *query, const float *cosine, const float *sine, int hd, int8_t *q8, float factor, float *scale) {
    int lane = threadIdx.x % 32, half = hd / 2;
    uint32_t bits = 0;
    for (int i = lane; i < half; i += 32) {
        float a = query[i], b = query[i + half];
        uint32_t one = magnitude(a * cosine[i] - b * sine[i]), two = magnitude(b * cosine[i] + a * sine[i]);
        bits = one > bits ? one : bits;
        bits = two > bits ? two : bits;
    }
    float amax = __uint_as_float(warp_max(bits)), inverse = inverse_scale(amax);
    for (int i = lane; i < half; i += 32) {
        float a = query[i], b = query[i + half];
        float one = a * cosine[i] - b * sine[i], two = b * cosine[i] + a * sine[i];
        q8[i] = inverse > 0.0f ? quantise(one, inverse) : (int8_t)0;
        q8[i + half] = inverse > 0.0f ? quantise(two, inverse) : (int8_t)0;
    }
    for (int i = hd + lane; i < pad_k(hd); i += 32) q8[i] = 0;
    if (lane == 0) *scale = scale_of(amax) * factor;
}

// Fragments of a warp that are asked for at once.
constexpr int AHEAD = 4;

// A lane's scores of all queries against one panel of keys, before they are scaled: see `panel_scores`.
DEVICE void score_panel(const int8_t *keys, int k_padded, const int8_t *q8, int stride, int queries, int32_t (&acc)[2][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int tile = 0; tile < 2; tile++)
        for (int j = 0; j < 4; j++) acc[tile][j] = 0;
    if (HAS_MMA) {
        for (int first = t; first < k_padded / 4; first += 8 * AHEAD) {
            int2 low[AHEAD], high[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int quad = first + 8 * i < k_padded / 4 ? first + 8 * i : first;
                low[i] = *(const int2 *)(keys + quad * TILE + g * 8), high[i] = *(const int2 *)(keys + (quad + 4) * TILE + g * 8);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int quad = first + 8 * i;
                if (quad >= k_padded / 4) break;
                const int32_t a[4] = {low[i].x, low[i].y, high[i].x, high[i].y};
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    if (tile * 8 >= queries) break;
                    const int8_t *x = q8 + (tile * 8 + g) * stride;
                    const int32_t b[2] = {((const int32_t *)x)[quad], ((const int32_t *)x)[quad + 4]};
                    mma_s8(acc[tile], a, b);
                }
            }
        }
        return;
    }
    for (int quad = 0; quad < k_padded / 4; quad++) {
        const int2 w = *(const int2 *)(keys + quad * TILE + g * 8);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            if (tile * 8 >= queries) break;
            const int8_t *x = q8 + (tile * 8 + 2 * t) * stride;
            int32_t x0 = ((const int32_t *)x)[quad], x1 = ((const int32_t *)(x + stride))[quad];
            acc[tile][0] = dp4a(w.x, x0, acc[tile][0]);
            acc[tile][1] = dp4a(w.x, x1, acc[tile][1]);
            acc[tile][2] = dp4a(w.y, x0, acc[tile][2]);
            acc[tile][3] = dp4a(w.y, x1, acc[tile][3]);
        }
    }
}

// The queries of a unit, and what they see.
struct Asked {
    Unit unit;
    int group, kv_head, first_in_group, heads, queries;
    Sequence s;
    const Segment *segments; // of the sequence
    const uint32_t *blocks;  // of the arena, in the order of the context
    int count;               // of blocks that a query of the unit sees
};

DEVICE Asked asked_of(const AttentionShape &shape, const Unit &unit, const Step &lists, int chunk) {
    Asked a;
    a.unit = unit;
    a.group = shape.n_heads / shape.n_kv_heads;
    a.kv_head = blockIdx.y;
    a.first_in_group = chunk * QUERIES;
    a.heads = a.group - a.first_in_group < QUERIES ? a.group - a.first_in_group : QUERIES;
    a.queries = a.unit.rows * a.heads;
    a.s = lists.sequences[a.unit.sequence];
    a.segments = lists.segments + a.s.first_segment;
    a.blocks = lists.blocks + a.s.first_block;
    a.count = a.unit.blocks;
    return a;
}

DEVICE int row_of(const Asked &a, int query) { return a.unit.first + query / a.heads; }
DEVICE int head_of(const Asked &a, int query) { return a.kv_head * a.group + a.first_in_group + query % a.heads; }
DEVICE int panel_at(const Asked &a, const AttentionShape &shape, int at) {
    return panel_of(a.s, shape.layer, shape.n_kv_heads, a.kv_head, a.blocks[at]);
}
// The keys of a panel; its values stand behind them.
DEVICE const int8_t *keys_at(const Asked &a, const AttentionShape &shape, int panel) {
    return a.s.tiles + (uint64_t)panel * (keys_len(shape.head_dim) + values_len(shape.head_dim));
}

// Brings panels near, `len` bytes of each from `begin` on, while there is other work: those of the first blocks from `from` to below `to`.
DEVICE void prefetch_panels(const Asked &a, const AttentionShape &shape, int from, int to, int begin, int len) {
    constexpr int LINE = 128, MOST = 16;
    int blocks = to - from < MOST ? to - from : MOST, lines = (len + LINE - 1) / LINE;
    for (int i = threadIdx.x; i < blocks * lines; i += blockDim.x) {
        int panel = panel_at(a, shape, from + i / lines);
        prefetch(keys_at(a, shape, panel) + begin + i % lines * LINE);
        if (i % lines > 0) continue;
        if (begin == 0) prefetch(a.s.scales[panel].key);
        if (begin + len > keys_len(shape.head_dim)) prefetch(a.s.scales[panel].value);
    }
}

// What is kept of each query while it looks at a segment.
struct Queries {
    float scale[QUERIES], bias[QUERIES];
    int offset[QUERIES]; // in the own segment
};

// Of the own segment, blocks behind the last row are invisible to all. `before`: blocks of the segments before.
DEVICE int blocks_of(const Asked &a, const Segment &segment, bool is_own, int before) {
    return is_own ? a.count - before : (segment.len + KV_BLOCK - 1) / KV_BLOCK;
}

// Turns a warp's queries towards a segment: every `step`-th from `first` on.
DEVICE void turn_queries(const Asked &a, const AttentionShape &shape, const Step &lists, const float *modality_bias, const float *q,
                         const Segment &segment, int first, int step, int8_t *q8, Queries &queries) {
    const int hd = shape.head_dim, half = hd / 2, own_modality = a.segments[a.s.segments - 1].modality;
    for (int query = first; query < a.queries; query += step) {
        const int head = head_of(a, query);
        const Row row = lists.rows[row_of(a, query)];
        uint64_t angle = (uint64_t)(row.position - segment.base) * half;
        turn(q + ((uint64_t)row_of(a, query) * shape.n_heads + head) * hd, lists.cosines + angle, lists.sines + angle, hd,
             q8 + query * (pad_k(hd) + 16), shape.factor, &queries.scale[query]);
        if (threadIdx.x % 32 == 0) {
            int at = (head * shape.modalities + own_modality) * shape.modalities + segment.modality;
            queries.bias[query] = modality_bias ? modality_bias[at] * 1.44269504f : 0.0f;
            queries.offset[query] = row.offset;
        }
    }
}

// A lane's scores of one panel, block `at` of its segment: scores[i][j] is that of query 8i + 2t + j % 2 and token 2g + j / 2.
DEVICE void panel_scores(const Asked &a, const AttentionShape &shape, const Segment &segment, bool is_own, int at, int panel,
                         const int8_t *q8, const Queries &queries, float (&scores)[2][4]) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float2 key_scale = *(const float2 *)&a.s.scales[panel].key[2 * g];
    int32_t acc[2][4];
    score_panel(keys_at(a, shape, panel), pad_k(shape.head_dim), q8, pad_k(shape.head_dim) + 16, a.queries, acc);
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int query = tile * 8 + 2 * t + j % 2, key = at * KV_BLOCK + 2 * g + j / 2;
            bool live = query < a.queries && key < segment.len;
            if (is_own) live = live && (a.s.causal ? key <= queries.offset[query] : key == queries.offset[query]);
            float score = (float)acc[tile][j] * (queries.scale[query] * (j < 2 ? key_scale.x : key_scale.y)) + queries.bias[query];
            scores[tile][j] = live ? score : MINUS_INFINITY;
        }
}

// Scores in bits of the blocks from `from` to below `to`, segment by segment: scores[query · max_keys + key]. A block of the card does it.
DEVICE void score_blocks(const Asked &a, const AttentionShape &shape, const Step &lists, const float *modality_bias, const float *q,
                         int from, int to, int8_t *q8, Queries &queries, float *scores) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int before = 0;
    for (int i = 0; i < a.s.segments; i++) {
        const Segment segment = a.segments[i];
        const bool is_own = i + 1 == a.s.segments;
        const int blocks = blocks_of(a, segment, is_own, before);
        const int first = from > before ? from - before : 0, end = to - before < blocks ? to - before : blocks;
        if (first < end) {
            turn_queries(a, shape, lists, modality_bias, q, segment, warp, WARPS, q8, queries);
            __syncthreads();
            for (int at = first + warp; at < end; at += WARPS) {
                float of_panel[2][4];
                panel_scores(a, shape, segment, is_own, at, panel_at(a, shape, before + at), q8, queries, of_panel);
#pragma unroll
                for (int tile = 0; tile < 2; tile++)
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int query = tile * 8 + 2 * t + j % 2, key = (before + at) * KV_BLOCK + 2 * g + j / 2;
                        if (query < a.queries) scores[(uint64_t)query * shape.max_keys + key] = of_panel[tile][j];
                    }
            }
            __syncthreads();
        }
        before += blocks;
    }
}

// The largest score of a query, and the largest scale of a value that it sees, as bits. A half-warp asks for both, each lane for its token.
struct Peak {
    float score;
    uint32_t scale;
};

DEVICE Peak peak_of(const Asked &a, const AttentionShape &shape, const float *scores, int from, int to) {
    const int token = threadIdx.x % LANES;
    Peak peak = {MINUS_INFINITY, 0};
    for (int at = from; at < to; at++) {
        float score = scores[at * KV_BLOCK + token];
        peak.score = larger(peak.score, score);
        uint32_t bits = score == MINUS_INFINITY ? 0 : magnitude(a.s.scales[panel_at(a, shape, at)].value[token]);
        peak.scale = bits > peak.scale ? bits : peak.scale;
    }
    for (int step = 8; step > 0; step /= 2) {
        peak.score = larger(peak.score, __shfl_xor_sync(WARP, peak.score, step));
        uint32_t other = __shfl_xor_sync(WARP, peak.scale, step);
        peak.scale = other > peak.scale ? other : peak.scale;
    }
    return peak;
}

// What weights are multiplied by before they are rounded. Capped so that what is hidden stays below half a step.
DEVICE float weight_factor(float amax) {
    if (!(amax > 0.0f)) return 0.0f;
    return 16383.0f / amax < 1152921504606846976.0f ? 16383.0f / amax : 1152921504606846976.0f;
}

// What the weighted sums are multiplied by in the end.
DEVICE float weight_scale(float c, float amax, float sum) { return c > 0.0f ? 1.0f / c / sum : amax / sum; }

// The two parts of the weight of an exponential.
DEVICE void weight_parts(float e, float score, float value_scale, float c, int8_t *high, int8_t *low) {
    float v = score == MINUS_INFINITY ? 0.0f : value_scale;
    uint32_t bits = __float_as_uint(e * v * c + 8388608.0f);
    *high = (int8_t)(bits >> 7 & 127);
    *low = (int8_t)(bits & 127);
}

// Exponentials and weights of one query. A half-warp asks, each lane for its token of the blocks from `from` to below `to`;
// `each(at, e, high, low)` gets every block's exponential and the two parts of its weight.
template <class Each>
DEVICE void weigh_scores(const Asked &a, const AttentionShape &shape, const float *scores, int from, int to, float largest, float c,
                         Each each) {
    const int token = threadIdx.x % LANES;
    for (int first = from; first < to; first += AHEAD) {
        float score[AHEAD], scale[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int at = first + i < to ? first + i : first;
            score[i] = scores[at * KV_BLOCK + token];
            scale[i] = a.s.scales[panel_at(a, shape, at)].value[token];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (first + i >= to) break;
            float e = exp2_f32(score[i] - largest);
            int8_t high, low;
            weight_parts(e, score[i], scale[i], c, &high, &low);
            each(first + i, e, high, low);
        }
    }
}

// A lane's part of the values of two panels as a matrix product wants it: 16 dimensions from `dims` · 16 on.
struct Pair {
    int2 one, two;
};

DEVICE Pair pair_at(const Asked &a, const AttentionShape &shape, int one, int two, int dims) {
    int lane = threadIdx.x % 32, at = keys_len(shape.head_dim) + dims * TILE_N * KV_BLOCK + lane % 4 * TILE + lane / 4 * 8;
    return {*(const int2 *)(keys_at(a, shape, one) + at), *(const int2 *)(keys_at(a, shape, two) + at)};
}

// The weights of a pair of panels as a matrix product wants them: 8 · 4 columns, both parts of 16 queries.
struct Weights {
    int32_t of[4][2];
};

// weights: `stride` bytes a column, of 32 tokens.
DEVICE Weights weights_at(const Asked &a, const int8_t *weights, int stride) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, columns = 2 * a.queries;
    Weights w;
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
        int column = tile * 8 + g < columns ? tile * 8 + g : columns - 1;
        const int32_t *x = (const int32_t *)(weights + (uint64_t)column * stride);
        w.of[tile][0] = x[t], w.of[tile][1] = x[t + 4];
    }
    return w;
}

// acc += the values of a pair times the weights.
DEVICE void weigh_pair(const Asked &a, const Pair &pair, const Weights &weights, int32_t (&acc)[4][4]) {
    const int32_t values[4] = {pair.one.x, pair.one.y, pair.two.x, pair.two.y};
#pragma unroll
    for (int tile = 0; tile < 4; tile++) {
        if (tile * 4 >= a.queries) break;
        mma_s8(acc[tile], values, weights.of[tile]);
    }
}

// The same with `dp4a`, of panels in memory.
DEVICE void weigh_panels(const Asked &a, const AttentionShape &shape, int one, int two, int dims, const int8_t *weights, int stride,
                         int32_t (&acc)[4][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, columns = 2 * a.queries;
    for (int quad = 0; quad < 8; quad++) {
        const int8_t *values = keys_at(a, shape, quad < 4 ? one : two) + keys_len(shape.head_dim) + dims * TILE_N * KV_BLOCK;
        const int2 w = *(const int2 *)(values + quad % 4 * TILE + g * 8);
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            int column = tile * 8 + 2 * t;
            if (column >= columns) break;
            const int8_t *x = weights + (uint64_t)column * stride;
            int32_t x0 = ((const int32_t *)x)[quad], x1 = ((const int32_t *)(x + stride))[quad];
            acc[tile][0] = dp4a(w.x, x0, acc[tile][0]);
            acc[tile][1] = dp4a(w.x, x1, acc[tile][1]);
            acc[tile][2] = dp4a(w.y, x0, acc[tile][2]);
            acc[tile][3] = dp4a(w.y, x1, acc[tile][3]);
        }
    }
}

// 16 dimensions of the weighted sum over the blocks from `from` to below `to`; the weights of block `from` stand first.
DEVICE void weigh_blocks(const Asked &a, const AttentionShape &shape, int from, int to, int dims, const int8_t *weights, int stride,
                         int32_t (&acc)[4][4]) {
    for (int tile = 0; tile < 4; tile++)
        for (int j = 0; j < 4; j++) acc[tile][j] = 0;
    if (HAS_MMA) {
        for (int first = from; first < to; first += 2 * AHEAD) {
            Pair pairs[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int one = first + 2 * i < to ? first + 2 * i : first, two = one + 1 < to ? one + 1 : one;
                pairs[i] = pair_at(a, shape, panel_at(a, shape, one), panel_at(a, shape, two), dims);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int at = first + 2 * i;
                if (at >= to) break;
                weigh_pair(a, pairs[i], weights_at(a, weights + (at - from) * KV_BLOCK, stride), acc);
            }
        }
        return;
    }
#pragma unroll 2
    for (int at = from; at < to; at += 2) {
        int one = panel_at(a, shape, at), two = panel_at(a, shape, at + 1 < to ? at + 1 : at);
        weigh_panels(a, shape, one, two, dims, weights + (at - from) * KV_BLOCK, stride, acc);
    }
}

// Writes 16 dimensions from `dims` · 16 on of every query's weighted sum: columns 2t and 2t + 1 of a tile are the two parts of one query.
DEVICE void store_sums(const Asked &a, const AttentionShape &shape, int dims, const int32_t (&acc)[4][4], const Queries &queries, float *out) {
    const int hd = shape.head_dim, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int tile = 0; tile < 4; tile++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int query = tile * 4 + t, dim = dims * TILE_N + 2 * g + j;
            if (query >= a.queries || dim >= hd) continue;
            out[((uint64_t)row_of(a, query) * shape.n_heads + head_of(a, query)) * hd + dim] =
                ((float)acc[tile][2 * j] * 128.0f + (float)acc[tile][2 * j + 1]) * queries.scale[query];
        }
}
