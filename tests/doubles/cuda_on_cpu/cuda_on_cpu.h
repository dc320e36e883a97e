// CUDA's words with a meaning on a CPU: every thread of a block is a thread of the system, blocks of a grid run together.
//
// Compiled before rnncore_cupy's kernels in place of device.cu, as C++17. What is real here: the threads and that they run
// at once, the barriers of block and warp, the counters between blocks, the bounds and the contents of shared memory, which
// starts as NaN. To bring races to light, one thread in many falls behind at every barrier. What is not: speed, the weaker
// order of a GPU's memory (a counter that orders nothing or a stale L1 line cannot show), and its own rounding of exp and tanh.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __syncthreads cuda_on_cpu::synchronize_block
#define __shfl_xor_sync cuda_on_cpu::exchange_in_warp
#define __ldcg cuda_on_cpu::load_relaxed

using std::exp;
using std::fabs;
using std::tanh;

namespace cuda_on_cpu {

struct Index3 { unsigned int x = 0, y = 0, z = 0; };

struct Barrier {
    pthread_barrier_t barrier;
    explicit Barrier(unsigned int threads) { pthread_barrier_init(&barrier, nullptr, threads); }
    ~Barrier() { pthread_barrier_destroy(&barrier); }
    Barrier(const Barrier&) = delete;
    void wait() { pthread_barrier_wait(&barrier); }
};

struct Warp {
    Barrier barrier{32};
    unsigned char slots[32][8];
};

const size_t ALIGNMENT = 32;

struct Block {
    Barrier barrier;
    std::vector<std::unique_ptr<Warp>> warps;
    size_t size;
    unsigned char* shared;
    Block(unsigned int threads, size_t bytes) : barrier(threads), size((bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) {
        for (unsigned int w = 0; w < threads / 32; ++w) warps.emplace_back(new Warp);
        // Exactly as much as was asked for, so that a checker of memory sees the first byte past it; and no number in it.
        shared = static_cast<unsigned char*>(aligned_alloc(ALIGNMENT, size ? size : ALIGNMENT));
        memset(shared, 0xff, size ? size : ALIGNMENT);
    }
    ~Block() { free(shared); }
};

inline thread_local Index3 thread_index, block_index, block_size, grid_size;
inline thread_local Block* block = nullptr;
inline thread_local std::uint32_t dice = 1;

inline std::uint32_t roll() {  // xorshift, Marsaglia (2003), "Xorshift RNGs"
    dice ^= dice << 13, dice ^= dice >> 17, dice ^= dice << 5;
    return dice;
}

inline void perhaps_fall_behind() {
    if (roll() % 64 == 0) {
        const timespec moment{0, 100'000};
        nanosleep(&moment, nullptr);
    }
}

inline void synchronize_block() {
    block->barrier.wait();
    perhaps_fall_behind();
}

template <class Number> Number exchange_in_warp(unsigned int mask, Number given, int distance) {
    static_assert(sizeof(Number) <= 8, "a slot holds 8 bytes");
    if (mask != 0xffffffffu) fprintf(stderr, "only whole warps are known here\n"), abort();
    Warp& warp = *block->warps[thread_index.x / 32];
    const unsigned int lane = thread_index.x % 32;
    memcpy(warp.slots[lane], &given, sizeof given);
    warp.barrier.wait();
    Number got;
    memcpy(&got, warp.slots[lane ^ distance], sizeof got);
    warp.barrier.wait();
    if (lane == 0) perhaps_fall_behind();
    return got;
}

inline std::atomic<long> loads{0};  // from other blocks, so far

template <class Number> Number load_relaxed(const Number* x) {
    loads.fetch_add(1, std::memory_order_relaxed);
    Number loaded;
    __atomic_load(const_cast<Number*>(x), &loaded, __ATOMIC_RELAXED);
    return loaded;
}

// --- launches ---------------------------------------------------------------------------------------------------------

template <class... Parameters, std::size_t... I>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(arguments[I])...);
}

// `together` is a cooperative launch: all blocks at once. Else one after the other, the last one first, as no order is
// promised. Blocks before `from` are left out, for arrays that would be too large to be worked through.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), void** arguments, unsigned int x, unsigned int y, unsigned int threads,
            std::size_t shared, int together, unsigned int from, std::uint32_t seed) {
    if (threads % 32) fprintf(stderr, "only whole warps are known here\n"), abort();
    std::vector<std::thread> running;
    std::vector<std::unique_ptr<Block>> blocks;
    const auto finish = [&] {
        for (std::thread& thread : running) thread.join();
        running.clear(), blocks.clear();
    };
    for (unsigned int b = x * y; b-- > from;) {
        blocks.emplace_back(new Block(threads, shared));
        for (unsigned int t = 0; t < threads; ++t)
            running.emplace_back([=, own = blocks.back().get()] {
                thread_index.x = t, block_size.x = threads, grid_size.x = x, grid_size.y = y;
                block_index.x = b % x, block_index.y = b / x;
                block = own;
                dice = (seed + 1) * 2654435761u ^ (b * 8191 + t + 1) * 40503u;
                if (dice == 0) dice = 1;
                call(kernel, arguments, std::index_sequence_for<Parameters...>{});
            });
        if (!together) finish();
    }
    finish();
}

}  // namespace cuda_on_cpu

#define threadIdx cuda_on_cpu::thread_index
#define blockIdx cuda_on_cpu::block_index
#define blockDim cuda_on_cpu::block_size
#define gridDim cuda_on_cpu::grid_size

inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// --- the twins of device.cu -------------------------------------------------------------------------------------------

inline float half_to_float(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, sizeof half);
    return half;
}

inline unsigned short float_to_half(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    unsigned short bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}

inline void add_release(unsigned long long* counter, unsigned long long more) {
    __atomic_fetch_add(counter, more, __ATOMIC_RELEASE);
}

// A wait that lasts for a minute is a deadlock, which on a GPU would never end.
inline unsigned long long load_acquire(const unsigned long long* counter) {
    thread_local const unsigned long long* waiting_for = nullptr;
    thread_local time_t since = 0;
    if (waiting_for != counter) waiting_for = counter, since = time(nullptr);
    if (time(nullptr) - since > 60) fprintf(stderr, "blocks wait for each other and will for ever\n"), abort();
    sched_yield();
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

inline unsigned char* shared_memory() { return cuda_on_cpu::block->shared; }
