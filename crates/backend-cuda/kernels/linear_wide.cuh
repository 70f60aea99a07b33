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
// nothing here branches by lane or by what it read, and `common` says what lanes have in common.
// wgmma and mbarrier: https://docs.nvidia.com/cuda/parallel-thread-execution

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Which of its cluster's blocks this is. (The register that says so is not known to be the same for
// all lanes of a warp; a loop that depends on it would not be, either.)
template <u32 BLOCKS>
DEVICE u32 cluster_rank() {
    return blockIdx.x % BLOCKS;
}

// All threads of all blocks of the cluster.
DEVICE void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

// Nobody goes on before all are here; says nothing of what was written.
DEVICE void leave_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::
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
// A warp's own: results on their way to lanes that write 16 bytes each. Tokens' rows of floats lie 20
// apart, so that no two lanes of a warp meet in a bank.
#define RESULT_PITCH 20u
#define RESULT_BYTES (16u * RESULT_PITCH * 4)
// How a block's shared memory is laid out, from a multiple of 1,024 bytes on: src/kernels.rs asks for
// all that a block can have.
template <int N>
struct Layout {
    static const u32 stages = 6;
    static const u32 barriers = stages * N * 128;  // full ones, then free ones
    static const u32 results = barriers + 128;
    static const u32 weights = results + 8 * RESULT_BYTES;
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
    u32 block = item / token_tiles * 2 + cluster_rank<2>();
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
    const u32 items = wide_items<N>(arguments, tokens), half = cluster_rank<2>() * (N / 2);
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

// A warp's own copies of a tile's weights, some slots ahead.
template <u32 SLOTS>
struct TileWeights {
    Place place;  // a lane's own 16 bytes of each section
    u8* own;
    u32 left, slot;  // chunks that are still to be asked for; which slot is next to be read

    DEVICE void start(const Place& tile, u32 chunks, u32 lane) {
        place = {tile.codes + 16 * lane, tile.high + 16 * lane, tile.scales + 16 * lane};
        left = chunks;
    }

    // Asks for the next chunk, if there is one, for slot `to`; `more` may start another tile.
    template <typename More>
    DEVICE void ask(u32 to, u32 lane, More more) {
        if (left > 0) {
            u8* slot_at = own + to * WEIGHT_BYTES + 16 * lane;
#pragma unroll
            for (int i = 0; i < CODE_BYTES / 512; i++)
                copy_16(slot_at + 512 * i, place.codes + 512 * i);
            if (HIGH_BYTES > 0 && lane < HIGH_BYTES / 16) copy_16(slot_at + CODE_BYTES, place.high);
            if (SCALE_BYTES > 0 && lane < SCALE_BYTES / 16)
                copy_16(slot_at + CODE_BYTES + HIGH_BYTES, place.scales);
            place.codes += CODE_BYTES, place.high += HIGH_BYTES, place.scales += SCALE_BYTES;
            if (--left == 0) more();
        }
        end_copies();
    }

    template <typename More>
    DEVICE void first(u32 lane, More more) {
        for (u32 to = 0; to + 1 < SLOTS; to++) ask(to, lane, more);
        slot = 0;
    }

    template <typename More>
    DEVICE void next(Weights& now, u32 lane, More more) {
        wait_for_copies<SLOTS - 2>();
        __syncwarp();
        load_staged(now, own + slot * WEIGHT_BYTES, lane);
        // The slot before was read by all lanes when the last chunk's fragments were made.
        ask(slot == 0 ? SLOTS - 1 : slot - 1, lane, more);
        slot = slot + 1 == SLOTS ? 0 : slot + 1;
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

// One float, or four to where 16 bytes start. In the order of the program: pulled ahead of each other,
// their places would fill the registers.
struct Adds {
    DEVICE void operator()(bool condition, float* to, float value) const {
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p red.global.add.f32 [%0], %1;}" ::"l"(
                         to),
            "f"(value), "r"((u32)condition)
            : "memory");
    }

    DEVICE void operator()(bool condition, float* to, const float4& four) const {
        asm volatile(
            "{.reg .pred p; setp.ne.u32 p, %5, 0; "
            "@p red.global.add.v4.f32 [%0], {%1, %2, %3, %4};}" ::"l"(to),
            "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w), "r"((u32)condition)
            : "memory");
    }
};

struct Stores {
    DEVICE void operator()(bool condition, float* to, float value) const {
        asm volatile("{.reg .pred p; setp.ne.u32 p, %2, 0; @p st.global.f32 [%0], %1;}" ::"l"(to),
            "f"(value), "r"((u32)condition)
            : "memory");
    }

