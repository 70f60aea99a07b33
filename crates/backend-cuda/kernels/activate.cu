// activate: what is done to each value alone: curves, sums and scales (ops::activate, ops::blend), and
// gates with what they gate (ops::gated_linear); bound by memory.

enum ActivateMode {
    GELU = 0, GELU_TANH = 1, RELU = 2, TANH = 3, BLEND = 4, SCALE = 5, JOIN_SILU = 6, JOIN_GELU = 7
};

struct ActivateArguments {
    const u32* rows;
    const float* values;
    const float* other;  // of as many rows; of one value for SCALE
    void* output;        // f32: the values themselves; of gates f16, a sixteenth
    u32 width, output_stride;
    u32 mode;
    float number;
};

__device__ __forceinline__ float gelu_tanh(float value) {
    const float inner = 0.7978845608f * (value + 0.044715f * value * value * value);
    return 0.5f * value * (1.0f + tanhf(inner));
}

// A block takes 1,024 values of a row.
extern "C" __global__ void __launch_bounds__(256)
    activate(const __grid_constant__ ActivateArguments arguments) {
    const u32 rows = *arguments.rows, mode = arguments.mode;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const size_t first = (size_t)blockIdx.x * arguments.width;
    const u32 end = min(arguments.width, (blockIdx.y + 1) * 1024);
    for (u32 i = blockIdx.y * 1024 + threadIdx.x; i < end; i += 256) {
        const float value = arguments.values[first + i];
        float* in_place = (float*)arguments.output + first + i;
        switch (mode) {
            case GELU:
                *in_place = 0.5f * value * (1.0f + erff(value * 0.70710678f));
                break;
            case GELU_TANH:
                *in_place = gelu_tanh(value);
                break;
            case RELU:
                // Not by a maximum, which would hide what is no number.
                *in_place = value < 0.0f ? 0.0f : value;
                break;
            case TANH:
                *in_place = tanhf(value);
                break;
            case BLEND:
                *in_place = arguments.number * (value + arguments.other[first + i]);
                break;
            case SCALE:
                *in_place = value * arguments.other[0];
                break;
            default: {
                // As products that gate do it (linear.cu).
                const float up = arguments.other[first + i];
                const float gated = mode == JOIN_SILU
                    ? silu(value) * up
                    : gelu_tanh(value) * up;
                ((u16*)arguments.output)[(size_t)blockIdx.x * arguments.output_stride + i] =
                    to_half(within_half(gated * 0.0625f));
            }
        }
    }
}
