// What the rows of a step are: whose they are, where they stand, what they see. The host writes these before each step.
#pragma once
#include "common.cuh"

// The scales of 16 tokens, as `PanelScales` of the CPU.
struct PanelScales {
    float key[KV_BLOCK];
    int32_t key_sum[KV_BLOCK];
    float value[KV_BLOCK];
};

// A sequence of the step and its arena. Panels stand in the order [layer][kv head][block].
struct Sequence {
    int8_t *tiles;       // INT8: [panels, (pad_k + pad_n)(head_dim) · 16], keys then values of each panel
    PanelScales *scales; // INT8: [panels]
    float *keys;         // F32: [panels, 16, head_dim]
    float *values;       // F32: [panels, 16, head_dim]
    int n_blocks;        // of the arena
    int first_segment;   // in the step's list; the sequence's own segment is the last of them
    int segments;
    int causal;          // whether a row sees its own segment up to itself, or itself alone
    int first_block;     // of its context, in the step's list of blocks
    int pad;
};

// A segment that is visible to a sequence.
struct Segment {
    int base;        // position of its first token
    int modality;
    int len;         // tokens
    int first_block; // in the step's list of blocks
};

// A row of the step.
struct Row {
    int sequence;
    int offset;   // inside its own segment
    int position; // in the sequence
    int block;    // of the arena, in which it stands
};

// Rows of one sequence that attention takes together.
struct Unit {
    int first;
    int rows;
    int sequence;
    int blocks; // that its last row sees
};

// The lists of a step, and the rotations by position.
struct Step {
    const Row *rows;
    const Sequence *sequences;
    const Segment *segments;
    const uint32_t *blocks;
    const float *cosines, *sines; // [positions, head_dim / 2]
};

// A layer's attention.
struct AttentionShape {
    int n_heads, n_kv_heads, head_dim, layer, modalities;
    int max_keys; // of any sequence of the step, a multiple of 32
    float factor; // 1 / √head_dim; over an INT8 arena times log2 e
};

DEVICE int panel_of(const Sequence &s, int layer, int n_kv_heads, int head, uint32_t block) {
    return (layer * n_kv_heads + head) * s.n_blocks + (int)block;
}

// Bytes of the keys of a panel, and of its values.
DEVICE int keys_len(int head_dim) { return KV_BLOCK * pad_k(head_dim); }
DEVICE int values_len(int head_dim) { return KV_BLOCK * pad_n(head_dim); }

// The largest of a warp's values, for every lane.
DEVICE uint32_t warp_max(uint32_t value) {
    for (int step = 16; step > 0; step /= 2) {
        uint32_t other = __shfl_xor_sync(WARP, value, step);
        value = other > value ? other : value;
    }
    return value;
}
