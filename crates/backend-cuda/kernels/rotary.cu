// rotary: turns queries and keys by their positions and stores keys and values in the pages; norms
// each head first where the model has such norms.
//
// A warp a head of a token; cosines and sines come from embed.cu. Queries become f16 rows of padded
// heads, each 32 dims in the order in which a lane of paged_attention.cu wants its 8 of them; how a
// page holds keys and values stands there, too. Padding stays zero from the start.
//
// With KV_BITS 8 keys and values become codes, each head's of a position by a scale of its own; keys,
// and queries with them, are turned by a Hadamard matrix first, which spreads outliers over the head
// (ops::kv_format), padding included. Of values, what is stored beside the codes is 64 times as much.

#ifndef KV_BITS
#define KV_BITS 16
#endif

struct RotaryArguments {
    const StepHeader* header;
    const StepRow* rows;
    const u32* token_rows;
    const u32* blocks;
    const float* query;
    const float* key;
    const float* value;
    u16* query_output;
    u16* pages;
    const float2* turns;
    const float* query_norm;  // [head_dim], or none
    const float* key_norm;
    u32 heads, heads_kv, head_dim, head_padded;
    u32 dims, half_split;     // none of a head's dims turn where the layer knows no positions
    float epsilon;
    float growth;             // queries grow by this at each of so many positions; 0 in most models
    u32 growth_every;
};

#define PAGE_TOKENS 32u

// A head's elements, normed or as they are.
struct Head {
    const float* values;
    const float* norm;
    float inverse;

    __device__ __forceinline__ float at(u32 d) const {
        return norm ? values[d] * inverse * norm[d] : values[d];
    }
};

// A warp sums the squares, each lane every 32nd.
__device__ __forceinline__ Head head_of(
    const float* values, const float* norm, const RotaryArguments& arguments, u32 lane) {
    if (!norm) return {values, norm, 1.0f};
    float sum = 0.0f;
    for (u32 d = lane; d < arguments.head_dim; d += 32) sum = __fmaf_rn(values[d], values[d], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    return {values, norm, 1.0f / sqrtf(sum / (float)arguments.head_dim + arguments.epsilon)};
}

__device__ __forceinline__ float turned(
    const Head& head, u32 d, const RotaryArguments& arguments, const float2* turns) {
    if (d >= arguments.dims) return head.at(d);
    const u32 half = arguments.dims / 2;
    const bool second = arguments.half_split ? d >= half : d % 2 == 1;
    const u32 pair = arguments.half_split ? (second ? d - half : d) : d / 2;
    const float a = head.at(arguments.half_split ? pair : 2 * pair);
    const float b = head.at(arguments.half_split ? pair + half : 2 * pair + 1);
    const float2 turn = turns[pair];
    return second ? b * turn.x + a * turn.y : a * turn.x - b * turn.y;
}

// Of 32 dims, a lane of four has 2 t and 2 t + 1 of every 8; of codes its 8 are neighbours.
__device__ __forceinline__ u32 query_place(u32 d) {
#if KV_BITS == 8
    return d;
#else
    return d / 32 * 32 + d % 8 / 2 * 8 + d % 32 / 8 * 2 + d % 2;
#endif
}

#if KV_BITS == 8

#define HEAD_MAX 576u
#define VALUE_SCALE 64.0f

// Of a warp's head, in its shared memory: blocks of the largest power of two that divides `padded`.
__device__ __forceinline__ void spread_out(float* values, u32 padded, u32 lane) {
    const u32 block = padded & (0u - padded);
    for (u32 apart = 1; apart < block; apart *= 2) {
        __syncwarp();
        for (u32 i = lane; i < padded / 2; i += 32) {
            const u32 at = i / apart * 2 * apart + i % apart;
            const float a = values[at], b = values[at + apart];
            values[at] = a + b, values[at + apart] = a - b;
        }
    }
    __syncwarp();
    const float root = 1.0f / sqrtf((float)block);
    for (u32 d = lane; d < padded; d += 32) values[d] *= root;
    __syncwarp();
}

// What one code stands for, of a warp's head.
__device__ __forceinline__ float scale_of(const float* values, u32 padded, u32 lane) {
    float most = 0.0f;
    for (u32 d = lane; d < padded; d += 32) {
        // What is no number stays so.
        const float size = fabsf(values[d]);
        most = size > most || size != size ? size : most;
    }
    for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(0xffffffff, most, step);
        most = other > most || other != other ? other : most;
    }
    return most / 127.0f;
}

__device__ __forceinline__ u8 code_of(float value, float scale) {
    return scale > 0.0f ? (u8)(signed char)__float2int_rn(value / scale) : 0;
}

#endif

