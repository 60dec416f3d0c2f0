// A driver for the emulated card: the part of libcuda that Saccade calls, so that its host code runs unchanged where there is no card.
//
// What a real card punishes at random is punished here for certain: device memory ends at a page that nobody may touch, host memory given
// to a background copy is read only when the stream is waited for, launches run then and in order, kernels are run with a new
// seed each, copies of nothing are refused. Environment: EMULATOR_MAJOR, EMULATOR_MINOR (compute capability, 8.7), EMULATOR_MEMORY_MB
// (1024), EMULATOR_BLOCK_KB (shared memory of a block on request; what the capability has), EMULATOR_DRIVER (11040), EMULATOR_DEVICES (1),
// EMULATOR_FAIL=call:code:after (the call fails with the code after so many successes), EMULATOR_SEED; what it shares with the host:
// EMULATOR_INTEGRATED (1), EMULATOR_PAGEABLE (0), EMULATOR_REGISTER (0; 1: memory of the host can be registered, 2: that which is
// read-only, too).
#include "emulator.h"
#include "launch.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace emulator {
extern const Kernel KERNELS[];
}

namespace {

using Result = int;
constexpr Result SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALISED = 3, NO_DEVICE = 100, INVALID_IMAGE = 200,
                 INVALID_CONTEXT = 201, NOT_FOUND = 500, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900;
constexpr std::size_t PAGE = 4096;

int setting(const char *name, int otherwise) {
    const char *text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}

// Whether this call is the one that is to fail.
Result injected(const char *call) {
    static std::string name;
    static int code, left;
    static bool read = false;
    if (!read) {
        read = true;
        if (const char *text = std::getenv("EMULATOR_FAIL")) {
            std::string all = text;
            std::size_t one = all.find(':'), two = all.find(':', one + 1);
            name = all.substr(0, one);
            code = std::atoi(all.c_str() + one + 1);
            left = std::atoi(all.c_str() + two + 1);
        }
    }
    if (name != call) return SUCCESS;
    return left-- > 0 ? SUCCESS : code;
}
#define MAY_FAIL(call)                                                                                                                     \
    if (Result code = injected(call)) return code

struct Allocation {
    unsigned char *map;
    std::size_t mapped, bytes;
};
std::map<unsigned long long, Allocation> allocations;
std::size_t used;
std::map<void *, std::pair<void *, std::size_t>> registered;
Result lost = SUCCESS;

struct Work {
    std::function<Result()> run;
    bool kernels = false;
};
struct Graph {
    std::vector<Work> work;
};
struct Stream {
    std::vector<Work> queue;
    // How much was done before what is in the queue.
    std::size_t done = 0;
    std::unique_ptr<Graph> capture;
};
// What was in a stream up to here.
struct Event {
    void *stream = nullptr;
    std::size_t until = 0;
};
struct Function {
    const emulator::Kernel *kernel;
    std::vector<std::size_t> sizes;
};

// How often a kernel has run, and how often `cuLaunchKernel` and `cuGraphLaunch` were called: for tests that something ran on the card at
// all, and of what ran as one. `idle`: how often the host waited until a stream had no kernel left.
std::map<std::string, unsigned> launches;

// Of this thread. What may not be called then ends a capture on a card.
thread_local bool capturing = false;
#define NOT_IN_A_CAPTURE                                                                                                                   \
    if (capturing) return CAPTURE_UNSUPPORTED

// Of this thread: what is done in a context fails without one.
thread_local void *current = nullptr;
#define IN_A_CONTEXT                                                                                                                       \
    if (!current) return INVALID_CONTEXT

Stream default_stream;
std::set<Stream *> streams{&default_stream};
Stream &of(void *stream) { return stream ? *static_cast<Stream *>(stream) : default_stream; }

Result enqueue(void *stream, std::function<Result()> run, bool kernels = false) {
    if (lost) return lost;
    Stream &s = of(stream);
    (s.capture ? s.capture->work : s.queue).push_back({std::move(run), kernels});
    return SUCCESS;
}

// Does what a stream has, up to the `until`-th of all that was ever in it: the card does not hurry.
Result drain(Stream &s, std::size_t until = SIZE_MAX) {
    if (lost) return lost;
    std::size_t count = until <= s.done ? 0 : std::min(until - s.done, s.queue.size());
    bool ran = false;
    for (std::size_t i = 0; i < count && !lost; i++) {
        ran |= s.queue[i].kernels;
        lost = s.queue[i].run();
    }
    s.queue.erase(s.queue.begin(), s.queue.begin() + (lost ? s.queue.size() : count));
    s.done += count;
    if (ran && std::none_of(s.queue.begin(), s.queue.end(), [](const Work &work) { return work.kernels; })) launches["idle"]++;
    return lost;
}

// What gives memory back waits for the work that may use it, as the driver does.
void drain_all() {
    for (Stream *s : streams) drain(*s);
}

bool inside(unsigned long long at, std::size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second.bytes;
}

unsigned seed() {
    static unsigned next = (unsigned)setting("EMULATOR_SEED", 1);
    return next++;
}

} // namespace

