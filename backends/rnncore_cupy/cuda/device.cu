// GPU-only code: instructions without a name in C++, and the block's shared memory.
//
// The tests compile all other files as C++ for the CPU, with replacements for these five functions (tests/doubles/cuda_on_cpu).
// Nothing is included, so no CUDA header has to be found at compile time.

__device__ inline float half_to_float(unsigned short bits) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
    return wide;
}

__device__ inline unsigned short float_to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Add with release semantics: a block that acquires the new value sees everything this block stored before its last barrier.
__device__ inline void add_release(unsigned long long* counter, unsigned long long more) {
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" : : "l"(counter), "l"(more) : "memory");
}

// Load with acquire semantics: the caller also sees everything stored before the counter reached this value.
__device__ inline unsigned long long load_acquire(const unsigned long long* counter) {
    unsigned long long value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(counter) : "memory");
    return value;
}

// The shared memory of a launch, aligned for four doubles.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(32) unsigned char memory[];
    return memory;
}
