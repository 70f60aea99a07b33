
// linear on Hopper for up to 8 tokens: two groups of 8 warps of a block take a tile each in turn, each
// warp one slice of the columns. A warp's weights come to shared memory of its own some pieces ahead,
// across tiles, so that memory never waits for sums; inputs stay there for all tiles, and may be normed
// on their way.
//
// Roof: the bytes of the weights. Some 90 instructions a warp make a chunk of 576 bytes, which is 70 %
// of what a multiprocessor issues in the time that 4 TB/s take.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Chunks that come at once, and how many such pieces a warp asks for ahead.
#define PIECE (CHUNK_BYTES <= 576 ? 4u : CHUNK_BYTES <= 1152 ? 2u : 1u)
#define PIECE_BYTES (PIECE * CHUNK_BYTES)
#define STREAM_SLOTS (STREAM_RING / PIECE_BYTES)
// The ring of a warp, and the slices' sums of two tiles for each group. A larger ring is slower.
#define STREAM_RING 4608u
#define STREAM_SUMS (16u * STREAM_RING)
#define STREAM_INPUTS (STREAM_SUMS + 2u * 2u * 8u * 512u)

// Where a warp's copies are: what it asks for next. By all lanes, 16 bytes each: fewer instructions than
// bulk copies, which one lane asks for while the others wait.
struct WeightStream {
    u8* ring;  // a lane's own 16 bytes of it, and of the weights
    const u8* codes;
    const u8* high;
    const u8* scales;
    u32 slice, item, items, stride, chunk, end, slot;

    DEVICE void start(const LinearArguments& arguments, u32 lane) {
        chunk = slice_start(slice, arguments.chunks), end = slice_start(slice + 1, arguments.chunks);
        if (item >= items) return;
        u32 tile = item;
        const LinearPart& part = arguments.part[find_part(arguments, 1, tile)];
        const Place place = place_of(part, arguments.chunks, tile);
        codes = place.codes + chunk * CODE_BYTES + 16 * lane;
        high = place.high + chunk * HIGH_BYTES + 16 * lane;
        scales = place.scales + chunk * SCALE_BYTES + 16 * lane;
    }

    DEVICE void ask(const LinearArguments& arguments, u32 lane) {
        if (item < items && chunk < end) {
            const u32 count = min(PIECE, end - chunk);
            u8* to = ring + slot * PIECE_BYTES;
#pragma unroll
            for (u32 i = 0; i < PIECE * CODE_BYTES / 512; i++)
                if (512 * i < count * CODE_BYTES) copy_16(to + 512 * i, codes + 512 * i);
            if (HIGH_BYTES > 0 && 16 * lane < count * HIGH_BYTES)
                copy_16(to + PIECE * CODE_BYTES, high);
            if (SCALE_BYTES > 0 && 16 * lane < count * SCALE_BYTES)
                copy_16(to + PIECE * (CODE_BYTES + HIGH_BYTES), scales);
            codes += PIECE * CODE_BYTES, high += PIECE * HIGH_BYTES, scales += PIECE * SCALE_BYTES;
            chunk += count;
            if (chunk == end) item += stride, start(arguments, lane);
        }
        end_copies();
        slot = slot + 1 == STREAM_SLOTS ? 0 : slot + 1;
    }
};

// The inputs of 8 tokens and a chunk; `inputs` is a lane's own row and unit.
DEVICE void kept_inputs(Inputs& x, u32 inputs, u32 chunk) {
    const u32 row = inputs + 128 * chunk;
#pragma unroll
    for (int i = 0; i < 2; i++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
            : "=r"(x.words[4 * i]), "=r"(x.words[4 * i + 1]), "=r"(x.words[4 * i + 2]),
              "=r"(x.words[4 * i + 3])
            : "r"(row + 64 * i));
}

// Chunks whose weights a warp holds together.
#define AT_ONCE (PIECE < 2u ? PIECE : 2u)

// Adds `COUNT` chunks of a piece, from number `from` on.
template <u32 COUNT>
DEVICE void add_piece(float (&sums)[1][4], const u8* piece, u32 from, u32 inputs,
    u32 chunk, u32 lane) {
    Weights now[COUNT];
#pragma unroll
    for (u32 u = 0; u < COUNT; u++)
        load_chunk(now[u], piece + (from + u) * CODE_BYTES,
            piece + PIECE * CODE_BYTES + (from + u) * HIGH_BYTES,
            piece + PIECE * (CODE_BYTES + HIGH_BYTES) + (from + u) * SCALE_BYTES, lane);
#pragma unroll
    for (u32 u = 0; u < COUNT; u++) {
        u32 a[1][4][4];
#pragma unroll
        for (int m = 0; m < 4; m++) fragment(a[0][m], now[u], m);
        Inputs x;
        kept_inputs(x, inputs, chunk + from + u);
        add_chunk<1>(sums, a, x);
    }
}

