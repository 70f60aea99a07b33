// linear: output = input W^T + bias, and its forms that add to the residual stream or gate.
//
// Moves each packed weight once (4 bits: 0.56 bytes with its scales) and so is bound by memory up
// to some 100 tokens; past that by the tensor cores. Weights lie in the order in which a lane's
// fragments want them (src/packing.rs), so they go straight from memory to registers.
//
// Arithmetic, the same in every kernel here, for one output: the chunks of 64 columns are cut into
// 8 slices; within a slice, group by group, the codes (small integers, exact in f16) times the
// inputs (f16) are summed in f32 by the tensor cores, then multiplied by the group's scale and
// added; slices are added in order. So a token's result does not depend on the tokens beside it.
//
// Compiled once a weight form: LINEAR_BITS 4, 5, 6, 8 or 16 (f16 weights, no scales);
// LINEAR_GROUP 32 or 16 columns a scale; LINEAR_BIAS 1 if a group has a bias too.

#define SLICES 8u

enum LinearMode { STORE = 0, ADD = 1, GATE_SILU = 2, GATE_GELU = 3 };

struct LinearPart {
    const u8* weights;
    const float* bias;
    void* output;
    u32 rows;           // of the output
    u32 tiles;          // of 16 weight rows; gate and up tiles alternate
    u32 output_stride;  // elements a token
    u32 mode;
};

#define PARTS_MAX 4

struct LinearArguments {
    const u16* input;
    const u32* tokens;
    u32 input_stride;
    u32 chunks;
    u32 parts;
    float input_scale;
    LinearPart part[PARTS_MAX];
};

#if LINEAR_BITS == 16
#define GROUPS 2
#else
#define GROUPS (64 / LINEAR_GROUP)
#endif

// Bytes of one chunk of a tile (16 rows, 64 columns), by section.
#define CODE_BYTES (LINEAR_BITS == 16 ? 2048 : LINEAR_BITS == 8 ? 1024 : 512)
#define HIGH_BYTES (LINEAR_BITS == 5 ? 128 : LINEAR_BITS == 6 ? 256 : 0)
#define SCALE_BYTES (LINEAR_BITS == 16 ? 0 : GROUPS * 16 * 2 * (1 + LINEAR_BIAS))
#define CODE_WORDS (CODE_BYTES / 128)
#define HIGH_WORDS (HIGH_BYTES / 128)
// Halves a lane: rows g and g + 8 of every group, scales then biases.
#define SCALE_WORDS (LINEAR_BITS == 16 ? 0 : GROUPS * (1 + LINEAR_BIAS))

__device__ __forceinline__ void load_16(u32* to, const u8* from) {
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "l"(from));
}

__device__ __forceinline__ void load_8(u32* to, const u8* from) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
}

// A lane's share of one chunk of one tile.
struct Weights {
    u32 codes[CODE_WORDS];
    u32 high[HIGH_WORDS > 0 ? HIGH_WORDS : 1];
    u32 scales[SCALE_WORDS > 0 ? SCALE_WORDS : 1];
};

// Where a tile starts. A matrix is three sections, each [tile][chunk][lane or row].
struct Place {
    const u8* codes;
    const u8* high;
    const u8* scales;
};

__device__ __forceinline__ Place place_of(const LinearPart& part, u32 chunks, u32 tile) {
    const size_t at = (size_t)min(tile, part.tiles - 1) * chunks;
    const size_t count = (size_t)part.tiles * chunks;
    const u8* high = part.weights + count * CODE_BYTES;
    const u8* scales = high + count * HIGH_BYTES;
    return {part.weights + at * CODE_BYTES, high + at * HIGH_BYTES, scales + at * SCALE_BYTES};
}

#define CHUNK_BYTES (CODE_BYTES + HIGH_BYTES + SCALE_BYTES)

