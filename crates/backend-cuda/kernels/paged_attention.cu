// paged_attention: softmax(scale q k) v over the pages of a sequence, for decode and prompts alike.
//
// A block of threads takes a tile of 16 queries (tokens times the heads that share keys); its 4
// warps take a block of 64 positions each, and ask for the next one's keys and values as soon as they
// have read these from shared memory of their own. Bound by the bytes of keys and values.
//
// Arithmetic of one query, the same in every form: each block of 64 positions (counted from
// position 0) gives a maximum, a sum and a weighted value of its own; 8 blocks, a stretch, are merged
// in order of position, and stretches then are, too. A block that a query does not see changes
// nothing, so a result depends neither on the tile nor on how work was cut: stretches that others
// computed are merged by the last block of threads to finish, in the same order.
//
// Flash attention: Dao 2023, https://arxiv.org/abs/2307.08691. HEAD is head_dim padded to 32.
//
// A page holds 32 positions of a head: keys by 8 positions, by 8 dims, each [position][dim]; then
// values by 8 positions, by 8 dims, each [dim][position]. So 8 x 8 halves, which tensor cores take at
// once, lie side by side: no bank conflicts, and no tables for the copy engine.
//
// With KV_BITS 8 a page holds codes, and behind them a float for each position's keys and one for its
// values: what a code stands for, of values times 64. Codes become halves without rounding on their
// way to the tensor cores. Scores are multiplied by the keys' floats, and weights by the values' before
// they become halves: by 64 times as much as is meant, so that small values do not get lost, which the
// sums make up for. Positions stand in another order (8 t, 8 t + 1, then 8 t + 2, ... are lane t's),
// and so do dims of queries and keys (each lane's 8 are neighbours), so that a lane's codes are 8
// bytes side by side: keys by 4 tiles of 8 positions, by 8 dims; values by 8 dims, by 8 positions.

#ifndef KV_BITS
#define KV_BITS 16
#endif

// Whether queries see all of their text, which is whole in its row: encoders.
#ifndef WHOLE
#define WHOLE 0
#endif

#define PAGE_TOKENS 32u
#define BLOCK_TOKENS 64u
#define STRETCH_BLOCKS 8u
// As many as have room for their states (src/kernels.rs): before 8.0 a block has 64 KB.
#if __CUDA_ARCH__ >= 800
#define WARPS (HEAD > 256 ? 2u : 4u)
#else
#define WARPS (HEAD > 256 ? 1u : HEAD > 128 ? 2u : 4u)
#endif
#define WARP_ROWS (16 / WARPS)
#define STATE (HEAD + 2)
// Of a page's keys, or its values; and of what codes stand for, of both.
#define SIDE_BYTES (PAGE_TOKENS * HEAD * KV_BITS / 8)
#define SCALES_BYTES (KV_BITS == 8 ? 8 * PAGE_TOKENS : 0)
#define PAGE_HALVES (SIDE_BYTES + SCALES_BYTES / 2)
// Keys of a block of positions, then its values, then what codes stand for, of a page after the other.
#define STAGED_BYTES (4 * SIDE_BYTES + 2 * SCALES_BYTES)

struct AttentionTile {
    u32 row;
    u32 first;   // of its tokens within the row
    u32 tokens;
    u32 unused;
};

// Stretches of a tile, with all that is to be known of it: no load waits for another.
struct __align__(16) AttentionItem {
    u32 token_first, row_start, blocks_start;  // of the row
    u32 tile_first, tile_tokens;
    u32 begin, end;     // stretches
    u32 tile, items;    // of the tile
    u32 partial_first;  // where the states of the tile's stretches start, in states; unused if whole
    u32 settled;        // positions that earlier steps wrote
    u32 row_last;       // the last position of its row
};

struct WideItem {
    u32 tile;   // the first
    u32 tiles;
    u32 unused[2];
};

struct AttentionArguments {
    const StepHeader* header;
    const StepRow* rows;
    const u32* blocks;
    const AttentionTile* tiles;
    const AttentionItem* items;
    const WideItem* wide_items;
    const u16* query;   // [tokens, heads, HEAD], dims in the order of rotary.cu
    const u16* pages;
    float* partials;
    u32* counters;      // zero between steps
    u16* output;
    const float* sinks;  // [heads], or none
    u32 heads;
    u32 heads_kv;        // groups of heads that a tile takes; several may share
    u32 heads_stored;    // one of the keys and values of a page
    u32 head_dim, output_stride;
    u32 window;         // 0: all
    float scale, soft_cap;
};

#define CHUNKS (HEAD / 32)
#define TILES_V (HEAD / 8)

struct Query {
    u32 words[CHUNKS][2][4];  // by 32 dims, by product
};

struct Place {
    u32 token_first, row_start, tile_first, tile_tokens, group;
    u32 rows;
#if WHOLE
    u32 row_last;
#endif
};

