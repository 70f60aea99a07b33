// experts: gate and up, then down, of the experts that tokens chose; and products of heads.
//
// `experts.route.cu` sorts the choices by expert. Each block takes some rows of one expert for an item of up to
// 8 NT tokens, so a chosen expert's weights are read once for them: bound by memory for decode, by
// the tensor cores for prompts. Weights lie as packed.cuh reads them, the experts' tiles one behind
// the other, but for the columns of a lane (src/packing.rs).
//
// Arithmetic, the same in every kernel here, for one output: weights are scaled in f16 (one rounding,
// packed.cuh, which is put in front of this), products are summed in f32 by the tensor cores, chunk by chunk; the chunks are cut into
// `slices`, by the width alone, whose sums are added in order. Outputs are weighted and added in the
// order in which the token chose. So a token's result does not depend on the tokens beside it.
//
// Compiled once a weight form.

enum ExpertsMode { STORE = 0, ADD = 1, GATE_SILU = 2, GATE_GELU = 3, GATE_CLAMPED = 4 };

struct ExpertItem {
    u32 expert;
    u32 first;   // in `entries`
    u32 count;
    u32 unused;
};

struct ExpertsArguments {
    const u16* input;        // [tokens, stride] of gate and up; [tokens * used, stride] of down
    const u8* weights;
    const float* bias;       // [experts, rows], or none
    const float* bias_up;
    void* output;
    const ExpertItem* items;
    const u32* item_count;
    const u32* entries;      // token * used + place, by expert
    const u32* tokens;
    const u32* chosen;       // [tokens, used]
    const float* factors;    // [tokens, used]
    u32 input_stride, output_stride;
    u32 chunks, slices;
    u32 tiles, tiles_all;    // of 16 weight rows, of an expert and of all
    u32 rows;                // of an expert's output
    u32 used, mode;
    float input_scale;
    // Heads instead of experts, where there are no items: all tokens go to all `used` of them. An
    // output row is a token's, with a head every `head_stride`; in f16 if so asked.
    u32 head_stride, is_half;
};

__device__ __forceinline__ u32 item_count(const ExpertsArguments& arguments, u32 size) {
    if (arguments.items) return __ldcg(arguments.item_count);
    return arguments.used * ((*arguments.tokens + size - 1) / size);
}

__device__ __forceinline__ ExpertItem item_of(
    const ExpertsArguments& arguments, u32 index, u32 size) {
    if (arguments.items) return arguments.items[index];
    const u32 first = index / arguments.used * size;
    return {index % arguments.used, first, min(size, *arguments.tokens - first), 0};
}

// The choice that an item's token is: token * used + place.
__device__ __forceinline__ u32 entry_of(
    const ExpertsArguments& arguments, const ExpertItem& item, u32 n) {
    if (arguments.items) return arguments.entries[item.first + n];
    return (item.first + n) * arguments.used + item.expert;
}

// Products start the next kernel only when all before them have ended. So for down, right behind gate and
// up, the lists that choosing made are there before it waits; no other kernel writes them.
__device__ __forceinline__ bool lists_are_settled(const ExpertsArguments& arguments) {
    return arguments.items && arguments.mode < GATE_SILU;
}

// Shared memory of a warp (src/kernels.rs): Hopper has room for three blocks of 8 warps, and what is
// before 8.0 for one, beside `experts_down`'s own.
#if __CUDA_ARCH__ >= 800
#define WARP_BYTES (8 * 1024)
#else
#define WARP_BYTES (6 * 1024)
#endif
// Chunks that are copied at once, of two tiles.
#define STEP_CHUNKS (CHUNK_BYTES > 640 ? 1u : 2u)
#define TILE_STEP_BYTES (STEP_CHUNKS * CHUNK_BYTES)

__device__ __forceinline__ Place place_of(const ExpertsArguments& arguments, u32 tile) {
    return place_in(arguments.weights, arguments.tiles_all, arguments.chunks, tile);
}

extern __shared__ __align__(16) u16 shared_halves[];

