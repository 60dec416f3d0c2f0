// Where the patches of a convolution lie in a map [time, height, width, channels] f32.
#pragma once
#include "common.cuh"

// `Grid` of the engine with the sizes of what it is laid over. Products of these sizes are below 2³¹.
struct Patches {
    int time, height, width, channels; // of the input
    int out_height, out_width;
    int positions;                     // of the output: frames · rows · columns
    int kernel_t, kernel;              // frames; rows as well as columns
    int stride_t, stride;
    int before_t, before;              // zeros before the first
    int k;                             // kernel_t · kernel² · channels
    int row;                           // values from one place of the input to the next
};

// Where the patch of a position begins.
struct Corner {
    int t, y, x;
};

DEVICE Corner corner_of(const Patches &p, int position) {
    int column = position % p.out_width, rest = position / p.out_width;
    return {rest / p.out_height * p.stride_t - p.before_t, rest % p.out_height * p.stride - p.before, column * p.stride - p.before};
}

// An input of every patch: how far from its corner, and which channel.
struct Tap {
    int t, y, x, channel;
};

DEVICE Tap tap_of(const Patches &p, int i) {
    int tap = i / p.channels, column = tap % p.kernel, rest = tap / p.kernel;
    return {rest / p.kernel, rest % p.kernel, column, i % p.channels};
}

// Zero outside the map.
DEVICE float patch_value(const float *x, const Patches &p, Corner corner, Tap tap) {
    int t = corner.t + tap.t, y = corner.y + tap.y, column = corner.x + tap.x;
    if (t < 0 || t >= p.time || y < 0 || y >= p.height || column < 0 || column >= p.width) return 0.0f;
    return x[(uint64_t)((t * p.height + y) * p.width + column) * p.row + tap.channel];
}
