// Cosines and sines of tokens' positions, which all layers turn by.

// One way in which heads are turned: the layers of a model share one, or two.
struct EmbedRotary {
    const float* frequencies;
    float2* turns;      // [tokens, pairs]
    u32 pairs;          // that turn, of a head
    float factor;
};

#define ROTARIES_MAX 4

// Those of one token, by a whole block.
__device__ __forceinline__ void write_turns(const EmbedRotary* rotaries, u32 count, u32 index,
                                            u32 position) {
    for (u32 r = 0; r < count; r++) {
        const EmbedRotary& rotary = rotaries[r];
        for (u32 i = threadIdx.x; i < rotary.pairs; i += blockDim.x) {
            // The angle is rounded to f32 as in ops::rotary; its sine is not.
            float sine, cosine;
            sincosf((float)position * rotary.frequencies[i], &sine, &cosine);
            rotary.turns[(size_t)index * rotary.pairs + i] =
                make_float2(cosine * rotary.factor, sine * rotary.factor);
        }
    }
}
