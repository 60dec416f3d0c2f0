// The threads of a block as fibres, and what makes them wait for each other. See emulator.h.
#include "emulator.h"
#include "launch.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
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

struct Fibre {
    ucontext_t start;
    jmp_buf at;
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
int current, block_arrived, live;
jmp_buf scheduler;
ucontext_t scheduler_context;
const Kernel *running;
void **running_arguments;
std::vector<unsigned char> shared_memory;
std::size_t dynamic_bytes, shared_room;
std::mt19937 order;
std::string fault;

Fibre &self() { return *fibres[current]; }

void leave(Wait wait) {
    self().wait = wait;
    if (_setjmp(self().at) == 0) _longjmp(scheduler, 1);
}

// A fibre outlives a block: it waits for the next one, which is quicker than to begin anew.
void body() {
    for (;;) {
        running->invoke(running_arguments);
        leave(Wait::Over);
    }
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
    std::vector<int> ready(threads);
    while (live > 0) {
        ready.clear();
        for (int i = 0; i < threads; i++)
            if (fibres[i]->wait == Wait::Nothing) ready.push_back(i);
        if (ready.empty()) {
            fault = "some threads of a block wait at a barrier or an exchange that the others never reach";
            return;
        }
        std::shuffle(ready.begin(), ready.end(), order);
        for (int next : ready) {
            current = next;
            Fibre &f = self();
            thread_idx = f.index;
            if (_setjmp(scheduler) == 0) {
                if (f.begun) _longjmp(f.at, 1);
                f.begun = true;
                getcontext(&f.start);
                f.start.uc_stack.ss_sp = f.stack.get();
                f.start.uc_stack.ss_size = STACK;
                f.start.uc_link = nullptr;
                makecontext(&f.start, body, 0);
                setcontext(&f.start);
            }
            if (self().wait == Wait::Over) live--;
        }
    }
}

} // namespace

void *shared(std::size_t bytes) {
    Fibre &f = self();
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

const char (*exchange(const void *value, std::size_t bytes))[EXCHANGED] {
    if (bytes > EXCHANGED) std::abort();
    int first = current / 32 * 32;
    Warp &warp = warps[first / 32];
    auto room = warp.room[self().exchanges++ % 2];
    std::memcpy(room[current - first], value, bytes);
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        wake(Wait::Warp, first, first + 32);
    } else {
        leave(Wait::Warp);
    }
    return room;
}

void copy_async(void *to, const void *from, int bytes) {
    // Rubbish until it has arrived.
    std::memset(to, 0xbc, bytes);
    self().copies.push_back({to, from, bytes, self().groups});
}

void commit() { self().groups++; }

void wait(int newest) {
    std::vector<Copy> &copies = self().copies;
    int arrived = self().groups - newest;
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
    order.seed(seed);
    fault.clear();
    std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), order);
    for (unsigned i : blocks) {
        block_idx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
        run_block();
        if (!fault.empty()) return fault;
    }
    return "";
}

} // namespace emulator
