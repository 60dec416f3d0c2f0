// A row of activations in shared memory: its norm, and its INT8 rows. Used where activations are quantised on their own (quantise.cu)
// and where a product of few rows does that itself (gemv_i8.cu).
#pragma once
#include "common.cuh"

struct RowRoom {
    uint32_t amax[32];
    float inverse;
};

// x / √(mean x² + eps) · norm into `row`; x as it is where `norm` is null. The squares are added in the order of `quant.rs`, by 16 threads.
DEVICE void load_row(const float *x, const float *norm, float eps, int k, float *row, RowRoom &room) {
    const int turn = Batch::LEN * blockDim.x;
    auto weight = [&](int i) { return norm[i]; };
    Batch first = load_batch(weight, threadIdx.x, blockDim.x, norm ? k : 0);
    for (int from = threadIdx.x; from < k; from += turn) {
        Batch batch = load_batch([&](int i) { return x[i]; }, from, blockDim.x, k);
#pragma unroll
        for (int j = 0, i = from; j < Batch::LEN; j++, i += blockDim.x)
            if (i < k) row[i] = batch.value[j];
    }
    __syncthreads();
    if (!norm) return;
    if (threadIdx.x < 32) {
        float lane = 0.0f;
        if (threadIdx.x < LANES)
            for (int i = threadIdx.x; i < k; i += LANES) lane += row[i] * row[i];
        float squares = sum_lanes(lane);
        if (threadIdx.x == 0) room.inverse = 1.0f / sqrtf(squares / (float)k + eps);
    }
    __syncthreads();
    for (int from = threadIdx.x; from < k; from += turn) {
        Batch weights = from == threadIdx.x ? first : load_batch(weight, from, blockDim.x, k);
#pragma unroll
        for (int j = 0, i = from; j < Batch::LEN; j++, i += blockDim.x)
            if (i < k) row[i] = row[i] * room.inverse * weights.value[j];
    }
    __syncthreads();
}

// `row [k]` into q [parts, pad_k(k)] and scale [parts]; what rounding the last part left stands in `row` afterwards.
DEVICE void quantise_row(float *row, int k, int parts, int8_t *q, float *scale, RowRoom &room) {
    const int turn = Batch::LEN * blockDim.x;
    for (int part = 0; part < parts; part++, q += pad_k(k)) {
        uint32_t bits = 0;
        for (int from = threadIdx.x; from < k; from += turn) {
            Batch batch = load_batch([&](int i) { return row[i]; }, from, blockDim.x, k);
#pragma unroll
            for (int j = 0; j < Batch::LEN; j++) bits = magnitude(batch.value[j]) > bits ? magnitude(batch.value[j]) : bits;
        }
        float amax = __uint_as_float(block_max(bits, room.amax));
        float inverse = inverse_scale(amax), step = scale_of(amax);
        for (int from = threadIdx.x; from < pad_k(k); from += turn) {
            Batch batch = load_batch([&](int i) { return row[i]; }, from, blockDim.x, k);
#pragma unroll
            for (int j = 0, i = from; j < Batch::LEN; j++, i += blockDim.x) {
                int8_t value = inverse > 0.0f ? quantise(batch.value[j], inverse) : (int8_t)0;
                if (i < pad_k(k)) q[i] = value;
                if (i < k && part + 1 < parts) row[i] = batch.value[j] - (float)value * step;
            }
        }
        if (threadIdx.x == 0) scale[part] = step;
        __syncthreads();
    }
}
