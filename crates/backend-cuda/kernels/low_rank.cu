// low_rank: what a token's adapter adds to a product, `output += scale up (down input)`. Tokens
// without an adapter are left alone. Sums are of a warp, in one order.

struct LowRankPart {
    const float* down;  // [rank, width]; none where the adapter leaves this product alone
    const float* up;    // [output width, rank]
    u32 rank;
    float scale;
};

struct LowRankArguments {
    const u32* tokens;
    const u32* adapters;         // of each token; 0xffffffff: none
    const LowRankPart* parts;    // of each adapter
    const void* input;           // f32, or f16 if `is_half`, times `input_scale`
    float* inner;                // [tokens, rank_max]
    float* output;
    u32 input_stride, width, output_stride, output_width, rank_max, is_half;
    float input_scale;
};

__device__ __forceinline__ LowRankPart part_of(const LowRankArguments& arguments, u32 token) {
    const u32 adapter = arguments.adapters[token];
    return adapter == 0xffffffff ? LowRankPart{0, 0, 0, 0.0f} : arguments.parts[adapter];
}

// A warp a row of `down`.
extern "C" __global__ void __launch_bounds__(256)
    low_rank_down(const __grid_constant__ LowRankArguments arguments) {
    const u32 tokens = *arguments.tokens, token = blockIdx.x, lane = threadIdx.x % 32;
    const u32 row = blockIdx.y * 8 + threadIdx.x / 32;
    let_next_start();
    wait_for_previous();
    if (token >= tokens) return;
    const LowRankPart part = part_of(arguments, token);
    if (!part.down || row >= part.rank) return;
    const float* down = part.down + (size_t)row * arguments.width;
    const size_t first = (size_t)token * arguments.input_stride;
    float sum = 0.0f;
    for (u32 i = lane; i < arguments.width; i += 32) {
        const float value = arguments.is_half ? from_half(((const u16*)arguments.input)[first + i])
                                              : ((const float*)arguments.input)[first + i];
        sum = __fmaf_rn(value * arguments.input_scale, down[i], sum);
    }
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (lane == 0) arguments.inner[(size_t)token * arguments.rank_max + row] = sum;
}

// A thread a column.
extern "C" __global__ void __launch_bounds__(256)
    low_rank_up(const __grid_constant__ LowRankArguments arguments) {
    const u32 tokens = *arguments.tokens, token = blockIdx.x;
    const u32 column = blockIdx.y * 256 + threadIdx.x;
    let_next_start();
    wait_for_previous();
    if (token >= tokens || column >= arguments.output_width) return;
    const LowRankPart part = part_of(arguments, token);
    if (!part.down) return;
    const float* up = part.up + (size_t)column * part.rank;
    const float* inner = arguments.inner + (size_t)token * arguments.rank_max;
    float sum = 0.0f;
    for (u32 i = 0; i < part.rank; i++) sum = __fmaf_rn(inner[i], up[i], sum);
    float* output = arguments.output + (size_t)token * arguments.output_stride + column;
    *output = __fmaf_rn(part.scale, sum, *output);
}
