// How do packed weights become fragments of tensor cores? What all kernels that read them share.
//
// A weight is its code times its scale, plus its group's bias, rounded to f16 once; nothing else is
// ever made of it, so products by all kernels have the same bits. Packing: src/packing.rs.
//
// LINEAR_BITS 4, 5, 6, 8 or 16 (f16 weights, no scales); LINEAR_GROUP 32 or 16 columns a scale;
// LINEAR_BIAS 1 if a group has a bias too.

#if LINEAR_BITS == 16
#define GROUPS 2
#else
#define GROUPS (64 / LINEAR_GROUP)
#endif

// Bytes of one chunk of a tile (16 rows, 64 columns), by section.
#define CODE_BYTES (LINEAR_BITS == 16 ? 2048 : LINEAR_BITS == 8 ? 1024 : 512)
#define HIGH_BYTES (LINEAR_BITS == 5 ? 128 : LINEAR_BITS == 6 ? 256 : 0)
#define SCALE_BYTES (LINEAR_BITS == 16 ? 0 : GROUPS * 16 * 2 * (1 + LINEAR_BIAS))
#define CHUNK_BYTES (CODE_BYTES + HIGH_BYTES + SCALE_BYTES)
#define CODE_WORDS (CODE_BYTES / 128)
#define HIGH_WORDS (HIGH_BYTES / 128)
// Pairs of halves a lane: rows g and g + 8 of every group, scales then biases.
#define SCALE_WORDS (LINEAR_BITS == 16 ? 0 : GROUPS * (1 + LINEAR_BIAS))

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

// Of a matrix of so many tiles and chunks.
__device__ __forceinline__ Place place_in(const u8* weights, u32 tiles, u32 chunks, u32 tile) {
    const size_t at = (size_t)min(tile, tiles - 1) * chunks;
    const size_t count = (size_t)tiles * chunks;
    const u8* high = weights + count * CODE_BYTES;
    const u8* scales = high + count * HIGH_BYTES;
    return {weights + at * CODE_BYTES, high + at * HIGH_BYTES, scales + at * SCALE_BYTES};
}

__device__ __forceinline__ void load_words(u32* to, const void* from, int words) {
    if (words == 1) to[0] = *(const u32*)from;
    if (words == 2) {
        const uint2 two = *(const uint2*)from;
        to[0] = two.x, to[1] = two.y;
    }
#pragma unroll
    for (int i = 0; i < words / 4; i++) {
        const uint4 four = ((const uint4*)from)[i];
        to[4 * i] = four.x, to[4 * i + 1] = four.y, to[4 * i + 2] = four.z, to[4 * i + 3] = four.w;
    }
}

// A lane's share from where a chunk's sections lie, in shared memory or global.
__device__ __forceinline__ void load_chunk(
    Weights& w, const u8* codes, const u8* high, const u8* scales, u32 lane) {
#pragma unroll
    for (int i = 0; i < CODE_WORDS / 4; i++)
        load_words(w.codes + 4 * i, codes + 512 * i + 16 * lane, 4);
    load_words(w.high, high + lane * (HIGH_BYTES / 32), HIGH_WORDS);
    load_words(w.scales, scales + (lane / 4) * (4 * SCALE_WORDS), SCALE_WORDS);
}

// Codes of register `j` of product `m`, as exact halves: what is added to `integers` to make them
// so is a power of two whose last bits count by one.
__device__ __forceinline__ u32 integers(const Weights& w, int m, int j) {
#if LINEAR_BITS == 4
    const u32 word = j >= 2 ? w.codes[m] >> 8 : w.codes[m];
    if (j % 2 == 0)
        return add_halves(and_or(word, 0x000f000f, 0x64006400),
            LINEAR_BIAS ? 0xe400e400 : 0xe408e408);  // -1024 or -1032
    return multiply_add_halves(and_or(word, 0x00f000f0, 0x64006400), 0x2c002c00,
        LINEAR_BIAS ? 0xd400d400 : 0xd480d480);      // / 16, -64 or -72
#elif LINEAR_BITS == 5
    const u32 low = and_or(w.codes[m] >> (4 * j), 0x000f000f, 0x64006400);
    const u32 high = (w.high[0] >> (4 * m + j)) & 0x00010001;
    return add_halves(low | (high << 4), 0xe400e400);
#elif LINEAR_BITS == 6
    const u32 low = and_or(w.codes[m] >> (4 * j), 0x000f000f, 0x64006400);
    const u32 high = (w.high[HIGH_WORDS == 2 ? m / 2 : 0] >> (8 * (m % 2) + 2 * j)) & 0x00030003;
    return add_halves(low | (high << 4), 0xe420e420);  // -1056
#elif LINEAR_BITS == 8
    // Bytes b, 0x64, b, 0x64 of a pair of codes.
    const u32 word = w.codes[4 * (m / 2) + 2 * (m % 2) + j / 2];
    return add_halves(__byte_perm(word, 0x64646464, j % 2 ? 0x4342 : 0x4140), 0xe480e480);
#else
    return w.codes[4 * m + j];
#endif
}

// The fragment of product `m` (0 to 3, 16 columns each) of a chunk.
__device__ __forceinline__ void fragment(u32 (&a)[4], const Weights& w, int m) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        a[j] = integers(w, m, j);
#if LINEAR_BITS != 16
        const int group = m * GROUPS / 4;
        const u32 both = j % 2 ? 0x3232 : 0x1010;
        const u32 scale = __byte_perm(w.scales[group], 0, both);
#if LINEAR_BIAS
        a[j] = multiply_add_halves(a[j], scale, __byte_perm(w.scales[GROUPS + group], 0, both));
#else
        a[j] = multiply_halves(a[j], scale);
#endif
#endif
    }
}