// Starts the copy of CHUNKS chunks of a tile to a warp's shared memory, or of as many as are `left`.
template <u32 CHUNKS>
__device__ __forceinline__ void stage_weights(
    u8* stage, const Place& place, u32 chunk, u32 left, u32 lane) {
    const u32 count = min(left, CHUNKS);
    const u8* codes = place.codes + chunk * CODE_BYTES + 16 * lane;
#pragma unroll
    for (u32 i = 0; i < CHUNKS * CODE_BYTES / 512; i++)
        if (512 * i / CODE_BYTES < count) copy_16(stage + 16 * lane + 512 * i, codes + 512 * i);
    stage += CHUNKS * CODE_BYTES;
    if (HIGH_BYTES > 0 && 16 * lane < count * HIGH_BYTES)
        copy_16(stage + 16 * lane, place.high + chunk * HIGH_BYTES + 16 * lane);
    stage += CHUNKS * HIGH_BYTES;
    if (SCALE_BYTES > 0 && 16 * lane < count * SCALE_BYTES)
        copy_16(stage + 16 * lane, place.scales + chunk * SCALE_BYTES + 16 * lane);
}

// A lane's share of the `at`th of the chunks that were staged together.
template <u32 CHUNKS>
__device__ __forceinline__ void load_staged(Weights& w, const u8* stage, u32 at, u32 lane) {
    const u8* high = stage + CHUNKS * CODE_BYTES;
    const u8* scales = high + CHUNKS * HIGH_BYTES;
    load_chunk(w, stage + at * CODE_BYTES, high + at * HIGH_BYTES, scales + at * SCALE_BYTES, lane);
}

// A lane's inputs of one chunk and 8 tokens: words 2m and 2m + 1 are those of product m.
struct Inputs {
    u32 words[8];
};

__device__ __forceinline__ void load_inputs(Inputs& x, const u16* row, u32 t) {
#if LINEAR_BITS != 16 && LINEAR_GROUP == 16
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const uint2 two = *(const uint2*)(row + 16 * m + 4 * t);
        x.words[2 * m] = two.x, x.words[2 * m + 1] = two.y;
    }
#else
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 four = *(const uint4*)(row + 32 * i + 8 * t);
        x.words[4 * i] = four.x, x.words[4 * i + 1] = four.y;
        x.words[4 * i + 2] = four.z, x.words[4 * i + 3] = four.w;
    }
#endif
}

// Adds the products of MT tiles' `at`th staged chunk to the sums of 8 NT tokens.
template <int NT, int MT>
__device__ __forceinline__ void multiply_chunk(float (&sums)[NT][MT][4], const u8* stage, u32 at,
    const Inputs (&x)[NT], u32 token_tiles, u32 lane) {
    Weights now[MT];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
        load_staged<STEP_CHUNKS>(now[mt], stage + mt * TILE_STEP_BYTES, at, lane);
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            u32 a[4];
            fragment(a, now[mt], m);
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
                if (NT == 1 || nt < token_tiles)
                    multiply_tile(
                        sums[nt][mt], a, x[nt].words[2 * m], x[nt].words[2 * m + 1], sums[nt][mt]);
        }
}

// Slices are 1, 2, 4 or 8.
__device__ __forceinline__ u32 slice_start(const ExpertsArguments& arguments, u32 slice) {
    return slice * arguments.chunks >> (__ffs(arguments.slices) - 1);
}

__device__ __forceinline__ float gated(u32 mode, float gate, float up) {
    if (mode == GATE_SILU) return gate / (1.0f + expf(-gate)) * up;
    if (mode == GATE_CLAMPED) {
        // As in ops::gated_linear; not by `fminf`, which would hide what is no number.
        gate = gate > 7.0f ? 7.0f : gate;
        up = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
        return gate / (1.0f + expf(-1.702f * gate)) * (up + 1.0f);
    }
    // sqrt(2 / pi), as in ops::gated_linear.
    const float inner = 0.7978846f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
}

// The gated values are kept as halves of a sixteenth, as in linear.cu.
#define GATED_SCALE 0.0625f

