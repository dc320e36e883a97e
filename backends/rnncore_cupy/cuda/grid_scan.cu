// A scan in which a row of blocks shares the matrix, for widths up to about 2,700 on a large device.
//
// Block (x, y) has THREADS / LANES * ROWS rows of the matrix and `tile` rows of the batch, in groups of STATES. Blocks with
// the same y work on the same states: after each step they wait for each other, by a counter in global memory, and read all
// states back from L2. All blocks of the grid must be resident at once; otherwise the cooperative launch fails.

// Far enough apart that no two counters share a cache line.
const int COUNTER_SPACING = 16;

// A block that sees this arrival also sees everything stored by the arriving block. Release and acquire are enough:
// __threadfence is a sequentially consistent fence, which is slower, and every step waits for this.
__device__ inline void arrive(unsigned long long* counter) {
    __syncthreads();
    if (threadIdx.x == 0) add_release(counter, 1ull);
}

// The counter only grows, so no block can miss an arrival, and a block may safely run one step ahead.
__device__ inline void wait_for(const unsigned long long* counter, unsigned long long arrivals) {
    if (threadIdx.x == 0)
        while (load_acquire(counter) < arrivals) continue;
    __syncthreads();
}

// Copy STATES states from global into shared memory, with 0 past width and batch. Eight loads are in flight at once, as no
// loaded value is used before all loads are issued. Places past the edge are not loaded from an address inside instead:
// all blocks would read the same few bytes from one bank of L2.
template <int STATES, int THREADS, class Number, class Storage>
__device__ inline void stage(Number* states, const Storage* from, Index first_state, Index end_state, int width,
                             int stored_width) {
    const int COLUMNS = STATES < 8 ? 8 / STATES : 1;
    const int count = end_state - first_state < STATES ? (int)(end_state - first_state) : STATES;
    from += first_state * width;
    for (int k0 = threadIdx.x; k0 < stored_width; k0 += COLUMNS * THREADS) {
        Storage loaded[COLUMNS][STATES];
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int b = 0; b < STATES; ++b) {
                loaded[c][b] = Storage();
                if (b < count && k0 + c * THREADS < width)
                    loaded[c][b] = load_of_others(from + b * width + k0 + c * THREADS);
            }
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int b = 0; b < STATES; ++b)
                if (k0 + c * THREADS < stored_width) states[b * stored_width + k0 + c * THREADS] = widen(loaded[c][b]);
    }
}

template <class Storage, int STEP, int LANES, int STATES, int KEPT, int THREADS>
__global__ void __launch_bounds__(THREADS)
    grid_scan(const Storage* source, const Storage* factor, const Storage* first, const Storage* matrix, Storage* out,
              Index row_stride, Index column_stride, Index steps, Index batch, int width, int reverse, double clip,
              Index tile, unsigned long long* counters) {
    typedef typename ComputedIn<Storage>::type Number;
    typedef Owned<STATES * ROWS, LANES> Mine;
    const int stored_width = quads_of<LANES, KEPT>(width) * LANES * 4;
    Number* const states = reinterpret_cast<Number*>(shared_memory());  // (2, STATES, stored_width)
    Piece<Number>* const shared_part = reinterpret_cast<Piece<Number>*>(states + 2 * STATES * stored_width);

    const int lane = threadIdx.x % LANES;
    const int first_row = (blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES) * ROWS;
    const Index begin = blockIdx.y * tile, end = begin + tile < batch ? begin + tile : batch;
    unsigned long long* const counter = counters + (Index)blockIdx.y * COUNTER_SPACING;
    Part<Number, KEPT> part;
    load_part<LANES, KEPT, THREADS>(part, shared_part, matrix, row_stride, column_stride, width, first_row);

    const Index stride = batch * width, move = reverse ? -stride : stride;
    Index at = reverse ? (steps - 1) * stride : 0;
    Number p[Mine::COUNT], d[Mine::COUNT];
    int now = 0;
    for (Index step = 0; step < steps; ++step) {
        for (Index b0 = begin; b0 < end; b0 += STATES) {
            // Load this thread's inputs while it waits for the other blocks or multiplies.
            Index place[Mine::COUNT];
            bool mine[Mine::COUNT];
#pragma unroll
            for (int i = 0; i < Mine::COUNT; ++i) {
                const int sum = Mine::first(lane) + i, column = first_row + sum % ROWS;
                const Index b = b0 + sum / ROWS;
                mine[i] = Mine::is_owner(lane) && column < width && b < end;
                place[i] = at + b * width + column;
                p[i] = mine[i] ? widen(source[place[i]]) : Number(0);
                d[i] = STEP == LINEAR && mine[i] ? widen(factor[place[i]]) : Number(0);
            }
            const Storage* const before = step == 0 ? first : out + (at - move);
            Number* const current = states + now * STATES * stored_width;
            Number* const other = states + (1 - now) * STATES * stored_width;
            if (b0 == begin) {
                if (step > 0) wait_for(counter, (unsigned long long)step * gridDim.x);
                stage<STATES, THREADS>(current, before, b0, end, width, stored_width);
            }
            __syncthreads();  // the states are there, and no thread reads the other copy any more
            if (b0 + STATES < end) stage<STATES, THREADS>(other, before, b0 + STATES, end, width, stored_width);
            Number sum[STATES * ROWS];
            multiply<LANES, KEPT, THREADS, STATES>(sum, part, current);
            share_out<STATES * ROWS, LANES>(sum, lane);
#pragma unroll
            for (int i = 0; i < Mine::COUNT; ++i)
                if (mine[i])
                    out[place[i]] = narrow<Storage>(stepped<STEP, Number>(sum[i], p[i], d[i], (Number)clip));
            now = 1 - now;
        }
        if (step + 1 < steps) arrive(counter);
        at += move;
    }
}
