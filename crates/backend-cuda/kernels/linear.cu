// linear: output = input W^T + bias, and its forms that add to the residual stream or gate.
//
// Moves each packed weight once (4 bits: 0.56 bytes with its scales) and so is bound by memory up
// to some 100 tokens; past that by the tensor cores. Weights lie in the order in which a lane's
// fragments want them (src/packing.rs), so they need no detour on the way to registers.
//
// Arithmetic, the same in every kernel here, for one output: weights and inputs are f16; the chunks
// of 64 columns are cut into 8 slices; within a slice the tensor cores add product by product of 16
// columns to one f32 sum; slices are added in order. So a token's result does not depend on the
// tokens beside it. On Hopper `mma.sync` and `wgmma` give equal bits: src/../tests/conformance.rs.

#define SLICES 8u

enum LinearMode { STORE = 0, ADD = 1, GATE_SILU = 2, GATE_GELU = 3 };

struct LinearPart {
    const u8* weights;
    const float* bias;
    void* output;
    u32 rows;           // of the output
    u32 tiles;          // of 16 weight rows; of a gated pair 8 of the gate and 8 of up
    u32 output_stride;  // elements a token
    u32 mode;
};

#define PARTS_MAX 4

// What the copy engine of Hopper knows about the inputs: src/gpu.rs.
struct __align__(64) TensorMap {
    u64 words[16];
};

// Rows to be normed before they are multiplied; or none, and the inputs are normed already.
struct NormedInput {
    const float* rows;
    const float* weight;
    u32 width;
    float epsilon;
};

struct LinearArguments {
    TensorMap map;
    const u16* input;
    const u32* tokens;
    u32 input_stride;
    u32 chunks;
    u32 parts;
    float input_scale;
    LinearPart part[PARTS_MAX];
    NormedInput normed;  // linear_stream only
};

__device__ __forceinline__ void load_16(u32* to, const u8* from) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "l"(from));
}

__device__ __forceinline__ Place place_of(const LinearPart& part, u32 chunks, u32 tile) {
    return place_in(part.weights, part.tiles, chunks, tile);
}

__device__ __forceinline__ void load_weights(
    Weights& w, const Place& place, u32 chunk, u32 lane) {
    load_chunk(w, place.codes + chunk * CODE_BYTES, place.high + chunk * HIGH_BYTES,
        place.scales + chunk * SCALE_BYTES, lane);
}

// Starts the copy of one chunk of a tile to a warp's shared memory: a warp is ahead of itself by
// many chunks without a register for any of them.
__device__ __forceinline__ void stage_weights(u8* stage, const Place& place, u32 chunk, u32 lane) {
#pragma unroll
    for (int i = 0; i < CODE_BYTES / 512; i++)
        copy_16(stage + 512 * i + 16 * lane, place.codes + chunk * CODE_BYTES + 512 * i + 16 * lane);
    if (HIGH_BYTES > 0 && lane < HIGH_BYTES / 16)
        copy_16(stage + CODE_BYTES + 16 * lane, place.high + chunk * HIGH_BYTES + 16 * lane);
    if (SCALE_BYTES > 0 && lane < SCALE_BYTES / 16)
        copy_16(stage + CODE_BYTES + HIGH_BYTES + 16 * lane,
            place.scales + chunk * SCALE_BYTES + 16 * lane);
}

__device__ __forceinline__ void load_staged(Weights& w, const u8* stage, u32 lane) {
    load_chunk(w, stage, stage + CODE_BYTES, stage + CODE_BYTES + HIGH_BYTES, lane);
}

// A lane's inputs of one chunk and 8 tokens: words 2m and 2m + 1 are those of product m.
struct Inputs {
    u32 words[8];
};

// Adds one chunk's products of MT tiles to the sums of 8 tokens.
template <int MT>
__device__ __forceinline__ void add_chunk(
    float (&sums)[MT][4], const u32 (&a)[MT][4][4], const Inputs& x) {
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
            multiply_tile(sums[mt], a[mt][m], x.words[2 * m], x.words[2 * m + 1], sums[mt]);
}

__device__ __forceinline__ u32 slice_start(u32 slice, u32 chunks) {
    return slice * chunks / SLICES;
}

__device__ __forceinline__ float gated(u32 mode, float gate, float up) {
    if (mode == GATE_SILU) return silu(gate) * up;
    // sqrt(2 / pi), as in ops::gated_linear.
    const float inner = 0.7978846f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
}