// Writes rows g and g + 8 of a pair of tiles for 2 of an item's tokens, from `first` on.
__device__ __forceinline__ void finish(const ExpertsArguments& arguments, const ExpertItem& item,
    u32 pair, u32 first, const float (&sums)[2][4], u32 lane) {
    const u32 g = lane / 4;
    const float* bias = arguments.bias + (size_t)item.expert * arguments.rows;
    const float* bias_up = arguments.bias_up + (size_t)item.expert * arguments.rows;
#pragma unroll
    for (int column = 0; column < 2; column++) {
        const u32 n = first + 2 * (lane % 4) + column;
        if (n >= item.count) continue;
        const size_t to = arguments.items
            ? (size_t)arguments.entries[item.first + n] * arguments.output_stride
            : (size_t)(item.first + n) * arguments.output_stride +
                item.expert * arguments.head_stride;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int i = 2 * half + column;
            if (arguments.mode >= GATE_SILU) {
                const u32 row = 16 * pair + g + 8 * half;
                if (row >= arguments.rows) continue;
                float gate = sums[0][i] * arguments.input_scale;
                float up = sums[1][i] * arguments.input_scale;
                if (arguments.bias) gate += bias[row], up += bias_up[row];
                const float value = gated(arguments.mode, gate, up);
                ((u16*)arguments.output)[to + row] = to_half(within_half(value * GATED_SCALE));
                continue;
            }
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                const u32 row = 16 * (2 * pair + mt) + g + 8 * half;
                if (row >= arguments.rows) continue;
                float value = sums[mt][i] * arguments.input_scale;
                if (arguments.bias) value += bias[row];
                if (arguments.is_half)
                    ((u16*)arguments.output)[to + row] = to_half(within_half(value));
                else
                    ((float*)arguments.output)[to + row] = value;
            }
        }
    }
}

// Adds the slices' sums of 8 tokens, and finishes.
__device__ __forceinline__ void join_slices(const ExpertsArguments& arguments,
    const ExpertItem& item, u32 pair, u32 first, float (&sums)[2][4], u32 warp, u32 lane) {
    __shared__ float shared[8][2][4][32];
    const u32 slices = arguments.slices;
    if (slices > 1) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) shared[warp][i / 4][i % 4][lane] = sums[i / 4][i % 4];
        __syncthreads();
    }
    if (warp % slices > 0 || pair >= (arguments.tiles + 1) / 2) return;
    for (u32 other = 1; other < slices; other++)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i / 4][i % 4] += shared[warp + other][i / 4][i % 4][lane];
    finish(arguments, item, pair, first, sums, lane);
}

// A block takes pairs of tiles (a gate and an up, or two of down) of one item after the other: a warp
// a slice of one. Weights pass through a warp's own shared memory, several steps ahead and through
// one item after the other, so that the memory is not idle between them.
template <int NT>
__device__ __forceinline__ void few_tokens(const ExpertsArguments& arguments) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 slices = arguments.slices, slice = warp % slices;
    const u32 pair = blockIdx.x * (8 / slices) + warp / slices;
    const u32 begin = slice_start(arguments, slice), end = slice_start(arguments, slice + 1);
    const int stages = WARP_BYTES / (2 * TILE_STEP_BYTES);
    u8* own = (u8*)shared_halves + warp * WARP_BYTES;
    Place places[2];
    auto place_expert = [&](u32 expert) {
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
            places[mt] = place_of(
                arguments, expert * arguments.tiles + min(2 * pair + mt, arguments.tiles - 1));
    };
    wait_for_previous();
    let_next_start();
    const u32 count = item_count(arguments, 8 * NT);
    u32 ahead = blockIdx.y, ahead_chunk = begin, to = 0, from = 0;
    if (ahead >= count) return;
    place_expert(item_of(arguments, ahead, 8 * NT).expert);
    u32 next_expert = item_of(arguments, min(ahead + gridDim.y, count - 1), 8 * NT).expert;
    auto fetch = [&] {
        if (ahead < count) {
            u8* stage = own + to * (2 * TILE_STEP_BYTES);
#pragma unroll
            for (int mt = 0; mt < 2; mt++)
                stage_weights<STEP_CHUNKS>(stage + mt * TILE_STEP_BYTES, places[mt], ahead_chunk,
                    end - ahead_chunk, lane);
            to = to + 1 == stages ? 0 : to + 1;
            ahead_chunk += STEP_CHUNKS;
            if (ahead_chunk >= end) {
                ahead_chunk = begin;
                ahead += gridDim.y;
                place_expert(next_expert);
                next_expert = item_of(arguments, min(ahead + gridDim.y, count - 1), 8 * NT).expert;
            }
        }
        end_copies();
    };