__device__ __forceinline__ bool is_row(const Place& place, u32 r) { return r < place.rows; }

// The last position that a row sees.
__device__ __forceinline__ u32 position_of(const Place& place, u32 r) {
#if WHOLE
    return place.row_last;
#endif
    return place.row_start + place.tile_first + r / place.group;
}

__device__ __forceinline__ u32 last_position(const Place& place) {
#if WHOLE
    return place.row_last;
#endif
    return place.row_start + place.tile_first + place.tile_tokens - 1;
}

__device__ __forceinline__ void load_query(
    Query& q, const AttentionArguments& arguments, const Place& place, u32 head_kv, u32 lane) {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = g + 8 * half;
        const u32 token = place.token_first + place.tile_first + r / place.group;
        const u32 head = head_kv * place.group + r % place.group;
        const u16* from = arguments.query + ((size_t)token * arguments.heads + head) * HEAD + 8 * t;
#pragma unroll
        for (int d = 0; d < CHUNKS; d++) {
            uint4 four = make_uint4(0, 0, 0, 0);
            if (is_row(place, r)) four = *(const uint4*)(from + 32 * d);
            q.words[d][0][half] = four.x, q.words[d][0][2 + half] = four.y;
            q.words[d][1][half] = four.z, q.words[d][1][2 + half] = four.w;
        }
    }
}

// Values of positions beyond `last` may be anything: left out of a pair from `at`.
__device__ __forceinline__ u32 visible_pair(u32 pair, u32 at, u32 last) {
    if (at + 1 <= last) return pair;
    return at <= last ? pair & 0xffff : 0;
}

__device__ __forceinline__ const u16* page_of(const AttentionArguments& arguments,
    const u32* table, u32 head_kv, u32 index) {
    return arguments.pages +
        ((size_t)table[index] * arguments.heads_stored +
            head_kv * arguments.heads_stored / arguments.heads_kv) * PAGE_HALVES;
}

__device__ __forceinline__ u32 first_block(const AttentionArguments& arguments, const Place& place) {
    const u32 position = place.row_start + place.tile_first;
    const bool slides = arguments.window && position + 1 > arguments.window;
    return slides ? (position + 1 - arguments.window) / BLOCK_TOKENS : 0;
}

__device__ __forceinline__ u32 end_block(const Place& place) {
    return last_position(place) / BLOCK_TOKENS + 1;
}

__device__ __forceinline__ Place place_of(
    const AttentionTile& tile, const StepRow& row, const AttentionArguments& arguments) {
    const u32 group = arguments.heads / arguments.heads_kv;
    return {row.token_first, row.start, tile.first, tile.tokens, group, tile.tokens * group};
}

// Scores in fragments, 8 tiles of 8 positions: element i of tile j is of row g + 8 (i / 2) and of
// position i % 2 behind what `position_in_block` says.
typedef float Scores[8][4];

__device__ __forceinline__ u32 position_in_block(u32 tile, u32 lane) {
#if KV_BITS == 8
    return PAGE_TOKENS * (tile / 4) + 8 * (lane % 4) + 2 * (tile % 4);
#else
    return 8 * tile + 2 * (lane % 4);
#endif
}

// Scores become exponents of 2 when multiplied by what this gives; caps them where the model does.
__device__ __forceinline__ float cap_scores(Scores& scores, const AttentionArguments& arguments) {
    const float cap = arguments.soft_cap;
    if (!(cap > 0.0f)) return __fmul_rn(arguments.scale, LOG2_E);
#pragma unroll
    for (int n = 0; n < 32; n++) {
        float& score = scores[n / 4][n % 4];
        score = __fmul_rn(cap, tanhf(__fmul_rn(score, arguments.scale) / cap));
    }
    return LOG2_E;
}

// Leaves out what a row does not see. Rows that the tile does not have are nobody's.
__device__ __forceinline__ void hide_scores(Scores& scores, const AttentionArguments& arguments,
    const Place& place, u32 block, u32 lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = lane / 4 + 8 * half, own = position_of(place, r);
        const u32 first =
            arguments.window && own + 1 > arguments.window ? own + 1 - arguments.window : 0;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            const u32 at = block * BLOCK_TOKENS + position_in_block(n / 2, lane) + n % 2;
            const bool seen = at <= own && at >= first;
            float& score = scores[n / 2][2 * half + n % 2];
            score = seen ? score : MINUS_INFINITY;
        }
    }
}

// The weights of a block's values, and what scores come to: maximum and sum of rows g and g + 8.
struct Weighed {
    float maximum[2], sum[2];
    u32 weights[8][2];
};

