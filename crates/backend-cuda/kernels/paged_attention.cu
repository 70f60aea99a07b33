// paged_attention: softmax(scale q k) v over the pages of a sequence, for decode and prompts alike.
//
// A warp takes a tile of 16 queries (tokens times the heads that share keys) and goes through the
// keys in blocks of 64 positions; keys and values go straight from memory to fragments. Bound by
// the bytes of keys and values for decode, by the tensor cores for prompts.
//
// Arithmetic of one query, the same in every form: each block of 64 positions (counted from
// position 0) gives a maximum, a sum and a weighted value of its own; they are merged into the
// running ones in order of position. Decode computes blocks in parallel and the last block of
// threads to finish merges them in the same order, with the same operations. A block that a query
// does not see changes nothing, so a result depends neither on the tile nor on how work was cut.
//
// Flash attention: Dao 2023, https://arxiv.org/abs/2307.08691. HEAD is head_dim padded to 32.

#define PAGE_TOKENS 32u
#define BLOCK_TOKENS 64u
#define WHOLE 0xffffffffu
#define LOG2_E 1.4426950408889634f
#define STATE (HEAD + 2)

struct AttentionTile {
    u32 row;
    u32 first;         // of its tokens within the row
    u32 tokens;
    u32 partial_first; // where its partial states start, in states; unused if whole
};

struct AttentionItem {
    u32 tile;
    u32 tiles;   // consecutive whole tiles, one a warp; for a split one: the tile's items
    u32 block;   // WHOLE, or the first block of 64 positions for this item's warps
    u32 is_shared;  // whole tiles of one row, whose keys and values the warps share
};

struct AttentionArguments {
    const StepHeader* header;
    const StepRow* rows;
    const u32* blocks;
    const AttentionTile* tiles;
    const AttentionItem* items;
    const u16* query;   // [tokens, heads, HEAD]
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

// 2^x; of numbers below -126, 0.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#define CHUNKS (HEAD / 32)
#define TILES_V (HEAD / 8)

struct Query {
    u32 words[CHUNKS][2][4];  // by 32 dims, by product
};

struct Place {
    u32 token_first, row_start, tile_first, tile_tokens, group;
    u32 rows;
};

__device__ __forceinline__ bool is_row(const Place& place, u32 r) { return r < place.rows; }

__device__ __forceinline__ u32 position_of(const Place& place, u32 r) {
    return place.row_start + place.tile_first + r / place.group;
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

// Maximum, sum and weighted values of rows g and g + 8 (index 0 and 1).
struct State {
    float maximum[2], sum[2];
    float values[TILES_V][4];
};

// Values of positions beyond `last` may be anything: left out of a lane's 8 positions from `at`.
__device__ __forceinline__ u32 visible_pair(u32 pair, u32 at, u32 last) {
    if (at + 1 <= last) return pair;
    return at <= last ? pair & 0xffff : 0;
}

__device__ __forceinline__ const u16* page_of(const AttentionArguments& arguments,
    const u32* table, u32 head_kv, u32 index) {
    return arguments.pages +
        ((size_t)table[index] * arguments.heads_stored +
            head_kv * arguments.heads_stored / arguments.heads_kv) * (2 * PAGE_TOKENS * HEAD);
}

// Touches every line of a block's keys and values, all at once, so that the reads that follow find
// them on the way: a warp has too few registers to ask for a whole block itself.
__device__ __forceinline__ void touch_block(const AttentionArguments& arguments, const u32* table,
    u32 head_kv, u32 block, u32 last, u32 lane) {
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const u8* page = (const u8*)page_of(arguments, table, head_kv,
            min(block * 2 + p, last / PAGE_TOKENS));
#pragma unroll
        for (int at = 0; at < 4 * (int)PAGE_TOKENS * HEAD / 128; at += 32) {
            if (at + (int)lane < 4 * (int)PAGE_TOKENS * HEAD / 128)
                asm volatile("{.reg .u32 w; ld.global.ca.u32 w, [%0];}" ::"l"(page + 128 * (at + lane)));
        }
    }
}

__device__ __forceinline__ void attend_block(State& state, const Query& q,
    const AttentionArguments& arguments, const Place& place, const u32* table, u32 head_kv,
    u32 block, u32 lane) {
    const u32 g = lane / 4, t = lane % 4;
    const u32 last = place.row_start + place.tile_first + place.tile_tokens - 1;
    float scores[2][4][4];
    const u16* page[2];
#pragma unroll
    for (int p = 0; p < 2; p++) {
        // A page that the tile does not see at all may not exist: its twin stands in, masked.
        const u32 index = min(block * 2 + p, last / PAGE_TOKENS);
        page[p] = page_of(arguments, table, head_kv, index);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u16* key = page[p] + (8 * (g / 2) + g % 2 + 2 * j) * HEAD + 8 * t;
            float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int d = 0; d < CHUNKS; d++) {
                const uint4 four = *(const uint4*)(key + 32 * d);
                multiply_tile(s, q.words[d][0], four.x, four.y, s);
                multiply_tile(s, q.words[d][1], four.z, four.w, s);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) scores[p][j][i] = s[i];
        }
    }
    float maximum[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const u32 r = g + 8 * (i / 2);
        const u32 own = position_of(place, r);
        const u32 first = arguments.window && own + 1 > arguments.window ? own + 1 - arguments.window : 0;
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 at = block * BLOCK_TOKENS + PAGE_TOKENS * p + 8 * t + 2 * j + i % 2;
                float score = __fmul_rn(scores[p][j][i], arguments.scale);
                if (arguments.soft_cap > 0.0f)
                    score = arguments.soft_cap * tanhf(score / arguments.soft_cap);
                score = __fmul_rn(score, LOG2_E);
                const bool seen = is_row(place, r) && at <= own && at >= first;
                scores[p][j][i] = seen ? score : MINUS_INFINITY;
                maximum[i / 2] = fmaxf(maximum[i / 2], scores[p][j][i]);
            }
    }
    u32 weights[2][4][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best = maximum[half];
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 2));
        state.maximum[half] = best;
        const float zero_at = best == MINUS_INFINITY ? 0.0f : best;
        float sum = 0.0f;
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float a = power_of_two(scores[p][j][2 * half] - zero_at);
                const float b = power_of_two(scores[p][j][2 * half + 1] - zero_at);
                sum += a + b;
                weights[p][j][half] = pack_halves(a, b);
            }
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        state.sum[half] = sum;
    }
    const bool is_last = (block + 1) * BLOCK_TOKENS > last + 1;