#pragma unroll
    for (int s = 0; s + 1 < stages; s++) fetch();
    for (u32 index = blockIdx.y; index < count; index += gridDim.y) {
        const ExpertItem item = item_of(arguments, index, 8 * NT);
        const u32 token_tiles = (item.count + 7) / 8;
        // Beyond the last token its twin stands in.
        const u16* rows[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            const u32 entry = entry_of(arguments, item, min(8 * nt + lane / 4, item.count - 1));
            const u32 row = arguments.mode >= GATE_SILU ? entry / arguments.used : entry;
            rows[nt] = arguments.input + (size_t)row * arguments.input_stride;
        }
        float sums[NT][2][4] = {};
        auto ask_inputs = [&](Inputs (&x)[NT], u32 chunk) {
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
                if (chunk < end && nt < token_tiles)
                    load_inputs(x[nt], rows[nt] + 64 * chunk, lane % 4);
        };
        // Of few tokens, inputs are asked for a step ahead too.
        Inputs next[STEP_CHUNKS][NT];
        if (NT == 1)
#pragma unroll
            for (u32 q = 0; q < STEP_CHUNKS; q++) ask_inputs(next[q], begin + q);
        for (u32 chunk = begin; chunk < end; chunk += STEP_CHUNKS) {
            wait_for_copies<stages - 2>();
            __syncwarp();
            fetch();
            const u8* stage = own + from * (2 * TILE_STEP_BYTES);
#pragma unroll
            for (u32 q = 0; q < STEP_CHUNKS; q++) {
                if (chunk + q >= end) break;
                Inputs x[NT];
                if (NT == 1) {
                    x[0] = next[q][0];
                    ask_inputs(next[q], chunk + q + STEP_CHUNKS);
                } else {
                    ask_inputs(x, chunk + q);
                }
                multiply_chunk<NT, 2>(sums, stage, q, x, token_tiles, lane);
            }
            from = from + 1 == stages ? 0 : from + 1;
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            if (nt >= token_tiles) break;
            join_slices(arguments, item, pair, 8 * nt, sums[nt], warp, lane);
        }
    }
}

#define FEW_TOKENS(NAME, NT, BLOCKS)                                      \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS)             \
        NAME(const __grid_constant__ ExpertsArguments arguments) {        \
        few_tokens<NT>(arguments);                                        \
    }

FEW_TOKENS(experts_8, 1, 3)
FEW_TOKENS(experts_16, 2, 3)
FEW_TOKENS(experts_32, 4, 2)
FEW_TOKENS(experts_64, 8, 1)

// Chunks of inputs that a warp keeps at once, for a token alone.
#if __CUDA_ARCH__ >= 800
#define KEPT_CHUNKS 16u
#else
#define KEPT_CHUNKS 4u
#endif
// Chunks of weights that are copied, and multiplied, together.
#define ALONE_CHUNKS (CHUNK_BYTES <= 640 ? 4u : CHUNK_BYTES <= 1200 ? 2u : 1u)

// A warp's slice of TILES tiles for a token alone. All that fits into BYTES of its shared memory is on its
// way at once, the inputs, too: a token's time is that of a few loads behind each other.
template <int TILES, u32 BYTES>
struct AlonePart {
    static constexpr u32 STEP_BYTES = ALONE_CHUNKS * CHUNK_BYTES;
    static constexpr u32 STAGES = BYTES / (TILES * STEP_BYTES);
    static_assert(STAGES > 0 && KEPT_CHUNKS % ALONE_CHUNKS == 0, "a step has room");

    u8* stages;
    u16* kept;
    Place places[TILES];
    u32 begin, end, ahead, to;

    __device__ __forceinline__ void fetch(u32 lane) {
        if (ahead < end)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                stage_weights<ALONE_CHUNKS>(stages + (to * TILES + tile) * STEP_BYTES, places[tile],
                    ahead, end - ahead, lane);
        ahead += ALONE_CHUNKS;
        to = to + 1 == STAGES ? 0 : to + 1;
        end_copies();
    }

    __device__ __forceinline__ void start(u32 first, u32 last, u32 lane) {
        begin = ahead = first, end = last, to = 0;
#pragma unroll
        for (u32 s = 0; s < STAGES; s++) fetch(lane);
    }