// Decode has few rows: half of the work.
template <bool MAY_SKIP, typename Source>
__device__ __forceinline__ void weigh_scores(Weighed& weighed, Scores& scores, const Source& source,
    const AttentionArguments& arguments, const Place& place, u32 block, u32 lane) {
#if KV_BITS == 8
#pragma unroll
    for (int n = 0; n < 32; n++) {
        const float2 scale = source.key_scales(n / 4, lane);
        scores[n / 4][n % 4] = __fmul_rn(scores[n / 4][n % 4], n % 2 == 0 ? scale.x : scale.y);
    }
#endif
    const float factor = cap_scores(scores, arguments);
    const bool all_seen = !arguments.window &&
        (block + 1) * BLOCK_TOKENS <= place.row_start + place.tile_first + 1;
    if (!all_seen) hide_scores(scores, arguments, place, block, lane);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (MAY_SKIP && 8 * half >= place.rows) {
            weighed.maximum[half] = MINUS_INFINITY, weighed.sum[half] = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) weighed.weights[j][half] = 0;
            continue;
        }
        float best = MINUS_INFINITY;
#pragma unroll
        for (int j = 0; j < 8; j++)
            best = fmaxf(best, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 2));
        best = __fmul_rn(best, factor);
        weighed.maximum[half] = best;
        const float zero_at = best == MINUS_INFINITY ? 0.0f : best;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float a = power_of_two(__fmaf_rn(scores[j][2 * half], factor, -zero_at));
            const float b = power_of_two(__fmaf_rn(scores[j][2 * half + 1], factor, -zero_at));
            sum += a + b;
#if KV_BITS == 8
            const float2 scale = source.value_scales(j, lane);
            weighed.weights[j][half] = pack_halves(__fmul_rn(a, scale.x), __fmul_rn(b, scale.y));
#else
            weighed.weights[j][half] = pack_halves(a, b);
#endif
        }
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        weighed.sum[half] = sum;
    }
}

#if KV_BITS == 8

// Of values, what came out is divided by this: it is in their positions' floats.
#define VALUE_SCALE 64.0f

// Eight codes as halves: of 1,024 and what is above -128 the exponent and the mantissa, less 1,152.
__device__ __forceinline__ uint4 decoded(uint2 codes) {
    const u32 low = codes.x ^ 0x80808080, high = codes.y ^ 0x80808080;
    const u32 less = 0xe480e480;
    return make_uint4(add_halves(__byte_perm(low, 0x64646464, 0x4140), less),
        add_halves(__byte_perm(low, 0x64646464, 0x4342), less),
        add_halves(__byte_perm(high, 0x64646464, 0x4140), less),
        add_halves(__byte_perm(high, 0x64646464, 0x4342), less));
}

// What the codes of a block's positions stand for: of each page its keys', then its values'.
struct Scales {
    const float* page[2];

    __device__ __forceinline__ float2 key_scales(u32 tile, u32 lane) const {
        return *(const float2*)(page[tile / 4] + 8 * (lane % 4) + 2 * (tile % 4));
    }

    __device__ __forceinline__ float2 value_scales(u32 tile, u32 lane) const {
        return *(const float2*)(page[tile / 4] + PAGE_TOKENS + 8 * (lane % 4) + 2 * (tile % 4));
    }
};

// Beyond `last` there may be anything, and no number times zero is none: those of values are zeros.
struct SeenScales : Scales {
    u32 seen;  // of the block's positions

    __device__ __forceinline__ SeenScales(u32 block, u32 last)
        : seen(last + 1 > block * BLOCK_TOKENS ? last + 1 - block * BLOCK_TOKENS : 0) {}

    __device__ __forceinline__ float2 value_scales(u32 tile, u32 lane) const {
        const float2 scales = Scales::value_scales(tile, lane);
        const u32 at = position_in_block(tile, lane);
        return make_float2(at < seen ? scales.x : 0.0f, at + 1 < seen ? scales.y : 0.0f);
    }
};

// A warp's block in its shared memory.
struct Staged : SeenScales {
    const u8* codes;

    __device__ __forceinline__ Staged(const float* stage, u32 block, u32 last)
        : SeenScales(block, last), codes((const u8*)stage) {
        page[0] = stage + SIDE_BYTES, page[1] = page[0] + 2 * PAGE_TOKENS;
    }

    // Fragments of 8 positions and 32 dims; of 8 dims from 8 `tile` on and a page.
    __device__ __forceinline__ uint4 key(u32 tile, u32 d, u32 lane) const {
        return load(8 * HEAD * tile + 256 * d, lane);
    }

    __device__ __forceinline__ uint4 value(u32 tile, u32 page_index, u32 lane) const {
        return load((2 + page_index) * SIDE_BYTES + 256 * tile, lane);
    }

    __device__ __forceinline__ uint4 load(u32 at, u32 lane) const {
        return decoded(*(const uint2*)(codes + at + 64 * (lane % 4) + 8 * (lane / 4)));
    }
};

// The same from memory, where shared memory has no room.
struct Direct : SeenScales {
    const u16* const* pages;

