// linear on Hopper: the copy engine brings inputs and weights, asynchronous tensor cores multiply.
//
// A block has two groups of 4 warps, which take 64 weight rows each and the same N tokens, and a warp
// that asks for the copies, some stages ahead. Weights become f16 in registers, while products of the
// other group run; inputs are read from shared memory by the tensor cores themselves.
//
// Roof: 64 rows, N tokens and 16 columns take N / 2 cycles; a chunk of N = 192 brings 29 KB in 768
// cycles, which is two thirds of what a multiprocessor gets from the L2 cache. The more tokens, the
// less unpacking for each product: it and the tensor cores wait for each other's registers.
// The loop over chunks is slower by 7 % where the compiler cannot tell that warps stay together:
// nothing here exchanges values between lanes, or branches by lane.
// wgmma and mbarrier: https://docs.nvidia.com/cuda/parallel-thread-execution

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of all blocks of the cluster.
DEVICE void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// The same of block `rank` of the cluster.
DEVICE void arrive_at(u32 barrier, u32 rank) {
    asm volatile(
        "{.reg .u32 there; mapa.shared::cluster.u32 there, %0, %1; "
        "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Columns and tokens from a place of the inputs on; units of 16 bytes are swapped by the token.
DEVICE void copy_tokens(u32 to, const TensorMap& map, u32 column, u32 token, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(token), "r"(barrier)
        : "memory");
}

// The same for both blocks of a pair, to the same places.
DEVICE void copy_to_pair(u32 to, const TensorMap& map, u32 column, u32 token, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(column), "r"(token), "r"(barrier), "h"((u16)3)
        : "memory");
}