    __device__ __forceinline__ void keep(const u16* from, u32 chunks, u32 lane) {
        uint4 units[KEPT_CHUNKS / 4];
#pragma unroll
        for (u32 i = 0; i < KEPT_CHUNKS / 4; i++)
            if (32 * i + lane < 8 * chunks) units[i] = *((const uint4*)from + 32 * i + lane);
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < KEPT_CHUNKS / 4; i++)
            if (32 * i + lane < 8 * chunks) *((uint4*)kept + 32 * i + lane) = units[i];
        __syncwarp();
    }

    // Adds COUNT chunks of a stage, from number `from` on; `x` is their inputs.
    template <u32 COUNT>
    __device__ __forceinline__ void add(
        float (&sums)[TILES][4], const u8* stage, u32 from, const u16* x, u32 lane) const {
        Weights now[COUNT][TILES];
        Inputs inputs[COUNT];
#pragma unroll
        for (u32 u = 0; u < COUNT; u++) {
            load_inputs(inputs[u], x + 64 * (from + u), lane % 4);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
                load_staged<ALONE_CHUNKS>(
                    now[u][tile], stage + tile * STEP_BYTES, from + u, lane);
        }
#pragma unroll
        for (u32 u = 0; u < COUNT; u++)
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    u32 a[4];
                    fragment(a, now[u][tile], m);
                    multiply_tile(sums[tile], a, inputs[u].words[2 * m],
                        inputs[u].words[2 * m + 1], sums[tile]);
                }
    }

    // All columns are the token's, whose inputs are `row`.
    __device__ __forceinline__ void multiply(float (&sums)[TILES][4], const u16* row, u32 lane) {
        u32 from = 0;
        for (u32 chunk = begin; chunk < end; chunk += ALONE_CHUNKS) {
            const u32 at = (chunk - begin) % KEPT_CHUNKS;
            if (at == 0) keep(row + 64 * chunk, min(KEPT_CHUNKS, end - chunk), lane);
            wait_for_copies<STAGES - 1>();
            __syncwarp();
            const u8* stage = stages + from * (TILES * STEP_BYTES);
            if (chunk + ALONE_CHUNKS <= end)
                add<ALONE_CHUNKS>(sums, stage, 0, kept + 64 * at, lane);
            else
                for (u32 u = 0; chunk + u < end; u++) add<1>(sums, stage, u, kept + 64 * at, lane);
            __syncwarp();
            fetch(lane);
            from = from + 1 == STAGES ? 0 : from + 1;
        }
    }
};

// Shared memory of a warp for gate and up: src/kernels.rs.
#if __CUDA_ARCH__ >= 800
#define GATE_BYTES (12 * 1024)
#else
#define GATE_BYTES (6 * 1024)
#endif

// Gate and up for a token alone: a block 4 warps, or 8 of 8 slices; a warp a slice of a pair of tiles of a
// choice.
extern "C" __global__ void __launch_bounds__(256)
    experts_gate_alone(const __grid_constant__ ExpertsArguments arguments) {
    __shared__ __align__(16) u16 kept[8][KEPT_CHUNKS * 64];
    __shared__ float shared[8][16][2];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, choice = blockIdx.y;
    const u32 slices = arguments.slices, slice = warp % slices, groups = blockDim.x / 32 / slices;
    const u32 pair = blockIdx.x * groups + warp / slices;
    AlonePart<2, GATE_BYTES> part;
    part.stages = (u8*)shared_halves + warp * GATE_BYTES;
    part.kept = kept[warp];
    const u32 begin = slice_start(arguments, slice), end = slice_start(arguments, slice + 1);
    const bool is_there = *arguments.tokens > 0;
    wait_for_previous();
    let_next_start();
    if (!is_there) return;
    const u32 expert = __ldcg(arguments.chosen + choice);
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
        part.places[tile] = place_of(
            arguments, expert * arguments.tiles + min(2 * pair + tile, arguments.tiles - 1));
    part.start(begin, end, lane);
    float sums[2][4] = {};
    part.multiply(sums, arguments.input, lane);
    if (lane % 4 == 0)
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                shared[warp][lane / 4 + 8 * half][tile] = sums[tile][2 * half];
    __syncthreads();
    const u32 row = 16 * pair + lane;
    if (slice > 0 || lane >= 16 || row >= arguments.rows) return;
    float gate = shared[warp][lane][0], up = shared[warp][lane][1];
    for (u32 other = 1; other < slices; other++)
        gate += shared[warp + other][lane][0], up += shared[warp + other][lane][1];
    gate *= arguments.input_scale, up *= arguments.input_scale;
    if (arguments.bias) {
        const size_t first = (size_t)expert * arguments.rows;
        gate += arguments.bias[first + row], up += arguments.bias_up[first + row];
    }
    ((u16*)arguments.output)[(size_t)choice * arguments.output_stride + row] =
        to_half(within_half(gated(arguments.mode, gate, up) * GATED_SCALE));
}