    __device__ __forceinline__ Direct(const u16* const* pages, u32 block, u32 last)
        : SeenScales(block, last), pages(pages) {
#pragma unroll
        for (int p = 0; p < 2; p++) page[p] = (const float*)((const u8*)pages[p] + 2 * SIDE_BYTES);
    }

    __device__ __forceinline__ uint4 key(u32 tile, u32 d, u32 lane) const {
        return load(tile / 4, 8 * HEAD * (tile % 4) + 256 * d, lane);
    }

    __device__ __forceinline__ uint4 value(u32 tile, u32 page_index, u32 lane) const {
        return load(page_index, SIDE_BYTES + 256 * tile, lane);
    }

    __device__ __forceinline__ uint4 load(u32 page_index, u32 at, u32 lane) const {
        const u8* from = (const u8*)pages[page_index] + at + 64 * (lane % 4) + 8 * (lane / 4);
        return decoded(*(const uint2*)from);
    }
};

#else

#define VALUE_SCALE 1.0f

// A warp's block in its shared memory: the keys of two pages, then the values of both.
struct Staged {
    u32 stage;

    __device__ __forceinline__ Staged(const float* at, u32, u32)
        : stage((u32)__cvta_generic_to_shared(at)) {}

    // Fragments of 8 positions from 8 `tile` on and 32 dims; of 8 dims from 8 `tile` on and a page.
    __device__ __forceinline__ uint4 key(u32 tile, u32 d, u32 lane) const {
        const u32 unit = tile % 4 * (HEAD / 8) + 4 * d + lane / 8;
        return load(tile / 4 * SIDE_BYTES + 128 * unit + 16 * (lane % 8));
    }

    __device__ __forceinline__ uint4 value(u32 tile, u32 page, u32 lane) const {
        const u32 row = lane / 8 * HEAD + 8 * tile + lane % 8;
        return load((2 + page) * SIDE_BYTES + 16 * row);
    }

    __device__ __forceinline__ uint4 load(u32 at) const {
        uint4 four;
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(four.x), "=r"(four.y), "=r"(four.z), "=r"(four.w)
            : "r"(stage + at));
        return four;
    }
};

// The same from memory, where shared memory has no room.
struct Direct {
    const u16* const* page;

    __device__ __forceinline__ Direct(const u16* const* pages, u32, u32) : page(pages) {}

    __device__ __forceinline__ uint4 key(u32 tile, u32 d, u32 lane) const {
        return load(page[tile / 4] + 64 * (tile % 4 * (HEAD / 8) + 4 * d) + 2 * lane, 64);
    }

    __device__ __forceinline__ uint4 value(u32 tile, u32 page_index, u32 lane) const {
        const u16* from = page[page_index] + PAGE_TOKENS * HEAD + 64 * tile + 2 * lane;
        return load(from, 8 * HEAD);
    }

    __device__ __forceinline__ uint4 load(const u16* from, u32 unit) const {
        return make_uint4(*(const u32*)from, *(const u32*)(from + unit),
            *(const u32*)(from + 2 * unit), *(const u32*)(from + 3 * unit));
    }
};

#endif

template <typename Source>
__device__ __forceinline__ void score_block(
    Scores& scores, const Query& q, const Source& source, u32 lane) {
#pragma unroll
    for (int n = 0; n < 32; n++) scores[n / 4][n % 4] = 0.0f;
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) {
        uint4 keys[8];
#pragma unroll
        for (int j = 0; j < 8; j++) keys[j] = source.key(j, d, lane);
#pragma unroll
        for (int j = 0; j < 8; j++)
            multiply_tile(scores[j], q.words[d][0], keys[j].x, keys[j].y, scores[j]);
#pragma unroll
        for (int j = 0; j < 8; j++)
            multiply_tile(scores[j], q.words[d][1], keys[j].z, keys[j].w, scores[j]);
    }
}

// A block's weighted values: 8 dims at a time go to `put(tile, sums)`.
template <typename Source, typename Put>
__device__ __forceinline__ void weigh_values(const Weighed& weighed, const Source& source, u32 block,
    u32 last, u32 lane, Put put) {
    const bool has_beyond = (block + 1) * BLOCK_TOKENS > last + 1;
#pragma unroll
    for (int first = 0; first < TILES_V; first += 4) {
        float sums[4][4] = {};
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const u32(*w)[2] = weighed.weights + 4 * p;
            const u32 low[4] = {w[0][0], w[0][1], w[1][0], w[1][1]};
            const u32 high[4] = {w[2][0], w[2][1], w[3][0], w[3][1]};
            uint4 values[4];
#pragma unroll
            for (int e = 0; e < 4; e++) values[e] = source.value(first + e, p, lane);
            if (KV_BITS != 8 && has_beyond) {
                const u32 at = block * BLOCK_TOKENS + PAGE_TOKENS * p + 2 * (lane % 4);
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    values[e].x = visible_pair(values[e].x, at, last);
                    values[e].y = visible_pair(values[e].y, at + 8, last);
                    values[e].z = visible_pair(values[e].z, at + 16, last);
                    values[e].w = visible_pair(values[e].w, at + 24, last);
                }
            }
#pragma unroll
            for (int e = 0; e < 4; e++)
                multiply_tile(sums[e], low, values[e].x, values[e].y, sums[e]);
#pragma unroll
            for (int e = 0; e < 4; e++)
                multiply_tile(sums[e], high, values[e].z, values[e].w, sums[e]);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) put(first + e, sums[e]);
    }
}

