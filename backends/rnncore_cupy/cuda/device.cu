// What only a GPU's compiler knows: instructions that have no name in C++, and the block's own memory.
//
// The tests compile all other files as C++ for the CPU; these five functions have twins there (tests/cuda_on_cpu). Nothing
// is included: no header of CUDA's has to be found when the source is compiled.

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

// Counting that publishes: what the block has stored before its last barrier is there for whoever acquires the new value.
__device__ inline void add_release(unsigned long long* counter, unsigned long long more) {
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" : : "l"(counter), "l"(more) : "memory");
}

// Whoever sees a counter's value also sees what was stored before it was counted.
__device__ inline unsigned long long load_acquire(const unsigned long long* counter) {
    unsigned long long value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(counter) : "memory");
    return value;
}

// The shared memory that a launch asks for, aligned for four doubles.
__device__ inline unsigned char* shared_memory() {
    extern __shared__ __align__(32) unsigned char memory[];
    return memory;
}
