// The elementwise part of a step, given the product h W^T or s M: f(p + product), or d * (u + product).
//
// The functions are CUDA's accurate ones: tanh.approx has an error of 2^-11, which a recurrence would accumulate.

enum Step { TANH, RELU, SIGMOID, IDENTITY, LINEAR };

template <int STEP, class Number> __device__ inline Number stepped(Number product, Number source, Number factor,
                                                                   Number clip) {
    Number z = source + product;
    if (STEP == LINEAR) return factor * z;
    // Comparisons with NaN are false, so NaN passes through the clip and relu.
    z = z > clip ? clip : (z < -clip ? -clip : z);
    if (STEP == TANH) return tanh(z);
    if (STEP == RELU) return z <= Number(0) ? Number(0) : z;
    if (STEP == SIGMOID) {
        // e^-|z| never overflows: 1 / (1 + e) for z >= 0, e / (1 + e) below.
        const Number e = exp(-fabs(z));
        return (z >= Number(0) ? Number(1) : e) / (Number(1) + e);
    }
    return z;
}

// The elementwise part alone, for matrices too large for the multiprocessors; cuBLAS computes the product. `out` may share
// memory with `product`, `source` or `factor`.
template <class Storage, int STEP>
__global__ void __launch_bounds__(256)
    step_alone(const Storage* product, const Storage* source, const Storage* factor, Storage* out, Index count,
               double clip) {
    typedef typename ComputedIn<Storage>::type Number;
    const Index stride = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const Number d = STEP == LINEAR ? widen(factor[i]) : Number(1);
        out[i] = narrow<Storage>(stepped<STEP, Number>(widen(product[i]), widen(source[i]), d, (Number)clip));
    }
}
