// gated_norm: `rms_norm(values) weight silu(gate)` of each head, in place, rows of f32; bound by
// memory. A warp a head of a token.

struct GatedNormArguments {
    const u32* rows;
    float* values;        // [tokens, heads, width]
    const float* gate;
    const float* weight;  // [width]
    u32 heads, width;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(256)
    gated_norm(const __grid_constant__ GatedNormArguments arguments) {
    const u32 rows = *arguments.rows, lane = threadIdx.x % 32, width = arguments.width;
    const u32 head = blockIdx.y * 8 + threadIdx.x / 32;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows || head >= arguments.heads) return;
    const size_t first = ((size_t)blockIdx.x * arguments.heads + head) * width;
    float* values = arguments.values + first;
    const float* gate = arguments.gate + first;
    float sum = 0.0f;
    for (u32 i = lane; i < width; i += 32) sum = __fmaf_rn(values[i], values[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    const float inverse = 1.0f / sqrtf(sum / (float)width + arguments.epsilon);
    for (u32 i = lane; i < width; i += 32)
        values[i] = values[i] * inverse * arguments.weight[i] * (gate[i] * sigmoid(gate[i]));
}