// Of inputs in shared memory, rows of 128 bytes whose 16-byte units are swapped by the row ("128-byte
// swizzle"); product m's 16 columns start 32 m bytes in.
DEVICE u64 input_descriptor(u32 stage) {
    return (u64)(stage >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

#define WIDE_TILES 8u
#define WEIGHT_BYTES (WIDE_TILES * CHUNK_BYTES)
// How a block's shared memory is laid out, from a multiple of 1,024 bytes on: src/kernels.rs asks for
// all that a block can have.
template <int N>
struct Layout {
    static const u32 stages = 6;
    static const u32 barriers = stages * N * 128;  // full ones, then free ones
    static const u32 weights = barriers + 128;
    static const u32 room = (227 * 1024 - 1024 - weights) / WEIGHT_BYTES;
    static const u32 slots = room < 8 ? room : 8;
};

// Which 128 rows and N tokens a block works on: its pair the same tokens and the next rows; pairs
// after one another share rows.
struct WideItem {
    u32 part, tile, token;
};

template <int N>
DEVICE WideItem wide_item(const LinearArguments& arguments, u32 item, u32 tokens) {
    const u32 token_tiles = (tokens + N - 1) / N;
    u32 block = item / token_tiles * 2 + cluster_rank();
    const u32 token = item % token_tiles * N, part = find_part(arguments, WIDE_TILES, block);
    return {part, block * WIDE_TILES, token};
}

template <int N>
DEVICE u32 wide_items(const LinearArguments& arguments, u32 tokens) {
    u32 blocks = 0;
    for (u32 part = 0; part < arguments.parts; part++)
        blocks += (arguments.part[part].tiles + WIDE_TILES - 1) / WIDE_TILES;
    return (blocks + 1) / 2 * ((tokens + N - 1) / N);
}

// One thread asks for the inputs of one chunk after the other: for half of the tokens, for both blocks.
template <int N>
DEVICE void ask_for_inputs(const LinearArguments& arguments, u32 base, u32 tokens) {
    const u32 items = wide_items<N>(arguments, tokens), half = cluster_rank() * (N / 2);
    Ring ring = {0, 1};
    for (u32 index = blockIdx.x / 2; index < items; index += gridDim.x / 2) {
        const u32 token = wide_item<N>(arguments, index, tokens).token;
        for (u32 chunk = 0; chunk < arguments.chunks; chunk++) {
            const u32 full = base + Layout<N>::barriers + 8 * ring.stage;
            wait_barrier(full + 8 * Layout<N>::stages, ring.parity);
            arrive_expecting(full, N * 128);
            copy_to_pair(base + ring.stage * (N * 128) + half * 128, arguments.map, 64 * chunk,
                token + half, full);
            ring.next<Layout<N>::stages>();
        }
    }
}

// A warp's own copies of its tile's weights, in the order of its items, some slots ahead.
template <int N>
struct WideWeights {
    Place place;  // a lane's own 16 bytes of each section
    u8* own;
    u32 index, items, left, slot;

    DEVICE void start(const LinearArguments& arguments, u32 tokens, u32 warp, u32 lane) {
        if (index >= items) return;
        const WideItem item = wide_item<N>(arguments, index, tokens);
        place = place_of(arguments.part[item.part], arguments.chunks, item.tile + warp);
        place.codes += 16 * lane, place.high += 16 * lane, place.scales += 16 * lane;
        left = arguments.chunks;
    }

    // Asks for the next chunk, if there is one, for slot `to`.
    DEVICE void ask(const LinearArguments& arguments, u32 tokens, u32 to, u32 warp, u32 lane) {
        if (index < items) {
            u8* slot_at = own + to * WEIGHT_BYTES + 16 * lane;
#pragma unroll
            for (int i = 0; i < CODE_BYTES / 512; i++)
                copy_16(slot_at + 512 * i, place.codes + 512 * i);
            if (HIGH_BYTES > 0 && lane < HIGH_BYTES / 16) copy_16(slot_at + CODE_BYTES, place.high);
            if (SCALE_BYTES > 0 && lane < SCALE_BYTES / 16)
                copy_16(slot_at + CODE_BYTES + HIGH_BYTES, place.scales);
            place.codes += CODE_BYTES, place.high += HIGH_BYTES, place.scales += SCALE_BYTES;
            if (--left == 0) {
                index += gridDim.x / 2;
                start(arguments, tokens, warp, lane);
            }
        }
        end_copies();
    }

    DEVICE void first(const LinearArguments& arguments, u32 tokens, u32 warp, u32 lane) {
        start(arguments, tokens, warp, lane);
        for (u32 to = 0; to + 1 < Layout<N>::slots; to++) ask(arguments, tokens, to, warp, lane);
        slot = 0;
    }

    DEVICE void next(
        Weights& now, const LinearArguments& arguments, u32 tokens, u32 warp, u32 lane) {
        wait_for_copies<Layout<N>::slots - 2>();
        __syncwarp();
        load_staged(now, own + slot * WEIGHT_BYTES, lane);
        // The slot before was read by all lanes when the last chunk's fragments were made.
        ask(arguments, tokens, slot == 0 ? Layout<N>::slots - 1 : slot - 1, warp, lane);
        slot = slot + 1 == Layout<N>::slots ? 0 : slot + 1;
    }
};

// A full barrier, its stage and parity.
struct Arrival {
    u32 barrier, stage, parity;
};

// Adds chunks to the sums, the first one's weights in `now` and in the end those of the one behind the
// last. `next` gives weights, `arrival` inputs, chunk by chunk; `release` frees a stage. A group of
// warps makes no fragments while its own products run, but the other group's do: the compiler would
// wait for the products first, and where it is kept from that, all takes longer.
template <int N, typename Next, typename Inputs, typename Release>
DEVICE void add_chunks(float (&sums)[N / 2], Weights& now, u32 count, bool starts, Next next,
    Inputs arrival, Release release) {
    for (; count > 0; count--) {
        u32 a[4][4];
#pragma unroll
        for (int m = 0; m < 4; m++) fragment(a[m], now, m);
        const Arrival inputs = arrival();
        const u64 descriptor = input_descriptor(inputs.stage);
        wait_barrier(inputs.barrier, inputs.parity);
        fence_registers();
#pragma unroll
        for (int m = 0; m < 4; m++)
            multiply_group(sums, a[m], descriptor + 2 * m, !(starts && m == 0));
        end_products();
        if (LINEAR_BITS != 16) next(now);
        wait_for_products<0>();
        release();
        // Half weights are fragments as they are.
        if (LINEAR_BITS == 16) next(now);
        starts = false;
    }
    settle(sums);
}

// In the order of the program: pulled ahead of each other, their places would fill the registers.
struct Adds {
    DEVICE void operator()(bool condition, float* to, float value) const {
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p red.global.add.f32 [%0], %1;}" ::"l"(
                         to),
            "f"(value), "r"((u32)condition)
            : "memory");
    }
};

struct Stores {
    DEVICE void operator()(bool condition, float* to, float value) const {
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.f32 [%0], %1;}" ::"l"(to),
            "f"(value), "r"((u32)condition)
            : "memory");
    }
};

