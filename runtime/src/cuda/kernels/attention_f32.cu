// Attention over the arena of a float bundle: one query at a time, in the order of the CPU. For goldens and comparisons: right, not fast.
//
//   s = q · k / √head_dim + bias,  p = softmax(s),  out = Σ p · v
//
// q, out [rows, n_heads · head_dim] f32. Launch: grid (rows, n_heads), 128 threads; head_dim floats of dynamic shared memory.
// `scratch` has max_keys floats a block.
#include "step.cuh"

KERNEL attention_f32(AttentionShape shape, Step lists, const float *modality_bias, const float *q, float *out, float *scratch) {
    DYNAMIC_SHARED(memory);
    SHARED(float, inverse_sum);
    float *turned = (float *)memory;
    const int hd = shape.head_dim, half = hd / 2, row = blockIdx.x, head = blockIdx.y, kv_head = head / (shape.n_heads / shape.n_kv_heads);
    const Row r = lists.rows[row];
    const Sequence &s = lists.sequences[r.sequence];
    const int own_modality = lists.segments[s.first_segment + s.segments - 1].modality;
    const float *query = q + ((uint64_t)row * shape.n_heads + head) * hd;
    float *scores = scratch + (uint64_t)(blockIdx.y * gridDim.x + blockIdx.x) * shape.max_keys;

    int block = 0;
    for (int i = 0; i < s.segments; i++) {
        const Segment segment = lists.segments[s.first_segment + i];
        const bool is_own = i + 1 == s.segments;
        const uint64_t angle = (uint64_t)(r.position - segment.base) * half;
        const float *cosine = lists.cosines + angle, *sine = lists.sines + angle;
        for (int d = threadIdx.x; d < half; d += blockDim.x) {
            turned[d] = query[d] * cosine[d] - query[d + half] * sine[d];
            turned[d + half] = query[d + half] * cosine[d] + query[d] * sine[d];
        }
        __syncthreads();
        float bias = modality_bias ? modality_bias[(head * shape.modalities + own_modality) * shape.modalities + segment.modality] : 0.0f;
        int in_segment = is_own ? r.offset / KV_BLOCK + 1 : (segment.len + KV_BLOCK - 1) / KV_BLOCK;
        for (int key = threadIdx.x; key < in_segment * KV_BLOCK; key += blockDim.x) {
            int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, lists.blocks[segment.first_block + key / KV_BLOCK]);
            const float *k = s.keys + ((uint64_t)panel * KV_BLOCK + key % KV_BLOCK) * hd;
            float lanes[LANES];
#pragma unroll
            for (int lane = 0; lane < LANES; lane++) lanes[lane] = 0.0f;
            for (int d = 0; d < hd; d += LANES)
#pragma unroll
                for (int lane = 0; lane < LANES; lane++)
                    if (d + lane < hd) lanes[lane] += turned[d + lane] * k[d + lane];
#pragma unroll
            for (int width = LANES / 2; width > 0; width /= 2)
#pragma unroll
                for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
            bool live = key < segment.len && (!is_own || (s.causal ? key <= r.offset : key == r.offset));
            scores[block * KV_BLOCK + key] = live ? lanes[0] * shape.factor + bias : MINUS_INFINITY;
        }
        block += in_segment;
        __syncthreads();
    }

    if (threadIdx.x < 32) {
        int lane = threadIdx.x % LANES;
        float max = MINUS_INFINITY, sum = 0.0f;
        for (int at = 0; at < block; at++) max = larger(max, scores[at * KV_BLOCK + lane]);
        for (int step = 8; step > 0; step /= 2) max = larger(max, __shfl_xor_sync(WARP, max, step));
        for (int at = 0; at < block; at++) {
            float e = exp_f32(scores[at * KV_BLOCK + lane] - max);
            __syncwarp();
            if (threadIdx.x < LANES) scores[at * KV_BLOCK + lane] = e;
            sum += e;
        }
        for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
        if (threadIdx.x == 0) inverse_sum = 1.0f / sum;
    }
    __syncthreads();

    for (int d = threadIdx.x; d < hd; d += blockDim.x) {
        float total = 0.0f;
        for (int at = 0; at < block; at++) {
            int panel = panel_of(s, shape.layer, shape.n_kv_heads, kv_head, lists.blocks[s.first_block + at]);
            const float *v = s.values + (uint64_t)panel * KV_BLOCK * hd + d;
            for (int token = 0; token < KV_BLOCK; token++) total += scores[at * KV_BLOCK + token] * inverse_sum * v[token * hd];
        }
        out[((uint64_t)row * shape.n_heads + head) * hd + d] = total;
    }
}
