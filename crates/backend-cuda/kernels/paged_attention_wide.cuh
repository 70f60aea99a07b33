
// paged_attention for prompts on Hopper: a block of threads takes up to 8 tiles of one row, 4 for each
// of two groups of 4 warps, which read the same keys and values; a thread brings them by the copy
// engine, some blocks of positions ahead, and asynchronous tensor cores multiply.
//
// The same operations in the same order as in paged_attention.cu, which this stands behind. Roof: 64
// queries and 64 positions take 512 cycles of the tensor cores, and the exponentials 256 beside them.
//
// With KV_BITS 8 a thread brings codes, and its group of 4 warps makes them halves for both groups that
// multiply: 15 instructions for 256 codes.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && (HEAD == 64 || HEAD == 128)

#if KV_BITS == 8
#define WIDE_STAGES (HEAD == 64 ? 4u : 3u)
#define CODE_STAGES 3u
#else
#define WIDE_STAGES (HEAD == 64 ? 6u : 4u)
#define CODE_STAGES 0u
#endif
#define KEY_BYTES (BLOCK_TOKENS * HEAD * 2)
#define STAGE_BYTES (2 * KEY_BYTES)
// Stages, then both groups' totals, then what codes of each stage stand for, then stages of codes, then
// barriers: full ones, then free ones; the same of codes.
#define TOTALS (WIDE_STAGES * STAGE_BYTES)
#define STAGE_SCALES (TOTALS + 2 * 128 * (HEAD / 2) * 4)
#define CODES (STAGE_SCALES + WIDE_STAGES * 2 * SCALES_BYTES)
#define BARRIERS (CODES + CODE_STAGES * STAGED_BYTES)
#define CODE_BARRIERS (BARRIERS + 16 * WIDE_STAGES)

// Tiles of 8 x 8 halves side by side: the next 8 columns of the sum, and the next 8 rows or columns.
DEVICE u64 tiles_descriptor(u32 at, u32 columns_apart, u32 rows_apart) {
    return (u64)(at >> 4) | (u64)(columns_apart >> 4) << 16 | (u64)(rows_apart >> 4) << 32;
}

// Up to 8 tiles of one row, and a head.
struct WideWork {
    const AttentionTile* tiles;
    u32 count, head_kv;
    StepRow row;

    // Of tile `index`; without rows where there is none.
    DEVICE Place place(const AttentionArguments& arguments, u32 index) const {
        Place found = place_of(tiles[min(index, count - 1)], row, arguments);
        if (index >= count) found.rows = 0;
        return found;
    }
};

