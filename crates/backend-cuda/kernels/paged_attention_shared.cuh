// paged_attention for prompts: the warps of a block take tiles of one row and read its keys and values
// from shared memory, two blocks of 64 positions ahead.
//
// The same operations in the same order as in paged_attention.cu, which this stands behind. Moves a
// row's keys and values from the L2 cache once for 6 tiles; bound by the reads of shared memory, 32 KB
// a tile and block of 64 positions, and by the exponentials.

#if HEAD <= 256

// Where a lane's rows g and g + 8 of queries are; none beyond the tile.
struct Queries {
    const u16* from[2];
};

__device__ __forceinline__ Queries queries_of(
    const AttentionArguments& arguments, const Place& place, u32 head_kv, u32 lane) {
    Queries queries;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = lane / 4 + 8 * half;
        const u32 token = place.token_first + place.tile_first + r / place.group;
        const u32 head = head_kv * place.group + r % place.group;
        const u16* from = arguments.query + ((size_t)token * arguments.heads + head) * HEAD;
        queries.from[half] = is_row(place, r) ? from + 8 * (lane % 4) : 0;
    }
    return queries;
}

// The fragments of 32 dims, two products.
__device__ __forceinline__ void load_query(u32 (&q)[2][4], const Queries& queries, int d) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 four = make_uint4(0, 0, 0, 0);
        if (queries.from[half]) four = *(const uint4*)(queries.from[half] + 32 * d);
        q[0][half] = four.x, q[0][2 + half] = four.y;
        q[1][half] = four.z, q[1][2 + half] = four.w;
    }
}

#define KEY_SWAP (HEAD % 64 == 0 ? 4u : 0u)

// A lane's fragments of a block's keys and values. 16-byte units of odd keys are swapped so that the
// reads of a quarter of a warp, of two keys, meet in no bank.
struct Staged {
    const u16* stage;

    __device__ __forceinline__ uint4 key(u32 p, u32 row, u32 t, u32 d) const {
        const u32 unit = (4 * d + t) ^ (row % 2 * KEY_SWAP);
        return *(const uint4*)(stage + p * (2 * PAGE_TOKENS * HEAD) + row * HEAD + 8 * unit);
    }

    __device__ __forceinline__ uint4 value(u32 p, u32 dim, u32 t) const {
        return *(const uint4*)(stage + (2 * p + 1) * (PAGE_TOKENS * HEAD) + dim * PAGE_TOKENS + 8 * t);
    }
};

// What a block's scores come to, for rows g and g + 8 of the tile.
struct Weighed {
    float maximum[2], sum[2];
    u32 weights[2][4][2];
};

// What few models or blocks need is written apart: the loop over blocks must stay small enough for
// the instruction cache.
__device__ __forceinline__ void scale_scores(
    float (&scores)[2][4][4], const AttentionArguments& arguments) {
    const float cap = arguments.soft_cap;
    if (cap > 0.0f) {
#pragma unroll
        for (int n = 0; n < 32; n++) {
            float& score = scores[n / 16][n / 4 % 4][n % 4];
            score = __fmul_rn(cap * tanhf(__fmul_rn(score, arguments.scale) / cap), LOG2_E);
        }
        return;
    }
#pragma unroll
    for (int n = 0; n < 32; n++) {
        float& score = scores[n / 16][n / 4 % 4][n % 4];
        score = __fmul_rn(__fmul_rn(score, arguments.scale), LOG2_E);
    }
}

// Leaves out what a row does not see.
__device__ __forceinline__ void hide_scores(float (&scores)[2][4][4],
    const AttentionArguments& arguments, const Place& place, u32 block, u32 lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = lane / 4 + 8 * half, own = position_of(place, r);
        const u32 first =
            arguments.window && own + 1 > arguments.window ? own + 1 - arguments.window : 0;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            const u32 at = block * BLOCK_TOKENS + PAGE_TOKENS * (n / 8) + 8 * (lane % 4) + n % 8;
            const bool seen = is_row(place, r) && at <= own && at >= first;
            float& score = scores[n / 8][n / 2 % 4][2 * half + n % 2];
            score = seen ? score : MINUS_INFINITY;
        }
    }
}

