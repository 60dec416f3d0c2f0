// The next token of each row from its logits: the likeliest, or a draw from the likeliest, as `sample.rs` of the CPU does both.
//
//   w = floor(2^30 · 2^((logit − max) · scale)),  the first token, likeliest first, up to which Σ w > unit · total
//
// Weights are whole numbers, so sums have no order and a draw has the CPU's bits. The order is walked byte by byte of the weight, the
// highest first, instead of sorting. Logits of a row lie in two parts; between them stand `gap` tokens that are never said.
//
// Logits f32 [rows, width] of each part, replaced by the weights where a row is drawn. picked [rows] u32. `flag` is set where a logit is
// not finite.
// Launch: a block of 512 threads a row. Bound by the latency of reading a row once (the likeliest) to 16 times.
#include "common.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32, BINS = 256;
constexpr int MOST_ROWS = 16;

struct Draw {
    float scale; // 0: the likeliest
    float top_p;
    uint64_t top_k;
    double unit; // in [0, 1)
};

struct Draws {
    Draw of[MOST_ROWS];
};

struct Parts {
    float *at[2];
    int width[2];
    int gap;
};

// Tokens of equal weight, and what stands before them: what all weigh that weigh more, and how many they are.
struct Level {
    uint32_t weight;
    uint64_t mass, count;
};

struct Room {
    uint64_t mass[BINS];
    uint32_t count[BINS];
    uint64_t of_warp[WARPS];
    Level level;
    uint32_t found;
};

// One row: element `i` lies in the first part or in the second.
struct RowOf {
    float *part[2];
    int width, n;
    __device__ __forceinline__ float *at(int i) const { return i < width ? part[0] + i : part[1] + (i - width); }
};

// A thread's elements of a row from `first` on.
DEVICE Batch elements(const RowOf &row, int first) {
    return load_batch([&](int i) { return *row.at(i); }, first, THREADS, row.n);
}

// The larger logit, of equals the first: as whole numbers in the same order. −0 is +0.
DEVICE uint64_t rank(float x, int i) {
    uint32_t bits = __float_as_uint(x + 0.0f);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)bits << 32 | (0xffffffffu - (uint32_t)i);
}

// The sum over this lane and those above it.
DEVICE uint64_t sum_from(uint64_t value) {
    int lane = threadIdx.x % 32;
    for (int step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_down_sync(WARP, value, step);
        if (lane + step < 32) value += other;
    }
    return value;
}

// Where one comes to that goes through the tokens in order to the `wanted`-th, or to where they weigh so much (`by_mass`).
DEVICE Level level_of(const RowOf &row, uint64_t wanted, bool by_mass, Room &room) {
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) room.level = Level{0, 0, 0};
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) room.mass[bin] = room.count[bin] = 0;
        __syncthreads();
        const Level so_far = room.level;
        // Neighbours are often in one bin; a bin is told when it changes.
        int bin = -1;
        uint64_t mass = 0;
        uint32_t count = 0;
        for (int first = threadIdx.x; first < row.n; first += Batch::LEN * THREADS) {
            const Batch batch = elements(row, first);
#pragma unroll
            for (int j = 0; j < Batch::LEN; j++) {
                uint32_t weight = __float_as_uint(batch.value[j]);
                if (weight == 0 || weight >> shift >> 8 != so_far.weight) continue;
                int of = (int)(weight >> shift & 255);
                if (of != bin && count > 0) {
                    atomicAdd(&room.mass[bin], mass);
                    atomicAdd(&room.count[bin], count);
                    mass = count = 0;
                }
                bin = of;
                mass += weight;
                count++;
            }
        }
        if (count > 0) {
            atomicAdd(&room.mass[bin], mass);
            atomicAdd(&room.count[bin], count);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            uint64_t own_mass = 0, own_count = 0;
            for (int j = 0; j < BINS / 32; j++) {
                own_mass += room.mass[lane * (BINS / 32) + j];
                own_count += room.count[lane * (BINS / 32) + j];
            }
            // Of the lanes from this one up; the bins of the lanes above it come before.
            uint64_t mass_to = sum_from(own_mass), count_to = sum_from(own_count);
            uint64_t before_mass = so_far.mass + mass_to - own_mass, before_count = so_far.count + count_to - own_count;
            uint64_t reached = by_mass ? so_far.mass + mass_to : so_far.count + count_to;
            uint64_t before = by_mass ? before_mass : before_count;
            // Less than what is wanted stands before the bytes so far.
            if (before < wanted && (reached >= wanted || lane == 0)) {
                int at = lane * (BINS / 32) + BINS / 32 - 1;
                for (; at > lane * (BINS / 32); at--) {
                    uint64_t next = by_mass ? before_mass + room.mass[at] : before_count + room.count[at];
                    if (next >= wanted) break;
                    before_mass += room.mass[at];
                    before_count += room.count[at];
                }
                room.level = Level{so_far.weight << 8 | (uint32_t)at, before_mass, before_count};
            }
        }
        __syncthreads();
    }
    const Level found = room.level;
    __syncthreads();
    return found;
}

