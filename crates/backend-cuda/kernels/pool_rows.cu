// pool_rows: the rows of a text to the one that stands for it (ops::pool_rows); bound by memory. A
// block a row of the step and 256 columns; what later steps need of this one is kept for its slot.

enum Pooling { FIRST = 0, LAST = 1, MEAN = 2 };

struct PoolArguments {
    const StepHeader* header;
    const StepRow* rows;
    const CarriedRow* carried;
    const void* input;  // f32, or f16 if `is_half`
    float* kept;        // [slots, width]
    float* output;      // [sampled rows, width]
    u32 input_stride, width, pooling, is_half;
};

extern "C" __global__ void __launch_bounds__(256)
    pool_rows(const __grid_constant__ PoolArguments arguments) {
    const u32 count = arguments.header->rows, column = blockIdx.y * 256 + threadIdx.x;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= count || column >= arguments.width) return;
    const StepRow row = arguments.rows[blockIdx.x];
    const CarriedRow carried = arguments.carried[blockIdx.x];
    auto input = [&](u32 token) {
        const size_t at = (size_t)(row.token_first + token) * arguments.input_stride + column;
        return arguments.is_half ? from_half(((const u16*)arguments.input)[at])
                                 : ((const float*)arguments.input)[at];
    };
    float* place = arguments.kept + (size_t)row.slot * arguments.width + column;
    float kept = row.start == 0 ? 0.0f : *place;
    if (arguments.pooling == MEAN)
        for (u32 token = 0; token < carried.length; token++) kept += input(token);
    else if (arguments.pooling == LAST)
        kept = input(carried.length - 1);
    else if (row.start == 0)
        kept = input(0);
    *place = kept;
    if (carried.place == 0xffffffff) return;
    const float value =
        arguments.pooling == MEAN ? kept / (float)(row.start + carried.length) : kept;
    arguments.output[(size_t)carried.place * arguments.width + column] = value;
}