    DEVICE void operator()(bool condition, float* to, const float4& four) const {
        asm volatile(
            "{.reg .pred p; setp.ne.u32 p, %5, 0; "
            "@p st.global.v4.f32 [%0], {%1, %2, %3, %4};}" ::"l"(to),
            "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w), "r"((u32)condition)
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

// Writes 16 rows of N tokens in f32, all of them rows of the part: through shared memory, 16 tokens
// at a time, so that a lane has four rows of a token side by side.
template <int N, typename Write>
DEVICE void write_rows_by_four(const LinearPart& part, float input_scale, u32 row, u32 token,
    u32 tokens, const float (&sums)[N / 2], float* own, u32 lane, Write write) {
    const u32 g = lane / 4, t = lane % 4;
    const bool has_bias = part.bias && token < tokens;
    const float bias[2] = {
        has_bias ? part.bias[row + g] : 0.0f, has_bias ? part.bias[row + g + 8] : 0.0f};
    float* const to_shared = own + 2 * t * RESULT_PITCH + g;
    const float* const from_shared = own + g * RESULT_PITCH + 4 * t;
    float* to = (float*)part.output + (size_t)(token + g) * part.output_stride + row + 4 * t;
    const size_t step = 8 * (size_t)part.output_stride;
    int left = (int)(tokens - token) - (int)g;
#pragma unroll
    for (int from = 0; from < N / 2; from += 8) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float value = sums[from + i] * input_scale;
            to_shared[(i / 4 * 8 + i % 2) * RESULT_PITCH + i / 2 % 2 * 8] =
                has_bias ? value + bias[i / 2 % 2] : value;
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            write(left > 0, to, *(const float4*)(from_shared + 8 * i * RESULT_PITCH));
            left -= 8, to += step;
        }
        __syncwarp();
    }
}

// Writes 8 gated rows of N tokens in f16, all of them rows of the part, the same way: 64 tokens at a
// time, of which a lane has all 8 rows.
template <u32 MODE, int N>
DEVICE void write_gated_by_eight(const LinearPart& part, float input_scale, u32 row, u32 token,
    u32 tokens, const float (&sums)[N / 2], u16* own, u32 lane) {
    u16* const to_shared = own + 2 * (lane % 4) * 8 + lane / 4;
    const uint4* const from_shared = (const uint4*)own + lane;
    u16* to = (u16*)part.output + (size_t)(token + lane) * part.output_stride + row;
    const size_t step = 32 * (size_t)part.output_stride;
    int left = (int)min(tokens - token, (u32)N) - (int)lane;
#pragma unroll
    for (int from = 0; from < N / 2; from += 32) {
#pragma unroll
        for (int i = 0; i < 32 && from + i < N / 2; i += 4)
#pragma unroll
            for (int column = 0; column < 2; column++) {
                const int at = from + i + column;
                const float value =
                    gated(MODE, sums[at] * input_scale, sums[at + 2] * input_scale);
                to_shared[(2 * i + column) * 8] = to_half(within_half(value * GATED_SCALE));
            }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 64 && 2 * from + i < N; i += 32) {
            const uint4 eight = from_shared[i];
            asm volatile(
                "{.reg .pred p; setp.ne.u32 p, %5, 0; @p st.global.v4.u32 [%0], {%1, %2, %3, %4};}" ::
                    "l"(to), "r"(eight.x), "r"(eight.y), "r"(eight.z), "r"(eight.w),
                "r"((u32)(left > 0))
                : "memory");
            left -= 32, to += step;
        }
        __syncwarp();
    }
}

// Whether all of a part's tiles are whole, and start where 16 bytes do, in every row of the output.
DEVICE bool is_even(const LinearPart& part) {
    const bool halves = part.mode >= GATE_SILU;
    return (part.rows % (halves ? 8 : 16) | part.output_stride % (halves ? 8 : 4) |
               (u32)(size_t)part.output % 16) == 0;
}