// Blocks of threads take the items in turn, there and back: the list starts with the longest.
DEVICE u32 wide_index(u32 turn) {
    return turn * gridDim.x + (turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

DEVICE WideWork wide_work(const AttentionArguments& arguments, u32 index) {
    const WideItem item = arguments.wide_items[index / arguments.heads_kv];
    const AttentionTile* tiles = arguments.tiles + item.tile;
    return {tiles, item.tiles, index % arguments.heads_kv, arguments.rows[tiles->row]};
}

// The blocks of positions of all items of a block of threads, one after the other.
struct Walk {
    u32 turn, block, end, last, head_kv;
    const u32* table;

    DEVICE explicit Walk(const AttentionArguments& arguments, u32 count) : turn(0) {
        find(arguments, count);
    }

    DEVICE bool is_there(u32 count) const { return turn * gridDim.x < count; }

    DEVICE void find(const AttentionArguments& arguments, u32 count) {
        for (; is_there(count); turn++) {
            const u32 index = wide_index(turn);
            if (index >= count) continue;
            const WideWork item = wide_work(arguments, index);
            const Place final = item.place(arguments, item.count - 1);
            block = first_block(arguments, item.place(arguments, 0)), end = end_block(final);
            last = last_position(final), head_kv = item.head_kv;
            table = arguments.blocks + item.row.blocks_start;
            return;
        }
    }

    DEVICE void next(const AttentionArguments& arguments, u32 count) {
        if (++block < end) return;
        turn++;
        find(arguments, count);
    }

    // A page that the tiles do not see at all may not exist: its twin stands in, masked.
    DEVICE const u16* page(const AttentionArguments& arguments, u32 p) const {
        return page_of(arguments, table, head_kv, min(block * 2 + p, last / PAGE_TOKENS));
    }
};

#if KV_BITS == 8

// Asks for the codes of a block, if there is one left.
DEVICE void ask_for_codes(const AttentionArguments& arguments, u32 base, u32 count, Walk& walk,
    Ring& ring) {
    if (!walk.is_there(count)) return;
    const u32 codes = base + CODES + ring.stage * STAGED_BYTES;
    const u32 full = base + CODE_BARRIERS + 8 * ring.stage;
    wait_barrier(full + 8 * CODE_STAGES, ring.parity);
    arrive_expecting(full, STAGED_BYTES);
    for (u32 p = 0; p < 2; p++) {
        const u8* page = (const u8*)walk.page(arguments, p);
        copy_bytes(codes + p * SIDE_BYTES, page, SIDE_BYTES, full);
        copy_bytes(codes + (2 + p) * SIDE_BYTES, page + SIDE_BYTES, SIDE_BYTES, full);
        copy_bytes(codes + 4 * SIDE_BYTES + p * SCALES_BYTES, page + 2 * SIDE_BYTES, SCALES_BYTES,
            full);
    }
    ring.next<CODE_STAGES>();
    walk.next(arguments, count);
}

// A lane's 8 codes become pairs in four tiles, `apart` bytes from each other.
DEVICE void put_halves(u32 to, u32 apart, const u8* codes) {
    const uint4 halves = decoded(*(const uint2*)codes);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(halves.x) : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + apart), "r"(halves.y) : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 2 * apart), "r"(halves.z) : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + 3 * apart), "r"(halves.w) : "memory");
}

// Makes halves of all blocks, by 4 warps, the first thread of which asks for their codes.
DEVICE void decode_blocks(const AttentionArguments& arguments, u32 base, u32 count) {
    const u32 thread = threadIdx.x - 256, lane = thread % 32, warp = thread / 32;
    Ring asked = {0, 1}, from = {0, 0}, to = {0, 1};
    Walk walk(arguments, count), ahead = walk;
    if (thread == 0)
        for (u32 i = 0; i + 1 < CODE_STAGES; i++) ask_for_codes(arguments, base, count, ahead, asked);
    for (; walk.is_there(count); walk.next(arguments, count)) {
        if (thread == 0) ask_for_codes(arguments, base, count, ahead, asked);
        __syncwarp();
        const u32 codes_full = base + CODE_BARRIERS + 8 * from.stage;
        const u32 full = base + BARRIERS + 8 * to.stage;
        wait_barrier(codes_full, from.parity);
        wait_barrier(full + 8 * WIDE_STAGES, to.parity);
        const u8* codes = (const u8*)shared_floats + CODES + from.stage * STAGED_BYTES;
        const u8* own = codes + 256 * warp + 64 * (lane % 4) + 8 * (lane / 4);
        const u32 stage = base + to.stage * STAGE_BYTES + 4 * lane;
        // A warp takes every fourth 256 codes: 8 positions by 32 dims, and 32 by 8.
#pragma unroll
        for (u32 i = 0; i < HEAD / 16; i++)
            put_halves(stage + 512 * warp + 2048 * i, 128, own + 1024 * i);
#pragma unroll
        for (u32 i = 0; i < HEAD / 16; i++) {
            const u32 p = i / (HEAD / 32), e = i % (HEAD / 32) * 4;
            put_halves(stage + KEY_BYTES + 64 * HEAD * p + 128 * (e + warp), 16 * HEAD,
                own + 2 * SIDE_BYTES + 1024 * i);
        }
        // Of values beyond the last position there may be anything.
        const u32 position = walk.block * BLOCK_TOKENS + thread / 64 * PAGE_TOKENS + thread % 32;
        const bool is_seen = thread % 64 < 32 || position <= walk.last;
        shared_floats[STAGE_SCALES / 4 + to.stage * 128 + thread] =
            is_seen ? ((const float*)(codes + 4 * SIDE_BYTES))[thread] : 0.0f;
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (lane == 0) arrive(full), arrive(codes_full + 8 * CODE_STAGES);
        from.next<CODE_STAGES>(), to.next<WIDE_STAGES>();
    }
}

