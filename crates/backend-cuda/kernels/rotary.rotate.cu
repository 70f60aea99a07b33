// rotary.rotate: turns heads by their positions in place, rows of f32; cosines and sines come from
// embed.cu. A block a token.

struct RotateArguments {
    const u32* tokens;
    float* values;         // [tokens, heads, head_dim]
    const float2* turns;   // [tokens, pairs]
    u32 heads, head_dim, pairs, half_split;
};

extern "C" __global__ void __launch_bounds__(256)
    rotary_rotate(const __grid_constant__ RotateArguments arguments) {
    const u32 tokens = *arguments.tokens, pairs = arguments.pairs;
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= tokens) return;
    for (u32 i = threadIdx.x; i < arguments.heads * pairs; i += 256) {
        const u32 pair = i % pairs;
        float* head = arguments.values +
            ((size_t)blockIdx.x * arguments.heads + i / pairs) * arguments.head_dim;
        float* first = head + (arguments.half_split ? pair : 2 * pair);
        float* second = head + (arguments.half_split ? pair + pairs : 2 * pair + 1);
        const float2 turn = arguments.turns[(size_t)blockIdx.x * pairs + pair];
        const float a = *first, b = *second;
        *first = a * turn.x - b * turn.y;
        *second = b * turn.x + a * turn.y;
    }
}