// What is held and what comes are multiplied by these when a block or a stretch is merged.
struct Factors {
    float held, added;
};

__device__ __forceinline__ Factors merge_factors(float held, float added, float merged) {
    const float zero_at = merged == MINUS_INFINITY ? 0.0f : merged;
    return {power_of_two(held - zero_at), power_of_two(added - zero_at)};
}

__device__ __forceinline__ float merged(float held, float added, Factors factors) {
    return __fmaf_rn(added, factors.added, __fmul_rn(held, factors.held));
}

// What a head's sink adds to the sum of a row: the weight of one more score, which has no value.
__device__ __forceinline__ float sink_weight(const AttentionArguments& arguments,
    const Place& place, u32 head_kv, u32 r, float maximum) {
    if (!arguments.sinks) return 0.0f;
    const float score = arguments.sinks[head_kv * place.group + r % place.group];
    return power_of_two(__fmaf_rn(score, LOG2_E, -maximum));
}

// Where a row's output starts.
__device__ __forceinline__ u16* output_of(
    const AttentionArguments& arguments, const Place& place, u32 head_kv, u32 r) {
    const u32 token = place.token_first + place.tile_first + r / place.group;
    const u32 head = head_kv * place.group + r % place.group;
    return arguments.output + (size_t)token * arguments.output_stride + head * arguments.head_dim;
}

// No sign is left to zeros: whoever merged one stretch with nothing has none.
__device__ __forceinline__ u16 output_half(float value, float sum) {
    return to_half(within_half((value + 0.0f) / sum));
}

// A block's state of one row: values, maximum, sum. Rows apart so that the lanes of a quarter of a warp,
// of rows that follow each other, meet in no bank.
#define STATE_ROW (HEAD + 8)
#define STATE_FLOATS (16 * STATE_ROW)
// States on their way from memory at once.
#define MERGED_AT_ONCE (HEAD > 256 ? 1u : HEAD > 128 ? 4u : 8u)

// What is merged so far of a row: a lane has every 32nd dim.
struct Row {
    float maximum, sum;
    float values[CHUNKS];
};

__device__ __forceinline__ void merge(Row& held, const Row& added, bool is_first) {
    if (is_first) {
        held = added;
        return;
    }
    const float maximum = fmaxf(held.maximum, added.maximum);
    const Factors factors = merge_factors(held.maximum, added.maximum, maximum);
    held.maximum = maximum;
    held.sum = merged(held.sum, added.sum, factors);
#pragma unroll
    for (int d = 0; d < CHUNKS; d++)
        held.values[d] = merged(held.values[d], added.values[d], factors);
}

__device__ __forceinline__ void write_row(const AttentionArguments& arguments, const Place& place,
    const Row& row, u32 head_kv, u32 r, u32 lane) {
    const float sum = row.sum + sink_weight(arguments, place, head_kv, r, row.maximum);
    u16* to = output_of(arguments, place, head_kv, r);
#pragma unroll
    for (int d = 0; d < CHUNKS; d++)
        if (32 * d + lane < arguments.head_dim) to[32 * d + lane] = output_half(row.values[d], sum);
}

// Merges the stretches of one row of a split tile, from memory.
__device__ __forceinline__ void merge_row(const AttentionArguments& arguments, const Place& place,
    const float* states, u32 count, u32 head_kv, u32 r, u32 lane) {
    Row row;
    for (u32 first = 0; first < count; first += MERGED_AT_ONCE) {
        // All are on their way before the first is merged.
        Row added[MERGED_AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < MERGED_AT_ONCE; i++) {
            const u32 at = min(first + i, count - 1);
            const float* state = states + ((size_t)at * place.rows + r) * STATE;
            added[i].maximum = state[HEAD], added[i].sum = state[HEAD + 1];
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) added[i].values[d] = state[32 * d + lane];
        }
#pragma unroll
        for (u32 i = 0; i < MERGED_AT_ONCE; i++)
            if (first + i < count) merge(row, added[i], first + i == 0);
    }
    write_row(arguments, place, row, head_kv, r, lane);
}

