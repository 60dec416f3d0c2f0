// Pictures into the input of a network x [height, width, 3] f32: turned into RGB, resized, and every byte v of channel c made levels[c][v],
// which is what its mean, deviation and scale make of it. A thread a pixel of the result, 256 a block; bound by memory.
//
//   area_to_map      by area or bilinearly, as picture/area.rs
//   resample         the first pass of a filter of picture/resample.rs: bytes [rows, columns, 3]
//   resample_to_map  the second pass, on a background
//
// Sums are in the order of the CPU.
#include "common.cuh"

// `PixelFormat` of picture/format.rs.
enum Format { RGB, BGR, YUYV, NV12, GREY };

// A picture as its bytes came: rows of `stride` bytes, and those of chroma behind the others.
struct Raw {
    const uint8_t *bytes;
    uint64_t stride;
    int height, format;
};

// Which inputs make one output: those from `first` on, with the weights from `begin` to below `end`.
struct Span {
    uint32_t first, begin, end;
};

template <class W> struct Axis {
    const Span *spans;
    const W *weights;
};

struct Rgb {
    int red, green, blue;
};

DEVICE int to_byte(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

DEVICE Rgb yuv(int y, int u, int v) {
    y = 298 * (y - 16) + 128, u -= 128, v -= 128;
    return {to_byte((y + 409 * v) >> 8), to_byte((y - 100 * u - 208 * v) >> 8), to_byte((y + 516 * u) >> 8)};
}

DEVICE Rgb pixel(const Raw &p, uint32_t x, uint32_t y) {
    const uint8_t *row = p.bytes + y * p.stride;
    if (p.format == GREY) return {row[x], row[x], row[x]};
    if (p.format == NV12) {
        const uint8_t *chroma = p.bytes + (p.height + y / 2) * p.stride + x / 2 * 2;
        return yuv(row[x], chroma[0], chroma[1]);
    }
    if (p.format == YUYV) {
        const uint8_t *pair = row + x / 2 * 4;
        return yuv(pair[x % 2 * 2], pair[1], pair[3]);
    }
    const uint8_t *at = row + 3 * x;
    if (p.format == BGR) return {at[2], at[1], at[0]};
    return {at[0], at[1], at[2]};
}

DEVICE void store(float *x, const float *levels, Rgb rgb) {
    x[0] = levels[rgb.red];
    x[1] = levels[256 + rgb.green];
    x[2] = levels[512 + rgb.blue];
}

KERNEL area_to_map(Raw raw, Axis<float> columns, Axis<float> rows, const float *levels, float *x, int width, uint32_t n) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Span column = columns.spans[i % width], row = rows.spans[i / width];
    float red = 0.0f, green = 0.0f, blue = 0.0f;
    for (uint32_t down = row.begin; down < row.end; down++) {
        float weight = rows.weights[down];
        for (uint32_t across = column.begin; across < column.end; across++) {
            float w = weight * columns.weights[across];
            Rgb rgb = pixel(raw, column.first + across - column.begin, row.first + down - row.begin);
            red += w * (float)rgb.red;
            green += w * (float)rgb.green;
            blue += w * (float)rgb.blue;
        }
    }
    store(x + 3 * i, levels, {to_byte((int)roundf(red)), to_byte((int)roundf(green)), to_byte((int)roundf(blue))});
}

// One axis of a resize, along rows or `down` the columns. Its inputs are counted from `first` on; the other axis begins at `beside`.
struct Pass {
    Raw raw;
    Axis<int32_t> axis;
    int down, first, beside;
};

// Fractional bits of a weight.
constexpr int PRECISION_BITS = 22;

DEVICE Rgb weigh(const Pass &p, uint32_t column, uint32_t row) {
    Span span = p.axis.spans[p.down ? row : column];
    uint32_t first = span.first - p.first, beside = p.beside + (p.down ? column : row);
    int red = 1 << (PRECISION_BITS - 1), green = red, blue = red;
    for (uint32_t i = 0; i < span.end - span.begin; i++) {
        int w = p.axis.weights[span.begin + i];
        Rgb rgb = p.down ? pixel(p.raw, beside, first + i) : pixel(p.raw, first + i, beside);
        red += w * rgb.red;
        green += w * rgb.green;
        blue += w * rgb.blue;
    }
    return {to_byte(red >> PRECISION_BITS), to_byte(green >> PRECISION_BITS), to_byte(blue >> PRECISION_BITS)};
}

KERNEL resample(Pass pass, uint8_t *out, int width, uint32_t n) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Rgb rgb = weigh(pass, i % width, i / width);
    out[3 * i] = rgb.red;
    out[3 * i + 1] = rgb.green;
    out[3 * i + 2] = rgb.blue;
}

// Where the resized picture lies in the result, and what is around it.
struct Canvas {
    int width, left, top, shown_width, shown_height;
    uint8_t background[3];
};

KERNEL resample_to_map(Pass pass, Canvas canvas, const float *levels, float *x, uint32_t n) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int column = (int)(i % canvas.width) - canvas.left, row = (int)(i / canvas.width) - canvas.top;
    bool shown = column >= 0 && column < canvas.shown_width && row >= 0 && row < canvas.shown_height;
    Rgb around = {canvas.background[0], canvas.background[1], canvas.background[2]};
    store(x + 3 * i, levels, shown ? weigh(pass, column, row) : around);
}
