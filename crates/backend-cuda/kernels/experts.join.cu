// experts.join: what a token's experts gave, weighted and added in the order of the choices.
//
// Moves 4 bytes an element and choice. experts.cu's `experts_down` does the same for few tokens, with
// the same operations.

struct JoinArguments {
    const u32* tokens;
    const float* values;    // [tokens, used, width]
    const float* factors;   // [tokens, used]
    float* output;
    u32 used, width, output_stride;
    u32 adds;
};

// A block takes 1,024 columns of a token.
extern "C" __global__ void __launch_bounds__(256)
    experts_join(const __grid_constant__ JoinArguments arguments) {
    const u32 tokens = *arguments.tokens;
    const u32 token = blockIdx.x, used = arguments.used, width = arguments.width;
    let_next_start();
    wait_for_previous();
    if (token >= tokens) return;
    const float* values = arguments.values + (size_t)token * used * width;
    const float* factors = arguments.factors + (size_t)token * used;
    float* output = arguments.output + (size_t)token * arguments.output_stride;
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        const u32 i = blockIdx.y * 1024 + k * 256 + threadIdx.x;
        if (i >= width) break;
        float total = 0.0f;
        for (u32 place = 0; place < used; place++)
            total = __fmaf_rn(factors[place], values[(size_t)place * width + i], total);
        output[i] = arguments.adds ? output[i] + total : total;
    }
}