// An item of one head, and the round of blocks that warps take next: WIDTH from `block` on. The item
// behind it is known already; those who work together take every `step`th.
template <u32 WIDTH>
struct Round {
    u32 work, step, head_kv, block, begin, end;
    AttentionItem item, behind;
    Place place;
    const u32* table;

    __device__ __forceinline__ void look_behind(const AttentionArguments& arguments, u32 count) {
        const u32 next = work + step;
        if (next < count) behind = arguments.items[next / arguments.heads_kv];
    }

    __device__ __forceinline__ void start(const AttentionArguments& arguments, u32 count) {
        block = begin = end = 0;
        if (work >= count) return;
        head_kv = work % arguments.heads_kv;
        const u32 group = arguments.heads / arguments.heads_kv;
        place = {item.token_first, item.row_start, item.tile_first, item.tile_tokens, group,
            item.tile_tokens * group};
#if WHOLE
        place.row_last = item.row_last;
#endif
        table = arguments.blocks + item.blocks_start;
        // The list is of the widest window: a narrower one leaves out its first blocks.
        begin = max(item.begin * STRETCH_BLOCKS, first_block(arguments, place));
        end = min(item.end * STRETCH_BLOCKS, end_block(place));
        block = begin / WIDTH * WIDTH;
        look_behind(arguments, count);
    }

    __device__ __forceinline__ void next(const AttentionArguments& arguments, u32 count) {
        block += WIDTH;
        if (block < end) return;
        work += step, item = behind;
        start(arguments, count);
    }

    __device__ __forceinline__ bool has(u32 own) const { return own >= begin && own < end; }

    // The first stretch of its tile and head, and the last.
    __device__ __forceinline__ u32 first_stretch(const AttentionArguments& arguments) const {
        return first_block(arguments, place) / STRETCH_BLOCKS;
    }
    __device__ __forceinline__ u32 last_stretch() const {
        return (end_block(place) - 1) / STRETCH_BLOCKS;
    }

    // Where the states of its tile's and head's stretches start, if they go to memory.
    __device__ __forceinline__ float* states(const AttentionArguments& arguments) const {
        const u32 count = last_stretch() - first_stretch(arguments) + 1;
        return arguments.partials +
            (item.partial_first + (size_t)head_kv * count * place.rows) * STATE;
    }
};

// The pages of a warp's block, if it has one. One that the tile does not see at all may not exist: its
// twin stands in, masked.
struct Pages {
    const u16* page[2];
    bool are_there;
};

template <u32 WIDTH>
__device__ __forceinline__ Pages pages_of(
    const AttentionArguments& arguments, const Round<WIDTH>& round, u32 block) {
    Pages pages = {{0, 0}, round.has(block)};
    if (pages.are_there)
#pragma unroll
        for (int p = 0; p < 2; p++)
            pages.page[p] = page_of(arguments, round.table, round.head_kv,
                min(block * 2 + p, last_position(round.place) / PAGE_TOKENS));
    return pages;
}

// The keys or the values of a warp's block, on their way to its shared memory.
struct Stage {
    u32 at, barrier;  // keys', then values'
    u32 parity;

    // What codes stand for comes with the values.
    template <bool IS_VALUES>
    __device__ __forceinline__ void ask(const Pages& pages, u32 lane) const {
        const u32 side = IS_VALUES ? SIDE_BYTES : 0, to = at + 2 * side;
        const u8* from[2] = {(const u8*)pages.page[0], (const u8*)pages.page[1]};
        const u32 scales = IS_VALUES ? SCALES_BYTES : 0;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if (!pages.are_there || lane != 0) return;
        const u32 full = barrier + (IS_VALUES ? 8 : 0);
        arrive_expecting(full, 2 * SIDE_BYTES + 2 * scales);
#pragma unroll
        for (int p = 0; p < 2; p++) {
            copy_bytes(to + p * SIDE_BYTES, from[p] + side, SIDE_BYTES, full);
            if (scales > 0)
                copy_bytes(at + 4 * SIDE_BYTES + p * scales, from[p] + 2 * SIDE_BYTES, scales, full);
        }
#else
        if (pages.are_there) {
#pragma unroll
            for (int i = 0; i < 2 * (int)SIDE_BYTES / 512; i++) {
                const u32 of_side = 512 * i % SIDE_BYTES;
                start_copy<16>(to + 512 * i + 16 * lane,
                    from[512 * i / SIDE_BYTES] + side + of_side + 16 * lane);
            }
            // A half of the warp each.
            if (scales > 0)
                start_copy<16>(at + 4 * SIDE_BYTES + 16 * lane,
                    (lane < 16 ? from[0] : from[1]) + 2 * SIDE_BYTES + lane % 16 * 16);
        }
        end_copies();
#endif
    }

