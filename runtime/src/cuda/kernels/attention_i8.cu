// Attention over few keys of the INT8 arena, one block for all of them and up to 16 queries: see `attention.cuh`.
//
// q, out [rows, n_heads · head_dim] f32, modality_bias [n_heads, modalities, modalities] or null.
// Launch: grid (units, n_kv_heads, chunks of 16 heads of a group), 128 threads; a unit has at most 16 / min(group, 16) rows. Dynamic
// shared memory: 16 · (pad_k(head_dim) + 16) bytes, and 16 · (6 · max_keys + 32). Bound by latency.
#include "attention.cuh"

KERNEL __launch_bounds__(WARPS * 32, 4)
    attention_i8(AttentionShape shape, const Unit *units, Step lists, const float *modality_bias, const float *q, float *out) {
    DYNAMIC_SHARED(memory);
    SHARED(Queries, queries);
    const int hd = shape.head_dim, max_keys = shape.max_keys;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Asked a = asked_of(shape, units[blockIdx.x], lists, blockIdx.z);
    prefetch_panels(a, shape, 0, a.count, 0, keys_len(hd) + values_len(hd));

    // [queries, k_padded + 16] i8; then scores [queries, max_keys] f32 and weights [queries, 2, max_keys + 16] i8. The 16 bytes put
    // rows on different banks.
    const int w_stride = max_keys + 16;
    unsigned char *rest = memory + QUERIES * (pad_k(hd) + 16);
    float *scores = (float *)rest;
    int8_t *weights = (int8_t *)(rest + (uint64_t)a.queries * max_keys * 4);

    score_blocks(a, shape, lists, modality_bias, q, 0, a.count, (int8_t *)memory, queries, scores);

    // Softmax: a half-warp a query, its lanes those of `quant.rs`.
    const int keys = a.count * KV_BLOCK, token = lane % LANES;
    for (int pair = warp * 2; pair < a.queries; pair += WARPS * 2) {
        bool stands = pair + lane / LANES < a.queries;
        int query = stands ? pair + lane / LANES : pair;
        const float *of_query = scores + (uint64_t)query * max_keys;
        int8_t *high = weights + (uint64_t)query * 2 * w_stride, *low = high + w_stride;
        Peak peak = peak_of(a, shape, of_query, 0, a.count);
        float amax = __uint_as_float(peak.scale), c = weight_factor(amax), sum = 0.0f;
        weigh_scores(a, shape, of_query, 0, a.count, peak.score, c, [&](int at, float e, int8_t first, int8_t second) {
            sum += e;
            if (stands) high[at * KV_BLOCK + token] = first, low[at * KV_BLOCK + token] = second;
        });
        // Panels are weighed in pairs; one that is not there weighs nothing.
        if (stands && a.count % 2 == 1) high[keys + token] = low[keys + token] = 0;
        for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
        if (stands && token == 0) queries.scale[query] = weight_scale(c, amax, sum);
    }
    __syncthreads();

    // Weighted sums: a warp 16 dimensions at a time.
    for (int dims = warp; dims < pad_n(hd) / TILE_N; dims += WARPS) {
        int32_t acc[4][4];
        weigh_blocks(a, shape, 0, a.count, dims, weights, w_stride, acc);
        store_sums(a, shape, dims, acc, queries, out);
    }
}
