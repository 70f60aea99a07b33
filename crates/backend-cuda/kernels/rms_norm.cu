// rms_norm: rows of f32 to normed rows of f16, the form in which products read them.
//
// Moves 4 bytes in and 2 out an element. A block a row; sums in one order whatever else runs.

struct NormArguments {
    const float* input;
    const float* weight;
    u16* output;
    const u32* rows;
    u32 width, output_stride;
    float epsilon;
};

// Elements a thread holds; wider rows are read again.
#define HELD 8

extern "C" __global__ void __launch_bounds__(512)
    rms_norm(const __grid_constant__ NormArguments arguments) {
    __shared__ float sums[16];
    const u32 width = arguments.width;
    float weights[HELD], values[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + 512 * k;
        weights[k] = i < width ? arguments.weight[i] : 0.0f;
    }
    const u32 rows = *arguments.rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const float* input = arguments.input + (size_t)blockIdx.x * width;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + 512 * k;
        values[k] = i < width ? input[i] : 0.0f;
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; k++) sum = __fmaf_rn(values[k], values[k], sum);
    for (u32 i = threadIdx.x + 512 * HELD; i < width; i += 512)
        sum = __fmaf_rn(input[i], input[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) total += sums[i];
    const float inverse = 1.0f / sqrtf(total / (float)width + arguments.epsilon);
    u16* output = arguments.output + (size_t)blockIdx.x * arguments.output_stride;
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + 512 * k;
        if (i < width) output[i] = to_half(within_half(values[k] * inverse * weights[k]));
    }
    for (u32 i = threadIdx.x + 512 * HELD; i < width; i += 512)
        output[i] = to_half(within_half(input[i] * inverse * arguments.weight[i]));
}