// Writes a warp's 16 rows of N tokens.
template <int N>
DEVICE void finish_wide(const LinearArguments& arguments, const WideItem& item, u32 warp, u32 lane,
    const float (&sums)[N / 2], u32 tokens, u8* own) {
    const LinearPart part = arguments.part[item.part];
    const float input_scale = arguments.input_scale;
    const u32 tile = item.tile + warp, g = lane / 4, first = item.token + 2 * (lane % 4);
    // Predicates, not a branch: so the compiler sees that the lanes of a warp stay together.
    tokens = tile < part.tiles ? tokens : item.token;
    if (is_even(part)) {
        u16* const halves = (u16*)own;
        float* const floats = (float*)own;
        if (part.mode == GATE_SILU)
            write_gated_by_eight<GATE_SILU, N>(
                part, input_scale, tile * 8, item.token, tokens, sums, halves, lane);
        else if (part.mode == GATE_GELU)
            write_gated_by_eight<GATE_GELU, N>(
                part, input_scale, tile * 8, item.token, tokens, sums, halves, lane);
        else if (part.mode == ADD)
            write_rows_by_four<N>(part, input_scale, tile * 16, item.token, tokens, sums, floats,
                lane, Adds());
        else
            write_rows_by_four<N>(part, input_scale, tile * 16, item.token, tokens, sums, floats,
                lane, Stores());
        return;
    }
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
    const u32 items = wide_items<N>(arguments, tokens);
    TileWeights<Layout<N>::slots> weights = {};
    weights.own = shared + Layout<N>::weights + warp * CHUNK_BYTES;
    u32 asked = blockIdx.x / 2;
    auto start = [&]() {
        if (asked >= items) return;
        const WideItem item = wide_item<N>(arguments, asked, tokens);
        weights.start(place_of(arguments.part[item.part], chunks, item.tile + warp), chunks, lane);
    };
    auto more = [&]() {
        asked += gridDim.x / 2;
        start();
    };
    start();
    weights.first(lane, more);
    // What is written may be what kernels before still read.
    wait_for_previous();
    Ring ring = {0, 0};
    u32 full = base + Layout<N>::barriers;
    auto next = [&](Weights& w) { weights.next(w, lane, more); };
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
    for (u32 index = blockIdx.x / 2; index < items; index += gridDim.x / 2) {
        u32 end = 0;
#pragma unroll
        for (int i = 0; i < N / 2; i++) totals[i] = 0.0f;
        for (u32 slice = 0; slice < SLICES; slice++) {
            const u32 begin = end;
            end = slice_start(slice + 1, chunks);
            if (begin == end) continue;
            add_chunks<N>(sums, now, end - begin, true, next, arrival, release);
#pragma unroll
            for (int i = 0; i < N / 2; i++) totals[i] += sums[i];
        }
        finish_wide<N>(arguments, wide_item<N>(arguments, index, tokens), warp, lane, totals, tokens,
            shared + Layout<N>::results + warp * RESULT_BYTES);
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
    if (warp >= 8) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        wait_for_previous();
        if (threadIdx.x == 256) ask_for_inputs<N>(arguments, base, tokens);
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        multiply_wide<N>(arguments, base, tokens, warp, lane);
    }
    // Nobody leaves while copies and arrivals of the other are on their way.
    leave_cluster();
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
DEVICE void multiply_split(TileWeights<SplitLayout<N>::slots>& weights, u32 base, u32 count,
    float (&sums)[N / 2], u32 lane) {
    auto next = [&](Weights& w) { weights.next(w, lane, [] {}); };
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
    add_chunks<N>(sums, now, count, false, next, arrival, release);
}

template <int N>
DEVICE void split(const LinearArguments& arguments) {
    const u32 start = (u32)__cvta_generic_to_shared(shared_halves), base = (start + 1023) & ~1023u;
    const u32 lane = threadIdx.x % 32, warp = common(threadIdx.x / 32), rank = cluster_rank<8>();
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
    TileWeights<SplitLayout<N>::slots> weights = {};
    weights.own = shared + SplitLayout<N>::weights + warp * CHUNK_BYTES;
    if (warp < 8) {
        Place place = place_of(part, chunks, block * WIDE_TILES + warp);
        place.codes += begin * CODE_BYTES, place.high += begin * HIGH_BYTES;
        place.scales += begin * SCALE_BYTES;
        weights.start(place, end - begin, lane);
        weights.first(lane, [] {});
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
        multiply_split<N>(weights, base, end - begin, sums, lane);
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
    leave_cluster();
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
LINEAR_WIDE(176)
LINEAR_WIDE(192)

#else

// Many tokens: a block takes 128 weight rows and 64 tokens, 4 x 2 warps of 32 rows and 32 tokens.
// Inputs pass through shared memory, four chunks deep; the slices' totals are kept there too, but
// before 8.0, where there are only 64 KB, in registers.
#define WIDE_TOKENS 64u
#if __CUDA_ARCH__ >= 800
#define WIDE_STAGES (LINEAR_BITS == 16 ? 2u : 4u)
#define WIDE_BLOCKS 2

struct Totals {
    float* shared;

    static __device__ __forceinline__ Totals in(u8* shared) {
        return {(float*)shared + threadIdx.x};
    }
    static __device__ __forceinline__ u32 bytes() { return 32 * 256 * 4; }
    __device__ __forceinline__ float& operator[](int i) { return shared[256 * i]; }
};
#else
#define WIDE_STAGES 2u
#define WIDE_BLOCKS 1

struct Totals {
    float own[32];

    static __device__ __forceinline__ Totals in(u8*) { return {}; }
    static __device__ __forceinline__ u32 bytes() { return 0; }
    __device__ __forceinline__ float& operator[](int i) { return own[i]; }
};
#endif
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

extern "C" __global__ void __launch_bounds__(256, WIDE_BLOCKS)
    linear_wide_64(const __grid_constant__ LinearArguments arguments) {
    u16* stages = shared_halves;
    u8* behind = (u8*)(stages + WIDE_STAGES * STAGE_HALVES);
    Totals totals = Totals::in(behind);
    u8* own_weights =
        behind + Totals::bytes() + threadIdx.x / 64 * (2 * WIDE_STAGES * CHUNK_BYTES);
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
                        float& total = totals[(nt * 2 + mt) * 4 + i];
                        total = (slice == 0 ? 0.0f : total) + sums[nt][mt][i];
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
                total[mt][i] = totals[(nt * 2 + mt) * 4 + i];
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
            finish(part, arguments.input_scale, tile + mt, lane, total[mt],
                token_first + own_first + 8 * nt, tokens);
    }
}

#endif
