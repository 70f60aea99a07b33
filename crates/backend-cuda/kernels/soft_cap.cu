// soft_cap: `cap tanh(value / cap)` in place, rows of f32; bound by memory.

struct SoftCapArguments {
    float* values;
    const u32* rows;
    u32 width;
    float cap;
};

// A block takes 2,048 values of a row.
extern "C" __global__ void __launch_bounds__(256)
    soft_cap(const __grid_constant__ SoftCapArguments arguments) {
    const u32 rows = *arguments.rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    float* values = arguments.values + (size_t)blockIdx.x * arguments.width;
    const u32 end = min(arguments.width, (blockIdx.y + 1) * 2048);
    for (u32 i = blockIdx.y * 2048 + threadIdx.x; i < end; i += 256)
        values[i] = arguments.cap * tanhf(values[i] / arguments.cap);
}
