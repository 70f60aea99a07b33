// norm_heads: RMS norm of heads of f32 in place, with a weight or without; bound by memory. A block a
// head of a row.

struct NormHeadsArguments {
    const u32* rows;
    float* values;        // [rows, heads, width]
    const float* weight;  // [width], or none
    u32 heads, width;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(128)
    norm_heads(const __grid_constant__ NormHeadsArguments arguments) {
    __shared__ float sums[4];
    const u32 rows = *arguments.rows, width = arguments.width;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    float* values = arguments.values + ((size_t)blockIdx.x * arguments.heads + blockIdx.y) * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += 128) sum = __fmaf_rn(values[i], values[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    const float total = ((sums[0] + sums[1]) + sums[2]) + sums[3];
    const float inverse = 1.0f / sqrtf(total / (float)width + arguments.epsilon);
    for (u32 i = threadIdx.x; i < width; i += 128) {
        const float normed = values[i] * inverse;
        values[i] = arguments.weight ? normed * arguments.weight[i] : normed;
    }
}
