// Between the products of queries, keys and values and attention: norms of the heads, the rotation of the keys by their offset in the
// segment, and the arena.
//
//   q = norm(q),   k = rope(norm(k), offset),   arena ← k, v   (INT8: round(x · 127/amax), one scale a head and token)
//
// q [rows, n_heads · head_dim], k, v [rows, n_kv_heads · head_dim] f32; norms [head_dim] (RMS) or [heads, head_dim] with biases
// (layer norm), or null. One warp a head: grid rows × (n_heads + 2 · n_kv_heads) / 4, 128 threads; 4 · head_dim floats of
// dynamic shared memory. Bound by latency.
#include "step.cuh"

struct HeadNorms {
    const float *q, *k;           // weights, or null
    const float *q_bias, *k_bias; // of layer norms, or null
    float eps;
};

struct HeadShape {
    int rows, n_heads, n_kv_heads, head_dim, layer;
};

// `x / √(mean x² + eps) · w` of one head, or its layer norm, as the CPU has them. Every lane of the warp takes part.
DEVICE void norm_head(float *x, int n, const float *weight, const float *bias, float eps) {
    int lane = threadIdx.x % 32;
    if (!bias) {
        float sum = 0.0f;
        if (lane < LANES)
            for (int i = lane; i < n; i += LANES) sum += x[i] * x[i];
        float inverse = 1.0f / sqrtf(__shfl_sync(WARP, sum_lanes(sum), 0) / (float)n + eps);
        for (int i = lane; i < n; i += 32) x[i] = x[i] * inverse * weight[i];
    } else {
        // One after the other, as `layer_norm` of the engine adds them.
        float mean = 0.0f, variance = 0.0f;
        for (int i = 0; i < n; i++) mean += x[i];
        mean /= (float)n;
        for (int i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
        float inverse = 1.0f / sqrtf(variance / (float)n + eps);
        __syncwarp();
        for (int i = lane; i < n; i += 32) x[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
    }
    __syncwarp();
}

// Writes one head of one token into its lane of a panel of keys (`stride` tiles of 4 inputs) or of values.
DEVICE float write_head(const float *x, int n, int8_t *tiles, int token, bool keys, int32_t *sum) {
    int lane = threadIdx.x % 32;
    uint32_t bits = 0;
    for (int i = lane; i < n; i += 32) bits = magnitude(x[i]) > bits ? magnitude(x[i]) : bits;
    float amax = __uint_as_float(warp_max(bits)), inverse = inverse_scale(amax);
    int32_t total = 0;
    for (int i = lane; i < n; i += 32) {
        int8_t q = inverse > 0.0f ? quantise(x[i], inverse) : (int8_t)0;
        int at = keys ? i / TILE_K * TILE + token * TILE_K + i % TILE_K
                      : i / TILE_N * TILE_N * KV_BLOCK + token / TILE_K * TILE + i % TILE_N * TILE_K + token % TILE_K;
        tiles[at] = q;
        total += q;
    }
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(WARP, total, step);
    *sum = total;
    return scale_of(amax);
}

KERNEL store_heads(HeadShape shape, HeadNorms norms, Step lists, float *q, const float *k, const float *v) {
    DYNAMIC_SHARED(memory);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, hd = shape.head_dim, half = hd / 2;
    int heads = shape.n_heads + 2 * shape.n_kv_heads, item = blockIdx.x * 4 + warp;
    if (item >= shape.rows * heads) return;
    int row = item / heads, head = item % heads;
    float *x = (float *)memory + warp * hd;
    if (head < shape.n_heads) {
        if (!norms.q) return;
        float *at = q + ((uint64_t)row * shape.n_heads + head) * hd;
        for (int i = lane; i < hd; i += 32) x[i] = at[i];
        __syncwarp();
        norm_head(x, hd, norms.q + (norms.q_bias ? head * hd : 0), norms.q_bias ? norms.q_bias + head * hd : nullptr, norms.eps);
        for (int i = lane; i < hd; i += 32) at[i] = x[i];
        return;
    }
    head -= shape.n_heads;
    bool keys = head < shape.n_kv_heads;
    if (!keys) head -= shape.n_kv_heads;
    const float *at = (keys ? k : v) + ((uint64_t)row * shape.n_kv_heads + head) * hd;
    // Asked for together with the head.
    const Row r = lists.rows[row];
    const Sequence s = lists.sequences[r.sequence];
    for (int i = lane; i < hd; i += 32) x[i] = at[i];
    __syncwarp();
    if (keys) {
        const float *bias = norms.k_bias ? norms.k_bias + head * hd : nullptr;
        if (norms.k) norm_head(x, hd, norms.k + (bias ? head * hd : 0), bias, norms.eps);
        const float *cosine = lists.cosines + (uint64_t)r.offset * half, *sine = lists.sines + (uint64_t)r.offset * half;
        for (int i = lane; i < half; i += 32) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
        __syncwarp();
    }
    int panel = panel_of(s, shape.layer, shape.n_kv_heads, head, r.block);
    int token = r.offset % KV_BLOCK;
    if (s.keys) {
        float *to = (keys ? s.keys : s.values) + ((uint64_t)panel * KV_BLOCK + token) * hd;
        for (int i = lane; i < hd; i += 32) to[i] = x[i];
        return;
    }
    int8_t *tiles = s.tiles + (uint64_t)panel * (keys_len(hd) + values_len(hd)) + (keys ? 0 : keys_len(hd));
    int32_t sum;
    float scale = write_head(x, hd, tiles, token, keys, &sum);
    if (lane == 0) {
        if (keys) {
            s.scales[panel].key[token] = scale;
            s.scales[panel].key_sum[token] = sum;
        } else {
            s.scales[panel].value[token] = scale;
        }
    }
}