    // Until the older of the two that are on their way is there.
    template <bool IS_VALUES>
    __device__ __forceinline__ void wait() const {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wait_barrier(barrier + (IS_VALUES ? 8 : 0), parity);
#else
        wait_for_copies<1>();
#endif
        __syncwarp();
    }
};

// The shared memory of a block of threads: a state for each warp, then stages.
extern __shared__ __align__(128) float shared_floats[];

// What a warp has merged of its rows: every `WARPS`th.
struct Rows {
    Row held[WARP_ROWS], total[WARP_ROWS];
};

// Merges the round's blocks in their order; one that is not there changes nothing.
__device__ __forceinline__ void merge_round(
    Rows& rows, const Round<WARPS>& round, u32 warp, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < WARP_ROWS; i++) {
        const u32 r = warp + i * WARPS;
        if (!is_row(round.place, r)) break;
        Row added[WARPS];
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            const float* state = shared_floats + w * STATE_FLOATS + r * STATE_ROW;
            const bool has = round.has(round.block + w);
            added[w].maximum = has ? state[HEAD] : MINUS_INFINITY;
            added[w].sum = has ? state[HEAD + 1] : 0.0f;
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) added[w].values[d] = has ? state[32 * d + lane] : 0.0f;
        }
        const bool starts = round.block % STRETCH_BLOCKS == 0 || round.block <= round.begin;
        merge(rows.held[i], added[0], starts);
#pragma unroll
        for (u32 w = 1; w < WARPS; w++) merge(rows.held[i], added[w], false);
    }
}

// A stretch is complete: to the output, to the tile's total, or to memory for whoever ends last.
__device__ __forceinline__ void finish_stretch(Rows& rows, const AttentionArguments& arguments,
    const Round<WARPS>& round, u32 warp, u32 lane) {
    const Place& place = round.place;
    const u32 stretch = round.block / STRETCH_BLOCKS;
    const u32 first = round.first_stretch(arguments), last = round.last_stretch();
#pragma unroll
    for (u32 i = 0; i < WARP_ROWS; i++) {
        const u32 r = warp + i * WARPS;
        if (!is_row(place, r)) break;
        const Row& held = rows.held[i];
        if (round.item.items > 1) {
            float* to =
                round.states(arguments) + ((size_t)(stretch - first) * place.rows + r) * STATE;
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) to[32 * d + lane] = held.values[d];
            if (lane == 0) to[HEAD] = held.maximum, to[HEAD + 1] = held.sum;
            continue;
        }
        merge(rows.total[i], held, stretch == first);
        if (stretch == last) write_row(arguments, place, rows.total[i], round.head_kv, r, lane);
    }
}

// Whether all items of a tile's head have ended with this one, by one thread.
template <u32 WIDTH>
__device__ __forceinline__ bool ends_tile(
    const AttentionArguments& arguments, const Round<WIDTH>& round) {
    u32* counter = arguments.counters + round.item.tile * arguments.heads_kv + round.head_kv;
    const bool is_last = atomicAdd(counter, 1) + 1 == round.item.items;
    if (is_last) *counter = 0;
    __threadfence();
    return is_last;
}

// The last block of threads to finish an item of a tile's head merges its stretches.
__device__ __forceinline__ void finish_split(const AttentionArguments& arguments,
    const Round<WARPS>& round, u32* is_last, u32 warp, u32 lane) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *is_last = ends_tile(arguments, round);
    __syncthreads();
    if (!*is_last) return;
    const u32 count = round.last_stretch() - round.first_stretch(arguments) + 1;
    for (u32 r = warp; r < round.place.rows; r += WARPS)
        merge_row(arguments, round.place, round.states(arguments), count, round.head_kv, r, lane);
}

// A block's state to a warp's own place.
template <typename Source>
__device__ __forceinline__ void write_state(float* state, const Weighed& weighed,
    const Source& source, const Place& place, u32 block, u32 lane) {
    const u32 g = lane / 4, t = lane % 4;
    if (t == 0)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(float2*)(state + (g + 8 * half) * STATE_ROW + HEAD) =
                make_float2(weighed.maximum[half], weighed.sum[half]);
    weigh_values(weighed, source, block, last_position(place), lane,
        [&](int e, const float(&sums)[4]) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (is_row(place, g + 8 * half))
                    *(float2*)(state + (g + 8 * half) * STATE_ROW + 8 * e + 2 * t) =
                        make_float2(sums[2 * half] / VALUE_SCALE, sums[2 * half + 1] / VALUE_SCALE);
        });
}

// A warp's way through the rounds of all items; each of its blocks leaves a state.
template <u32 WIDTH, bool IS_STAGED>
struct Rounds {
    Stage stage;
    Round<WIDTH> round, next;
    Pages pages, next_pages;
    Query q;
    u32 count;  // of items and heads
    u32 own;    // its place in a round
    const float* own_stage;

