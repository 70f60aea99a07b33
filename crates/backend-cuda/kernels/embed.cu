// embed: the residual stream's first values, `scale * table[token]`, from packed weights.
//
// Also turns each token of the step into its id: one that is known, or what its slot sampled last;
// and works out the cosines and sines of its position for all layers.
// Reads one packed row a token. Compiled once a weight form, as linear.cu is.

struct EmbedArguments {
    const StepHeader* header;
    const u32* sources;  // bit 31: the rest is a slot
    const u32* slots_last;
    u32* tokens;
    const u8* weights;
    float* output;
    u32 tiles, chunks, width;
    u32 vocabulary;
    float scale;
    u32 rotaries;
    const StepRow* rows;
    const u32* token_rows;
    EmbedRotary rotary[ROTARIES_MAX];
    const u32* texts;  // of each token, whether it is of its row's second text
    u32 by, from, adds;
};

// Which row of the table is a token's.
enum EmbedBy { BY_TOKEN = 0, BY_POSITION = 1, BY_NOTHING = 2, BY_TEXT = 3 };

#if LINEAR_BITS == 16
#define GROUPS 2
#else
#define GROUPS (64 / LINEAR_GROUP)
#endif
#define CODE_BYTES (LINEAR_BITS == 16 ? 2048 : LINEAR_BITS == 8 ? 1024 : 512)
#define HIGH_BYTES (LINEAR_BITS == 5 ? 128 : LINEAR_BITS == 6 ? 256 : 0)
#define SCALE_BYTES (LINEAR_BITS == 16 ? 0 : GROUPS * 16 * 2 * (1 + LINEAR_BIAS))

// Code of element `e` (0 or 1) of register `j` of product `m` of a lane: see src/packing.rs.
__device__ __forceinline__ float code_at(const u8* codes, const u8* high, u32 lane, u32 m, u32 j, u32 e) {
#if LINEAR_BITS == 16
    const u32* word = (const u32*)(codes + 512 * m + 16 * lane) + j;
    return e ? high_half(*word) : low_half(*word);
#elif LINEAR_BITS == 8
    const u8* byte = codes + 512 * (m / 2) + 16 * lane + 8 * (m % 2) + 2 * j + e;
    return (float)((int)*byte - 128);
#else
    const u32 word = *((const u32*)(codes + 16 * lane) + m);
    u32 code = (word >> (4 * j + 16 * e)) & 15;
#if LINEAR_BITS == 5
    code |= ((*(const u32*)(high + 4 * lane) >> (4 * m + j + 16 * e)) & 1) << 4;
#elif LINEAR_BITS == 6
    code |= ((*((const u32*)(high + 8 * lane) + m / 2) >> (8 * (m % 2) + 2 * j + 16 * e)) & 3) << 4;
#endif
    return (float)((int)code - (LINEAR_BIAS ? 0 : LINEAR_BITS == 6 ? 32 : LINEAR_BITS == 4 ? 8 : 0));
#endif
}

// A block a token; a thread takes 4 columns of a lane's product.
extern "C" __global__ void __launch_bounds__(256)
    embed(const __grid_constant__ EmbedArguments arguments) {
    let_next_start();
    wait_for_previous();
    const u32 index = blockIdx.x;
    if (index >= arguments.header->tokens) return;
    const u32 source = arguments.sources[index];
    u32 token = source >> 31 ? arguments.slots_last[source & 0x7fffffff] : source;
    if (token >= arguments.vocabulary) token = 0;
    if (threadIdx.x == 0 && arguments.by == BY_TOKEN) arguments.tokens[index] = token;
    const StepRow step_row = arguments.rows[arguments.token_rows[index]];
    const u32 position = step_row.start + (index - step_row.token_first);
    if (arguments.by != BY_TOKEN)
        token = arguments.by == BY_POSITION ? arguments.from + position
            : arguments.by == BY_NOTHING ? 0
                                         : arguments.texts[index];
    if (token >= arguments.vocabulary) token = 0;
    write_turns(arguments.rotary, arguments.rotaries, index, position);
    const u32 tile = token / 16, row = token % 16, g = row % 8, half = row / 8;
    const size_t count = (size_t)arguments.tiles * arguments.chunks;
    float* output = arguments.output + (size_t)index * arguments.width;
    for (u32 i = threadIdx.x; i < arguments.chunks * 16; i += blockDim.x) {
        const u32 chunk = i / 16, m = i / 4 % 4, t = i % 4, lane = 4 * g + t;
        const size_t at = (size_t)tile * arguments.chunks + chunk;
        const u8* codes = arguments.weights + at * CODE_BYTES;
        const u8* high = arguments.weights + count * CODE_BYTES + at * HIGH_BYTES;
        const u32 first = 64 * chunk + 16 * m + 2 * t, group = m * GROUPS / 4;
        float scale = 1.0f, bias = 0.0f;
#if LINEAR_BITS != 16
        const u16* scales = (const u16*)(arguments.weights + count * (CODE_BYTES + HIGH_BYTES) +
            at * SCALE_BYTES) + g * (2 * GROUPS * (1 + LINEAR_BIAS));
        scale = from_half(scales[2 * group + half]);
        if (LINEAR_BIAS) bias = from_half(scales[2 * (GROUPS + group) + half]);
#else
        (void)group;
#endif
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            // Columns 0, 1 of the four are register `half`, columns 2, 3 register 2 + `half`.
            const float code = code_at(codes, high, lane, m, 2 * (k / 2) + half, k % 2);
            const u32 column = first + 8 * (k / 2) + k % 2;
            if (column >= arguments.width) continue;
            const float value = arguments.scale * __fadd_rn(__fmul_rn(scale, code), bias);
            output[column] = arguments.adds ? output[column] + value : value;
        }
    }
}