template <typename Source>
__device__ __forceinline__ void weigh_block(Weighed& weighed, const Queries& queries,
    const AttentionArguments& arguments, const Place& place, const Source& source, u32 block,
    u32 lane) {
    const u32 g = lane / 4, t = lane % 4;
    float scores[2][4][4] = {};
#pragma unroll
    for (int d = 0; d < CHUNKS; d++) {
        u32 q[2][4];
        load_query(q, queries, d);
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint4 four = source.key(p, 8 * (g / 2) + g % 2 + 2 * j, t, d);
                multiply_tile(scores[p][j], q[0], four.x, four.y, scores[p][j]);
                multiply_tile(scores[p][j], q[1], four.z, four.w, scores[p][j]);
            }
    }
    scale_scores(scores, arguments);
    const bool is_seen = place.rows == 16 && !arguments.window &&
        (block + 1) * BLOCK_TOKENS <= place.row_start + place.tile_first + 1;
    if (!is_seen) hide_scores(scores, arguments, place, block, lane);
    float maximum[2] = {MINUS_INFINITY, MINUS_INFINITY};
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) maximum[i / 2] = fmaxf(maximum[i / 2], scores[p][j][i]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float best = maximum[half];
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 2));
        weighed.maximum[half] = best;
        const float zero_at = best == MINUS_INFINITY ? 0.0f : best;
        float sum = 0.0f;
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float a = power_of_two(scores[p][j][2 * half] - zero_at);
                const float b = power_of_two(scores[p][j][2 * half + 1] - zero_at);
                sum += a + b;
                weighed.weights[p][j][half] = pack_halves(a, b);
            }
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        weighed.sum[half] = sum;
    }
}

// The weighted values of dims 8 e to 8 e + 7 go to `put(e, sums)`, for each e. Positions beyond `last`
// are left out where there are any.
template <bool HAS_BEYOND, typename Source, typename Put>
__device__ __forceinline__ void weigh_some_values(
    const Weighed& weighed, const Source& source, u32 block, u32 last, u32 lane, Put put) {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int e = 0; e < TILES_V; e++) {
        float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int p = 0; p < 2; p++) {
            uint4 four = source.value(p, 8 * e + g, t);
            if (HAS_BEYOND) {
                const u32 at = block * BLOCK_TOKENS + PAGE_TOKENS * p + 8 * t;
                four.x = visible_pair(four.x, at, last);
                four.y = visible_pair(four.y, at + 2, last);
                four.z = visible_pair(four.z, at + 4, last);
                four.w = visible_pair(four.w, at + 6, last);
            }
            const u32(&w)[4][2] = weighed.weights[p];
            const u32 low[4] = {w[0][0], w[0][1], w[1][0], w[1][1]};
            const u32 high[4] = {w[2][0], w[2][1], w[3][0], w[3][1]};
            multiply_tile(sum, low, four.x, four.y, sum);
            multiply_tile(sum, high, four.z, four.w, sum);
        }
        put(e, sum);
    }
}

template <typename Source, typename Put>
__device__ __forceinline__ void weigh_values(
    const Weighed& weighed, const Source& source, u32 block, u32 last, u32 lane, Put put) {
    if ((block + 1) * BLOCK_TOKENS > last + 1)
        weigh_some_values<true>(weighed, source, block, last, lane, put);
    else
        weigh_some_values<false>(weighed, source, block, last, lane, put);
}

__device__ __forceinline__ u32 last_position(const Place& place) {
    return place.row_start + place.tile_first + place.tile_tokens - 1;
}

// What a warp holds of rows g and g + 8 (index 0 and 1): maximum, sum and weighted values so far.
struct Held {
    float maximum[2], sum[2];
    float values[TILES_V][4];
};

__device__ __forceinline__ void clear(Held& held) {
#pragma unroll
    for (int half = 0; half < 2; half++) held.maximum[half] = MINUS_INFINITY, held.sum[half] = 0.0f;
#pragma unroll
    for (int e = 0; e < TILES_V; e++)
#pragma unroll
        for (int i = 0; i < 4; i++) held.values[e][i] = 0.0f;
}

template <typename Source>
__device__ __forceinline__ void add_block(Held& held, const Queries& queries,
    const AttentionArguments& arguments, const Place& place, const Source& source, u32 block,
    u32 lane) {
    Weighed added;
    weigh_block(added, queries, arguments, place, source, block, lane);
    Factors factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float maximum = fmaxf(held.maximum[half], added.maximum[half]);
        factors[half] = merge_factors(held.maximum[half], added.maximum[half], maximum);
        held.maximum[half] = maximum;
        held.sum[half] = merged(held.sum[half], added.sum[half], factors[half]);
    }
    weigh_values(added, source, block, last_position(place), lane,
        [&](int e, const float(&sums)[4]) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                held.values[e][i] = merged(held.values[e][i], sums[i], factors[i / 2]);
        });
}

