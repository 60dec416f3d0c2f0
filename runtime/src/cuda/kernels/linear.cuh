// What an INT8 linear layer is to a kernel, and what happens to its sums on their way to memory.
#pragma once
#include "common.cuh"

// Most layers that share their activations in one launch: queries, keys and values.
constexpr int MAX_LAYERS = 3;

// A layer's weights in `n16k4` tiles, and where its outputs go.
struct Layer {
    const int8_t *tiles; // [pad_n(n)/16, pad_k(k)/4, 16, 4]
    const float *scale;  // [n]
    const float *bias;   // [n], or null
    float *out;          // [m, end − first]
    int first, end;      // the outputs that are wanted
};

// Layers over the same activations. The groups of 16 outputs are counted through all of them.
struct Layers {
    Layer layer[MAX_LAYERS];
    int count;
    int k;
    int parts;    // INT8 rows a token
    int residual; // whether results are added to what stands in `out`
    int gated;    // two layers alike: out of the first = silu(first) · second
};

// Groups of a layer that hold wanted outputs.
DEVICE int groups_of(const Layer &layer) { return (layer.end + TILE_N - 1) / TILE_N - layer.first / TILE_N; }

// Output `n` of one token from the sums of its parts, as `ProductI8::store` has it: the first with the bias, the others added.
DEVICE float scaled(const Layer &layer, int n, const int32_t *sums, const float *x_scale, int parts) {
    float w_scale = layer.scale[n];
    float y = (float)sums[0] * (x_scale[0] * w_scale);
    if (layer.bias) y += layer.bias[n];
    if (parts == 2) y += (float)sums[1] * (x_scale[1] * w_scale);
    return y;
}

// The same added to a residual, in the order of the CPU: out + first, then + second.
DEVICE float added(float out, const Layer &layer, int n, const int32_t *sums, const float *x_scale, int parts) {
    float w_scale = layer.scale[n];
    float y = (float)sums[0] * (x_scale[0] * w_scale);
    if (layer.bias) y += layer.bias[n];
    out += y;
    if (parts == 2) out += (float)sums[1] * (x_scale[1] * w_scale);
    return out;
}

// Stores output `n` of `token`; `other` are the second layer's sums where the layers are gated.
DEVICE void store(const Layers &layers, int which, int token, int n, const int32_t *sums, const int32_t *other, const float *x_scale) {
    const Layer &layer = layers.layer[which];
    if (n < layer.first || n >= layer.end) return;
    float *out = layer.out + (uint64_t)token * (layer.end - layer.first) + (n - layer.first);
    if (layers.gated) {
        float up = scaled(layers.layer[1], n, other, x_scale, layers.parts);
        *out = silu(scaled(layer, n, sums, x_scale, layers.parts)) * up;
    } else if (layers.residual) {
        *out = added(*out, layer, n, sums, x_scale, layers.parts);
    } else {
        *out = scaled(layer, n, sums, x_scale, layers.parts);
    }
}
