// linear.halve: rows of f32 to rows of f16, the form in which products read them; bound by memory.

struct HalveArguments {
    const u32* rows;
    const float* input;
    u16* output;
    u32 width, output_stride;
};

// A block takes 1,024 values of a row.
extern "C" __global__ void __launch_bounds__(256)
    linear_halve(const __grid_constant__ HalveArguments arguments) {
    const u32 rows = *arguments.rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const float* input = arguments.input + (size_t)blockIdx.x * arguments.width;
    u16* output = arguments.output + (size_t)blockIdx.x * arguments.output_stride;
    const u32 end = min(arguments.width, (blockIdx.y + 1) * 1024);
    for (u32 i = blockIdx.y * 1024 + threadIdx.x; i < end; i += 256)
        output[i] = to_half(within_half(input[i]));
}
