// copy_columns: some columns of each head to another place; bound by memory.

struct CopyColumnsArguments {
    const u32* tokens;
    const void* input;      // f32, or f16 if `is_half`
    float* output;
    u32 input_row, input_head, input_first;
    u32 output_row, output_head, output_first;
    u32 heads, width, is_half;
};

// A block a token.
extern "C" __global__ void __launch_bounds__(256)
    copy_columns(const __grid_constant__ CopyColumnsArguments arguments) {
    const u32 tokens = *arguments.tokens, token = blockIdx.x;
    let_next_start();
    wait_for_previous();
    if (token >= tokens) return;
    for (u32 i = threadIdx.x; i < arguments.heads * arguments.width; i += 256) {
        const u32 head = i / arguments.width, column = i % arguments.width;
        const size_t from = (size_t)token * arguments.input_row + head * arguments.input_head +
            arguments.input_first + column;
        const size_t to = (size_t)token * arguments.output_row + head * arguments.output_head +
            arguments.output_first + column;
        arguments.output[to] = arguments.is_half ? from_half(((const u16*)arguments.input)[from])
                                                 : ((const float*)arguments.input)[from];
    }
}