// Writes 16 rows of N tokens in f32.
template <int N, typename Write>
DEVICE void write_rows(const LinearPart& part, float input_scale, u32 row, u32 first, u32 tokens,
    const float (&sums)[N / 2], Write write) {
#pragma unroll
    for (int half = 0; half < 2; half++, row += 8) {
        const int left = row < part.rows ? (int)(tokens - first) : 0;
        const bool has_bias = part.bias && row < part.rows;
        const float bias = has_bias ? part.bias[row] : 0.0f;
        float* to = (float*)part.output + (size_t)first * part.output_stride + row;
#pragma unroll
        for (int i = 0; i < N / 4; i++) {
            const float value = sums[i / 2 * 4 + 2 * half + i % 2] * input_scale;
            write(i / 2 * 8 + i % 2 < left, to, has_bias ? value + bias : value);
            to += (i % 2 == 0 ? 1 : 7) * part.output_stride;
            // One place after the other: all at once would not fit beside the sums.
            asm volatile("" : "+l"(to));
        }
    }
}

// Writes 8 gated rows of N tokens in f16.
template <u32 MODE, int N>
DEVICE void write_gated(const LinearPart& part, float input_scale, u32 row, u32 first, u32 tokens,
    const float (&sums)[N / 2]) {
    const int left = row < part.rows ? (int)(tokens - first) : 0;
    u16* to = (u16*)part.output + (size_t)first * part.output_stride + row;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const int at = i / 2 * 4 + i % 2;
        const float value = gated(MODE, sums[at] * input_scale, sums[at + 2] * input_scale);
        const u16 half = to_half(within_half(value * GATED_SCALE));
        if (i / 2 * 8 + i % 2 < left) *to = half;
        to += (i % 2 == 0 ? 1 : 7) * part.output_stride;
        asm volatile("" : "+l"(to));
    }
}

// Writes a warp's 16 rows of N tokens.
template <int N>
DEVICE void finish_wide(const LinearArguments& arguments, const WideItem& item, u32 warp, u32 lane,
    const float (&sums)[N / 2], u32 tokens) {
    const LinearPart part = arguments.part[item.part];
    const float input_scale = arguments.input_scale;
    const u32 tile = item.tile + warp, g = lane / 4, first = item.token + 2 * (lane % 4);
    if (tile >= part.tiles) return;
    if (part.mode >= GATE_SILU) {
        if (part.mode == GATE_SILU)
            write_gated<GATE_SILU, N>(part, input_scale, tile * 8 + g, first, tokens, sums);
        else
            write_gated<GATE_GELU, N>(part, input_scale, tile * 8 + g, first, tokens, sums);
        return;
    }
    if (part.mode == ADD)
        write_rows<N>(part, input_scale, tile * 16 + g, first, tokens, sums, Adds());
    else
        write_rows<N>(part, input_scale, tile * 16 + g, first, tokens, sums, Stores());
}

template <int N>
DEVICE void multiply_wide(const LinearArguments& arguments, u32 base, u32 tokens, u32 warp, u32 lane) {
    const u32 chunks = arguments.chunks;
    u8* shared = (u8*)shared_halves + (base - (u32)__cvta_generic_to_shared(shared_halves));
    float sums[N / 2], totals[N / 2];
    Weights now;
    WideWeights<N> weights = {};
    weights.own = shared + Layout<N>::weights + warp * CHUNK_BYTES;
    weights.index = blockIdx.x / 2, weights.items = wide_items<N>(arguments, tokens);
    weights.first(arguments, tokens, warp, lane);
    Ring ring = {0, 0};
    u32 full = base + Layout<N>::barriers;
    auto next = [&](Weights& w) { weights.next(w, arguments, tokens, warp, lane); };
    auto arrival = [&]() -> Arrival {
        full = base + Layout<N>::barriers + 8 * ring.stage;
        const Arrival inputs = {full, base + ring.stage * (N * 128), ring.parity};
        ring.next<Layout<N>::stages>();
        return inputs;
    };
    auto release = [&]() {
        if (lane < 2) arrive_at(full + 8 * Layout<N>::stages, lane);
    };
    next(now);
    for (u32 index = blockIdx.x / 2; index < weights.items; index += gridDim.x / 2) {
        u32 end = 0;
        for (u32 slice = 0; slice < SLICES; slice++) {
            const u32 begin = end;
            end = slice_start(slice + 1, chunks);
            if (begin == end) continue;
            add_chunks<N>(sums, now, end - begin, true, next, arrival, release);
#pragma unroll
            for (int i = 0; i < N / 2; i++) totals[i] = (begin == 0 ? 0.0f : totals[i]) + sums[i];
        }
        finish_wide<N>(arguments, wide_item<N>(arguments, index, tokens), warp, lane, totals, tokens);
    }
}

