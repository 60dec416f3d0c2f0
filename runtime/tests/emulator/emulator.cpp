// The threads of a block as fibres, and what makes them wait for each other. See emulator.h.
#include "emulator.h"
#include "launch.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <ucontext.h>
#include <vector>

namespace emulator {

dim3 thread_idx, block_idx, block_dim, grid_dim;
bool has_mma = true;

namespace {

constexpr std::size_t STACK = 64 << 10;

struct Copy {
    void *to;
    const void *from;
    int bytes;
    int group;
};

// What a fibre waits for.
enum class Wait { Nothing, Warp, Block, Over };

// Where to go on. The compiler's own `setjmp` keeps what this compiler needs and nothing for signals and threads, in a tenth of the time;
// Clang for Arm has none.
#if defined(__clang__) && defined(__aarch64__)
using Place = jmp_buf;
#define SET_PLACE(place) _setjmp(place)
#define GO_TO(place) _longjmp(place, 1)
#else
using Place = void *[5];
#define SET_PLACE(place) __builtin_setjmp(place)
#define GO_TO(place) __builtin_longjmp(place, 1)
#endif

struct Fibre {
    ucontext_t start;
    Place at;
    bool begun = false;
    Wait wait = Wait::Nothing;
    dim3 index;
    std::size_t shared_used = 0;
    int exchanges = 0;
    std::vector<Copy> copies;
    int groups = 0;
    std::unique_ptr<char[]> stack{new char[STACK]};
};

struct Warp {
    // Two rooms in turn: a lane may be at the next exchange while another still reads the last one.
    alignas(16) char room[2][32][EXCHANGED];
    int arrived = 0;
};

std::vector<std::unique_ptr<Fibre>> fibres;
std::vector<Warp> warps;
int block_arrived, live;
Fibre *self;
// Fibres of this turn, in order, and which of them comes next.
std::vector<Fibre *> ready;
std::size_t next_ready;
Place scheduler;
const Kernel *running;
void **running_arguments;
std::vector<unsigned char> shared_memory;
std::size_t dynamic_bytes, shared_room;
// Of xorshift64*. Source: Vigna 2016 (arXiv:1402.6246).
uint64_t order;
std::string fault;

void body();

// Goes on with the next fibre of this turn, or with the scheduler behind the last. The compiler wants it apart from its `setjmp`.
[[noreturn]] __attribute__((noinline)) void go_on() {
    if (next_ready == ready.size()) GO_TO(scheduler);
    self = ready[next_ready++];
    thread_idx = self->index;
    if (self->begun) GO_TO(self->at);
    self->begun = true;
    getcontext(&self->start);
    self->start.uc_stack.ss_sp = self->stack.get();
    self->start.uc_stack.ss_size = STACK;
    self->start.uc_link = nullptr;
    makecontext(&self->start, body, 0);
    setcontext(&self->start);
    std::abort();
}

__attribute__((noinline)) void leave(Wait wait) {
    self->wait = wait;
    if (SET_PLACE(self->at) == 0) go_on();
}

__attribute__((noinline)) void turn() {
    next_ready = 0;
    if (SET_PLACE(scheduler) == 0) go_on();
}

// A fibre outlives a block: it waits for the next one, which is quicker than to begin anew.
void body() {
    for (;;) {
        running->invoke(running_arguments);
        live--;
        leave(Wait::Over);
    }
}

// A number below `n`, which is small.
uint32_t below(uint32_t n) {
    order ^= order >> 12;
    order ^= order << 25;
    order ^= order >> 27;
    return (uint32_t)((order * 0x2545f4914f6cdd1dull >> 32) * n >> 32);
}

// Wakes who waits for `wait` among the fibres `first..end`.
void wake(Wait wait, int first, int end) {
    for (int i = first; i < end; i++)
        if (fibres[i]->wait == wait) fibres[i]->wait = Wait::Nothing;
}

void run_block() {
    int threads = (int)(block_dim.x * block_dim.y * block_dim.z);
    std::memset(shared_memory.data(), 0xcb, shared_memory.size());
    warps.assign(threads / 32, Warp());
    block_arrived = 0;
    live = threads;
    for (int i = 0; i < threads; i++) {
        Fibre &f = *fibres[i];
        f.wait = Wait::Nothing;
        f.index = {(unsigned)i, 0, 0};
        f.shared_used = 0;
        f.exchanges = 0;
        f.copies.clear();
        f.groups = 0;
    }
    while (live > 0) {
        ready.clear();
        for (int i = 0; i < threads; i++)
            if (fibres[i]->wait == Wait::Nothing) ready.push_back(fibres[i].get());
        if (ready.empty()) {
            fault = "some threads of a block wait at a barrier or an exchange that the others never reach";
            return;
        }
        for (std::size_t i = ready.size(); i > 1; i--) std::swap(ready[i - 1], ready[below((uint32_t)i)]);
        turn();
    }
}

} // namespace

void *shared(std::size_t bytes) {
    Fibre &f = *self;
    std::size_t at = (f.shared_used + 15) / 16 * 16;
    f.shared_used = at + bytes;
    if (dynamic_bytes + f.shared_used > shared_room) {
        std::fprintf(stderr, "kernel `%s` declares more shared memory than a block has\n", running->name);
        std::abort();
    }
    return shared_memory.data() + dynamic_bytes + at;
}

unsigned char *dynamic_shared() { return shared_memory.data(); }

void barrier() {
    if (++block_arrived == (int)block_dim.x) {
        block_arrived = 0;
        wake(Wait::Block, 0, (int)block_dim.x);
        return;
    }
    leave(Wait::Block);
}

Exchange exchange() {
    int lane = self->index.x % 32;
    Warp &warp = warps[self->index.x / 32];
    return {warp.room[self->exchanges++ % 2], lane};
}

void arrive() {
    int first = self->index.x / 32 * 32;
    Warp &warp = warps[first / 32];
    if (++warp.arrived < 32) return leave(Wait::Warp);
    warp.arrived = 0;
    wake(Wait::Warp, first, first + 32);
}

void copy_async(void *to, const void *from, int bytes) {
    // Rubbish until it has arrived.
    std::memset(to, 0xbc, bytes);
    self->copies.push_back({to, from, bytes, self->groups});
}

void commit() { self->groups++; }

void wait(int newest) {
    std::vector<Copy> &copies = self->copies;
    int arrived = self->groups - newest;
    std::size_t kept = 0;
    for (const Copy &copy : copies) {
        if (copy.group >= arrived) {
            copies[kept++] = copy;
        } else if (copy.from) {
            std::memcpy(copy.to, copy.from, copy.bytes);
        } else {
            std::memset(copy.to, 0, copy.bytes);
        }
    }
    copies.resize(kept);
}

std::string launch(const Kernel &kernel, dim3 grid, dim3 block, std::size_t dynamic, std::size_t room, void **arguments, unsigned seed) {
    constexpr std::size_t SHARED_PER_BLOCK = 164 << 10;
    if (block.y != 1 || block.z != 1 || block.x == 0 || block.x % 32 != 0 || block.x > 1024)
        return "a block is a row of whole warps, at most 1024 threads";
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) return "a grid of no blocks or too many";
    if (dynamic > SHARED_PER_BLOCK) return "more shared memory than a block has";
    while (fibres.size() < block.x) fibres.push_back(std::make_unique<Fibre>());
    dynamic_bytes = (dynamic + 15) / 16 * 16;
    shared_room = room;
    shared_memory.resize(SHARED_PER_BLOCK);
    block_dim = block;
    grid_dim = grid;
    running = &kernel;
    running_arguments = arguments;
    // Any state but zero.
    order = 0x9e3779b97f4a7c15ull * (2ull * seed + 1);
    fault.clear();
    std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    for (std::size_t i = blocks.size(); i > 1; i--) std::swap(blocks[i - 1], blocks[below((uint32_t)i)]);
    for (unsigned i : blocks) {
        block_idx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block();
        if (!fault.empty()) return fault;
    }
    return "";
}

} // namespace emulator
