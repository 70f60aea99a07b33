// rms_norm: rows of f32 to normed rows of f16, the form in which products read them.
//
// Moves 4 bytes in and 2 out an element. A block a row.

struct NormArguments {
    const float* input;
    const float* weight;
    u16* output;
    const u32* rows;
    u32 width, output_stride;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm(const __grid_constant__ NormArguments arguments) {
    __shared__ float sums[16];
    NormWeights weights;
    load_norm(weights, arguments.weight, arguments.width);
    const u32 rows = *arguments.rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    u16* output = arguments.output + (size_t)blockIdx.x * arguments.output_stride;
    norm_row(arguments.input + (size_t)blockIdx.x * arguments.width, weights, arguments.weight,
        arguments.width, arguments.epsilon, sums, [&](u32 i, u16 half) { output[i] = half; });
}
