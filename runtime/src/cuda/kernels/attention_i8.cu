// Grouped-query attention over the INT8 arena, for decode and prefill.
//
//   s = q · kᵀ · scales + bias (in bits),  e = 2^(s − max),  t = round(e · v_scale · c) in 14 bits,  out = Σ t · v / (c · Σ e)
//
// exactly as attention.rs and kernels/attention.rs of the CPU have it: queries are turned towards each visible segment and quantised anew
// for it, weights are two INT8 rows, sums of exponentials run in 16 lanes over the blocks. A block of 4 warps takes up to 16 queries that share a
// key head: the heads of its group, of one row or several. Panels are the A operand of the matrix product (16 tokens or 16 dimensions), queries
// or weights the B operand; token or dimension pairs are neighbours, so that a lane reads 8 bytes at a time.
//
// q, out [rows, n_heads · head_dim] f32, cosines, sines [positions, head_dim/2], modality_bias [n_heads, modalities, modalities] or null.
// Launch: grid (units, n_kv_heads, chunks of 16 heads of a group), 128 threads; a unit has at most 16 / min(group, 16) rows. Dynamic shared memory:
// 16 · (pad_k(head_dim) + 16) bytes, and where `scratch` is null 6 · max_keys + 32 for each query of a unit. `scratch` has
// 16 · (6 · max_keys + 32) bytes a block. Bound in decode by the bytes of the panels.
#include "step.cuh"

constexpr int WARPS = 4, QUERIES = 16;

struct AttentionShape {
    int n_heads, n_kv_heads, head_dim, layer, modalities;
    int max_keys; // of any sequence of the step, a multiple of 32
    float factor; // log2 e / √head_dim
};

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