// The gated values are kept as halves of a sixteenth: some models' reach beyond 65,504.
#define GATED_SCALE 0.0625f

// One addition to each place: its order does not matter, and nobody waits for it.
__device__ __forceinline__ void put(float* to, float value, bool adds) {
    if (adds)
        asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
    else
        *to = value;
}

__device__ __forceinline__ void finish_one(
    const LinearPart& part, float input_scale, u32 token, u32 row, float value) {
    if (row >= part.rows) return;
    value *= input_scale;
    if (part.bias) value += part.bias[row];
    put((float*)part.output + (size_t)token * part.output_stride + row, value, part.mode == ADD);
}

// Writes 2 tokens of rows g and g + 8 of a tile.
__device__ __forceinline__ void finish(const LinearPart& part, float input_scale, u32 tile,
    u32 lane, const float (&sums)[4], u32 token, u32 tokens) {
    if (tile >= part.tiles) return;
    const u32 g = lane / 4;
#pragma unroll
    for (int column = 0; column < 2; column++) {
        const u32 n = token + 2 * (lane % 4) + column;
        if (n >= tokens) continue;
        if (part.mode >= GATE_SILU) {
            const u32 row = tile * 8 + g;
            if (row >= part.rows) continue;
            const float value =
                gated(part.mode, sums[column] * input_scale, sums[2 + column] * input_scale);
            u16* to = (u16*)part.output + (size_t)n * part.output_stride + row;
            *to = to_half(within_half(value * GATED_SCALE));
        } else {
            finish_one(part, input_scale, n, tile * 16 + g, sums[column]);
            finish_one(part, input_scale, n, tile * 16 + g + 8, sums[2 + column]);
        }
    }
}

// Finds the part that a block works on; `block` becomes its number within the part.
__device__ __forceinline__ u32 find_part(const LinearArguments& arguments, u32 tiles, u32& block) {
    u32 part = 0;
    while (part + 1 < arguments.parts) {
        const u32 blocks = (arguments.part[part].tiles + tiles - 1) / tiles;
        if (block < blocks) break;
        block -= blocks;
        part++;
    }
    return part;
}

// 16-byte units of a token's 128 bytes are swapped so that a warp's reads meet in no bank.
__device__ __forceinline__ u32 swizzle(u32 token) { return token & 7; }

// The inputs of 8 tokens from `token` on, a multiple of 8.
__device__ __forceinline__ void staged_inputs(Inputs& x, const u16* stage, u32 token, u32 lane) {
    const u32 row = (u32)__cvta_generic_to_shared(stage + (token + lane % 8) * 64);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 from = row + ((4 * i + lane / 8) ^ swizzle(lane % 8)) * 16;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(x.words[4 * i]), "=r"(x.words[4 * i + 1]), "=r"(x.words[4 * i + 2]),
              "=r"(x.words[4 * i + 3])
            : "r"(from));
    }
}

extern __shared__ __align__(16) u16 shared_halves[];

// A lane's share of the copies of a chunk's inputs to its warp's shared memory.
struct Staging {
    const u16* from;
    u16* to;
    u32 unit, stride, token, tokens;
};

template <int NT>
__device__ __forceinline__ void stage_own(const Staging& staging, u32 stage_start, u32 chunk) {
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        if (4 * i + staging.token < staging.tokens)
            copy_16(staging.to + stage_start + 256 * i +
                    (staging.unit ^ swizzle(4 * i + staging.token)) * 8,
                staging.from + (size_t)(4 * i) * staging.stride + 64 * chunk);
}

// Adds the slices' sums in their order, through shared memory, and finishes.
template <int MT, int NT>
__device__ __forceinline__ void add_slices(const LinearArguments& arguments, const LinearPart& part,
    u32 tile, u32 tokens, const float (&sums)[NT][MT][4]) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    wait_for_copies<0>();
    __syncthreads();
    float* shared = (float*)shared_halves;
    const bool at_once = MT * NT <= 4;
    for (u32 s = 0; s < (at_once ? 1 : SLICES); s++) {
        if (at_once || warp == s) {
            float* to = shared + (at_once ? warp * NT * MT * 128 : 0) + lane;
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int mt = 0; mt < MT; mt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float* sum = to + (nt * MT + mt) * 128 + 32 * i;
                        *sum = (at_once || s == 0 ? 0.0f : *sum) + sums[nt][mt][i];
                    }
        }
        __syncthreads();
    }
    if (warp >= NT) return;
    float total[MT][4];
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            total[mt][i] = 0.0f;
#pragma unroll
            for (int s = 0; s < (at_once ? SLICES : 1); s++)
                total[mt][i] += shared[((s * NT + warp) * MT + mt) * 128 + 32 * i + lane];
        }