extern "C" __global__ void __launch_bounds__(256)
    rotary_append(const __grid_constant__ RotaryArguments arguments) {
    const u32 token = blockIdx.x, lane = threadIdx.x % 32;
    u32 head = blockIdx.y * 8 + threadIdx.x / 32;
    const u32 tokens = arguments.header->tokens;
    const bool is_there = token < tokens && head < arguments.heads + 2 * arguments.heads_kv;
    StepRow row = {};
    u32 position = 0, block = 0;
    if (is_there) {
        row = arguments.rows[arguments.token_rows[token]];
        position = row.start + (token - row.token_first);
        block = arguments.blocks[row.blocks_start + position / PAGE_TOKENS];
    }
    let_next_start();
    wait_for_previous();
    if (!is_there) return;
    const float grown =
        1.0f + arguments.growth * logf(1.0f + (float)(position / arguments.growth_every));
    const u32 dim = arguments.head_dim, padded = arguments.head_padded, at = position % PAGE_TOKENS;
    const float2* turns = arguments.turns + (size_t)token * (arguments.dims / 2);
#if KV_BITS == 8
    __shared__ float heads_values[8][HEAD_MAX];
    float* values = heads_values[threadIdx.x / 32];
    const bool is_query = head < arguments.heads;
    if (!is_query) head -= arguments.heads;
    const bool is_of_keys = !is_query && head < arguments.heads_kv;
    if (!is_query && !is_of_keys) head -= arguments.heads_kv;
    const float* input = is_query ? arguments.query : is_of_keys ? arguments.key : arguments.value;
    const u32 count = is_query ? arguments.heads : arguments.heads_kv;
    input += ((size_t)token * count + head) * dim;
    const float* norm =
        is_query ? arguments.query_norm : is_of_keys ? arguments.key_norm : nullptr;
    const Head own = head_of(input, norm, arguments, lane);
    for (u32 d = lane; d < padded; d += 32)
        values[d] = d >= dim ? 0.0f
            : is_query || is_of_keys ? turned(own, d, arguments, turns)
                                     : within_half(input[d]);
    __syncwarp();
    if (is_query || is_of_keys) spread_out(values, padded, lane);
    if (is_query) {
        u16* to = arguments.query_output + ((size_t)token * arguments.heads + head) * padded;
        for (u32 d = lane; d < padded; d += 32)
            to[query_place(d)] = to_half(within_half(grown * values[d]));
        return;
    }
    const float scale = scale_of(values, padded, lane);
    const u32 page_bytes = 2 * PAGE_TOKENS * padded + 8 * PAGE_TOKENS;
    u8* codes = (u8*)arguments.pages + ((size_t)block * arguments.heads_kv + head) * page_bytes;
    float* scales = (float*)(codes + 2 * PAGE_TOKENS * padded) + (is_of_keys ? 0 : PAGE_TOKENS);
    if (lane == 0) scales[at] = is_of_keys ? scale : VALUE_SCALE * scale;
    // Of a tile of keys, lane t has rows 2 t and 2 t + 1.
    const u32 tile = at % 8 / 2, key_row = at / 8 * 2 + at % 2;
    for (u32 d = lane; d < padded; d += 32) {
        const u32 place = is_of_keys
            ? (tile * (padded / 8) + d / 8) * 64 + key_row * 8 + d % 8
            : PAGE_TOKENS * padded + (d / 8 * 4 + at / 8) * 64 + d % 8 * 8 + at % 8;
        codes[place] = code_of(values[d], scale);
    }
#else
    if (head < arguments.heads) {
        const Head from =
            head_of(arguments.query + ((size_t)token * arguments.heads + head) * dim,
                arguments.query_norm, arguments, lane);
        u16* to = arguments.query_output + ((size_t)token * arguments.heads + head) * padded;
        for (u32 d = lane; d < dim; d += 32)
            to[query_place(d)] = to_half(within_half(grown * turned(from, d, arguments, turns)));
        return;
    }
    head -= arguments.heads;
    const bool is_key = head < arguments.heads_kv;
    if (!is_key) head -= arguments.heads_kv;
    const size_t from = ((size_t)token * arguments.heads_kv + head) * dim;
    u16* page =
        arguments.pages + ((size_t)block * arguments.heads_kv + head) * (2 * PAGE_TOKENS * padded);
    if (is_key) {
        const Head key = head_of(arguments.key + from, arguments.key_norm, arguments, lane);
        for (u32 d = lane; d < dim; d += 32)
            page[(at / 8 * (padded / 8) + d / 8) * 64 + at % 8 * 8 + d % 8] =
                to_half(within_half(turned(key, d, arguments, turns)));
        return;
    }
    for (u32 d = lane; d < dim; d += 32)
        page[PAGE_TOKENS * padded + (at / 8 * padded + d) * 8 + at % 8] =
            to_half(within_half(arguments.value[from + d]));
#endif
}