    // Up to the first block; whether there is any. A warp's shared memory starts at `own_stage_at`.
    __device__ __forceinline__ bool start(const AttentionArguments& arguments,
        const float* own_stage_at, u64 (&barriers)[2], u32 work, u32 step, u32 own_place, u32 lane) {
        own = own_place, own_stage = own_stage_at;
        stage = {(u32)__cvta_generic_to_shared(own_stage),
            (u32)__cvta_generic_to_shared(barriers), 0};
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        if (IS_STAGED && lane == 0) {
            init_barrier(stage.barrier, 1), init_barrier(stage.barrier + 8, 1);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
#endif
        // The lists of a step are written before its first kernel starts.
        count = arguments.header->attention_items * arguments.heads_kv;
        round.work = work, round.step = step;
        if (work < count) round.item = arguments.items[work / arguments.heads_kv];
        round.start(arguments, count);
        pages = pages_of(arguments, round, round.block + own);
        auto ask = [&]() {
            stage.template ask<false>(pages, lane);
            stage.template ask<true>(pages, lane);
        };
        // What earlier steps wrote is there; what other rows of this step write may be of the same
        // sequence.
        const bool is_asked = IS_STAGED && work < count &&
            (round.block + own + 1) * BLOCK_TOKENS <= round.item.settled;
        if (is_asked) ask();
        let_next_start();
        wait_for_previous();
        if (work >= count) return false;
        if (IS_STAGED && !is_asked) ask();
        load_query(q, arguments, round.place, round.head_kv, lane);
        return true;
    }

    // Writes the state of a block, and asks for the warp's next one as soon as there is room.
    __device__ __forceinline__ void attend(
        const AttentionArguments& arguments, float* state, u32 lane) {
        next = round;
        next.next(arguments, count);
        next_pages = pages_of(arguments, next, next.block + own);
        const bool has = pages.are_there;
        const u32 block = round.block + own, last = last_position(round.place);
        const Direct direct(pages.page, block, last);
        const Staged staged(own_stage, block, last);
        Scores scores;
        if (IS_STAGED) {
            if (has) stage.template wait<false>(), score_block(scores, q, staged, lane);
            __syncwarp();
            stage.template ask<false>(next_pages, lane);
        } else if (has) {
            score_block(scores, q, direct, lane);
        }
        if (is_last_of_item() && next.work < count)
            load_query(q, arguments, next.place, next.head_kv, lane);
        if (has) {
            Weighed weighed;
            if (IS_STAGED && KV_BITS == 8) stage.template wait<true>();
            if (IS_STAGED)
                weigh_scores<true>(weighed, scores, staged, arguments, round.place, block, lane);
            else
                weigh_scores<true>(weighed, scores, direct, arguments, round.place, block, lane);
            if (IS_STAGED && KV_BITS != 8) stage.template wait<true>();
            if (IS_STAGED)
                write_state(state, weighed, staged, round.place, block, lane);
            else
                write_state(state, weighed, direct, round.place, block, lane);
            stage.parity ^= 1;
        }
        __syncwarp();
        if (IS_STAGED) stage.template ask<true>(next_pages, lane);
    }

    // Of the round at hand, between `attend` and `advance`.
    __device__ __forceinline__ bool is_last_of_item() const { return next.work != round.work; }

    // Whether there is another round.
    __device__ __forceinline__ bool advance() {
        round = next, pages = next_pages;
        return round.work < count;
    }
};

template <bool IS_STAGED>
__device__ __forceinline__ void attend(const AttentionArguments& arguments) {
    __shared__ u32 is_last;
    __shared__ u64 barriers[WARPS][2];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* own_stage =
        shared_floats + WARPS * STATE_FLOATS + warp * (STAGED_BYTES / sizeof(float));
    Rounds<WARPS, IS_STAGED> walk;
    if (!walk.start(arguments, own_stage, barriers[warp], blockIdx.x, gridDim.x, warp, lane)) return;
    Rows rows;
    do {
        walk.attend(arguments, shared_floats + warp * STATE_FLOATS, lane);
        __syncthreads();
        const Round<WARPS>& round = walk.round;
        merge_round(rows, round, warp, lane);
        const u32 after = round.block + WARPS;
        const bool has_any = round.begin < round.end;
        if (has_any && (after % STRETCH_BLOCKS == 0 || after >= round.end))
            finish_stretch(rows, arguments, round, warp, lane);
        if (walk.is_last_of_item() && round.item.items > 1)
            finish_split(arguments, round, &is_last, warp, lane);
        __syncthreads();
    } while (walk.advance());
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    paged_attention(const __grid_constant__ AttentionArguments arguments) {
#if HEAD * KV_BITS <= 2048
    attend<true>(arguments);
#endif
}

// Without stages: for heads that are too large for them, and devices with too little shared memory.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    paged_attention_direct(const __grid_constant__ AttentionArguments arguments) {
    attend<false>(arguments);
}