__device__ __forceinline__ void copy_16(void* shared, const void* global) {
    const u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

__device__ __forceinline__ void end_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all copies but those of the last LEFT groups have arrived.
template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void load_weights(
    Weights& w, const Place& place, u32 chunk, u32 lane) {
    const u8* codes = place.codes + chunk * CODE_BYTES + 16 * lane;
#pragma unroll
    for (int i = 0; i < CODE_WORDS / 4; i++) load_16(w.codes + 4 * i, codes + 512 * i);
    const u8* high = place.high + chunk * HIGH_BYTES + lane * (HIGH_BYTES / 32);
    if (HIGH_WORDS == 1) w.high[0] = *(const u32*)high;
    if (HIGH_WORDS == 2) load_8(w.high, high);
    const u8* own = place.scales + chunk * SCALE_BYTES + (lane / 4) * (4 * SCALE_WORDS);
    if (SCALE_WORDS == 2) load_8(w.scales, own);
#pragma unroll
    for (int i = 0; i < SCALE_WORDS / 4; i++) {
        const uint4 four = *(const uint4*)(own + 16 * i);
        w.scales[4 * i] = four.x, w.scales[4 * i + 1] = four.y;
        w.scales[4 * i + 2] = four.z, w.scales[4 * i + 3] = four.w;
    }
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
#pragma unroll
    for (int i = 0; i < CODE_WORDS / 4; i++) {
        const uint4 four = *(const uint4*)(stage + 512 * i + 16 * lane);
        w.codes[4 * i] = four.x, w.codes[4 * i + 1] = four.y;
        w.codes[4 * i + 2] = four.z, w.codes[4 * i + 3] = four.w;
    }
    const u8* high = stage + CODE_BYTES + lane * (HIGH_BYTES / 32);
#pragma unroll
    for (int i = 0; i < HIGH_WORDS; i++) w.high[i] = ((const u32*)high)[i];
    const u8* own = stage + CODE_BYTES + HIGH_BYTES + (lane / 4) * (4 * SCALE_WORDS);
    if (SCALE_WORDS == 2) {
        const uint2 two = *(const uint2*)own;
        w.scales[0] = two.x, w.scales[1 % (SCALE_WORDS > 0 ? SCALE_WORDS : 1)] = two.y;
    }
#pragma unroll
    for (int i = 0; i < SCALE_WORDS / 4; i++) {
        const uint4 four = *(const uint4*)(own + 16 * i);
        w.scales[4 * i] = four.x, w.scales[4 * i + 1] = four.y;
        w.scales[4 * i + 2] = four.z, w.scales[4 * i + 3] = four.w;
    }
}

// The fragment of product `m` (0 to 3, 16 columns each) of a chunk: integers as halves.
__device__ __forceinline__ void fragment(u32 (&a)[4], const Weights& w, int m) {
#if LINEAR_BITS == 4
    // 0x6400 is 1024 as a half, whose last bits count by 1: or-ing a code in adds it.
    const u32 q = w.codes[m], high = q >> 8;
    const u32 minus_low = LINEAR_BIAS ? 0xe400e400 : 0xe408e408;    // -1024 or -1032
    const u32 minus_high = LINEAR_BIAS ? 0xd400d400 : 0xd480d480;   // -64 or -72
    a[0] = add_halves(and_or(q, 0x000f000f, 0x64006400), minus_low);
    a[1] = multiply_add_halves(and_or(q, 0x00f000f0, 0x64006400), 0x2c002c00, minus_high);
    a[2] = add_halves(and_or(high, 0x000f000f, 0x64006400), minus_low);
    a[3] = multiply_add_halves(and_or(high, 0x00f000f0, 0x64006400), 0x2c002c00, minus_high);
#elif LINEAR_BITS == 5
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u32 low = and_or(w.codes[m] >> (4 * j), 0x000f000f, 0x64006400);
        const u32 high = (w.high[0] >> (4 * m + j)) & 0x00010001;
        a[j] = add_halves(low | (high << 4), 0xe400e400);
    }
#elif LINEAR_BITS == 6
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u32 low = and_or(w.codes[m] >> (4 * j), 0x000f000f, 0x64006400);
        const u32 high = (w.high[HIGH_WORDS == 2 ? m / 2 : 0] >> (8 * (m % 2) + 2 * j)) & 0x00030003;
        a[j] = add_halves(low | (high << 4), 0xe420e420);   // -1056
    }