#pragma unroll
    for (int e = 0; e < TILES_V; e++) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const u16* from = page[p] + PAGE_TOKENS * HEAD + (8 * e + g) * PAGE_TOKENS + 8 * t;
            uint4 four = *(const uint4*)from;
            if (is_last) {
                const u32 at = block * BLOCK_TOKENS + PAGE_TOKENS * p + 8 * t;
                four.x = visible_pair(four.x, at, last), four.y = visible_pair(four.y, at + 2, last);
                four.z = visible_pair(four.z, at + 4, last), four.w = visible_pair(four.w, at + 6, last);
            }
            const u32 low[4] = {weights[p][0][0], weights[p][0][1], weights[p][1][0], weights[p][1][1]};
            const u32 high[4] = {weights[p][2][0], weights[p][2][1], weights[p][3][0], weights[p][3][1]};
            multiply_tile(sum, low, four.x, four.y, sum);
            multiply_tile(sum, high, four.z, four.w, sum);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) state.values[e][i] = sum[i];
    }
}

// What is held and what comes are multiplied by these when a block is merged.
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
    return power_of_two(score * LOG2_E - maximum);
}

__device__ __forceinline__ void write_output(const AttentionArguments& arguments, const Place& place,
    u32 head_kv, u32 r, u32 dim, float value) {
    const u32 token = place.token_first + place.tile_first + r / place.group;
    const u32 head = head_kv * place.group + r % place.group;
    if (dim < arguments.head_dim)
        arguments.output[(size_t)token * arguments.output_stride + head * arguments.head_dim + dim] =
            to_half(within_half(value));
}

__device__ __forceinline__ Place place_of(
    const AttentionTile& tile, const StepRow& row, const AttentionArguments& arguments) {
    const u32 group = arguments.heads / arguments.heads_kv;
    return {row.token_first, row.start, tile.first, tile.tokens, group, tile.tokens * group};
}

