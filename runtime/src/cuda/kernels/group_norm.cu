// Group norm, and what follows it in an image network:
//
//   y = (x − mean) / √(variance + eps) · weight + bias,   y = y · scale + shift,   y = swish(y)
//
// x, y [places, channels] f32; mean and variance over a group of neighbouring channels and all places, in F64. scale, shift
// [places / factor², channels] or null: maps that are enlarged on the way.
//
//   strip_sums     Σ f(x) over the places of a strip, one after the other: partial [strips, channels]. Grid (strips, channels / 128), 128 threads.
//   fold_strips    over strips in 16 lanes and their tree, over the channels of a group one after the other: the mean of f(x), [groups], or
//                  1 / √(that + eps). A block of 256 threads a group.
//   group_norm     a thread a value, 256 a block.
// f is x at first, and (x − mean)² then. Bound by memory: x is read three times and written once.
#include "common.cuh"

KERNEL strip_sums(const float *x, const double *mean, double *partial, int places, int channels, int group, int strip) {
    int c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    int first = blockIdx.x * strip, end = first + strip < places ? first + strip : places;
    double sum = 0.0, middle = mean ? mean[c / group] : 0.0;
    for (int i = first; i < end; i++) {
        double value = (double)x[(uint64_t)i * channels + c];
        sum += mean ? (value - middle) * (value - middle) : value;
    }
    partial[(uint64_t)blockIdx.x * channels + c] = sum;
}

KERNEL fold_strips(const double *partial, int strips, int channels, int group, double n, double eps, double *mean, float *inverse) {
    SHARED(double[16], of_channel);
    int lane = threadIdx.x % LANES, room = threadIdx.x / LANES, first = blockIdx.x * group;
    double total = 0.0;
    for (int from = 0; from < group; from += 16) {
        // Channels beyond the last are not added, but take part in the tree.
        int c = from + room < group ? first + from + room : first;
        double sum = 0.0;
        for (int i = lane; i < strips; i += LANES) sum += partial[(uint64_t)i * channels + c];
        for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_down_sync(WARP, sum, step);
        if (lane == 0) of_channel[room] = sum;
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < 16 && from + i < group; i++) total += of_channel[i];
        __syncthreads();
    }
    if (threadIdx.x != 0) return;
    if (inverse)
        inverse[blockIdx.x] = (float)(1.0 / sqrt(total / n + eps));
    else
        mean[blockIdx.x] = total / n;
}

struct GroupNorm {
    int places, channels, group; // channels of a group
    int width;                   // of x
    int code_width, factor;      // of scale and shift, and how often each of their places is seen along a side
    int swish;
};

KERNEL group_norm(GroupNorm s, const float *x, float *y, const double *mean, const float *inverse, const float *weight, const float *bias,
                  const float *scale, const float *shift) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (uint32_t)s.places * s.channels) return;
    int c = i % s.channels, at = i / s.channels, group = c / s.group;
    float value = (x[i] - (float)mean[group]) * inverse[group] * weight[c] + bias[c];
    if (scale) {
        int place = at / s.width / s.factor * s.code_width + at % s.width / s.factor;
        uint32_t of_code = (uint32_t)place * s.channels + c;
        value = value * scale[of_code] + shift[of_code];
    }
    y[i] = s.swish ? silu(value) : value;
}