#elif LINEAR_BITS == 8
#pragma unroll
    for (int j = 0; j < 4; j++) {
        // Bytes b, 0x64, b, 0x64 of a pair of codes.
        const u32 word = w.codes[4 * (m / 2) + 2 * (m % 2) + j / 2];
        a[j] = add_halves(__byte_perm(word, 0x64646464, j % 2 ? 0x4342 : 0x4140), 0xe480e480);
    }
#else
#pragma unroll
    for (int j = 0; j < 4; j++) a[j] = w.codes[4 * m + j];
#endif
}

// A lane's inputs of one chunk and 8 tokens: word 2m and 2m + 1 are those of product m.
struct Inputs {
    u32 words[8];
};

// Columns of a chunk that lane t multiplies in product m: with groups of 32 its own 8 of 32 in two
// products, with groups of 16 its own 4 of 16.
__device__ __forceinline__ void load_inputs(Inputs& x, const u16* token, u32 t) {
#if LINEAR_BITS != 16 && LINEAR_GROUP == 16
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const uint2 two = *(const uint2*)(token + 16 * m + 4 * t);
        x.words[2 * m] = two.x, x.words[2 * m + 1] = two.y;
    }
#else
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 four = *(const uint4*)(token + 32 * i + 8 * t);
        x.words[4 * i] = four.x, x.words[4 * i + 1] = four.y;
        x.words[4 * i + 2] = four.z, x.words[4 * i + 3] = four.w;
    }
#endif
}

// Adds one chunk's products of MT tiles to the sums of 8 tokens.
template <int MT>
__device__ __forceinline__ void add_chunk(
    float (&sums)[MT][4], const u32 (&a)[MT][4][4], const Weights (&w)[MT], const Inputs& x) {
    const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#if LINEAR_BITS == 16
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
            multiply_tile(sums[mt], a[mt][m], x.words[2 * m], x.words[2 * m + 1], sums[mt]);
    (void)zeros;
#else
    const int per_group = 4 / GROUPS;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#if LINEAR_BIAS
        const u32 ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
        float totals[4];
        multiply_tile(totals, ones, x.words[2 * per_group * group],
            x.words[2 * per_group * group + 1], zeros);
        if (per_group == 2)
            multiply_tile(totals, ones, x.words[(4 * group + 2) % 8], x.words[(4 * group + 3) % 8],
                totals);
#endif
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            const int m = per_group * group;
            float part[4];
            multiply_tile(part, a[mt][m], x.words[2 * m], x.words[2 * m + 1], zeros);
            if (per_group == 2)
                multiply_tile(part, a[mt][(m + 1) % 4], x.words[(2 * m + 2) % 8],
                    x.words[(2 * m + 3) % 8], part);
            const u32 scale = w[mt].scales[group];
            const float low = low_half(scale), high = high_half(scale);
            sums[mt][0] = __fmaf_rn(low, part[0], sums[mt][0]);
            sums[mt][1] = __fmaf_rn(low, part[1], sums[mt][1]);
            sums[mt][2] = __fmaf_rn(high, part[2], sums[mt][2]);
            sums[mt][3] = __fmaf_rn(high, part[3], sums[mt][3]);
#if LINEAR_BIAS
            const u32 bias = w[mt].scales[GROUPS + group];
            const float low_bias = low_half(bias), high_bias = high_half(bias);
            sums[mt][0] = __fmaf_rn(low_bias, totals[0], sums[mt][0]);
            sums[mt][1] = __fmaf_rn(low_bias, totals[1], sums[mt][1]);
            sums[mt][2] = __fmaf_rn(high_bias, totals[0], sums[mt][2]);
            sums[mt][3] = __fmaf_rn(high_bias, totals[1], sums[mt][3]);
#endif
        }
    }
#endif
}

__device__ __forceinline__ u32 slice_start(u32 slice, u32 chunks) {
    return slice * chunks / SLICES;
}