#else

DEVICE void ask_for_blocks(const AttentionArguments& arguments, u32 base, u32 count) {
    Ring ring = {0, 1};
    for (Walk walk(arguments, count); walk.is_there(count); walk.next(arguments, count)) {
        const u32 stage = base + ring.stage * STAGE_BYTES;
        const u32 full = base + BARRIERS + 8 * ring.stage;
        const u16* pages[2];
        for (u32 p = 0; p < 2; p++) pages[p] = walk.page(arguments, p);
        wait_barrier(full + 8 * WIDE_STAGES, ring.parity);
        arrive_expecting(full, STAGE_BYTES);
        for (u32 p = 0; p < 2; p++) {
            copy_bytes(stage + p * (KEY_BYTES / 2), pages[p], KEY_BYTES / 2, full);
            copy_bytes(stage + KEY_BYTES + p * (KEY_BYTES / 2), pages[p] + PAGE_HALVES / 2,
                KEY_BYTES / 2, full);
        }
        ring.next<WIDE_STAGES>();
    }
}

#endif

// What a thread holds of rows g and g + 8 of its warp's tile: maximum, sum and weighted values.
struct Held {
    float maximum[2], sum[2];
    float values[HEAD / 2];
};

DEVICE void clear(Held& held) {
#pragma unroll
    for (int half = 0; half < 2; half++) held.maximum[half] = MINUS_INFINITY, held.sum[half] = 0.0f;
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++) held.values[i] = 0.0f;
}

// Factors of both rows; maximum and sum are merged.
DEVICE void merge_sums(
    Factors (&factors)[2], Held& held, const float (&maxima)[2], const float (&sums)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float maximum = fmaxf(held.maximum[half], maxima[half]);
        factors[half] = merge_factors(held.maximum[half], maxima[half], maximum);
        held.maximum[half] = maximum;
        held.sum[half] = merged(held.sum[half], sums[half], factors[half]);
    }
}

// What a thread holds of earlier stretches; its values are in shared memory, four side by side.
struct Total {
    float maximum[2], sum[2];
    float4* values;
};

DEVICE void add_to_total(Total& total, Held& held, bool is_first) {
    Factors factors[2] = {{0.0f, 1.0f}, {0.0f, 1.0f}};
    if (!is_first) {
        Held before;
#pragma unroll
        for (int half = 0; half < 2; half++)
            before.maximum[half] = total.maximum[half], before.sum[half] = total.sum[half];
        merge_sums(factors, before, held.maximum, held.sum);
#pragma unroll
        for (int half = 0; half < 2; half++)
            held.maximum[half] = before.maximum[half], held.sum[half] = before.sum[half];
#pragma unroll
        for (int e = 0; e < HEAD / 8; e++) {
            const float4 old = total.values[e * 128];
            float* own = held.values + 4 * e;
            own[0] = merged(old.x, own[0], factors[0]), own[1] = merged(old.y, own[1], factors[0]);
            own[2] = merged(old.z, own[2], factors[1]), own[3] = merged(old.w, own[3], factors[1]);
        }
    }
}

// To the total, and nothing is held.
DEVICE void keep_total(Total& total, Held& held) {
#pragma unroll
    for (int half = 0; half < 2; half++)
        total.maximum[half] = held.maximum[half], total.sum[half] = held.sum[half];
#pragma unroll
    for (int e = 0; e < HEAD / 8; e++) {
        const float* own = held.values + 4 * e;
        total.values[e * 128] = make_float4(own[0], own[1], own[2], own[3]);
    }
    clear(held);
}

DEVICE void write_held(const Held& held, const AttentionArguments& arguments, const Place& place,
    u32 head_kv, u32 lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 r = lane / 4 + 8 * half;
        if (!is_row(place, r)) continue;
        const float sum =
            held.sum[half] + sink_weight(arguments, place, head_kv, r, held.maximum[half]);
        u16* to = output_of(arguments, place, head_kv, r);
#pragma unroll
        for (int e = 0; e < TILES_V; e++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 dim = 8 * e + 2 * (lane % 4) + i;
                if (dim < arguments.head_dim)
                    to[dim] = output_half(held.values[4 * e + 2 * half + i], sum);
            }
    }
}

