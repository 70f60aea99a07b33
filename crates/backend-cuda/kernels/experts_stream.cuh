
// experts on Hopper for items of few tokens: as many blocks as multiprocessors share all pairs of tiles
// of all items, each a stretch of them. The copy engine brings a warp's weights to shared memory of its
// own, through one pair and item after the other, so that memory waits for nobody; an item's inputs
// stay there for all pairs of it.
//
// Roof: the bytes of the chosen experts' weights. Some 140 instructions a warp make 64 columns of a
// pair of tiles and 8 tokens, 1,152 bytes: half of what a multiprocessor issues in the time that 4 TB/s
// take.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Chunks of each of two tiles that come at once, and how many such pieces a warp asks for ahead.
#define PIECE (CHUNK_BYTES <= 576 ? 4u : CHUNK_BYTES <= 1200 ? 2u : 1u)
#define PIECE_BYTES (PIECE * CHUNK_BYTES)
#define RING_BYTES 9216u
#define RING_SLOTS (RING_BYTES / (2u * PIECE_BYTES))
// The rings of 16 warps and their sums, then inputs: src/kernels.rs.
#define STREAM_SUMS (16u * RING_BYTES)
#define STREAM_INPUTS (STREAM_SUMS + 16u * 1024u)

// Pairs of tiles, of all items one behind the other, that a group of warps takes: every `step`th.
struct PairStream {
    u32 pair, end, step, pairs;  // of them `pairs` are an item's
    u32 item;                    // that was looked at last
    u32 expert;

    DEVICE bool is_there() const { return pair < end; }
    DEVICE u32 own_item() const { return pair / pairs; }
    DEVICE u32 own_pair() const { return pair % pairs; }
};

// Where a warp's copies are: what it asks for next.
struct PairWeights {
    PairStream at;
    u32 ring, barriers, chunk, begin, end, slot;
    Place places[2];

    DEVICE void start(const ExpertsArguments& arguments, u32 size) {
        if (!at.is_there()) return;
        if (at.item != at.own_item()) {
            at.item = at.own_item();
            at.expert = arguments.items ? __ldcg(&arguments.items[at.item].expert)
                                        : item_of(arguments, at.item, size).expert;
        }
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
            places[mt] = place_of(arguments,
                at.expert * arguments.tiles + min(2 * at.own_pair() + mt, arguments.tiles - 1));
        chunk = begin;
    }

    // By one lane.
    DEVICE void ask(const ExpertsArguments& arguments, u32 size) {
        if (!at.is_there()) return;
        const u32 count = min(PIECE, end - chunk), full = barriers + 8 * slot;
        arrive_expecting(full, 2 * count * CHUNK_BYTES);
#pragma unroll
        for (int mt = 0; mt < 2; mt++) {
            const u32 to = ring + (2 * slot + mt) * PIECE_BYTES;
            const Place& place = places[mt];
            copy_bytes(to, place.codes + chunk * CODE_BYTES, count * CODE_BYTES, full);
            if (HIGH_BYTES > 0)
                copy_bytes(to + PIECE * CODE_BYTES, place.high + chunk * HIGH_BYTES,
                    count * HIGH_BYTES, full);
            if (SCALE_BYTES > 0)
                copy_bytes(to + PIECE * (CODE_BYTES + HIGH_BYTES),
                    place.scales + chunk * SCALE_BYTES, count * SCALE_BYTES, full);
        }
        chunk += count;
        slot = slot + 1 == RING_SLOTS ? 0 : slot + 1;
        if (chunk < end) return;
        at.pair += at.step;
        start(arguments, size);
    }
};

// Bytes from one token's inputs to the next one's: lanes of two tokens meet in no bank.
DEVICE u32 input_pitch(const ExpertsArguments& arguments) { return 128 * arguments.chunks + 64; }

// Starts the copies of an item's inputs: two warps a token, and then its next.
template <int NT>
DEVICE ExpertItem stage_inputs(const ExpertsArguments& arguments, u32 index, u8* to) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, size = 8 * NT;
    ExpertItem item;
    if (arguments.items)
        *(uint4*)&item = __ldcg((const uint4*)arguments.items + index);
    else
        item = item_of(arguments, index, size);
#pragma unroll
    for (u32 n = warp / 2; n < size; n += 8) {
        if (n >= item.count) break;
        const u32 entry = arguments.items ? __ldcg(arguments.entries + item.first + n)
                                          : entry_of(arguments, item, n);
        const u32 row = arguments.mode >= GATE_SILU ? entry / arguments.used : entry;
        const u16* from = arguments.input + (size_t)row * arguments.input_stride;
        for (u32 unit = 32 * (warp % 2) + lane; unit < 8 * arguments.chunks; unit += 64)
            copy_16(to + n * input_pitch(arguments) + 16 * unit, from + 8 * unit);
    }
    return item;
}

// Adds COUNT chunks of a piece of both tiles, from number `from` on; `x` is a lane's place in them.
template <int NT, u32 COUNT>
DEVICE void add_piece(float (&sums)[NT][2][4], const u8* piece, u32 from, const u16* x, u32 pitch,
    u32 token_tiles, u32 t) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 u = 0; u < COUNT; u++) {
        Weights now[2];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
            load_staged<PIECE>(now[mt], piece + mt * PIECE_BYTES, from + u, lane);
        Inputs inputs[NT];
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
            if (NT == 1 || nt < token_tiles)
                load_inputs(inputs[nt], x + nt * (4 * pitch) + 64 * (from + u), t);
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                u32 a[4];
                fragment(a, now[mt], m);
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
                    if (NT == 1 || nt < token_tiles)
                        multiply_tile(sums[nt][mt], a, inputs[nt].words[2 * m],
                            inputs[nt].words[2 * m + 1], sums[nt][mt]);
            }
    }
}

