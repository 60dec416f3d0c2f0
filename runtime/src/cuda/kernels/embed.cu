// The input vectors of a step: rows of tables, with what is added to them.
//
//   x[i] = table[row] (+ grid[place]) (+ modality[which])
//
// A row of a table that has none stays what it is.
//
// A table's rows lie in `n16k4` tiles with a scale each, in F16, or in F32; grid and modality rows in F16 or F32. x [rows, d] f32.
// Launch: one block of 128 threads a row. Bound by latency.
#include "common.cuh"

// A matrix of rows.
struct Table {
    const void *rows;
    const float *scale; // of tiles
    int kind;           // 0: tiles, 1: F16, 2: F32
};

struct Input {
    int table;    // 0 to 4
    int row;
    int place;    // of the grid, or −1
    int modality; // or −1
};

struct Tables {
    Table table[5];
    Table grid, modality;
    int d;
};

DEVICE float entry(const Table &table, int row, int i, int d) {
    if (table.kind == 0) {
        uint64_t at = (uint64_t)(row / TILE_N * (pad_k(d) / TILE_K) + i / TILE_K) * TILE + row % TILE_N * TILE_K + i % TILE_K;
        return (float)((const int8_t *)table.rows)[at] * table.scale[row];
    }
    uint64_t at = (uint64_t)row * d + i;
    return table.kind == 1 ? half_to_float(((const uint16_t *)table.rows)[at]) : ((const float *)table.rows)[at];
}

KERNEL embed(Tables tables, const Input *inputs, float *x) {
    Input input = inputs[blockIdx.x];
    if (!tables.table[input.table].rows) return;
    for (int i = threadIdx.x; i < tables.d; i += blockDim.x) {
        float value = entry(tables.table[input.table], input.row, i, tables.d);
        if (input.place >= 0) value += entry(tables.grid, input.place, i, tables.d);
        if (input.modality >= 0) value += entry(tables.modality, input.modality, i, tables.d);
        x[(uint64_t)blockIdx.x * tables.d + i] = value;
    }
}