__device__ __forceinline__ u32 first_block(const AttentionArguments& arguments, const Place& place) {
    const u32 position = place.row_start + place.tile_first;
    const bool slides = arguments.window && position + 1 > arguments.window;
    return slides ? (position + 1 - arguments.window) / BLOCK_TOKENS : 0;
}

__device__ __forceinline__ u32 end_block(const Place& place) {
    return (place.row_start + place.tile_first + place.tile_tokens - 1) / BLOCK_TOKENS + 1;
}

__device__ __forceinline__ void attend_whole(const AttentionArguments& arguments,
    const AttentionTile& tile, const StepRow& row, u32 head_kv, u32 lane) {
    const Place place = place_of(tile, row, arguments);
    Query q;
    load_query(q, arguments, place, head_kv, lane);
    State held;
#pragma unroll
    for (int half = 0; half < 2; half++) held.maximum[half] = MINUS_INFINITY, held.sum[half] = 0.0f;
#pragma unroll
    for (int e = 0; e < TILES_V; e++)
#pragma unroll
        for (int i = 0; i < 4; i++) held.values[e][i] = 0.0f;
    const u32 end = end_block(place);
    const u32 last = place.row_start + place.tile_first + place.tile_tokens - 1;
    const u32* table = arguments.blocks + row.blocks_start;
    for (u32 block = first_block(arguments, place); block < end; block++) {
        State added;
        if (block + 1 < end) touch_block(arguments, table, head_kv, block + 1, last, lane);
        attend_block(added, q, arguments, place, arguments.blocks + row.blocks_start, head_kv, block,
            lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float maximum = fmaxf(held.maximum[half], added.maximum[half]);
            const Factors factors = merge_factors(held.maximum[half], added.maximum[half], maximum);
            held.maximum[half] = maximum;
            held.sum[half] = merged(held.sum[half], added.sum[half], factors);
#pragma unroll
            for (int e = 0; e < TILES_V; e++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++)
                    held.values[e][i] = merged(held.values[e][i], added.values[e][i], factors);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = lane / 4 + 8 * half;
        if (!is_row(place, r)) continue;
        const float sum =
            held.sum[half] + sink_weight(arguments, place, head_kv, r, held.maximum[half]);
#pragma unroll
        for (int e = 0; e < TILES_V; e++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                write_output(arguments, place, head_kv, r, 8 * e + 2 * (lane % 4) + i,
                    held.values[e][2 * half + i] / sum);
    }
}

// Merges the states of one row of a split tile: a warp a row, a lane every 32nd dim.
__device__ __forceinline__ void merge_row(const AttentionArguments& arguments, const Place& place,
    const float* states, u32 count, u32 head_kv, u32 r, u32 lane) {
    float held_maximum = MINUS_INFINITY, held_sum = 0.0f, values[CHUNKS];
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) values[d] = 0.0f;
    for (u32 first = 0; first < count; first += 32) {
        // Lane i knows of block first + i: running maxima by a scan, then the factors.
        const u32 block = first + lane;
        const float* own = states + ((size_t)block * place.rows + r) * STATE;
        const float maximum = block < count ? own[HEAD] : MINUS_INFINITY;
        const float sum = block < count ? own[HEAD + 1] : 0.0f;
        float running = maximum;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const float other = __shfl_up_sync(0xffffffff, running, step);
            if (lane >= step) running = fmaxf(running, other);
        }
        running = fmaxf(running, held_maximum);
        float before = __shfl_up_sync(0xffffffff, running, 1);
        if (lane == 0) before = held_maximum;
        const Factors factors = merge_factors(before, maximum, running);
        const u32 here = min(32u, count - first);
#pragma unroll 4
        for (u32 i = 0; i < here; i++) {
            const Factors of_block = {__shfl_sync(0xffffffff, factors.held, i),
                __shfl_sync(0xffffffff, factors.added, i)};
            const float* state = states + ((size_t)(first + i) * place.rows + r) * STATE;
            held_sum = merged(held_sum, __shfl_sync(0xffffffff, sum, i), of_block);
#pragma unroll
            for (int d = 0; d < CHUNKS; d++)
                values[d] = merged(values[d], state[32 * d + lane], of_block);
        }
        held_maximum = __shfl_sync(0xffffffff, running, 31);
    }
    held_sum += sink_weight(arguments, place, head_kv, r, held_maximum);
#pragma unroll
    for (int d = 0; d < CHUNKS; d++)
        write_output(arguments, place, head_kv, r, 32 * d + lane, values[d] / held_sum);
}