DEVICE void copy_inputs(const LinearArguments& arguments, u32 tokens, u32 pitch) {
    u8* to = (u8*)shared_halves + STREAM_INPUTS;
    for (u32 token = 0; token < tokens; token++)
        for (u32 unit = threadIdx.x; unit < 8 * arguments.chunks; unit += 512)
            *(uint4*)(to + token * pitch + 16 * unit) = __ldcg(
                (const uint4*)(arguments.input + (size_t)token * arguments.input_stride) + unit);
}

// Every block norms the rows for itself: cheaper than a launch that all would wait for.
DEVICE void norm_inputs(
    const LinearArguments& arguments, const NormWeights& weights, u32 tokens, u32 pitch) {
    const NormedInput& normed = arguments.normed;
    u8* rows = (u8*)shared_halves + STREAM_INPUTS;
    // The slices' sums are nobody's yet.
    float* sums = (float*)((u8*)shared_halves + STREAM_SUMS);
    for (u32 token = 0; token < tokens; token++) {
        u16* to = (u16*)(rows + token * pitch);
        norm_row(normed.rows + (size_t)token * normed.width, weights, normed.weight, normed.width,
            normed.epsilon, sums + 16 * token, [&](u32 i, u16 half) { to[i] = half; });
        for (u32 i = normed.width + threadIdx.x; i < 64 * arguments.chunks; i += 512) to[i] = 0;
    }
}

extern "C" __global__ void __launch_bounds__(512, 1)
    linear_stream(const __grid_constant__ LinearArguments arguments) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 8, slice = warp % 8;
    const u32 base = (u32)__cvta_generic_to_shared(shared_halves), chunks = arguments.chunks;
    u8* ring = (u8*)shared_halves + warp * STREAM_RING;
    u32 items = 0;
    for (u32 part = 0; part < arguments.parts; part++) items += arguments.part[part].tiles;
    const u32 first = group * gridDim.x + blockIdx.x, stride = 2 * gridDim.x;
    WeightStream stream = {ring + 16 * lane, 0, 0, 0, slice, first, items, stride, 0, 0, 0};
    stream.start(arguments, lane);
#pragma unroll
    for (u32 slot = 0; slot < STREAM_SLOTS; slot++) stream.ask(arguments, lane);
    const NormedInput& normed = arguments.normed;
    NormWeights weights;
    if (normed.rows) load_norm(weights, normed.weight, normed.width);
    // Counts of a step are written before its first kernel starts.
    const u32 tokens = *arguments.tokens;
    let_next_start();
    wait_for_previous();
    // A token that is not there has another's inputs, and its sums are nobody's.
    const u32 pitch = 128 * chunks + 16, row = lane % 8 < tokens ? lane % 8 : 0;
    const u32 inputs = base + STREAM_INPUTS + row * pitch + lane / 8 * 16;
    if (normed.rows)
        norm_inputs(arguments, weights, tokens, pitch);
    else
        copy_inputs(arguments, tokens, pitch);
    __syncthreads();
    const u32 begin = slice_start(slice, chunks), end = slice_start(slice + 1, chunks);
    float* group_sums = (float*)((u8*)shared_halves + STREAM_SUMS) + group * (2 * 8 * 128);
    u32 slot = 0, turn = 0;
    for (u32 item = first; item < items; item += stride, turn++) {
        float sums[1][4] = {};
        for (u32 chunk = begin; chunk < end; chunk += PIECE) {
            wait_for_copies<STREAM_SLOTS - 1>();
            __syncwarp();
            const u8* piece = ring + slot * PIECE_BYTES;
            if (chunk + PIECE <= end)
#pragma unroll
                for (u32 u = 0; u < PIECE; u += AT_ONCE)
                    add_piece<AT_ONCE>(sums, piece, u, inputs, chunk, lane);
            else
                for (u32 u = 0; chunk + u < end; u++)
                    add_piece<1>(sums, piece, u, inputs, chunk, lane);
            __syncwarp();
            stream.ask(arguments, lane);
            slot = slot + 1 == STREAM_SLOTS ? 0 : slot + 1;
        }
        // Two sets of sums take turns: who adds up one set has met the others before the next is read.
        float* own = group_sums + turn % 2 * (8 * 128);
#pragma unroll
        for (int i = 0; i < 4; i++) own[slice * 128 + 32 * i + lane] = sums[0][i];
        if (group == 0)
            asm volatile("bar.sync 1, 256;" ::: "memory");
        else
            asm volatile("bar.sync 2, 256;" ::: "memory");
        if (slice != turn % 8) continue;
        float total[4] = {};
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (u32 s = 0; s < SLICES; s++) total[i] += own[s * 128 + 32 * i + lane];
        u32 tile = item;
        const LinearPart& part = arguments.part[find_part(arguments, 1, tile)];
        finish(part, arguments.input_scale, tile, lane, total, 0, tokens);
    }
}

#endif