// What every kernel that asks for more shared memory is said to declare.
constexpr unsigned DECLARED = 1 << 10;

// Shared memory of a block on request. Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
unsigned most_block_memory() {
    int major = setting("EMULATOR_MAJOR", 8), minor = setting("EMULATOR_MINOR", 7);
    int kb = major < 7 ? 48 : major == 7 ? (minor == 5 ? 64 : 96) : major > 8 ? 227 : minor == 6 || minor == 9 ? 99 : 163;
    return (unsigned)setting("EMULATOR_BLOCK_KB", kb) << 10;
}
#define API extern "C" __attribute__((visibility("default"))) Result

extern "C" __attribute__((visibility("default"))) unsigned emulator_launches(const char *name) { return launches[name]; }

API cuInit(unsigned) {
    MAY_FAIL("cuInit");
    return setting("EMULATOR_DEVICES", 1) > 0 ? SUCCESS : NO_DEVICE;
}
API cuDriverGetVersion(int *version) {
    *version = setting("EMULATOR_DRIVER", 13000);
    return SUCCESS;
}
API cuDeviceGetCount(int *count) {
    *count = setting("EMULATOR_DEVICES", 1);
    return SUCCESS;
}
API cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < setting("EMULATOR_DEVICES", 1) ? SUCCESS : 101;
}
API cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, (std::size_t)length, "emulated card");
    return SUCCESS;
}
API cuDeviceTotalMem_v2(std::size_t *bytes, int) {
    *bytes = (std::size_t)setting("EMULATOR_MEMORY_MB", 1024) << 20;
    return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 75: *value = setting("EMULATOR_MAJOR", 8); break; // compute capability
    case 76: *value = setting("EMULATOR_MINOR", 7); break;
    case 16: *value = 8; break;                            // multiprocessors
    case 97: *value = (int)most_block_memory(); break;     // shared memory of a block, on request
    case 18: *value = setting("EMULATOR_INTEGRATED", 1); break;
    case 88: *value = setting("EMULATOR_PAGEABLE", 0); break;
    case 99: *value = setting("EMULATOR_REGISTER", 0) >= 1; break;
    case 113: *value = setting("EMULATOR_REGISTER", 0) >= 2; break;
    default: *value = 0;
    }
    emulator::has_mma = setting("EMULATOR_MAJOR", 8) >= 8;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int) {
    MAY_FAIL("cuDevicePrimaryCtxRetain");
    static int one;
    *context = &one;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void *context) {
    current = context;
    return SUCCESS;
}
API cuMemGetInfo_v2(std::size_t *available, std::size_t *total) {
    IN_A_CONTEXT;
    *total = (std::size_t)setting("EMULATOR_MEMORY_MB", 1024) << 20;
    *available = *total - used;
    return SUCCESS;
}
API cuModuleLoadData(void **module, const void *image) {
    MAY_FAIL("cuModuleLoadData");
    IN_A_CONTEXT;
    if (!image || std::memcmp(image, "\177ELF", 4) != 0) return INVALID_IMAGE;
    static int one;
    *module = &one;
    return SUCCESS;
}
API cuModuleUnload(void *) {
    IN_A_CONTEXT;
    return SUCCESS;
}
API cuModuleGetFunction(void **function, void *, const char *name) {
    for (const emulator::Kernel *kernel = emulator::KERNELS; kernel->name; kernel++)
        if (std::strcmp(kernel->name, name) == 0) {
            *function = const_cast<emulator::Kernel *>(kernel);
            return SUCCESS;
        }
    return NOT_FOUND;
}
// Shared memory that a kernel may have on request; without one it is 48 KB. What it declares, which a card knows from the kernel's image,
// counts too.
std::map<void *, unsigned> block_memory;
API cuFuncGetAttribute(int *value, int attribute, void *) {
    if (attribute != 1) return INVALID_VALUE;
    *value = DECLARED;
    return SUCCESS;
}
API cuFuncSetAttribute(void *function, int attribute, int value) {
    if (attribute != 8 || value < 0 || (unsigned)value + DECLARED > most_block_memory()) return INVALID_VALUE;
    block_memory[function] = (unsigned)value;
    return SUCCESS;
}
API cuMemAlloc_v2(unsigned long long *at, std::size_t bytes) {
    MAY_FAIL("cuMemAlloc_v2");
    IN_A_CONTEXT;
    NOT_IN_A_CAPTURE;
    if (lost) return lost;
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > (std::size_t)setting("EMULATOR_MEMORY_MB", 1024) << 20) return OUT_OF_MEMORY;
    // The end, rounded up to what the driver aligns to, meets a page without access; the beginning is filled with rubbish.
    std::size_t rounded = (bytes + 255) / 256 * 256, pages = (rounded + PAGE - 1) / PAGE * PAGE;
    void *map = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(static_cast<char *>(map) + pages, PAGE, PROT_NONE);
    unsigned char *start = static_cast<unsigned char *>(map) + pages - rounded;
    std::memset(start, 0xcb, rounded);
    *at = reinterpret_cast<unsigned long long>(start);
    allocations[*at] = {static_cast<unsigned char *>(map), pages + PAGE, bytes};
    used += bytes;
    return SUCCESS;
}
API cuMemFree_v2(unsigned long long at) {
    IN_A_CONTEXT;
    NOT_IN_A_CAPTURE;
    auto found = allocations.find(at);
    if (found == allocations.end()) return INVALID_VALUE;
    drain_all();
    const Allocation &a = found->second;
    const unsigned char *end = reinterpret_cast<const unsigned char *>(at) + a.bytes;
    for (std::size_t i = 0; i < (a.bytes + 255) / 256 * 256 - a.bytes; i++)
        if (end[i] != 0xcb) {
            std::fprintf(stderr, "emulator: something was written behind an allocation of %zu bytes\n", a.bytes);
            std::abort();
        }
    used -= a.bytes;
    munmap(a.map, a.mapped);
    allocations.erase(found);
    return SUCCESS;
}
API cuMemHostAlloc(void **at, std::size_t bytes, unsigned) {
    MAY_FAIL("cuMemHostAlloc");
    IN_A_CONTEXT;
    NOT_IN_A_CAPTURE;
    *at = std::malloc(bytes);
    return SUCCESS;
}
API cuMemFreeHost(void *at) {
    IN_A_CONTEXT;
    launches["cuMemFreeHost"]++;
    drain_all();
    std::free(at);
    return SUCCESS;
}
// Memory of the host that the card may read, at addresses that are the card's own: pages of the same file, mapped once more, so that
// whoever reads them without asking for the card's address, or after they were given back, meets nothing.
API cuMemHostRegister_v2(void *at, std::size_t bytes, unsigned flags) {
    MAY_FAIL("cuMemHostRegister_v2");
    IN_A_CONTEXT;
    constexpr unsigned READ_ONLY = 8;
    if (setting("EMULATOR_REGISTER", 0) < (flags & READ_ONLY ? 2 : 1)) return NOT_SUPPORTED;
    // What tests register is mapped read-only: the driver of a card asks for the flag, too.
    if (!(flags & READ_ONLY) || !bytes || registered.count(at)) return INVALID_VALUE;
    void *again = mremap(at, 0, bytes, MREMAP_MAYMOVE);
    if (again == MAP_FAILED) return INVALID_VALUE;
    registered[at] = {again, bytes};
    return SUCCESS;
}
API cuMemHostGetDevicePointer_v2(unsigned long long *device, void *at, unsigned) {
    IN_A_CONTEXT;
    auto found = registered.find(at);
    if (found == registered.end()) return INVALID_VALUE;
    *device = reinterpret_cast<unsigned long long>(found->second.first);
    return SUCCESS;
}
API cuMemHostUnregister(void *at) {
    IN_A_CONTEXT;
    auto found = registered.find(at);
    if (found == registered.end()) return INVALID_VALUE;
    munmap(found->second.first, found->second.second);
    registered.erase(found);
    return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, std::size_t bytes, void *stream) {
    IN_A_CONTEXT;
    if (!bytes || !inside(to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memcpy(reinterpret_cast<void *>(to), from, bytes);
        return SUCCESS;
    });
}
API cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, std::size_t bytes, void *stream) {
    IN_A_CONTEXT;
    if (!bytes || !inside(from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memcpy(to, reinterpret_cast<const void *>(from), bytes);
        return SUCCESS;
    });
}
API cuMemcpyHtoD_v2(unsigned long long to, const void *from, std::size_t bytes) {
    IN_A_CONTEXT;
    if (lost) return lost;
    if (!inside(to, bytes)) return INVALID_VALUE;
    std::memcpy(reinterpret_cast<void *>(to), from, bytes);
    return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, std::size_t bytes, void *stream) {
    IN_A_CONTEXT;
    if (!bytes || !inside(to, bytes) || !inside(from, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
        return SUCCESS;
    });
}
API cuMemsetD8Async(unsigned long long at, unsigned char value, std::size_t bytes, void *stream) {
    IN_A_CONTEXT;
    if (!bytes || !inside(at, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        std::memset(reinterpret_cast<void *>(at), value, bytes);
        return SUCCESS;
    });
}
API cuStreamCreate(void **stream, unsigned) {
    IN_A_CONTEXT;
    Stream *made = new Stream;
    streams.insert(made);
    *stream = made;
    return SUCCESS;
}
API cuStreamDestroy_v2(void *stream) {
    IN_A_CONTEXT;
    streams.erase(static_cast<Stream *>(stream));
    delete static_cast<Stream *>(stream);
    return SUCCESS;
}
API cuStreamSynchronize(void *stream) {
    MAY_FAIL("cuStreamSynchronize");
    IN_A_CONTEXT;
    NOT_IN_A_CAPTURE;
    return drain(of(stream));
}
API cuStreamBeginCapture_v2(void *stream, int) {
    MAY_FAIL("cuStreamBeginCapture_v2");
    IN_A_CONTEXT;
    if (!stream || of(stream).capture) return CAPTURE_UNSUPPORTED;
    of(stream).capture = std::make_unique<Graph>();
    capturing = true;
    return SUCCESS;
}
API cuStreamEndCapture(void *stream, void **graph) {
    IN_A_CONTEXT;
    if (!of(stream).capture) return CAPTURE_UNSUPPORTED;
    capturing = false;
    *graph = of(stream).capture.release();
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    MAY_FAIL("cuGraphInstantiateWithFlags");
    IN_A_CONTEXT;
    *executable = new Graph(*static_cast<Graph *>(graph));
    return SUCCESS;
}
API cuGraphDestroy(void *graph) {
    launches["cuGraphDestroy"]++;
    delete static_cast<Graph *>(graph);
    return SUCCESS;
}
API cuGraphExecDestroy(void *graph) {
    delete static_cast<Graph *>(graph);
    return SUCCESS;
}
API cuGraphLaunch(void *graph, void *stream) {
    MAY_FAIL("cuGraphLaunch");
    IN_A_CONTEXT;
    launches["cuGraphLaunch"]++;
    const Graph *g = static_cast<Graph *>(graph);
    return enqueue(stream, [g] {
        for (const Work &work : g->work)
            if (Result code = work.run()) return code;
        return SUCCESS;
    }, true);
}
API cuEventCreate(void **event, unsigned) {
    IN_A_CONTEXT;
    *event = new Event;
    return SUCCESS;
}
API cuEventDestroy_v2(void *event) {
    IN_A_CONTEXT;
    delete static_cast<Event *>(event);
    return SUCCESS;
}
API cuEventRecord(void *event, void *stream) {
    IN_A_CONTEXT;
    const Stream &s = of(stream);
    *static_cast<Event *>(event) = {stream, s.done + s.queue.size()};
    return SUCCESS;
}
API cuEventSynchronize(void *event) {
    MAY_FAIL("cuStreamSynchronize");
    IN_A_CONTEXT;
    NOT_IN_A_CAPTURE;
    const Event &e = *static_cast<Event *>(event);
    return drain(of(e.stream), e.until);
}
API cuEventElapsedTime(float *ms, void *, void *) {
    *ms = 1.0f;
    return SUCCESS;
}
API cuGetErrorName(int, const char **name) {
    *name = "EMULATED_ERROR";
    return SUCCESS;
}
API cuGetErrorString(int, const char **text) {
    *text = "an error of the emulated card";
    return SUCCESS;
}
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dynamic, void *stream,
                   void **arguments, void **) {
    MAY_FAIL("cuLaunchKernel");
    IN_A_CONTEXT;
    launches["cuLaunchKernel"]++;
    const emulator::Kernel *kernel = static_cast<const emulator::Kernel *>(function);
    auto asked = block_memory.find(function);
    unsigned room = asked == block_memory.end() ? 48u << 10 : asked->second + DECLARED;
    if (dynamic > room) return INVALID_VALUE;
    // Arguments are copied now, as the driver does.
    std::vector<std::vector<unsigned char>> copies;
    for (std::size_t i = 0; i < kernel->arguments; i++) {
        const unsigned char *at = static_cast<const unsigned char *>(arguments[i]);
        copies.emplace_back(at, at + kernel->sizes[i]);
    }
    return enqueue(stream, [=]() mutable {
        launches[kernel->name]++;
        std::vector<void *> pointers;
        for (auto &copy : copies) pointers.push_back(copy.data());
        std::string fault = emulator::launch(*kernel, {gx, gy, gz}, {bx, by, bz}, dynamic, room, pointers.data(), seed());
        if (fault.empty()) return SUCCESS;
        std::fprintf(stderr, "emulator: kernel `%s`: %s\n", kernel->name, fault.c_str());
        return LAUNCH_FAILED;
    }, true);
}
