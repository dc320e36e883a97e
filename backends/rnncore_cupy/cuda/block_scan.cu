// A scan in which one block holds the whole matrix and STATES rows of the batch, for widths up to about 256.
//
// The states are kept in shared memory in two copies: each step reads one and writes the other, so one barrier per step is
// enough. Blocks are independent, and there may be as many as the batch needs.

template <class Storage, int STEP, int LANES, int STATES, int KEPT, int THREADS>
__global__ void __launch_bounds__(THREADS)
    block_scan(const Storage* source, const Storage* factor, const Storage* first, const Storage* matrix, Storage* out,
               Index row_stride, Index column_stride, Index steps, Index batch, int width, int reverse, double clip) {
    typedef typename ComputedIn<Storage>::type Number;
    typedef Owned<STATES * ROWS, LANES> Mine;
    const int stored_width = quads_of<LANES, KEPT>(width) * LANES * 4;
    Number* const states = reinterpret_cast<Number*>(shared_memory());  // (2, STATES, stored_width)
    Piece<Number>* const shared_part = reinterpret_cast<Piece<Number>*>(states + 2 * STATES * stored_width);

    const int lane = threadIdx.x % LANES, first_row = threadIdx.x / LANES * ROWS;
    const Index first_state = (Index)blockIdx.x * STATES;
    Part<Number, KEPT> part;
    load_part<LANES, KEPT, THREADS>(part, shared_part, matrix, row_stride, column_stride, width, first_row);

    // The first copy is h0, and the first step writes the second. Past width and batch both are 0 and remain 0.
    for (int i = threadIdx.x; i < 2 * STATES * stored_width; i += THREADS) {
        const int b = i / stored_width, k = i % stored_width;
        const bool inside = b < STATES && first_state + b < batch && k < width;
        states[i] = inside ? widen(first[(first_state + b) * width + k]) : Number(0);
    }

    // The numbers that this thread finishes at each step: their places in the result and in the copy of the states.
    Index place[Mine::COUNT];
    int stored[Mine::COUNT];
    bool mine[Mine::COUNT];
#pragma unroll
    for (int i = 0; i < Mine::COUNT; ++i) {
        const int sum = Mine::first(lane) + i, b = sum / ROWS, column = first_row + sum % ROWS;
        mine[i] = Mine::is_owner(lane) && column < width && first_state + b < batch;
        place[i] = (first_state + b) * width + column;
        stored[i] = b * stored_width + column;
    }

    const Index stride = batch * width, move = reverse ? -stride : stride;
    Index at = reverse ? (steps - 1) * stride : 0;
    Number p[Mine::COUNT], d[Mine::COUNT];
#pragma unroll
    for (int i = 0; i < Mine::COUNT; ++i) {
        p[i] = mine[i] ? widen(source[at + place[i]]) : Number(0);
        d[i] = STEP == LINEAR && mine[i] ? widen(factor[at + place[i]]) : Number(0);
    }
    __syncthreads();

    int now = 0;
    for (Index step = 0; step < steps; ++step) {
        // Load the next step's inputs while this one multiplies.
        Number next_p[Mine::COUNT], next_d[Mine::COUNT];
        const bool more = step + 1 < steps;
#pragma unroll
        for (int i = 0; i < Mine::COUNT; ++i) {
            next_p[i] = more && mine[i] ? widen(source[at + move + place[i]]) : Number(0);
            next_d[i] = STEP == LINEAR && more && mine[i] ? widen(factor[at + move + place[i]]) : Number(0);
        }
        Number sum[STATES * ROWS];
        multiply<LANES, KEPT, THREADS, STATES>(sum, part, states + now * STATES * stored_width);
        share_out<STATES * ROWS, LANES>(sum, lane);
        Number* const next_states = states + (1 - now) * STATES * stored_width;
#pragma unroll
        for (int i = 0; i < Mine::COUNT; ++i)
            if (mine[i]) {
                const Storage h = narrow<Storage>(stepped<STEP, Number>(sum[i], p[i], d[i], (Number)clip));
                out[at + place[i]] = h;
                next_states[stored[i]] = widen(h);  // rounded to the dtype, like the result
            }
        __syncthreads();
        now = 1 - now;
        at += move;
#pragma unroll
        for (int i = 0; i < Mine::COUNT; ++i) p[i] = next_p[i], d[i] = next_d[i];
    }
}
