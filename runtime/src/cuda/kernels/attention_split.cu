// Attention over the INT8 arena of rows that are too few to fill a card: the keys of a query are split over blocks (see `attention.cuh`).
//
//   attention_i8_scores   scores of a range of blocks, and the largest of them
//   attention_i8_values   weights and weighted sums of a range; the last block of a query adds up the exponentials and writes `out`
//
// Sums of weighted values are whole numbers, so they have no order; the exponentials are added in the order of the kernel that does not
// split, by one block. So both give the same bits.
//
// q, out and the rest as `attention_i8`. Launch: both with grid (units, n_kv_heads, chunks of 16 heads of a group · splits), 128 threads. A
// range is a whole number of pairs of blocks. Dynamic shared memory: 16 · (pad_k(head_dim) + 16) bytes; 32 · (16 · range + 16) bytes.
// `scratch`: `Room` of each unit, head and chunk. Bound by the latency of one range, and in long contexts by the bytes of the panels.
#include "attention.cuh"

// What the blocks of the same queries share. Sizes follow from the shape and the number of splits.
struct Room {
    float *scores;     // [16, max_keys], then exponentials
    Peak *peaks;       // [16, splits]
    int32_t *sums;     // [16, pad_n(head_dim), 2]
    uint32_t *arrived; // blocks whose sums are in
};