// The scores of a block are on their way.
DEVICE void ask_for_scores(float (&scores)[32], const Query& q, u32 stage) {
    fence_registers();
#pragma unroll
    for (int m = 0; m < HEAD / 16; m++)
        multiply_group(scores, q.words[m / 2][m % 2],
            tiles_descriptor(stage + 256 * m, 128, 16 * HEAD), m != 0);
    end_products();
}

DEVICE void ask_for_values(float (&sums)[HEAD / 2], const u32 (&weights)[4][4], u32 stage) {
    fence_registers();
#pragma unroll
    for (int m = 0; m < 4; m++)
        multiply_group(sums, weights[m],
            tiles_descriptor(stage + KEY_BYTES + 32 * HEAD * m, 16 * HEAD, 128), m != 0);
    end_products();
}

// Values of positions beyond `last` may be anything, and no number times zero is none: they become
// zeros. Both groups write the same, and neither reads.
DEVICE void hide_values(u32 stage, u32 block, u32 last, u32 group) {
    for (u32 i = threadIdx.x % 128; i < 8 * HEAD; i += 128) {
        const u32 at = block * BLOCK_TOKENS + 8 * (i / HEAD), unit = stage + KEY_BYTES + 16 * i;
        const u32 seen = last + 1 > at ? last + 1 - at : 0;
        if (seen == 0)
            asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(unit), "r"(0) : "memory");
        else
            for (u32 j = seen; j < 8; j++)
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(unit + 2 * j), "h"((u16)0) : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    if (group == 0)
        asm volatile("bar.sync 1, 128;" ::: "memory");
    else
        asm volatile("bar.sync 2, 128;" ::: "memory");
}

// The blocks of an item, as a group of warps sees them: its own are from `begin` to `end`.
struct Blocks {
    u32 all_begin, begin, end, all_end;
};

DEVICE Blocks blocks_of(const AttentionArguments& arguments, const WideWork& item, u32 group) {
    const Place first = item.place(arguments, 0), final = item.place(arguments, item.count - 1);
    const u32 begin = first_block(arguments, first), end = end_block(final);
    // A group without tiles passes all.
    Blocks blocks = {begin, end, end, end};
    if (4 * group < item.count) {
        blocks.begin = first_block(arguments, item.place(arguments, 4 * group));
        blocks.end = end_block(item.place(arguments, min(4 * group + 3, item.count - 1)));
    }
    return blocks;
}

// A stage of the ring, where a group of warps is.
struct Consumer {
    u32 base;
    Ring ring;

    DEVICE u32 stage() const { return base + ring.stage * STAGE_BYTES; }
    DEVICE u32 full() const { return base + BARRIERS + 8 * ring.stage; }
    DEVICE void wait() const { wait_barrier(full(), ring.parity); }
#if KV_BITS == 8
    DEVICE Scales scales() const {
        const float* first = shared_floats + STAGE_SCALES / 4 + ring.stage * 128;
        return {{first, first + 64}};
    }
#else
    DEVICE int scales() const { return 0; }
#endif
    DEVICE void release(u32 lane) const {
        if (lane == 0) arrive(full() + 8 * WIDE_STAGES);
    }
};

// Of blocks that a group does not see.
DEVICE void pass_blocks(Consumer& consumer, u32 count, u32 lane) {
    for (; count > 0; count--) {
        consumer.wait();
        __syncwarp();
        consumer.release(lane);
        consumer.ring.next<WIDE_STAGES>();
    }
}

// What a group of warps works with, block by block.
struct Attending {
    Consumer consumer;
    Query q;
    Held held;
    float scores[32], sums[HEAD / 2];
    u32 lane, group, last;
    bool is_first;  // no stretch is complete yet
};

