// head_linear: the inputs of products by heads, as experts.cu reads them: f16 rows of whole chunks.
//
// Moves a column in and out once. The products are those of experts.cu, a head for an expert.

struct HeadInputsArguments {
    const u32* tokens;
    const void* input;      // f32, or f16 if `is_half`
    u16* output;            // [tokens, heads, padded]
    u32 row_stride, head_stride, first, width;
    u32 heads, padded, is_half;
};

// A block a token; what is beyond a head's width is zero.
extern "C" __global__ void __launch_bounds__(256)
    head_inputs(const __grid_constant__ HeadInputsArguments arguments) {
    const u32 tokens = *arguments.tokens, token = blockIdx.x;
    let_next_start();
    wait_for_previous();
    if (token >= tokens) return;
    u16* output = arguments.output + (size_t)token * arguments.heads * arguments.padded;
    for (u32 i = threadIdx.x; i < arguments.heads * arguments.padded; i += 256) {
        const u32 head = i / arguments.padded, column = i % arguments.padded;
        const size_t from = (size_t)token * arguments.row_stride + head * arguments.head_stride +
            arguments.first + column;
        u16 value = 0;
        if (column < arguments.width)
            value = arguments.is_half ? ((const u16*)arguments.input)[from]
                                      : to_half(within_half(((const float*)arguments.input)[from]));
        output[i] = value;
    }
}