#pragma unroll
    for (int mt = 0; mt < MT; mt++)
        finish(part, arguments.input_scale, tile + mt, lane, total[mt], 8 * warp, tokens);
}

// Up to 8 NT tokens: a block of 8 warps takes MT tiles, each warp one slice of the columns. A warp has
// shared memory of its own, for AHEAD chunks of weights and STAGES chunks of inputs: the first are on
// their way before the kernel before has ended.
template <int MT, int NT, int AHEAD, int STAGES>
__device__ __forceinline__ void few_tokens(const LinearArguments& arguments) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 stage_halves = NT * 8 * 64;
    u16* own = shared_halves + warp * (STAGES * stage_halves + AHEAD * MT * CHUNK_BYTES / 2);
    u8* own_weights = (u8*)(own + STAGES * stage_halves);
    u32 block = blockIdx.x;
    const LinearPart& part = arguments.part[find_part(arguments, MT, block)];
    const u32 tile = block * MT, chunks = arguments.chunks;
    const u32 begin = slice_start(warp, chunks), end = slice_start(warp + 1, chunks);
    Place places[MT];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) places[mt] = place_of(part, chunks, tile + mt);
    auto fetch = [&](u32 stage, u32 chunk) {
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
            stage_weights(own_weights + (stage * MT + mt) * CHUNK_BYTES, places[mt], chunk, lane);
    };
#pragma unroll
    for (int s = 0; s + 1 < AHEAD; s++) {
        if (begin + s < end) fetch(s, begin + s);
        end_copies();
    }
    // Counts of a step are written before its first kernel starts.
    const u32 tokens = *arguments.tokens;
    let_next_start();
    wait_for_previous();
    const u32 unit = lane % 8, first_token = lane / 8;
    const Staging staging = {
        arguments.input + (size_t)first_token * arguments.input_stride + 8 * unit,
        own + first_token * 64, unit, arguments.input_stride, first_token, tokens};
#pragma unroll
    for (int s = 0; s + 1 < STAGES; s++) {
        if (begin + s < end) stage_own<NT>(staging, s * stage_halves, begin + s);
        end_copies();
    }
    float sums[NT][MT][4] = {};
    u32 place = 0, weights_place = 0;
    for (u32 chunk = begin; chunk < end; chunk++) {
        // Weights are never asked for later than inputs, so they are here when inputs are.
        wait_for_copies<STAGES - 2>();
        __syncwarp();
        if (chunk + STAGES - 1 < end)
            stage_own<NT>(staging, (place == 0 ? STAGES - 1 : place - 1) * stage_halves,
                chunk + STAGES - 1);
        if (chunk + AHEAD - 1 < end)
            fetch(weights_place == 0 ? AHEAD - 1 : weights_place - 1, chunk + AHEAD - 1);
        end_copies();
        Weights now[MT];
        u32 a[MT][4][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            load_staged(now[mt], own_weights + (weights_place * MT + mt) * CHUNK_BYTES, lane);
#pragma unroll
            for (int m = 0; m < 4; m++) fragment(a[mt][m], now[mt], m);
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            Inputs x;
            staged_inputs(x, own + place * stage_halves, 8 * nt, lane);
            add_chunk<MT>(sums[nt], a, x);
        }
        place = place + 1 == STAGES ? 0 : place + 1;
        weights_place = weights_place + 1 == AHEAD ? 0 : weights_place + 1;
        __syncwarp();
    }
    add_slices<MT, NT>(arguments, part, tile, tokens, sums);
}

template <int MT, int U>
__device__ __forceinline__ void load_some(
    Weights (&w)[U][MT], const Place (&places)[MT], u32 chunk, u32 end, u32 lane) {
#pragma unroll
    for (int u = 0; u < U; u++)
        if (chunk + u < end)
#pragma unroll
            for (int mt = 0; mt < MT; mt++) load_weights(w[u][mt], places[mt], chunk + u, lane);
}