__device__ __forceinline__ void write_held(const Held& held, const AttentionArguments& arguments,
    const Place& place, u32 head_kv, u32 lane) {
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

__device__ __forceinline__ void copy_16(void* shared, const void* global) {
    const u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Starts the copy of a block's keys and values by all threads of a block of `THREADS`.
// A page that the tiles do not see at all may not exist: its twin stands in, masked.
template <u32 THREADS>
__device__ __forceinline__ void stage_block(u16* stage, const AttentionArguments& arguments,
    const u32* table, u32 head_kv, u32 block, u32 last) {
    const u32 units = 2 * PAGE_TOKENS * HEAD / 8;  // of 16 bytes, of a page
#pragma unroll
    for (int p = 0; p < 2; p++) {
        const u16* page = page_of(arguments, table, head_kv, min(block * 2 + p, last / PAGE_TOKENS));
#pragma unroll
        for (u32 at = 0; at < units; at += THREADS) {
            const u32 unit = at + threadIdx.x;
            if (units % THREADS != 0 && unit >= units) continue;
            const u32 row = unit / (HEAD / 8);
            const u32 swap = unit < units / 2 ? row % 2 * KEY_SWAP : 0;
            copy_16(stage + p * (2 * PAGE_TOKENS * HEAD) + 8 * (unit ^ swap), page + 8 * unit);
        }
    }
}

#define SHARED_STAGES (HEAD > 128 ? 2 : 3)
#define STAGE_HALVES (2 * 2 * PAGE_TOKENS * HEAD)

extern __shared__ __align__(16) u16 shared_stages[];

// The warps of a block take a tile of one row each, and read keys and values from shared memory.
template <u32 WARPS>
__device__ __forceinline__ void attend_shared(
    const AttentionArguments& arguments, const AttentionItem& item, u32 head_kv) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const AttentionTile* tiles = arguments.tiles + item.tile;
    const StepRow row = arguments.rows[tiles[0].row];
    const u32* table = arguments.blocks + row.blocks_start;
    const Place first = place_of(tiles[0], row, arguments);
    const Place final = place_of(tiles[item.tiles - 1], row, arguments);
    const Place place = place_of(tiles[min(warp, item.tiles - 1)], row, arguments);
    const u32 begin = first_block(arguments, first), end = end_block(final);
    const u32 own_begin = first_block(arguments, place);
    const u32 own_end = warp < item.tiles ? end_block(place) : 0;
    const Queries queries = queries_of(arguments, place, head_kv, lane);
    Held held;
    clear(held);
    u32 stage = 0;
    auto ask = [&](u32 block, u32 to) {
        if (block < end)
            stage_block<WARPS * 32>(shared_stages + to * STAGE_HALVES, arguments, table, head_kv,
                block, last_position(final));
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    for (u32 ahead = 0; ahead + 1 < SHARED_STAGES; ahead++) ask(begin + ahead, ahead);
    for (u32 block = begin; block < end; block++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(SHARED_STAGES - 2) : "memory");
        __syncthreads();
        // All warps have read the stage before.
        ask(block + SHARED_STAGES - 1, stage == 0 ? SHARED_STAGES - 1 : stage - 1);
        if (block >= own_begin && block < own_end)
            add_block(held, queries, arguments, place,
                Staged{shared_stages + stage * STAGE_HALVES}, block, lane);
        stage = stage + 1 == SHARED_STAGES ? 0 : stage + 1;
    }
    if (warp < item.tiles) write_held(held, arguments, place, head_kv, lane);
    __syncthreads();
}

// Apart, with registers of their own: what is not for shared keys must not take any from what is.
__device__ __noinline__ void attend_whole_apart(
    const AttentionArguments& arguments, const Work& work, u32 head_kv) {
    attend_whole(arguments, work.tile, work.row, head_kv, threadIdx.x % 32);
}

__device__ __noinline__ void attend_split_apart(
    const AttentionArguments& arguments, const Work& work, u32 head_kv, u32* is_last) {
    attend_split(arguments, work.item, work.tile, work.row, head_kv, threadIdx.x / 32,
        threadIdx.x % 32, is_last);
}

// Blocks take the items in turn, there and back: later items of a prompt take longer.
extern "C" __global__ void __launch_bounds__(192, HEAD > 128 ? 1 : 2)
    paged_attention_shared(const __grid_constant__ AttentionArguments arguments) {
    __shared__ u32 is_last;
    const u32 warp = threadIdx.x / 32;
    // The lists of a step are written before its first kernel starts.
    const u32 items = arguments.header->attention_items;
    let_next_start();
    wait_for_previous();
    for (u32 turn = 0; turn * gridDim.x < items; turn++) {
        const u32 own = turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
        const u32 index = turn * gridDim.x + own;
        if (index >= items) continue;
        const Work work = work_of(arguments, index, warp);
        if (work.item.block != WHOLE)
            attend_split_apart(arguments, work, blockIdx.y, &is_last);
        else if (work.item.is_shared)
            attend_shared<6>(arguments, work.item, blockIdx.y);
        else if (warp < work.item.tiles)
            attend_whole_apart(arguments, work, blockIdx.y);
    }
}

#endif
