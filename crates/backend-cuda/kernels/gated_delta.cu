// gated_delta: every token lets its head's matrix fade, corrects it and reads it.
//
// A block takes 32 columns of a head of a row, token after token, so a token's result does not depend
// on how its prompt was cut. Each warp holds 32 keys' rows of the columns in registers: the matrix is
// read and written once a step. Sums over keys go by warps and then over them, in one order.

#define WARP_KEYS 32
#define WARPS_MAX 8

struct GatedDeltaArguments {
    const StepHeader* header;
    const StepRow* rows;
    const CarriedRow* carried;
    const float* mixed;     // [tokens, mixed]: queries, keys and values
    const float* decay;     // [tokens, heads]
    const float* strength;
    const float* rate;      // [heads]
    const float* bias;
    float* output;          // [tokens, heads * value_dim]
    float* states;          // this op's part of the first slot's, and of what is kept of its guesses
    float* guesses;
    u32 state_stride, guess_stride, guesses_max;
    u32 heads, heads_key, key_dim, value_dim;
    u32 is_grouped;
};

// Where a token's inputs are.
struct DeltaInputs {
    const float* mixed;
    const float* decay;
    const float* strength;
};

__device__ __forceinline__ DeltaInputs inputs_of(
    const GatedDeltaArguments& arguments, const StepRow& row, u32 mixed, const float* kept, u32 at,
    u32 right) {
    if (at < right) {
        const float* from = kept + (size_t)at * arguments.guess_stride;
        return {from, from + mixed, from + mixed + arguments.heads};
    }
    const size_t token = row.token_first + (at - right);
    return {arguments.mixed + token * mixed, arguments.decay + token * arguments.heads,
        arguments.strength + token * arguments.heads};
}

// Over the warps of a block, in their order.
__device__ __forceinline__ float over_warps(const float (&sums)[WARPS_MAX][32], u32 lane) {
    const u32 warps = blockDim.x / 32;
    float total = sums[0][lane];
    for (u32 warp = 1; warp < warps; warp++) total += sums[warp][lane];
    return total;
}