// Up to 8 tokens, the same way, but U chunks of weights go to registers while U others are used: for
// so few tokens that is faster by a tenth than through shared memory.
template <int MT, int U, int STAGES>
__device__ __forceinline__ void eight_tokens(const LinearArguments& arguments) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 stage_halves = U * 8 * 64;
    u16* own = shared_halves + warp * STAGES * stage_halves;
    u32 block = blockIdx.x;
    const LinearPart& part = arguments.part[find_part(arguments, MT, block)];
    const u32 tile = block * MT, chunks = arguments.chunks;
    const u32 begin = slice_start(warp, chunks), end = slice_start(warp + 1, chunks);
    Place places[MT];
#pragma unroll
    for (int mt = 0; mt < MT; mt++) places[mt] = place_of(part, chunks, tile + mt);
    // Counts of a step are written before its first kernel starts.
    const u32 tokens = *arguments.tokens;
    Weights one[U][MT], other[U][MT];
    load_some<MT, U>(one, places, begin, end, lane);
    let_next_start();
    wait_for_previous();
    const u32 unit = lane % 8, first_token = lane / 8;
    const Staging staging = {
        arguments.input + (size_t)first_token * arguments.input_stride + 8 * unit,
        own + first_token * 64, unit, arguments.input_stride, first_token, tokens};
#pragma unroll
    for (int s = 0; s + 1 < STAGES; s++) {
#pragma unroll
        for (int u = 0; u < U; u++)
            if (begin + s * U + u < end)
                stage_own<1>(staging, s * stage_halves + u * 512, begin + s * U + u);
        end_copies();
    }
    float sums[1][MT][4] = {};
    u32 place = 0;
    // Two sets of registers take turns, so that nothing waits for a copy between them.
    auto add = [&](Weights (&now)[U][MT], Weights (&next)[U][MT], u32 chunk) {
        load_some<MT, U>(next, places, chunk + U, end, lane);
        wait_for_copies<STAGES - 2>();
        __syncwarp();
        const u32 ahead = place == 0 ? STAGES - 1 : place - 1;
#pragma unroll
        for (int u = 0; u < U; u++)
            if (chunk + (STAGES - 1) * U + u < end)
                stage_own<1>(staging, ahead * stage_halves + u * 512,
                    chunk + (STAGES - 1) * U + u);
        end_copies();
#pragma unroll
        for (int u = 0; u < U; u++) {
            if (chunk + u >= end) break;
            u32 a[MT][4][4];
#pragma unroll
            for (int mt = 0; mt < MT; mt++)
#pragma unroll
                for (int m = 0; m < 4; m++) fragment(a[mt][m], now[u][mt], m);
            Inputs x;
            staged_inputs(x, own + place * stage_halves + u * 512, 0, lane);
            add_chunk<MT>(sums[0], a, x);
        }
        place = place + 1 == STAGES ? 0 : place + 1;
        __syncwarp();
    };
    for (u32 chunk = begin; chunk < end; chunk += 2 * U) {
        add(one, other, chunk);
        if (chunk + U < end) add(other, one, chunk + U);
    }
    add_slices<MT, 1>(arguments, part, tile, tokens, sums);
}

// Shared memory of each (src/kernels.rs): 8 warps, AHEAD times MT chunks of weights and STAGES times
// NT KB of inputs.
#define FEW_TOKENS(NAME, MT, NT, AHEAD, STAGES, BLOCKS)                                \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS)                          \
        NAME(const __grid_constant__ LinearArguments arguments) {                      \
        few_tokens<MT, NT, AHEAD, STAGES>(arguments);                                  \
    }

FEW_TOKENS(linear_2x2, 2, 2, 3, 3, 2)
FEW_TOKENS(linear_4x4, 4, 4, 3, 3, 1)
FEW_TOKENS(linear_4x8, 4, 8, 2, 2, 1)

// STAGES times U KB of inputs.
#define EIGHT_TOKENS(NAME, MT, U, STAGES, BLOCKS)                                      \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS)                          \
        NAME(const __grid_constant__ LinearArguments arguments) {                      \
        eight_tokens<MT, U, STAGES>(arguments);                                        \
    }

EIGHT_TOKENS(linear_1x1_4, 1, 4, 2, 2)
EIGHT_TOKENS(linear_1x1, 1, 2, 3, 4)