__device__ __forceinline__ void attend_split(const AttentionArguments& arguments,
    const AttentionItem& item, const AttentionTile& tile, const StepRow& row, u32 head_kv, u32 warp,
    u32 lane, u32* is_last) {
    const Place place = place_of(tile, row, arguments);
    const u32 begin = first_block(arguments, place), end = end_block(place), count = end - begin;
    const u32 block = item.block + warp;
    float* states = arguments.partials +
        ((size_t)tile.partial_first + (size_t)head_kv * count * place.rows) * STATE;
    // The list is of the widest window: a narrower one leaves out its first blocks.
    if (block >= begin && block < end) {
        Query q;
        State added;
        touch_block(arguments, arguments.blocks + row.blocks_start, head_kv, block,
            place.row_start + place.tile_first + place.tile_tokens - 1, lane);
        load_query(q, arguments, place, head_kv, lane);
        attend_block(added, q, arguments, place, arguments.blocks + row.blocks_start, head_kv, block,
            lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 r = lane / 4 + 8 * half;
            if (!is_row(place, r)) continue;
            float* state = states + ((size_t)(block - begin) * place.rows + r) * STATE;
#pragma unroll
            for (int e = 0; e < TILES_V; e++)
                *(float2*)(state + 8 * e + 2 * (lane % 4)) =
                    make_float2(added.values[e][2 * half], added.values[e][2 * half + 1]);
            if (lane % 4 == 0) state[HEAD] = added.maximum[half], state[HEAD + 1] = added.sum[half];
        }
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* counter = arguments.counters + item.tile * arguments.heads_kv + head_kv;
        *is_last = atomicAdd(counter, 1) + 1 == item.tiles;
        if (*is_last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    if (*is_last)
        for (u32 r = warp; r < place.rows; r += blockDim.x / 32)
            merge_row(arguments, place, states, count, head_kv, r, lane);
    __syncthreads();
}

// An item, and the tile and row of a warp's part of it.
struct Work {
    AttentionItem item;
    AttentionTile tile;
    StepRow row;
};

__device__ __forceinline__ Work work_of(const AttentionArguments& arguments, u32 index, u32 warp) {
    Work work;
    work.item = arguments.items[index];
    const bool is_whole = work.item.block == WHOLE;
    work.tile = arguments.tiles[work.item.tile + (is_whole ? min(warp, work.item.tiles - 1) : 0)];
    work.row = arguments.rows[work.tile.row];
    return work;
}

// Asks for a block's keys and values to be brought near. Those of this step may be on their way to
// memory still; what is brought near is kept up to date.
__device__ __forceinline__ void fetch_block(const AttentionArguments& arguments, const Work& work,
    u32 head_kv, u32 block, u32 lane) {
    const u32 last = work.row.start + work.tile.first + work.tile.tokens - 1;
    if (block * BLOCK_TOKENS > last) return;
    for (int p = 0; p < 2; p++) {
        const u8* page = (const u8*)page_of(arguments, arguments.blocks + work.row.blocks_start,
            head_kv, min(block * 2 + p, last / PAGE_TOKENS));
        for (u32 at = 128 * lane; at < 4 * PAGE_TOKENS * HEAD; at += 32 * 128)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(page + at));
    }
}

extern "C" __global__ void __launch_bounds__(128)
    paged_attention(const __grid_constant__ AttentionArguments arguments) {
    __shared__ u32 is_last;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // The lists of a step are written before its first kernel starts.
    const u32 items = arguments.header->attention_items;
    u32 index = blockIdx.x;
    Work work = {};
    if (index < items) {
        work = work_of(arguments, index, warp);
        if (work.item.block != WHOLE)
            fetch_block(arguments, work, blockIdx.y, work.item.block + warp, lane);
    }
    let_next_start();
    wait_for_previous();
    while (index < items) {
        if (work.item.block != WHOLE)
            attend_split(
                arguments, work.item, work.tile, work.row, blockIdx.y, warp, lane, &is_last);
        else if (warp < work.item.tiles)
            attend_whole(arguments, work.tile, work.row, blockIdx.y, lane);
        index += gridDim.x;
        if (index < items) work = work_of(arguments, index, warp);
    }
}
