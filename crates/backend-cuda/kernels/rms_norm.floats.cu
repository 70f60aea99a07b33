// rms_norm.floats: what a block gives, normed and added to the stream, or stored; f32 rows.
//
// Moves 12 bytes an element where it adds. A block a row; sums in one order whatever else runs.

struct NormFloatsArguments {
    const float* input;
    const float* weight;
    float* output;
    const u32* rows;
    u32 width;
    float epsilon;
    u32 adds;
};

extern "C" __global__ void __launch_bounds__(512)
    rms_norm_floats(const __grid_constant__ NormFloatsArguments arguments) {
    __shared__ float sums[16];
    const u32 width = arguments.width;
    const u32 rows = *arguments.rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const float* input = arguments.input + (size_t)blockIdx.x * width;
    float* output = arguments.output + (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < width; i += 512) sum = __fmaf_rn(input[i], input[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) total += sums[i];
    const float inverse = 1.0f / sqrtf(total / (float)width + arguments.epsilon);
    for (u32 i = threadIdx.x; i < width; i += 512) {
        const float before = arguments.adds ? output[i] : 0.0f;
        output[i] = before + input[i] * inverse * arguments.weight[i];
    }
}
