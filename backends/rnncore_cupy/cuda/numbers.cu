// Number types: the storage type of each dtype, the type of its arithmetic, and conversions between them.
//
// Half and BFloat16 are 16-bit storage types; sums and functions of them are computed in float.

typedef long long Index;  // T * B * H may exceed 2^31

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

template <class Storage> struct ComputedIn { typedef Storage type; };
template <> struct ComputedIn<Half> { typedef float type; };
template <> struct ComputedIn<BFloat16> { typedef float type; };

// Four numbers side by side.
template <class Number> struct alignas(4 * sizeof(Number)) Quad { Number x[4]; };

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }

__device__ inline float widen(BFloat16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

__device__ inline float widen(Half x) { return half_to_float(x.bits); }

template <class Storage> __device__ inline Storage narrow(typename ComputedIn<Storage>::type x) { return x; }

template <> __device__ inline Half narrow<Half>(float x) {
    Half narrowed;
    narrowed.bits = float_to_half(x);
    return narrowed;
}

// Round to nearest, ties to even, in integers: adding just under half of the last place carries where it should. NaN is
// handled separately, as the carry would turn it into infinity or zero.
template <> __device__ inline BFloat16 narrow<BFloat16>(float x) {
    const unsigned int bits = __float_as_uint(x);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    BFloat16 narrowed;
    narrowed.bits = is_nan ? 0x7fc0 : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return narrowed;
}

// A load that sees values stored by other blocks before a barrier: from L2, never from this multiprocessor's L1 cache.
__device__ inline float load_of_others(const float* x) { return __ldcg(x); }
__device__ inline double load_of_others(const double* x) { return __ldcg(x); }

__device__ inline Half load_of_others(const Half* x) {
    Half loaded;
    loaded.bits = __ldcg(&x->bits);
    return loaded;
}

__device__ inline BFloat16 load_of_others(const BFloat16* x) {
    BFloat16 loaded;
    loaded.bits = __ldcg(&x->bits);
    return loaded;
}
