// layer_norm: rows of f32 in place; bound by memory. A block a row.

struct LayerNormArguments {
    const u32* rows;
    float* values;
    const float* weight;
    const float* bias;
    u32 width;
    float epsilon;
};

// Over a block of 256 threads, in one order.
__device__ __forceinline__ float sum_of_all(float sum, float* sums) {
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = sums[0];
    for (int warp = 1; warp < 8; warp++) total += sums[warp];
    return total;
}

extern "C" __global__ void __launch_bounds__(256)
    layer_norm(const __grid_constant__ LayerNormArguments arguments) {
    __shared__ float sums[8];
    const u32 rows = *arguments.rows, width = arguments.width;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    float* values = arguments.values + (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += 256) sum += values[i];
    const float mean = sum_of_all(sum, sums) / (float)width;
    sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += 256) {
        const float apart = values[i] - mean;
        sum = __fmaf_rn(apart, apart, sum);
    }
    const float variance = sum_of_all(sum, sums) / (float)width;
    const float inverse = 1.0f / sqrtf(variance + arguments.epsilon);
    for (u32 i = threadIdx.x; i < width; i += 256)
        values[i] = (values[i] - mean) * inverse * arguments.weight[i] + arguments.bias[i];
}