__device__ __forceinline__ float gated(u32 mode, float gate, float up) {
    if (mode == GATE_SILU) return gate / (1.0f + expf(-gate)) * up;
    // sqrt(2 / pi), as in ops::gated_linear.
    const float inner = 0.7978846f * (gate + 0.044715f * gate * gate * gate);
    return 0.5f * gate * (1.0f + tanhf(inner)) * up;
}

// The gated values are kept as halves of a sixteenth: some models' reach beyond 65,504.
#define GATED_SCALE 0.0625f

__device__ __forceinline__ void finish_one(
    const LinearPart& part, float input_scale, u32 token, u32 row, float value) {
    if (row >= part.rows) return;
    value *= input_scale;
    if (part.bias) value += part.bias[row];
    float* to = (float*)part.output + (size_t)token * part.output_stride + row;
    *to = part.mode == ADD ? *to + value : value;
}

// Writes 2 tokens of rows g and g + 8 of MT tiles.
template <int MT>
__device__ __forceinline__ void finish(const LinearPart& part, float input_scale, u32 tile,
    u32 lane, float (&sums)[MT][4], u32 token, u32 tokens) {
    const u32 g = lane / 4;
#pragma unroll
    for (int column = 0; column < 2; column++) {
        const u32 n = token + 2 * (lane % 4) + column;
        if (n >= tokens) continue;
        if (part.mode >= GATE_SILU) {
#pragma unroll
            for (int mt = 0; mt + 1 < MT; mt += 2) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 row = (tile + mt) / 2 * 16 + g + 8 * half;
                    if (tile + mt >= part.tiles || row >= part.rows) continue;
                    const int i = 2 * half + column;
                    const float value = gated(
                        part.mode, sums[mt][i] * input_scale, sums[mt + 1][i] * input_scale);
                    u16* to = (u16*)part.output + (size_t)n * part.output_stride + row;
                    *to = to_half(within_half(value * GATED_SCALE));
                }
            }
        } else {
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                if (tile + mt >= part.tiles) continue;
                finish_one(part, input_scale, n, (tile + mt) * 16 + g, sums[mt][column]);
                finish_one(part, input_scale, n, (tile + mt) * 16 + g + 8, sums[mt][2 + column]);
            }
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
__device__ __forceinline__ u32 swizzle(u32 token) { return ((token & 1) << 2) | (token & 2); }

__device__ __forceinline__ void staged_inputs(Inputs& x, const u16* stage, u32 token, u32 t) {
    const u16* row = stage + token * 64;
    const u32 swap = swizzle(token);
#if LINEAR_BITS != 16 && LINEAR_GROUP == 16
#pragma unroll
    for (int m = 0; m < 4; m++) {
        const uint2 two = *(const uint2*)(row + ((2 * m + t / 2) ^ swap) * 8 + 4 * (t % 2));
        x.words[2 * m] = two.x, x.words[2 * m + 1] = two.y;
    }
#else
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 four = *(const uint4*)(row + ((4 * i + t) ^ swap) * 8);
        x.words[4 * i] = four.x, x.words[4 * i + 1] = four.y;
        x.words[4 * i + 2] = four.z, x.words[4 * i + 3] = four.w;
    }
#endif
}

extern __shared__ __align__(16) u16 shared_halves[];

// A lane's share of the copies of a chunk's inputs to its warp's shared memory.
struct Staging {
    const u16* from;
    u16* to;
    u32 stride, token, tokens;
};

template <int NT>
__device__ __forceinline__ void stage_own(const Staging& staging, u32 stage_start, u32 chunk) {
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        if (4 * i + staging.token < staging.tokens)
            copy_16(staging.to + stage_start + 256 * i,
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
    finish<MT>(part, arguments.input_scale, tile, lane, total, 8 * warp, tokens);
}

// Up to 8 NT tokens: a block of 8 warps takes MT tiles, each warp one slice of the columns. A warp has
// shared memory of its own, for AHEAD chunks of weights and STAGES chunks of inputs: the first are on
// their way before the kernel before has ended.
template <int MT, int NT, int AHEAD, int STAGES>
__device__ __forceinline__ void few_tokens(const LinearArguments& arguments) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 g = lane / 4, t = lane % 4;
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
        own + first_token * 64 + (unit ^ swizzle(first_token)) * 8, arguments.input_stride,
        first_token, tokens};
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
            staged_inputs(x, own + place * stage_halves, 8 * nt + g, t);
            add_chunk<MT>(sums[nt], a, now, x);
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
    const u32 g = lane / 4, t = lane % 4;
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
        own + first_token * 64 + (unit ^ swizzle(first_token)) * 8, arguments.input_stride,
        first_token, tokens};
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
            staged_inputs(x, own + place * stage_halves + u * 512, g, t);
            add_chunk<MT>(sums[0], a, now[u], x);
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