template <int N>
DEVICE void wide(const LinearArguments& arguments) {
    const u32 start = (u32)__cvta_generic_to_shared(shared_halves), base = (start + 1023) & ~1023u;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < Layout<N>::stages; stage++) {
            init_barrier(base + Layout<N>::barriers + 8 * stage, 1);
            init_barrier(base + Layout<N>::barriers + 8 * (Layout<N>::stages + stage), 16);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();
    const u32 tokens = *arguments.tokens;
    let_next_start();
    wait_for_previous();
    if (warp >= 8) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 256) ask_for_inputs<N>(arguments, base, tokens);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        multiply_wide<N>(arguments, base, tokens, warp, lane);
    }
    // Nobody leaves while copies and arrivals of the other are on their way.
    meet_cluster();
}

// Some tokens: a cluster of 8 blocks takes 128 weight rows, each block one slice of the columns, and
// adds the slices up from each other's shared memory.
template <int N>
struct SplitLayout {
    static const u32 stages = N <= 64 ? 8 : 4;
    static const u32 slots = LINEAR_BITS == 16 ? 4 : 8;
    static const u32 barriers = stages * N * 128;
    static const u32 weights = barriers + 128;
    static const u32 end = weights + slots * WEIGHT_BYTES;
};

// Four floats from the same place of another block's shared memory.
DEVICE float4 load_from(u32 address, u32 rank) {
    float4 four;
    asm volatile(
        "{.reg .u32 there; mapa.shared::cluster.u32 there, %4, %5; "
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];}"
        : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
        : "r"(address), "r"(rank)
        : "memory");
    return four;
}

template <int N>
DEVICE void multiply_split(const LinearArguments& arguments, const Place& place, u32 base, u32 begin,
    u32 end, u8* own, float (&sums)[N / 2], u32 lane) {
    const u32 slots = SplitLayout<N>::slots;
    u32 slot = 0, ahead = begin + slots - 1;
    auto next = [&](Weights& w) {
        wait_for_copies<slots - 2>();
        __syncwarp();
        load_staged(w, own + slot * WEIGHT_BYTES, lane);
        if (ahead < end)
            stage_weights(own + (slot == 0 ? slots - 1 : slot - 1) * WEIGHT_BYTES, place, ahead, lane);
        end_copies();
        ahead++;
        slot = slot + 1 == slots ? 0 : slot + 1;
    };
    Ring ring = {0, 0};
    u32 full = base + SplitLayout<N>::barriers;
    auto arrival = [&]() -> Arrival {
        full = base + SplitLayout<N>::barriers + 8 * ring.stage;
        const Arrival inputs = {full, base + ring.stage * (N * 128), ring.parity};
        ring.next<SplitLayout<N>::stages>();
        return inputs;
    };
    auto release = [&]() {
        if (lane == 0) arrive(full + 8 * SplitLayout<N>::stages);
    };
#pragma unroll
    for (int i = 0; i < N / 2; i++) sums[i] = 0.0f;
    Weights now;
    next(now);
    add_chunks<N>(sums, now, end - begin, false, next, arrival, release);
}