// Scores of all queries against one panel of keys: out[query][16 tokens].
DEVICE void score_panel(const int8_t *keys, int k_padded, const int8_t *q8, int stride, int queries, int32_t (&acc)[2][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    for (int tile = 0; tile < 2; tile++)
        for (int j = 0; j < 4; j++) acc[tile][j] = 0;
    if (HAS_MMA) {
        for (int quad = t; quad < k_padded / 4; quad += 8) {
            const int2 low = *(const int2 *)(keys + quad * TILE + g * 8), high = *(const int2 *)(keys + (quad + 4) * TILE + g * 8);
            const int32_t a[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                if (tile * 8 >= queries) break;
                const int8_t *x = q8 + (tile * 8 + g) * stride;
                const int32_t b[2] = {((const int32_t *)x)[quad], ((const int32_t *)x)[quad + 4]};
                mma_s8(acc[tile], a, b);
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

// acc += 16 dimensions of two panels' values times the weights of 8 · 4 columns: both parts of 16 queries.
DEVICE void weigh_panels(const int8_t *one, const int8_t *two, const int8_t *weights, int stride, int columns, int32_t (&acc)[4][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (HAS_MMA) {
        const int2 low = *(const int2 *)(one + t * TILE + g * 8), high = *(const int2 *)(two + t * TILE + g * 8);
        const int32_t a[4] = {low.x, low.y, high.x, high.y};
#pragma unroll
        for (int tile = 0; tile < 4; tile++) {
            if (tile * 8 >= columns) break;
            int column = tile * 8 + g < columns ? tile * 8 + g : columns - 1;
            const int32_t *x = (const int32_t *)(weights + (uint64_t)column * stride);
            const int32_t b[2] = {x[t], x[t + 4]};
            mma_s8(acc[tile], a, b);
        }
        return;
    }
    for (int quad = 0; quad < 8; quad++) {
        const int2 w = *(const int2 *)((quad < 4 ? one : two) + quad % 4 * TILE + g * 8);
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

KERNEL __launch_bounds__(WARPS * 32, 4)
    attention_i8(AttentionShape shape, const Unit *units, const Row *rows, const Sequence *sequences, const Segment *segments, const uint32_t *blocks,
                 const float *cosines, const float *sines, const float *modality_bias, const float *q, float *out, unsigned char *scratch) {
    DYNAMIC_SHARED(memory);
    SHARED(float[QUERIES], query_scale);
    SHARED(float[QUERIES], query_bias);
    const int hd = shape.head_dim, half = hd / 2, group = shape.n_heads / shape.n_kv_heads, k_padded = pad_k(hd), max_keys = shape.max_keys;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const Unit unit = units[blockIdx.x];
    const int kv_head = blockIdx.y, first_in_group = blockIdx.z * QUERIES;
    const int heads = group - first_in_group < QUERIES ? group - first_in_group : QUERIES, queries = unit.rows * heads;
    const Sequence &s = sequences[rows[unit.first].sequence];
    const Segment *own = segments + s.first_segment + s.segments - 1;
    const int first_block = segments[s.first_segment].first_block;

    // [queries, k_padded + 16] i8; then scores [queries, max_keys] f32 and weights [queries, 2, max_keys + 16] i8. The 16 bytes put
    // rows on different banks.
    const int q_stride = k_padded + 16, w_stride = max_keys + 16;
    int8_t *q8 = (int8_t *)memory;
    unsigned char *rest = memory + QUERIES * q_stride;
    if (scratch) rest = scratch + ((uint64_t)(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * QUERIES * (max_keys * 4 + 2 * w_stride);
    float *scores = (float *)rest;
    int8_t *weights = (int8_t *)(rest + (uint64_t)queries * max_keys * 4);
    const float minus_infinity = __uint_as_float(0xff800000u);

    // Scores in bits, segment by segment.
    int block = 0;
    for (int i = 0; i < s.segments; i++) {
        const Segment segment = segments[s.first_segment + i];
        const bool is_own = i + 1 == s.segments;
        for (int query = warp; query < queries; query += WARPS) {
            int row = unit.first + query / heads, head = kv_head * group + first_in_group + query % heads;
            uint64_t angle = (uint64_t)(rows[row].position - segment.base) * half;
            turn(q + ((uint64_t)row * shape.n_heads + head) * hd, cosines + angle, sines + angle, hd, q8 + query * q_stride, shape.factor,
                 &query_scale[query]);
            if (lane == 0) {
                int at = (head * shape.modalities + own->modality) * shape.modalities + segment.modality;
                query_bias[query] = modality_bias ? modality_bias[at] * 1.44269504f : 0.0f;
            }
        }
        __syncthreads();
        // Of the own segment, blocks behind the last row are invisible to all.
        int in_segment = is_own ? rows[unit.first + unit.rows - 1].offset / KV_BLOCK + 1 : (segment.len + KV_BLOCK - 1) / KV_BLOCK;
        for (int at = warp; at < in_segment; at += WARPS) {
            int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, blocks[segment.first_block + at]);
            int32_t acc[2][4];
            score_panel(s.tiles + (uint64_t)panel * (keys_len(hd) + values_len(hd)), k_padded, q8, q_stride, queries, acc);
#pragma unroll
            for (int tile = 0; tile < 2; tile++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int query = tile * 8 + 2 * t + j % 2, token = 2 * g + j / 2, key = at * KV_BLOCK + token;
                    if (query >= queries) continue;
                    bool live = key < segment.len;
                    if (is_own) {
                        int offset = rows[unit.first + query / heads].offset;
                        live = live && (s.causal ? key <= offset : key == offset);
                    }
                    float score = (float)acc[tile][j] * (query_scale[query] * s.scales[panel].key[token]) + query_bias[query];
                    scores[(uint64_t)query * max_keys + block * KV_BLOCK + key] = live ? score : minus_infinity;
                }
        }
        block += in_segment;
        __syncthreads();
    }

    // Softmax: a half-warp a query, its lanes those of `quant.rs`.
    const int keys = block * KV_BLOCK, token = lane % LANES;
    for (int pair = warp * 2; pair < queries; pair += WARPS * 2) {
        int query = pair + lane / LANES;
        bool stands = query < queries;
        const float *of_query = scores + (uint64_t)(stands ? query : pair) * max_keys;
        float max = minus_infinity;
        uint32_t amax_bits = 0;
        for (int at = 0; at < block; at++) {
            float score = of_query[at * KV_BLOCK + token];
            max = larger(max, score);
            int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, blocks[first_block + at]);
            uint32_t bits = score == minus_infinity ? 0 : magnitude(s.scales[panel].value[token]);
            amax_bits = bits > amax_bits ? bits : amax_bits;
        }
        for (int step = 8; step > 0; step /= 2) {
            max = larger(max, __shfl_xor_sync(WARP, max, step));
            uint32_t other = __shfl_xor_sync(WARP, amax_bits, step);
            amax_bits = other > amax_bits ? other : amax_bits;
        }
        // Capped so that what is hidden stays below half a step.
        float amax = __uint_as_float(amax_bits), c = 0.0f, sum = 0.0f;
        if (amax > 0.0f) c = 16383.0f / amax < 1152921504606846976.0f ? 16383.0f / amax : 1152921504606846976.0f;
        int8_t *high = weights + (uint64_t)(stands ? query : pair) * 2 * w_stride, *low = high + w_stride;
        for (int at = 0; at < block; at++) {
            int key = at * KV_BLOCK + token;
            float score = of_query[key], e = exp2_f32(score - max);
            sum += e;
            int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, blocks[first_block + at]);
            float v = score == minus_infinity ? 0.0f : s.scales[panel].value[token];
            uint32_t bits = __float_as_uint(e * v * c + 8388608.0f);
            if (stands) {
                high[key] = (int8_t)(bits >> 7 & 127);
                low[key] = (int8_t)(bits & 127);
            }
        }
        // Panels are weighed in pairs; one that is not there weighs nothing.
        if (stands && block % 2 == 1) high[keys + token] = low[keys + token] = 0;
        for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
        if (stands && token == 0) query_scale[query] = c > 0.0f ? 1.0f / c / sum : amax / sum;
    }
    __syncthreads();

    // Weighted sums: a warp 16 dimensions at a time.
    for (int dims = warp; dims < pad_n(hd) / TILE_N; dims += WARPS) {
        int32_t acc[4][4];
        for (int tile = 0; tile < 4; tile++)
            for (int j = 0; j < 4; j++) acc[tile][j] = 0;
#pragma unroll 2
        for (int at = 0; at < block; at += 2) {
            const int8_t *values[2];
            for (int j = 0; j < 2; j++) {
                int there = at + j < block ? at + j : at;
                int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, blocks[first_block + there]);
                values[j] = s.tiles + (uint64_t)panel * (keys_len(hd) + values_len(hd)) + keys_len(hd) + dims * TILE_N * KV_BLOCK;
            }
            weigh_panels(values[0], values[1], weights + at * KV_BLOCK, w_stride, 2 * queries, acc);
        }
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                // Columns 2t and 2t + 1 are the two parts of one query.
                int query = tile * 4 + t, dim = dims * TILE_N + 2 * g + j;
                if (query >= queries || dim >= hd) continue;
                int row = unit.first + query / heads, head = kv_head * group + first_in_group + query % heads;
                out[((uint64_t)row * shape.n_heads + head) * hd + dim] =
                    ((float)acc[tile][2 * j] * 128.0f + (float)acc[tile][2 * j + 1]) * query_scale[query];
            }
    }
}