EIGHT_TOKENS(linear_1x1, 1, 2, 3, 3)
EIGHT_TOKENS(linear_2x1, 2, 2, 3, 2)

// Many tokens: a block takes 128 weight rows and 64 tokens, 4 x 2 warps of 32 rows and 32 tokens.
// Inputs pass through shared memory, four chunks deep; the slices' totals are kept there too.
#define WIDE_TOKENS 64u
#define WIDE_STAGES (LINEAR_BITS == 16 ? 2u : 4u)
#define STAGE_HALVES (WIDE_TOKENS * 64)

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !LINEAR_BIAS
#define WIDE_ON_HOPPER 1
#endif

#ifdef WIDE_ON_HOPPER
// The same on Hopper's asynchronous tensor cores: two groups of 4 warps take 64 rows each and all 64
// tokens; while one adds its products, the other's are computed. A tile a warp.

__device__ __forceinline__ void fence_registers() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// The tokens of a chunk lie in rows of 128 bytes whose 16-byte units are swapped by the row, the
// layout that the tensor cores read ("128-byte swizzle"); product m's 16 columns start 32 m bytes in.
__device__ __forceinline__ u64 input_descriptor(const u16* stage, u32 m) {
    const u64 address = ((u32)__cvta_generic_to_shared(stage) + 32 * m) >> 4 & 0x3fff;
    return address | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define D4(a) "+f"(d[a]), "+f"(d[a + 1]), "+f"(d[a + 2]), "+f"(d[a + 3])
#define D16(a) D4(a), D4(a + 4), D4(a + 8), D4(a + 12)

// d = a b, or d += a b: 64 rows, 64 tokens, 16 columns.
__device__ __forceinline__ void multiply_group(float (&d)[32], const u32 (&a)[4], u64 b, int adds) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0; "
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : D16(0), D16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

__device__ __forceinline__ void wait_for_products(float (&d)[32]) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" : D16(0), D16(16)::"memory");
}

// Columns go to the place at which a lane's fragment wants them: pair `p` of a chunk's 32.
__device__ __forceinline__ u32 place_of_pair(u32 p) {
#if LINEAR_BITS != 16 && LINEAR_GROUP == 16
    return p / 8 * 8 + p % 2 * 4 + p % 8 / 2;
#else
    return (p / 16 * 2 + p % 4 / 2) * 8 + p % 2 * 4 + p % 16 / 4;
#endif
}

// A lane's share of the copies of a chunk: a pair of columns of every 8th token.
struct WideStaging {
    const u16* from;
    u32 to, step;
};

