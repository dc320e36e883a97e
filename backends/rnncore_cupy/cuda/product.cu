// The product of a few states with a part of the matrix that stays on the multiprocessor for all steps.
//
// With A = W for the nonlinear scan and A = M^T for the linear one, both products are sum_k A[j, k] h[k]. A thread has four
// rows j of A and shares them with LANES - 1 neighbours in its warp, which take groups of four columns in turn: quad q of
// lane l holds columns 4 (q LANES + l) to 4 (q LANES + l) + 3. The first KEPT quads stay in the thread's registers, the
// others in shared memory. Everything past the matrix and the states is 0, so tiles need no special case at the edges.

const int ROWS = 4;  // of A, for each thread
const int QUAD = 4;  // columns of it at a time

// The unit of a load from shared memory. The pieces of a warp's threads are adjacent; with adjacent quads of doubles, every
// second of eight threads would have a bank conflict with another.
template <class Number> struct alignas(16) Piece { Number x[16 / sizeof(Number)]; };

template <class Number, int KEPT> struct Part {
    static const int PIECES = sizeof(Quad<Number>) / sizeof(Piece<Number>);
    Quad<Number> registers[KEPT][ROWS];
    Piece<Number>* shared;  // (quads - KEPT, ROWS, PIECES, THREADS)
    int quads;
};

template <int LANES, int KEPT> __device__ inline int quads_of(int width) {
    const int quads = (width + 4 * LANES - 1) / (4 * LANES);
    return quads < KEPT ? KEPT : quads;
}

// A[row, first column of the quad ...]; row and column strides are in numbers, so that a transposed view needs no copy.
template <class Number, class Storage>
__device__ inline Quad<Number> matrix_quad(const Storage* matrix, Index row_stride, Index column_stride, int width,
                                           int row, int column) {
    Quad<Number> quad;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const bool inside = row < width && column + c < width;
        quad.x[c] = inside ? widen(matrix[row * row_stride + (column + c) * column_stride]) : Number(0);
    }
    return quad;
}

template <int LANES, int KEPT, int THREADS, class Number, class Storage>
__device__ inline void load_part(Part<Number, KEPT>& part, Piece<Number>* shared, const Storage* matrix,
                                 Index row_stride, Index column_stride, int width, int first_row) {
    const int lane = threadIdx.x % LANES;
    part.shared = shared;
    part.quads = quads_of<LANES, KEPT>(width);
#pragma unroll
    for (int q = 0; q < KEPT; ++q)
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
            part.registers[q][r] = matrix_quad<Number>(matrix, row_stride, column_stride, width, first_row + r,
                                                       4 * (q * LANES + lane));
    // No barrier is needed: each thread reads only its own stores.
    const int PIECES = Part<Number, KEPT>::PIECES, SIZE = QUAD / PIECES;
    for (int q = KEPT; q < part.quads; ++q)
        for (int r = 0; r < ROWS; ++r) {
            const Quad<Number> quad = matrix_quad<Number>(matrix, row_stride, column_stride, width, first_row + r,
                                                          4 * (q * LANES + lane));
#pragma unroll
            for (int i = 0; i < PIECES; ++i) {
                Piece<Number> piece;
#pragma unroll
                for (int c = 0; c < SIZE; ++c) piece.x[c] = quad.x[i * SIZE + c];
                shared[(((q - KEPT) * ROWS + r) * PIECES + i) * THREADS + threadIdx.x] = piece;
            }
        }
}

template <int STATES, class Number>
__device__ inline void add_quad(Number (&sum)[STATES * ROWS], const Quad<Number> (&rows)[ROWS], const Number* states,
                                int stored_width, int column) {
#pragma unroll
    for (int b = 0; b < STATES; ++b) {
        const Quad<Number> h = *reinterpret_cast<const Quad<Number>*>(states + b * stored_width + column);
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sum[b * ROWS + r] += rows[r].x[c] * h.x[c];
    }
}

// sum[b * ROWS + r] = this lane's share of sum_k A[r, k] states[b, k]; states is in shared memory, (STATES, quads * LANES * 4).
template <int LANES, int KEPT, int THREADS, int STATES, class Number>
__device__ inline void multiply(Number (&sum)[STATES * ROWS], const Part<Number, KEPT>& part, const Number* states) {
    const int lane = threadIdx.x % LANES, stored_width = part.quads * LANES * 4;
#pragma unroll
    for (int i = 0; i < STATES * ROWS; ++i) sum[i] = Number(0);
#pragma unroll
    for (int q = 0; q < KEPT; ++q)
        add_quad<STATES>(sum, part.registers[q], states, stored_width, 4 * (q * LANES + lane));
    const int PIECES = Part<Number, KEPT>::PIECES, SIZE = QUAD / PIECES;
    for (int q = KEPT; q < part.quads; ++q) {
        Quad<Number> rows[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS * PIECES; ++i) {
            const Piece<Number> piece = part.shared[((q - KEPT) * ROWS * PIECES + i) * THREADS + threadIdx.x];
#pragma unroll
            for (int c = 0; c < SIZE; ++c) rows[i / PIECES].x[i % PIECES * SIZE + c] = piece.x[c];
        }
        add_quad<STATES>(sum, rows, states, stored_width, 4 * (q * LANES + lane));
    }
}

// Sum over the lanes and distribute the results: in each exchange a lane keeps one half of its sums and sends the other, so
// SUMS sums cost about SUMS shuffles and not SUMS log2(LANES). A lane ends with sum[0 ... Owned::COUNT), the results from
// Owned::first(lane) on. It is recursive so that every index is a constant and the sums can stay in registers.
template <int SUMS, int LANES, int BIT = 1, class Number> __device__ inline void share_out(Number* sum, int lane) {
    if constexpr (BIT < LANES) {
        if constexpr (SUMS > 1) {
            const bool upper = lane & BIT;
#pragma unroll
            for (int i = 0; i < SUMS / 2; ++i) {
                const Number low = sum[i], high = sum[SUMS / 2 + i];
                sum[i] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, BIT);
            }
            share_out<SUMS / 2, LANES, 2 * BIT>(sum, lane);
        } else {
            sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], BIT);
            share_out<1, LANES, 2 * BIT>(sum, lane);
        }
    }
}

template <int SUMS, int LANES> struct Owned {
    static const int COUNT = SUMS > LANES ? SUMS / LANES : 1;
    static __device__ inline int first(int lane) {
        int index = 0;
#pragma unroll
        for (int bit = 1; bit < LANES && bit < SUMS; bit *= 2) index += lane & bit ? SUMS / 2 / bit : 0;
        return index;
    }
    // With more lanes than sums the last exchanges leave the same sum on several lanes: the lowest one owns it.
    static __device__ inline bool is_owner(int lane) { return lane < SUMS; }
};