// One block, whose scores are on their way; those of the next block are made while its values are
// merged.
template <bool HAS_NEXT>
DEVICE void attend_one(Attending& now, Total& total, const AttentionArguments& arguments,
    const Place& place, u32 block) {
    settle(now.scores);
    Weighed weighed;
    weigh_scores<false>(weighed, (Scores&)now.scores, now.consumer.scales(), arguments, place, block,
        now.lane);
    u32 weights[4][4];
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) weights[m][i] = weighed.weights[2 * m + i / 2][i % 2];
    if (KV_BITS != 8 && (block + 1) * BLOCK_TOKENS > now.last + 1)
        hide_values(now.consumer.stage(), block, now.last, now.group);
    Factors factors[2];
    merge_sums(factors, now.held, weighed.maximum, weighed.sum);
    Consumer next = now.consumer;
    next.ring.next<WIDE_STAGES>();
    if (HAS_NEXT) next.wait();
    ask_for_values(now.sums, weights, now.consumer.stage());
    if (HAS_NEXT) ask_for_scores(now.scores, now.q, next.stage());
    settle<HAS_NEXT ? 1 : 0>(now.sums);
    now.consumer.release(now.lane);
    now.consumer = next;
#pragma unroll
    for (int half = 0; half < 2; half++) factors[half].added /= VALUE_SCALE;
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++)
        now.held.values[i] = merged(now.held.values[i], now.sums[i], factors[i / 2 % 2]);
    if (!HAS_NEXT || (block + 1) % STRETCH_BLOCKS == 0) {
        add_to_total(total, now.held, now.is_first);
        if (HAS_NEXT) keep_total(total, now.held);
        now.is_first = false;
    }
}

DEVICE void attend_wide(Consumer& consumer, const AttentionArguments& arguments,
    const WideWork& item, u32 group, Total& total) {
    const u32 lane = threadIdx.x % 32;
    const Blocks blocks = blocks_of(arguments, item, group);
    pass_blocks(consumer, blocks.begin - blocks.all_begin, lane);
    if (blocks.begin < blocks.end) {
        const Place place = item.place(arguments, threadIdx.x / 32);
        Attending now;
        now.consumer = consumer, now.lane = lane, now.group = group, now.is_first = true;
        now.last = last_position(item.place(arguments, item.count - 1));
        load_query(now.q, arguments, place, item.head_kv, lane);
        clear(now.held);
        now.consumer.wait();
        ask_for_scores(now.scores, now.q, now.consumer.stage());
        u32 block = blocks.begin;
        for (; block + 1 < blocks.end; block++)
            attend_one<true>(now, total, arguments, place, block);
        attend_one<false>(now, total, arguments, place, block);
        write_held(now.held, arguments, place, item.head_kv, lane);
        consumer = now.consumer;
    }
    pass_blocks(consumer, blocks.all_end - blocks.end, lane);
}

extern "C" __global__ void __launch_bounds__(384, 1)
    paged_attention_wide(const __grid_constant__ AttentionArguments arguments) {
    const u32 base = (u32)__cvta_generic_to_shared(shared_floats);
    const u32 warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < WIDE_STAGES; stage++) {
            init_barrier(base + BARRIERS + 8 * stage, KV_BITS == 8 ? 4 : 1);
            init_barrier(base + BARRIERS + 8 * (WIDE_STAGES + stage), 8);
        }
#if KV_BITS == 8
        for (u32 stage = 0; stage < CODE_STAGES; stage++) {
            init_barrier(base + CODE_BARRIERS + 8 * stage, 1);
            init_barrier(base + CODE_BARRIERS + 8 * (CODE_STAGES + stage), 4);
        }
#endif
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    // The lists of a step are written before its first kernel starts.
    const u32 count = arguments.header->wide_items * arguments.heads_kv;
    let_next_start();
    wait_for_previous();
    if (warp >= 8) {
#if KV_BITS == 8
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        decode_blocks(arguments, base, count);
#else
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 256) ask_for_blocks(arguments, base, count);
#endif
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(KV_BITS == 8 ? 232 : 240));
        Consumer consumer = {base, {0, 0}};
        Total total;
        total.values = (float4*)shared_floats + TOTALS / 16 + warp / 4 * (HEAD / 8 * 128) +
            threadIdx.x % 128;
        for (u32 turn = 0; turn * gridDim.x < count; turn++) {
            const u32 index = wide_index(turn);
            if (index < count)
                attend_wide(consumer, arguments, wide_work(arguments, index), warp / 4, total);
        }
    }
}

#endif
