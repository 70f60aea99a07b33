
// How is a row normed? By a block of 512 threads, its sum in one order whoever asks for it.

// Elements a thread holds; wider rows are read again.
#define HELD 8
#define NORM_THREADS 512

// A thread's weights, which may be asked for before the row is there.
struct NormWeights {
    float held[HELD];
};

__device__ __forceinline__ void load_norm(NormWeights& weights, const float* weight, u32 width) {
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + NORM_THREADS * k;
        weights.held[k] = i < width ? weight[i] : 0.0f;
    }
}

// `sums` has 16 floats in shared memory that nobody else uses until all threads have met again. What
// comes out goes to `put(place, half)`.
template <typename Put>
__device__ __forceinline__ void norm_row(const float* input, const NormWeights& weights,
    const float* weight, u32 width, float epsilon, float* sums, Put put) {
    float values[HELD];
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + NORM_THREADS * k;
        values[k] = i < width ? input[i] : 0.0f;
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < HELD; k++) sum = __fmaf_rn(values[k], values[k], sum);
    for (u32 i = threadIdx.x + NORM_THREADS * HELD; i < width; i += NORM_THREADS)
        sum = __fmaf_rn(input[i], input[i], sum);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) total += sums[i];
    const float inverse = 1.0f / sqrtf(__fadd_rn(total / (float)width, epsilon));
#pragma unroll
    for (int k = 0; k < HELD; k++) {
        const u32 i = threadIdx.x + NORM_THREADS * k;
        if (i < width)
            put(i, to_half(within_half(__fmul_rn(__fmul_rn(values[k], inverse), weights.held[k]))));
    }
    for (u32 i = threadIdx.x + NORM_THREADS * HELD; i < width; i += NORM_THREADS)
        put(i, to_half(within_half(__fmul_rn(__fmul_rn(input[i], inverse), weight[i]))));
}