__device__ __forceinline__ void stage_chunk(const WideStaging& staging, u32 stage, u32 chunk) {
#pragma unroll
    for (u32 i = 0; i < WIDE_TOKENS / 8; i++)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                         staging.to + stage * (2 * STAGE_HALVES) + i * 1024),
            "l"(staging.from + (size_t)i * staging.step + 64 * chunk)
            : "memory");
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_wide(const __grid_constant__ LinearArguments arguments) {
    // Stages start at whole patterns of the swizzle; the launch asks for 1 KB more.
    u16* stages = shared_halves + (1024 - ((u32)__cvta_generic_to_shared(shared_halves) & 1023)) / 2;
    float* totals = (float*)(stages + WIDE_STAGES * STAGE_HALVES);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u8* own_weights = (u8*)(totals + 32 * 256) + warp * (WIDE_STAGES * CHUNK_BYTES);
    u32 block = blockIdx.y;
    const LinearPart& part = arguments.part[find_part(arguments, 8, block)];
    const u32 tile = block * 8 + warp, chunks = arguments.chunks;
    const u32 token_first = blockIdx.x * WIDE_TOKENS;
    const Place weights = place_of(part, chunks, tile);
    const u32 tokens = *arguments.tokens;
    let_next_start();
    wait_for_previous();
    if (token_first >= tokens) return;
    const u32 column = place_of_pair(lane);
    const WideStaging staging = {
        arguments.input + (size_t)(token_first + warp) * arguments.input_stride + 2 * lane,
        (u32)__cvta_generic_to_shared(
            stages + warp * 64 + ((column / 4) ^ warp) * 8 + column % 4 * 2),
        8 * arguments.input_stride};
    for (u32 stage = 0; stage + 1 < WIDE_STAGES; stage++) {
        if (stage < chunks) {
            stage_chunk(staging, stage, stage);
            stage_weights(own_weights + stage * CHUNK_BYTES, weights, stage, lane);
        }
        end_copies();
    }
    float sums[32] = {};
    u32 slice = 0, slice_end = slice_start(1, chunks);
    for (u32 chunk = 0;; chunk++) {
        // Slices that end here; more than one where there are fewer chunks than slices.
        while (chunk == slice_end && slice < SLICES) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                float* total = &totals[i * 256 + threadIdx.x];
                *total = (slice == 0 ? 0.0f : *total) + sums[i];
                sums[i] = 0.0f;
            }
            slice++;
            slice_end = slice_start(slice + 1, chunks);
        }
        if (chunk >= chunks) break;
        wait_for_copies<WIDE_STAGES - 2>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        const u32 ahead = chunk + WIDE_STAGES - 1;
        if (ahead < chunks) {
            stage_chunk(staging, ahead % WIDE_STAGES, ahead);
            stage_weights(
                own_weights + ahead % WIDE_STAGES * CHUNK_BYTES, weights, ahead, lane);
        }
        end_copies();
        Weights now;
        load_staged(now, own_weights + chunk % WIDE_STAGES * CHUNK_BYTES, lane);
        const u16* stage = stages + chunk % WIDE_STAGES * STAGE_HALVES;
#if LINEAR_BITS == 16
        u32 a[4][4];
#pragma unroll
        for (int m = 0; m < 4; m++) fragment(a[m], now, m);
        fence_registers();
#pragma unroll
        for (int m = 0; m < 4; m++) multiply_group(sums, a[m], input_descriptor(stage, m), 1);
        wait_for_products(sums);
#else
        const int per_group = 4 / GROUPS;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            float products[32];
            u32 a[per_group][4];
#pragma unroll
            for (int m = 0; m < per_group; m++) fragment(a[m], now, per_group * group + m);
            fence_registers();
#pragma unroll
            for (int m = 0; m < per_group; m++)
                multiply_group(products, a[m], input_descriptor(stage, per_group * group + m), m > 0);
            wait_for_products(products);
            const u32 scale = now.scales[group];
            const float low = low_half(scale), high = high_half(scale);
#pragma unroll
            for (int i = 0; i < 32; i++)
                sums[i] = __fmaf_rn(i % 4 < 2 ? low : high, products[i], sums[i]);
        }
#endif
    }
    // Gate and up are tiles of neighboring warps.
    __syncthreads();
    const bool is_gated = part.mode >= GATE_SILU;
    if (is_gated && warp % 2 == 1) return;
#pragma unroll
    for (int nt = 0; nt < 8; nt++) {
        float both[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            both[0][i] = totals[(4 * nt + i) * 256 + threadIdx.x];
            both[1][i] = is_gated ? totals[(4 * nt + i) * 256 + threadIdx.x + 32] : 0.0f;
        }
        float one[1][4] = {{both[0][0], both[0][1], both[0][2], both[0][3]}};
        if (is_gated)
            finish<2>(part, arguments.input_scale, tile, lane, both, token_first + 8 * nt, tokens);
        else
            finish<1>(part, arguments.input_scale, tile, lane, one, token_first + 8 * nt, tokens);
    }
}

#else