// Most parts of a token's sums: choices times slices.
#define PARTS_MAX 128

// Down for a token alone, and the sum over the choices in their order: a block a tile, a warp a slice of
// an expert. What is read before the kernel before has ended was there before it began: choices and
// factors (`lists_are_settled`), and what the sum is added to.
extern "C" __global__ void __launch_bounds__(256, 2)
    experts_down(const __grid_constant__ ExpertsArguments arguments) {
    __shared__ float shared[PARTS_MAX][16];
    __shared__ __align__(16) u16 kept[8][KEPT_CHUNKS * 64];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 slices = arguments.slices, used = arguments.used;
    const bool is_there = *arguments.tokens > 0;
    AlonePart<1, WARP_BYTES> part;
    part.stages = (u8*)shared_halves + warp * WARP_BYTES;
    part.kept = kept[warp];
    u32 index = warp;
    auto start = [&] {
        if (!is_there || index >= used * slices) return;
        const u32 tile = __ldcg(arguments.chosen + index / slices) * arguments.tiles + blockIdx.x;
        part.places[0] = place_of(arguments, tile);
        part.start(slice_start(arguments, index % slices),
            slice_start(arguments, index % slices + 1), lane);
    };
    start();
    const u32 row = 16 * blockIdx.x + threadIdx.x;
    const bool has_row = is_there && threadIdx.x < 16 && row < arguments.rows;
    float* output = (float*)arguments.output + row;
    // Lane k has the kth factor.
    const float factor =
        is_there && warp == 0 && lane < used ? __ldcg(arguments.factors + lane) : 0.0f;
    const float before = has_row && arguments.mode == ADD ? __ldcg(output) : 0.0f;
    wait_for_previous();
    let_next_start();
    if (!is_there) return;
    while (index < used * slices) {
        float sums[1][4] = {};
        const u16* inputs = arguments.input + (size_t)(index / slices) * arguments.input_stride;
        part.multiply(sums, inputs, lane);
        if (lane % 4 == 0) {
            shared[index][lane / 4] = sums[0][0];
            shared[index][lane / 4 + 8] = sums[0][2];
        }
        index += 8;
        start();
    }
    __syncthreads();
    if (warp > 0) return;
    float total = 0.0f;
    for (u32 choice = 0; choice < used; choice++) {
        const float* own = &shared[choice * slices][threadIdx.x % 16];
        float sum = own[0];
        for (u32 slice = 1; slice < slices; slice++) sum += own[16 * slice];
        float value = sum * arguments.input_scale;
        if (arguments.bias && has_row) {
            const u32 expert = arguments.chosen[choice];
            value += arguments.bias[(size_t)expert * arguments.rows + row];
        }
        total = __fmaf_rn(__shfl_sync(0xffffffff, factor, choice), value, total);
    }
    if (has_row) *output = arguments.mode == ADD ? before + total : total;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Many tokens, on Hopper's asynchronous tensor cores: a block takes 8 tiles and items of up to 64
// tokens, two groups of 4 warps 64 rows each; a warp unpacks a tile for its group. Inputs and packed
// weights pass through shared memory, WIDE_STAGES chunks deep; so do the slices' sums. The products
// of 16 columns give the same bits as `multiply_tile`'s, which tests/conformance.rs holds them to.

#define WIDE_TOKENS 64u
#define WIDE_STAGES (LINEAR_BITS == 16 ? 3u : 5u)
#define STAGE_HALVES (WIDE_TOKENS * 64)

// The tokens of a chunk lie in rows of 128 bytes whose 16-byte units are swapped by the row, the
// layout that the tensor cores read ("128-byte swizzle"); product m's 16 columns start 32 m bytes in.
__device__ __forceinline__ u64 input_descriptor(const u16* stage, u32 m) {
    const u64 address = ((u32)__cvta_generic_to_shared(stage) + 32 * m) >> 4 & 0x3fff;
    return address | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define A4(m) "+r"(a[m][0]), "+r"(a[m][1]), "+r"(a[m][2]), "+r"(a[m][3])

// d += a b: 64 rows, 64 tokens, 16 columns.
__device__ __forceinline__ void multiply_group(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
        : D16(0), D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The fragments are kept until then: the tensor cores read them, which the compiler does not know.
__device__ __forceinline__ void wait_for_products(float (&d)[32], u32 (&a)[4][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;"
        : D16(0), D16(16), A4(0), A4(1), A4(2), A4(3)::"memory");
}

// Columns go to the place at which a lane's fragment wants them: pair `p` of a chunk's 32.
__device__ __forceinline__ u32 place_of_pair(u32 p) {
#if LINEAR_BITS != 16 && LINEAR_GROUP == 16
    return p / 8 * 8 + p % 2 * 4 + p % 8 / 2;
#else
    return (p / 16 * 2 + p % 4 / 2) * 8 + p % 2 * 4 + p % 16 / 4;
#endif
}

// What is copied next, ahead of its use: one item after the other, so that the memory is not idle
// between them. The next item's place and rows are looked up while this one is copied. A lane has
// ROWS of the item's tokens: `base`, and every `step` from there.
template <int ROWS>
struct Ahead {
    ExpertItem item, next;
    u32 rows[ROWS], next_rows[ROWS];  // where inputs start, in bytes
    u32 index, count, size, chunk, begin, end, base, step;

    __device__ __forceinline__ void look_up(
        u32 (&to)[ROWS], const ExpertItem& of, const ExpertsArguments& arguments) const {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            // Beyond the last token its twin stands in.
            const u32 entry = entry_of(arguments, of, min(base + step * i, of.count - 1));
            const u32 row = arguments.mode >= GATE_SILU ? entry / arguments.used : entry;
            to[i] = 2 * row * arguments.input_stride;
        }
    }

    __device__ __forceinline__ void start(const ExpertsArguments& arguments, u32 item_size) {
        index = blockIdx.y, size = item_size;
        count = item_count(arguments, size);
        chunk = begin;
        if (index >= count) return;
        item = item_of(arguments, index, size);
        look_up(rows, item, arguments);
        next = item_of(arguments, min(index + gridDim.y, count - 1), size);
    }

    __device__ __forceinline__ bool is_there() const { return index < count; }

    // To the next chunk; whether another item begins there.
    __device__ __forceinline__ bool advance(const ExpertsArguments& arguments) {
        if (chunk == (begin + end) / 2) look_up(next_rows, next, arguments);
        if (++chunk < end) return false;
        chunk = begin;
        index += gridDim.y;
        item = next;
#pragma unroll
        for (int i = 0; i < ROWS; i++) rows[i] = next_rows[i];
        if (index < count)
            next = item_of(arguments, min(index + gridDim.y, count - 1), size);
        return true;
    }
};

// Both warps of a pair of tiles finish it, a half of the tokens each. Not inlined, nor unrolled: the
// loop around it must stay in the instruction cache.
__device__ __noinline__ void finish_wide(const ExpertsArguments& arguments,
    const ExpertItem& item, const float* totals, u32 warp, u32 lane) {
    // Of the warp's own group alone: tiles of a pair are in one group of 4 warps.
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory");
    const u32 pair = 4 * blockIdx.x + warp / 2;
    const float* gates = totals - 32 * (warp % 2);
    if (pair < (arguments.tiles + 1) / 2)
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            const u32 nt = 4 * (warp % 2) + i;
            if (8 * nt >= item.count) break;
            float both[2][4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                both[0][k] = gates[(4 * nt + k) * 256];
                both[1][k] = gates[(4 * nt + k) * 256 + 32];
            }
            finish(arguments, item, pair, 8 * nt, both, lane);
        }
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory");
}

// All of a block's items, one chunk after the other: while the tensor cores are at one, the next
// one's weights are unpacked, and those behind it are on their way.
extern "C" __global__ void __launch_bounds__(256, 2)
    experts_wide(const __grid_constant__ ExpertsArguments arguments) {
    // Stages start at whole patterns of the swizzle; the launch asks for 1 KB more.
    u16* stages = shared_halves + (1024 - ((u32)__cvta_generic_to_shared(shared_halves) & 1023)) / 2;
    float* totals = (float*)(stages + WIDE_STAGES * STAGE_HALVES) + threadIdx.x;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u8* own_weights = (u8*)(totals - threadIdx.x + 32 * 256) + warp * (WIDE_STAGES * CHUNK_BYTES);
    const u32 column = place_of_pair(lane), chunks = arguments.chunks;
    const u32 own_tile = min(8 * blockIdx.x + warp, arguments.tiles - 1);
    const u32 own_inputs = (u32)__cvta_generic_to_shared(
        stages + warp * 64 + ((column / 4) ^ warp) * 8 + column % 4 * 2);
    Ahead<WIDE_TOKENS / 8> ahead;
    ahead.begin = 0, ahead.end = chunks, ahead.base = warp, ahead.step = 8;
    Place place;
    u32 to = 0, from = 0;
    auto fetch = [&] {
        if (ahead.is_there()) {
            // A pair of columns of every 8th token.
            const u8* inputs = (const u8*)arguments.input + 128 * ahead.chunk + 4 * lane;
#pragma unroll
            for (u32 i = 0; i < WIDE_TOKENS / 8; i++)
                start_copy<4>(
                    own_inputs + to * (2 * STAGE_HALVES) + i * 1024, inputs + ahead.rows[i]);
            stage_weights<1>(own_weights + to * CHUNK_BYTES, place, ahead.chunk, 1, lane);
            to = to + 1 == WIDE_STAGES ? 0 : to + 1;
            if (ahead.advance(arguments) && ahead.is_there())
                place = place_of(arguments, ahead.item.expert * arguments.tiles + own_tile);
        }
        end_copies();
    };
    wait_for_previous();
    let_next_start();
    ahead.start(arguments, WIDE_TOKENS);
    if (!ahead.is_there()) return;
    place = place_of(arguments, ahead.item.expert * arguments.tiles + own_tile);
    // Everybody's copies of a chunk are here, and nobody reads the one before the last any more.
    auto unpack = [&](u32 (&a)[4][4]) {
        wait_for_copies<WIDE_STAGES - 3>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        fetch();
        Weights now;
        load_staged<1>(now, own_weights + from * CHUNK_BYTES, 0, lane);
#pragma unroll
        for (int m = 0; m < 4; m++) fragment(a[m], now, m);
        from = from + 1 == WIDE_STAGES ? 0 : from + 1;
    };
    for (u32 s = 0; s + 2 < WIDE_STAGES; s++) fetch();
    u32 one[4][4], other[4][4], stage = 0;
    u32 index = blockIdx.y, chunk = 0, slice = 0, slice_end = slice_start(arguments, 1);
    float sums[32] = {};
    auto multiply = [&](u32 (&a)[4][4], u32 (&next)[4][4]) {
        fence_registers();
#pragma unroll
        for (int m = 0; m < 4; m++)
            multiply_group(sums, a[m], input_descriptor(stages + stage * STAGE_HALVES, m));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        stage = stage + 1 == WIDE_STAGES ? 0 : stage + 1;
        const bool is_last = index + gridDim.y >= ahead.count && chunk + 1 == chunks;
        if (!is_last) unpack(next);
        wait_for_products(sums, a);
        if (++chunk < slice_end) return;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            totals[256 * i] = slice == 0 ? sums[i] : totals[256 * i] + sums[i];
            sums[i] = 0.0f;
        }
        slice_end = slice_start(arguments, ++slice + 1);
        if (chunk < chunks) return;
        finish_wide(arguments, item_of(arguments, index, WIDE_TOKENS), totals, warp, lane);
        index += gridDim.y;
        chunk = 0, slice = 0, slice_end = slice_start(arguments, 1);
    };
    unpack(one);
    while (index < ahead.count) {
        multiply(one, other);
        if (index < ahead.count) multiply(other, one);
    }
}
#endif
