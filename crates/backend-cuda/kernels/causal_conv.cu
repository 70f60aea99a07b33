// causal_conv: each channel over its sequence's last tokens, then SiLU, in place.
//
// Every token's row is read and written once, each slot's last inputs once a step. A thread takes a
// channel of a row, token after token, so a token's result does not depend on how its prompt was cut.

#define TAPS_MAX 16

struct CausalConvArguments {
    const StepHeader* header;
    const StepRow* rows;
    const CarriedRow* carried;
    float* values;        // [tokens, channels]
    const float* weight;  // [channels, taps]
    float* states;        // this op's part of the first slot's, and of what is kept of its guesses
    float* guesses;
    u32 state_stride, guess_stride, guesses_max;
    u32 channels, taps;
};

// The last inputs of a channel, the oldest first.
struct ConvWindow {
    float inputs[TAPS_MAX];

    __device__ __forceinline__ void push(float input, u32 taps) {
#pragma unroll
        for (u32 tap = 1; tap < TAPS_MAX; tap++)
            if (tap < taps) inputs[tap - 1] = inputs[tap];
#pragma unroll
        for (u32 tap = 0; tap < TAPS_MAX; tap++)
            if (tap + 1 == taps) inputs[tap] = input;
    }

    __device__ __forceinline__ float sum(const float (&weights)[TAPS_MAX], u32 taps) const {
        float total = __fmul_rn(inputs[0], weights[0]);
#pragma unroll
        for (u32 tap = 1; tap < TAPS_MAX; tap++)
            if (tap < taps) total = __fmaf_rn(inputs[tap], weights[tap], total);
        return total * sigmoid(total);
    }

    __device__ __forceinline__ void store(float* tail, u32 channels, u32 taps) const {
#pragma unroll
        for (u32 tap = 1; tap < TAPS_MAX; tap++)
            if (tap < taps) tail[(size_t)(tap - 1) * channels] = inputs[tap];
    }
};

extern "C" __global__ void __launch_bounds__(256)
    causal_conv(const __grid_constant__ CausalConvArguments arguments) {
    const u32 channel = blockIdx.y * 256 + threadIdx.x, channels = arguments.channels;
    const u32 taps = arguments.taps, rows = arguments.header->rows;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= rows || channel >= channels) return;
    const StepRow row = arguments.rows[blockIdx.x];
    const CarriedRow carried = arguments.carried[blockIdx.x];
    float* tail = arguments.states + (size_t)row.slot * arguments.state_stride + channel;
    float* kept = arguments.guesses +
        (size_t)row.slot * arguments.guesses_max * arguments.guess_stride + channel;
    float weights[TAPS_MAX];
    ConvWindow window;
#pragma unroll
    for (u32 tap = 0; tap < TAPS_MAX; tap++) {
        weights[tap] = tap < taps ? arguments.weight[(size_t)channel * taps + tap] : 0.0f;
        // The newest is pushed before it is read.
        window.inputs[tap] = tap > 0 && tap < taps ? tail[(size_t)(tap - 1) * channels] : 0.0f;
    }
    for (u32 guess = 0; guess < carried.right; guess++)
        window.push(kept[(size_t)guess * arguments.guess_stride], taps);
    const u32 certain = carried.length - carried.proposed;
    float* values = arguments.values + (size_t)row.token_first * channels + channel;
    for (u32 token = 0; token < carried.length; token++) {
        if (token == certain) window.store(tail, channels, taps);
        float* value = values + (size_t)token * channels;
        const float input = *value;
        if (token >= certain) kept[(size_t)(token - certain) * arguments.guess_stride] = input;
        window.push(input, taps);
        *value = window.sum(weights, taps);
    }
    if (carried.proposed == 0) window.store(tail, channels, taps);
}