DEVICE void meet_slices(u32 group, u32 slices) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * slices) : "memory");
}

// Adds the slices' sums of 8 tokens in their order, by the warp whose turn it is, and finishes.
DEVICE void join_stream(const ExpertsArguments& arguments, const ExpertItem& item, u32 pair, u32 first,
    float (&sums)[2][4], u32 turn) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, slices = arguments.slices;
    const u32 slice = warp % slices, group = warp / slices;
    if (slices > 1) {
        float* shared = (float*)((u8*)shared_halves + STREAM_SUMS) + lane;
        // Who finished the pair before has read its sums.
        meet_slices(group, slices);
#pragma unroll
        for (int i = 0; i < 8; i++) shared[warp * 256 + 32 * i] = sums[i / 4][i % 4];
        meet_slices(group, slices);
        if (slice != turn % slices) return;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float sum = shared[group * slices * 256 + 32 * i];
            for (u32 other = 1; other < slices; other++)
                sum += shared[(group * slices + other) * 256 + 32 * i];
            sums[i / 4][i % 4] = sum;
        }
    }
    finish(arguments, item, pair, first, sums, lane);
}

template <int NT>
DEVICE void experts_in_stream(const ExpertsArguments& arguments) {
    __shared__ u64 barriers[16][RING_SLOTS];
    const u32 size = 8 * NT, buffers = NT == 1 ? 2 : 1;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 slices = arguments.slices, slice = warp % slices, groups = 16 / slices;
    const u32 pairs = (arguments.tiles + 1) / 2;
    const u32 own_barriers = (u32)__cvta_generic_to_shared(barriers[warp]);
    const u8* ring = (const u8*)shared_halves + warp * RING_BYTES;
    if (lane == 0) {
        for (u32 slot = 0; slot < RING_SLOTS; slot++) init_barrier(own_barriers + 8 * slot, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    const bool is_settled = lists_are_settled(arguments);
    if (!is_settled) wait_for_previous();
    // A token alone has as many items as experts: one load less that others wait for.
    const u32 items = !arguments.items || *arguments.tokens > 1 ? item_count(arguments, size)
                                                                : arguments.used;
    const u32 first = (u32)((u64)(items * pairs) * blockIdx.x / gridDim.x);
    const u32 last = (u32)((u64)(items * pairs) * (blockIdx.x + 1) / gridDim.x);
    const u32 begin = slice_start(arguments, slice), end = slice_start(arguments, slice + 1);
    u32 pair = first + warp / slices;
    PairWeights weights = {{pair, last, groups, pairs, ~0u, 0},
        (u32)__cvta_generic_to_shared(ring), own_barriers, begin, begin, end, 0, {}};
    if (lane == 0) {
        weights.start(arguments, size);
        for (u32 slot = 0; slot < RING_SLOTS; slot++) weights.ask(arguments, size);
    }
    __syncwarp();
    if (is_settled) wait_for_previous();
    let_next_start();
    if (first == last) return;
    const u32 pitch = input_pitch(arguments), item_last = (last - 1) / pairs;
    u8* inputs = (u8*)shared_halves + STREAM_INPUTS;
    ExpertItem next = {};
    if (buffers == 2) next = stage_inputs<NT>(arguments, first / pairs, inputs);
    end_copies();
    u32 slot = 0, parity = 0, turn = 0, buffer = 0;
    for (u32 index = first / pairs; index <= item_last; index++, buffer ^= buffers - 1) {
        const u32 ahead = index + buffers - 1;
        ExpertItem item = next;
        if (ahead <= item_last)
            next = stage_inputs<NT>(
                arguments, ahead, inputs + (buffer ^ (buffers - 1)) * size * pitch);
        if (buffers == 1) item = next;
        end_copies();
        wait_for_copies<NT == 1 ? 1 : 0>();
        __syncthreads();
        const u32 token_tiles = (item.count + 7) / 8;
        const u16* x = (const u16*)(inputs + (buffer * size + lane / 4) * pitch);
        for (; pair < min(last, (index + 1) * pairs); pair += groups, turn++) {
            float sums[NT][2][4] = {};
            for (u32 chunk = begin; chunk < end; chunk += PIECE) {
                wait_barrier(own_barriers + 8 * slot, parity);
                const u8* piece = ring + 2 * slot * PIECE_BYTES;
                if (chunk + PIECE <= end)
                    add_piece<NT, PIECE>(
                        sums, piece, 0, x + 64 * chunk, pitch, token_tiles, lane % 4);
                else
                    for (u32 u = 0; chunk + u < end; u++)
                        add_piece<NT, 1>(
                            sums, piece, u, x + 64 * chunk, pitch, token_tiles, lane % 4);
                __syncwarp();
                if (lane == 0) weights.ask(arguments, size);
                slot = slot + 1 == RING_SLOTS ? 0 : slot + 1;
                if (slot == 0) parity ^= 1;
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                if (nt >= token_tiles) break;
                join_stream(arguments, item, pair - index * pairs, 8 * nt, sums[nt], turn + nt);
            }
        }
        __syncthreads();
    }
}

#define EXPERTS_STREAM(NT, TOKENS)                                       \
    extern "C" __global__ void __launch_bounds__(512, 1)                 \
        experts_stream_##TOKENS(const __grid_constant__ ExpertsArguments arguments) { \
        experts_in_stream<NT>(arguments);                                \
    }

EXPERTS_STREAM(1, 8)
EXPERTS_STREAM(2, 16)

#endif