template <int N>
DEVICE void split(const LinearArguments& arguments) {
    const u32 start = (u32)__cvta_generic_to_shared(shared_halves), base = (start + 1023) & ~1023u;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = cluster_rank();
    const u32 chunks = arguments.chunks;
    const u32 begin = slice_start(rank, chunks), end = slice_start(rank + 1, chunks);
    u32 block = blockIdx.x / SLICES;
    const LinearPart& part = arguments.part[find_part(arguments, WIDE_TILES, block)];
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < SplitLayout<N>::stages; stage++) {
            init_barrier(base + SplitLayout<N>::barriers + 8 * stage, 1);
            init_barrier(base + SplitLayout<N>::barriers + 8 * (SplitLayout<N>::stages + stage), 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    u8* shared = (u8*)shared_halves + (base - start);
    u8* own = shared + SplitLayout<N>::weights + warp * CHUNK_BYTES;
    const Place place = place_of(part, chunks, block * WIDE_TILES + warp);
    if (warp < 8) {
        for (u32 slot = 0; slot + 1 < SplitLayout<N>::slots; slot++) {
            if (begin + slot < end)
                stage_weights(own + slot * WEIGHT_BYTES, place, begin + slot, lane);
            end_copies();
        }
    }
    const u32 tokens = *arguments.tokens;
    let_next_start();
    __syncthreads();
    wait_for_previous();
    float4* sent = (float4*)shared + lane;
    if (warp == 8) {
        Ring ring = {0, 1};
        for (u32 chunk = begin; chunk < end && lane == 0; chunk++) {
            const u32 full = base + SplitLayout<N>::barriers + 8 * ring.stage;
            wait_barrier(full + 8 * SplitLayout<N>::stages, ring.parity);
            arrive_expecting(full, N * 128);
            copy_tokens(base + ring.stage * (N * 128), arguments.map, 64 * chunk, 0, full);
            ring.next<SplitLayout<N>::stages>();
        }
        __syncwarp();
        __syncthreads();
    } else {
        float sums[N / 2];
        multiply_split<N>(arguments, place, base, begin, end, own, sums, lane);
        // The stages are all read; the sums take their place.
        __syncthreads();
#pragma unroll
        for (int nt = 0; nt < N / 8; nt++)
            sent[(warp * (N / 8) + nt) * 32] =
                make_float4(sums[4 * nt], sums[4 * nt + 1], sums[4 * nt + 2], sums[4 * nt + 3]);
    }
    meet_cluster();
    for (u32 nt = warp; nt < N / 8; nt += 8) {
        if (warp == 8) break;
        const u32 from = (u32)__cvta_generic_to_shared(sent + (rank * (N / 8) + nt) * 32);
        float4 parts[SLICES];
#pragma unroll
        for (u32 slice = 0; slice < SLICES; slice++) parts[slice] = load_from(from, slice);
        float total[4] = {};
#pragma unroll
        for (u32 slice = 0; slice < SLICES; slice++) {
            total[0] += parts[slice].x, total[1] += parts[slice].y;
            total[2] += parts[slice].z, total[3] += parts[slice].w;
        }
        finish(part, arguments.input_scale, block * WIDE_TILES + rank, lane, total, 8 * nt, tokens);
    }
    // Nobody leaves while others read its shared memory.
    meet_cluster();
}

#define LINEAR_SPLIT(N, BLOCKS)                                                                    \
    extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(288, BLOCKS)            \
        linear_split_##N(const __grid_constant__ LinearArguments arguments) {                      \
        split<N>(arguments);                                                                       \
    }

LINEAR_SPLIT(16, 2)
LINEAR_SPLIT(32, 2)
LINEAR_SPLIT(64, 2)
LINEAR_SPLIT(128, 1)

// `linear_wide_N` for N tokens a block; as many blocks as multiprocessors, which take items in turn.
#define LINEAR_WIDE(N)                                                                             \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                 \
        linear_wide_##N(const __grid_constant__ LinearArguments arguments) {                       \
        wide<N>(arguments);                                                                        \
    }

LINEAR_WIDE(32)
LINEAR_WIDE(64)
LINEAR_WIDE(128)
LINEAR_WIDE(192)

#else

// Many tokens: a block takes 128 weight rows and 64 tokens, 4 x 2 warps of 32 rows and 32 tokens.
// Inputs pass through shared memory, four chunks deep; the slices' totals are kept there too.
#define WIDE_TOKENS 64u
#define WIDE_STAGES (LINEAR_BITS == 16 ? 2u : 4u)
#define STAGE_HALVES (WIDE_TOKENS * 64)

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
    linear_wide_64(const __grid_constant__ LinearArguments arguments) {
    u16* stages = shared_halves;
    float* totals = (float*)(stages + WIDE_STAGES * STAGE_HALVES);
    u8* own_weights =
        (u8*)(totals + 32 * 256) + threadIdx.x / 64 * (2 * WIDE_STAGES * CHUNK_BYTES);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
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
            staged_inputs(x, stage, own_first + 8 * nt, lane);
            add_chunk<2>(sums[nt], a, x);
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
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
            finish(part, arguments.input_scale, tile + mt, lane, total[mt],
                token_first + own_first + 8 * nt, tokens);
    }
}

#endif
