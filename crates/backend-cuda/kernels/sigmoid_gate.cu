// sigmoid_gate: `values sigmoid(gate)` in place, a gate for so many values; bound by memory.

struct SigmoidGateArguments {
    const u32* rows;
    void* values;  // f32, or f16 if `is_half`
    const float* gate;
    u32 stride, width, gates, is_half;
};

// A block takes 1,024 values of a row.
extern "C" __global__ void __launch_bounds__(256)
    sigmoid_gate(const __grid_constant__ SigmoidGateArguments arguments) {
    const u32 rows = *arguments.rows, each = arguments.width / arguments.gates;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows) return;
    const float* gate = arguments.gate + (size_t)blockIdx.x * arguments.gates;
    const size_t first = (size_t)blockIdx.x * arguments.stride;
    const u32 end = min(arguments.width, (blockIdx.y + 1) * 1024);
    for (u32 i = blockIdx.y * 1024 + threadIdx.x; i < end; i += 256) {
        const float factor = sigmoid(gate[i / each]);
        if (arguments.is_half) {
            u16* value = (u16*)arguments.values + first + i;
            *value = to_half(from_half(*value) * factor);
        } else {
            ((float*)arguments.values)[first + i] *= factor;
        }
    }
}