// Where the `before`-th of the tokens of this weight stands.
DEVICE int place_of(const RowOf &row, uint32_t weight, uint64_t before, Room &room) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int each = round_up((row.n + WARPS - 1) / WARPS, 32), first = warp * each, end = first + each < row.n ? first + each : row.n;
    uint64_t count = 0;
    for (int i = first + lane; i < end; i += 32) count += __float_as_uint(*row.at(i)) == weight;
    for (int step = 16; step > 0; step /= 2) count += __shfl_xor_sync(WARP, count, step);
    if (lane == 0) room.of_warp[warp] = count;
    __syncthreads();
    uint64_t passed = 0;
    for (int i = 0; i < warp; i++) passed += room.of_warp[i];
    if (passed <= before && before < passed + room.of_warp[warp]) {
        for (int tile = first; tile < end && passed <= before; tile += 32) {
            int i = tile + lane;
            uint32_t alike = __ballot_sync(WARP, i < end && __float_as_uint(*row.at(i)) == weight);
            uint32_t below = alike & ((1u << lane) - 1);
            if (alike >> lane & 1 && passed + __popc(below) == before) room.found = (uint32_t)i;
            passed += __popc(alike);
        }
    }
    __syncthreads();
    return (int)room.found;
}

KERNEL __launch_bounds__(THREADS) pick(Parts parts, Draws draws, uint32_t *flag, uint32_t *picked) {
    SHARED(Room, room);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Draw draw = draws.of[blockIdx.x];
    const RowOf row = {{parts.at[0] + (uint64_t)blockIdx.x * parts.width[0], parts.at[1] + (uint64_t)blockIdx.x * parts.width[1]},
                       parts.width[0],
                       parts.width[0] + parts.width[1]};

    uint64_t best = 0;
    bool finite = true;
    for (int first = threadIdx.x; first < row.n; first += Batch::LEN * THREADS) {
        const Batch batch = elements(row, first);
#pragma unroll
        for (int j = 0; j < Batch::LEN; j++) {
            int i = first + j * THREADS;
            finite = finite && is_finite(batch.value[j]);
            uint64_t other = i < row.n ? rank(batch.value[j], i) : 0;
            best = other > best ? other : best;
        }
    }
    if (!finite) atomicOr(flag, 1u);
    for (int step = 16; step > 0; step /= 2) {
        uint64_t other = __shfl_xor_sync(WARP, best, step);
        best = other > best ? other : best;
    }
    if (lane == 0) room.of_warp[warp] = best;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) best = room.of_warp[i] > best ? room.of_warp[i] : best;
    int token = (int)(0xffffffffu - (uint32_t)best);
    __syncthreads();

    if (draw.scale > 0.0f) {
        const float largest = *row.at(token);
        __syncthreads();
        uint64_t total = 0;
        for (int first = threadIdx.x; first < row.n; first += Batch::LEN * THREADS) {
            const Batch batch = elements(row, first);
#pragma unroll
            for (int j = 0; j < Batch::LEN; j++) {
                int i = first + j * THREADS;
                if (i >= row.n) break;
                uint32_t weight = (uint32_t)(exp2_f32((batch.value[j] - largest) * draw.scale) * 1073741824.0f);
                *(uint32_t *)row.at(i) = weight;
                total += weight;
            }
        }
        for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(WARP, total, step);
        if (lane == 0) room.of_warp[warp] = total;
        __syncthreads();
        total = 0;
        for (int i = 0; i < WARPS; i++) total += room.of_warp[i];
        __syncthreads();
        if (draw.top_k > 0) {
            Level level = level_of(row, draw.top_k, false, room);
            uint64_t left = level.mass + (draw.top_k - level.count) * level.weight;
            total = left < total ? left : total;
        }
        if (draw.top_p < 1.0f) {
            double share = ceil((double)draw.top_p * (double)total);
            uint64_t enough = share > 1.0 ? (uint64_t)share : 1;
            Level level = level_of(row, enough, true, room);
            uint64_t each = level.weight > 0 ? level.weight : 1;
            total = level.mass + (enough - level.mass + each - 1) / each * level.weight;
        }
        uint64_t target = (uint64_t)((double)total * draw.unit);
        if (target >= total) target = total > 0 ? total - 1 : 0;
        Level level = level_of(row, target + 1, true, room);
        // The likeliest weighs something, unless the logits are no numbers; then the flag says so.
        if (level.weight > 0) token = place_of(row, level.weight, (target - level.mass) / level.weight, room);
    }
    if (threadIdx.x == 0) picked[blockIdx.x] = (uint32_t)(token < row.width ? token : token + parts.gap);
}
