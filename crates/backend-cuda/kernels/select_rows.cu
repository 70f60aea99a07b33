// select_rows: the rows of the stream that are sampled, one block each; bound by memory.

struct SelectArguments {
    const StepHeader* header;
    const u32* picks;
    const float* input;
    float* output;
    u32 width;
};

extern "C" __global__ void __launch_bounds__(256)
    select_rows(const __grid_constant__ SelectArguments arguments) {
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= arguments.header->sampled) return;
    const float* input = arguments.input + (size_t)arguments.picks[blockIdx.x] * arguments.width;
    float* output = arguments.output + (size_t)blockIdx.x * arguments.width;
    for (u32 i = threadIdx.x; i < arguments.width; i += 256) output[i] = input[i];
}