__device__ __forceinline__ void stage_chunk(
    u16* stage, const LinearArguments& arguments, u32 token_first, u32 chunk) {
    for (u32 i = threadIdx.x; i < WIDE_TOKENS * 8; i += 256) {
        const u32 token = i / 8, unit = i % 8;
        copy_16(stage + token * 64 + (unit ^ swizzle(token)) * 8,
            arguments.input + (size_t)(token_first + token) * arguments.input_stride + 64 * chunk +
                8 * unit);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    linear_wide(const __grid_constant__ LinearArguments arguments) {
    u16* stages = shared_halves;
    float* totals = (float*)(stages + WIDE_STAGES * STAGE_HALVES);
    u8* own_weights =
        (u8*)(totals + 32 * 256) + threadIdx.x / 64 * (2 * WIDE_STAGES * CHUNK_BYTES);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 g = lane / 4, t = lane % 4;
    u32 block = blockIdx.y;
    const LinearPart& part = arguments.part[find_part(arguments, 8, block)];
    const u32 tile = block * 8 + warp / 2 * 2, chunks = arguments.chunks;
    const u32 token_first = blockIdx.x * WIDE_TOKENS, own_first = warp % 2 * 32;
    let_next_start();
    wait_for_previous();
    const u32 tokens = *arguments.tokens;
    if (token_first >= tokens) return;
    // Two warps share two tiles: each brings one.
    const Place own_place = place_of(part, chunks, tile + warp % 2);
    for (u32 stage = 0; stage + 1 < WIDE_STAGES; stage++) {
        if (stage < chunks) {
            stage_chunk(stages + stage * STAGE_HALVES, arguments, token_first, stage);
            stage_weights(own_weights + (2 * stage + warp % 2) * CHUNK_BYTES, own_place, stage, lane);
        }
        end_copies();
    }
    float sums[4][2][4] = {};
    u32 slice = 0, chunk = 0;
    for (;;) {
        // Slices that end here; more than one where there are fewer chunks than slices.
        while (slice < SLICES && chunk == slice_start(slice + 1, chunks)) {
#pragma unroll
            for (int nt = 0; nt < 4; nt++)
#pragma unroll
                for (int mt = 0; mt < 2; mt++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float* total = &totals[((nt * 2 + mt) * 4 + i) * 256 + threadIdx.x];
                        *total = (slice == 0 ? 0.0f : *total) + sums[nt][mt][i];
                        sums[nt][mt][i] = 0.0f;
                    }
            slice++;
        }
        if (chunk >= chunks) break;
        wait_for_copies<WIDE_STAGES - 2>();
        __syncthreads();
        const u32 ahead = chunk + WIDE_STAGES - 1;
        if (ahead < chunks) {
            const u32 place = ahead % WIDE_STAGES;
            stage_chunk(stages + place * STAGE_HALVES, arguments, token_first, ahead);
            stage_weights(own_weights + (2 * place + warp % 2) * CHUNK_BYTES, own_place, ahead, lane);
        }
        end_copies();
        u32 a[2][4][4];
        Weights now[2];
#pragma unroll
        for (int mt = 0; mt < 2; mt++) {
            load_staged(
                now[mt], own_weights + (chunk % WIDE_STAGES * 2 + mt) * CHUNK_BYTES, lane);
#pragma unroll
            for (int m = 0; m < 4; m++) fragment(a[mt][m], now[mt], m);
        }
        const u16* stage = stages + chunk % WIDE_STAGES * STAGE_HALVES;
#pragma unroll
        for (int nt = 0; nt < 4; nt++) {
            Inputs x;
            staged_inputs(x, stage, own_first + 8 * nt + g, t);
            add_chunk<2>(sums[nt], a, now, x);
        }
        chunk++;
    }
#pragma unroll
    for (int nt = 0; nt < 4; nt++) {
        float total[2][4];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[mt][i] = totals[((nt * 2 + mt) * 4 + i) * 256 + threadIdx.x];
        finish<2>(part, arguments.input_scale, tile, lane, total, token_first + own_first + 8 * nt, tokens);
    }
}
#endif