DEVICE Room room_of(const AttentionShape &shape, unsigned char *scratch, int splits, int chunk) {
    uint64_t scores = (uint64_t)QUERIES * shape.max_keys * 4, peaks = (uint64_t)QUERIES * splits * sizeof(Peak);
    uint64_t sums = (uint64_t)QUERIES * pad_n(shape.head_dim) * 2 * 4;
    unsigned char *at = scratch + ((uint64_t)(chunk * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * (scores + peaks + sums + 16);
    return {(float *)at, (Peak *)(at + scores), (int32_t *)(at + scores + peaks), (uint32_t *)(at + scores + peaks + sums)};
}

// Blocks of a range, which are whole pairs.
DEVICE int range_of(const Asked &a, int splits) { return round_up((a.count + splits - 1) / splits, 2); }

// Three blocks a multiprocessor: with four, the path without matrix products would keep registers in memory.
KERNEL __launch_bounds__(WARPS * 32, 3)
    attention_i8_scores(AttentionShape shape, const Unit *units, Step lists, const float *modality_bias, const float *q, int splits,
                        unsigned char *scratch) {
    DYNAMIC_SHARED(memory);
    SHARED(Queries, queries);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, split = blockIdx.z % splits, chunk = blockIdx.z / splits;
    const Asked a = asked_of(shape, units[blockIdx.x], lists, chunk);
    const Room room = room_of(shape, scratch, splits, chunk);
    const int range = range_of(a, splits), from = split * range, to = from + range < a.count ? from + range : a.count;
    prefetch_panels(a, shape, from, to, 0, keys_len(shape.head_dim));
    if (split == 0) {
        for (int i = threadIdx.x; i < QUERIES * pad_n(shape.head_dim) * 2; i += blockDim.x) room.sums[i] = 0;
        if (threadIdx.x == 0) *room.arrived = 0;
    }
    score_blocks(a, shape, lists, modality_bias, q, from, to, (int8_t *)memory, queries, room.scores);
    for (int pair = warp * 2; pair < a.queries; pair += WARPS * 2) {
        bool stands = pair + lane / LANES < a.queries;
        int query = stands ? pair + lane / LANES : pair;
        Peak peak = peak_of(a, shape, room.scores + (uint64_t)query * shape.max_keys, from, to);
        if (stands && lane % LANES == 0) room.peaks[query * splits + split] = peak;
    }
}

KERNEL __launch_bounds__(WARPS * 32, 4)
    attention_i8_values(AttentionShape shape, const Unit *units, Step lists, float *out, int splits, unsigned char *scratch) {
    DYNAMIC_SHARED(memory);
    SHARED(float[QUERIES], factor);
    SHARED(float[QUERIES], query_scale);
    SHARED(float[QUERIES], largest_scale);
    SHARED(int, is_last);
    const int hd = shape.head_dim, dims_padded = pad_n(hd);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, token = lane % LANES;
    const int split = blockIdx.z % splits, chunk = blockIdx.z / splits;
    const Asked a = asked_of(shape, units[blockIdx.x], lists, chunk);
    const Room room = room_of(shape, scratch, splits, chunk);
    const int range = range_of(a, splits), from = split * range, to = from + range < a.count ? from + range : a.count;
    const int w_stride = range * KV_BLOCK + 16;
    int8_t *weights = (int8_t *)memory;
    prefetch_panels(a, shape, from, to, keys_len(hd), values_len(hd));

    // Exponentials and weights of the range: a half-warp a query.
    for (int pair = warp * 2; pair < a.queries; pair += WARPS * 2) {
        bool stands = pair + lane / LANES < a.queries;
        int query = stands ? pair + lane / LANES : pair;
        float *of_query = room.scores + (uint64_t)query * shape.max_keys;
        int8_t *high = weights + query * 2 * w_stride, *low = high + w_stride;
        Peak peak = {MINUS_INFINITY, 0};
        for (int i = 0; i < splits; i++) {
            Peak other = room.peaks[query * splits + i];
            peak.score = larger(peak.score, other.score);
            peak.scale = other.scale > peak.scale ? other.scale : peak.scale;
        }
        float amax = __uint_as_float(peak.scale), c = weight_factor(amax);
        weigh_scores(a, shape, of_query, from, to, peak.score, c, [&](int at, float e, int8_t first, int8_t second) {
            int here = (at - from) * KV_BLOCK + token;
            if (stands) of_query[at * KV_BLOCK + token] = e, high[here] = first, low[here] = second;
        });
        // Panels are weighed in pairs; one that is not there weighs nothing.
        int next = (to - from) * KV_BLOCK + token;
        if (stands && from < to && (to - from) % 2 == 1) high[next] = low[next] = 0;
        if (stands && token == 0) factor[query] = c, largest_scale[query] = amax;
    }
    __syncthreads();

    for (int dims = warp; from < to && dims < dims_padded / TILE_N; dims += WARPS) {
        int32_t acc[4][4];
        weigh_blocks(a, shape, from, to, dims, weights, w_stride, acc);
#pragma unroll
        for (int tile = 0; tile < 4; tile++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                // Columns 2t and 2t + 1 are the two parts of one query.
                int query = tile * 4 + t, dim = dims * TILE_N + 2 * g + j / 2;
                if (query < a.queries) atomicAdd(&room.sums[(query * dims_padded + dim) * 2 + j % 2], acc[tile][j]);
            }
    }

    // What this block wrote is seen before its arrival is.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(room.arrived, 1u) + 1 == (uint32_t)splits;
    __syncthreads();
    if (!is_last) return;
    __threadfence();

    // Read past the first cache, in which there may be something older.
    for (int pair = warp * 2; pair < a.queries; pair += WARPS * 2) {
        bool stands = pair + lane / LANES < a.queries;
        int query = stands ? pair + lane / LANES : pair;
        const volatile float *of_query = room.scores + (uint64_t)query * shape.max_keys;
        float sum = 0.0f;
#pragma unroll 8
        for (int at = 0; at < a.count; at++) sum += of_query[at * KV_BLOCK + token];
        for (int step = 8; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
        if (stands && token == 0) query_scale[query] = weight_scale(factor[query], largest_scale[query], sum);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.queries * hd; i += blockDim.x) {
        int query = i / hd, dim = i % hd;
        const volatile int32_t *parts = room.sums + (query * dims_padded + dim) * 2;
        out[((uint64_t)row_of(a, query) * shape.n_heads + head_of(a, query)) * hd + dim] =
            ((float)parts[0] * 128.0f + (float)parts[1]) * query_scale[query];
    }
}