extern "C" __global__ void __launch_bounds__(256)
    gated_delta(const __grid_constant__ GatedDeltaArguments arguments) {
    __shared__ float squares[2][WARPS_MAX];
    __shared__ float known_of[WARPS_MAX][32], read_of[WARPS_MAX][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 key_dim = arguments.key_dim, value_dim = arguments.value_dim;
    const u32 across = (value_dim + 31) / 32, rows = arguments.header->rows;
    const u32 head = blockIdx.y / across, column = blockIdx.y % across * 32 + lane;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const StepRow row = arguments.rows[blockIdx.x];
    const CarriedRow carried = arguments.carried[blockIdx.x];
    const u32 key_width = arguments.heads_key * key_dim;
    const u32 mixed = 2 * key_width + arguments.heads * value_dim;
    const u32 key_head = arguments.is_grouped ? head / (arguments.heads / arguments.heads_key)
                                              : head % arguments.heads_key;
    const bool is_column = column < value_dim;
    const u32 own_key = warp * WARP_KEYS + lane;
    float* matrix = arguments.states + (size_t)row.slot * arguments.state_stride +
        (size_t)head * key_dim * value_dim;
    const float* kept =
        arguments.guesses + (size_t)row.slot * arguments.guesses_max * arguments.guess_stride;
    float state[WARP_KEYS];
#pragma unroll
    for (u32 j = 0; j < WARP_KEYS; j++) {
        const u32 key = warp * WARP_KEYS + j;
        state[j] = is_column && key < key_dim ? matrix[(size_t)key * value_dim + column] : 0.0f;
    }
    const float rate = arguments.rate[head], bias = arguments.bias[head];
    const float root = 1.0f / sqrtf((float)key_dim);
    const u32 certain = carried.right + carried.length - carried.proposed;
    const u32 end = carried.right + carried.length;
    for (u32 at = 0; at < end; at++) {
        if (at == certain) {
#pragma unroll
            for (u32 j = 0; j < WARP_KEYS; j++) {
                const u32 key = warp * WARP_KEYS + j;
                if (is_column && key < key_dim) matrix[(size_t)key * value_dim + column] = state[j];
            }
        }
        const DeltaInputs inputs = inputs_of(arguments, row, mixed, kept, at, carried.right);
        const u32 first = key_head * key_dim;
        float query = own_key < key_dim ? inputs.mixed[first + own_key] : 0.0f;
        float key = own_key < key_dim ? inputs.mixed[key_width + first + own_key] : 0.0f;
        const float value =
            is_column ? inputs.mixed[2 * key_width + head * value_dim + column] : 0.0f;
        const float x = inputs.decay[head] + bias;
        const float softplus = x > 20.0f ? x : log1pf(expf(x));
        const float keep = expf(rate * softplus), correct = sigmoid(inputs.strength[head]);
        float of_query = query * query, of_key = key * key;
        for (int step = 16; step > 0; step /= 2) {
            of_query += __shfl_xor_sync(0xffffffff, of_query, step);
            of_key += __shfl_xor_sync(0xffffffff, of_key, step);
        }
        if (lane == 0) {
            squares[0][warp] = of_query;
            squares[1][warp] = of_key;
        }
        __syncthreads();
        of_query = squares[0][0];
        of_key = squares[1][0];
        for (u32 other = 1; other < warps; other++) {
            of_query += squares[0][other];
            of_key += squares[1][other];
        }
        query *= root / sqrtf(of_query + 1e-6f);
        key *= 1.0f / sqrtf(of_key + 1e-6f);
        float known = 0.0f;
#pragma unroll
        for (u32 j = 0; j < WARP_KEYS; j++) {
            state[j] *= keep;
            known = __fmaf_rn(state[j], __shfl_sync(0xffffffff, key, j), known);
        }
        known_of[warp][lane] = known;
        __syncthreads();
        const float missing = correct * (value - over_warps(known_of, lane));
        float read = 0.0f;
#pragma unroll
        for (u32 j = 0; j < WARP_KEYS; j++) {
            state[j] = __fmaf_rn(__shfl_sync(0xffffffff, key, j), missing, state[j]);
            read = __fmaf_rn(state[j], __shfl_sync(0xffffffff, query, j), read);
        }
        read_of[warp][lane] = read;
        __syncthreads();
        // What a guess of the step before said is in the cache of the layers behind.
        if (warp == 0 && is_column && at >= carried.right) {
            const size_t token = row.token_first + (at - carried.right);
            arguments.output[(token * arguments.heads + head) * value_dim + column] =
                over_warps(read_of, lane);
        }
    }
    if (carried.proposed > 0) return;
#pragma unroll
    for (u32 j = 0; j < WARP_KEYS; j++) {
        const u32 key = warp * WARP_KEYS + j;
        if (is_column && key < key_dim) matrix[(size_t)key * value_dim + column] = state[j];
    }
}

// Keeps the inputs of guesses, once all heads have read those of the step before. A block a row.
extern "C" __global__ void __launch_bounds__(256)
    gated_delta_keep(const __grid_constant__ GatedDeltaArguments arguments) {
    const u32 rows = arguments.header->rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const StepRow row = arguments.rows[blockIdx.x];
    const CarriedRow carried = arguments.carried[blockIdx.x];
    const u32 heads = arguments.heads;
    const u32 mixed =
        2 * arguments.heads_key * arguments.key_dim + heads * arguments.value_dim;
    for (u32 guess = 0; guess < carried.proposed; guess++) {
        const size_t token = row.token_first + carried.length - carried.proposed + guess;
        float* to = arguments.guesses +
            ((size_t)row.slot * arguments.guesses_max + guess) * arguments.guess_stride;
        for (u32 i = threadIdx.x; i < mixed + 2 * heads; i += 256)
            to[i] = i < mixed ? arguments.mixed[token * mixed + i]
                : i < mixed + heads ? arguments.decay[token * heads + i - mixed]
                                    : arguments.strength[token * heads + i - mixed - heads];
    }
}
