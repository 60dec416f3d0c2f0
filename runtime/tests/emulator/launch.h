// A kernel by its name, and how to run it.
#pragma once
#include <cstddef>
#include <string>
#include <utility>

namespace emulator {

struct Kernel {
    const char *name;
    // Calls the kernel with the arguments that `cuLaunchKernel` was given.
    void (*invoke)(void **arguments);
    std::size_t arguments;
    const std::size_t *sizes;
};

template <auto F> struct Describe;
template <class... A, void (*F)(A...)> struct Describe<F> {
    static constexpr std::size_t COUNT = sizeof...(A);
    static constexpr std::size_t SIZES[] = {sizeof(A)...};
    template <std::size_t... I> static void call(void **arguments, std::index_sequence<I...>) { F(*static_cast<A *>(arguments[I])...); }
    static void invoke(void **arguments) { call(arguments, std::index_sequence_for<A...>()); }
};

template <auto F> constexpr Kernel describe(const char *name) { return {name, Describe<F>::invoke, Describe<F>::COUNT, Describe<F>::SIZES}; }

// Runs every block, whose shared memory may be `room` bytes; returns a sentence if that went wrong. `seed` shuffles the order of blocks and threads.
std::string launch(const Kernel &kernel, dim3 grid, dim3 block, std::size_t dynamic, std::size_t room, void **arguments, unsigned seed);

} // namespace emulator
