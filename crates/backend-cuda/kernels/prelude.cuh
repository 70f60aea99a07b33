// What do all kernels share? Types, half precision, tensor-core products, the order of launches.
//
// Put in front of every kernel file. No header of the toolkit is needed, so that the run-time
// compiler works from these texts alone. PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution
//
// Order: a kernel may start while the one before it still runs (programmatic dependent launch). So
// before `wait_for_previous()`, which every thread calls, each reads only what no kernel of the step
// writes: weights, the step's table, and the positions that the table calls settled. (experts.cu reads
// lists that are complete by then, and says why.)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MINUS_INFINITY __int_as_float(0xff800000)

// Counts of the step at hand, at the start of its inputs.
struct StepHeader {
    u32 tokens;
    u32 sampled;
    u32 sampled_rows;
    u32 attention_items;
    u32 step_low;
    u32 wide_items;
    u32 rows;
    u32 unused;
};

// A row of a step, as attention and sampling see it.
struct StepRow {
    u32 token_first;
    u32 start;
    u32 blocks_start;
    u32 slot;
};

// What else those ops must know of a row that carry something from token to token.
struct CarriedRow {
    u32 length;
    u32 proposed;  // of its last tokens
    u32 right;     // guesses of the slot's row before
    u32 place;     // among the rows that are sampled, of one that is
};

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Two floats to two halves; `low` in the low bits.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 pair;
    asm("{.reg .f16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
}

__device__ __forceinline__ u16 to_half(float value) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
}

__device__ __forceinline__ float from_half(u16 half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ float low_half(u32 pair) { return from_half((u16)(pair & 0xffff)); }
__device__ __forceinline__ float high_half(u32 pair) { return from_half((u16)(pair >> 16)); }

// The largest half instead of infinity; what is no number stays so.
__device__ __forceinline__ float within_half(float value) {
    return value > 65504.0f ? 65504.0f : (value < -65504.0f ? -65504.0f : value);
}

// 2^x; of numbers below -126, 0.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#define LOG2_E 1.4426950408889634f

// value / (1 + e^-value), within some units in the last place. Where e^-value is beyond all floats,
// its reciprocal is 0, and so is what comes of a number.
__device__ __forceinline__ float silu(float value) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;"
        : "=f"(reciprocal)
        : "f"(1.0f + power_of_two(__fmul_rn(value, -LOG2_E))));
    return value * reciprocal;
}

__device__ __forceinline__ float sigmoid(float value) { return 1.0f / (1.0f + expf(-value)); }

__device__ __forceinline__ u32 add_halves(u32 a, u32 b) {
    u32 sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
}

__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b) {
    u32 product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

__device__ __forceinline__ u32 multiply_add_halves(u32 a, u32 b, u32 c) {
    u32 sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
}

// (a & mask) | bits in one instruction.
__device__ __forceinline__ u32 and_or(u32 a, u32 mask, u32 bits) {
    u32 result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
    return result;
}

// d = a b + c: a 16 x 16 by rows, b 16 x 8 by columns, f32 sums. In the fragments of a lane (g =
// lane / 4, t = lane % 4) d holds rows g, g + 8 and columns 2t, 2t + 1. Before 8.0 by halves.
__device__ __forceinline__ void multiply_tile(
    float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&c)[4]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
#else
    asm("{.reg .f32 e, f, g, h;\n\t"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{e, f, g, h}, {%4, %5}, {%8}, {%10, %11, %12, %13};\n\t"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%6, %7}, {%9}, {e, f, g, h};}"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
#endif
}

// Starts a copy of BYTES (4 or 16), by the address in shared memory, beside the kernel's own work.
// Before 8.0 there are no such copies: they are made then and there, for the warp to see.
template <int BYTES>
__device__ __forceinline__ void start_copy(u32 to, const void* from) {
#if __CUDA_ARCH__ >= 800
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
#else
    if (BYTES == 16) {
        const uint4 all = *(const uint4*)from;
        asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(all.x), "r"(all.y),
            "r"(all.z), "r"(all.w)
            : "memory");
    } else {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(*(const u32*)from) : "memory");
    }
#endif
}

__device__ __forceinline__ void copy_16(void* shared, const void* global) {
    start_copy<16>((u32)__cvta_generic_to_shared(shared), global);
}

// Ends a group of copies.
__device__ __forceinline__ void end_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    __syncwarp();
#endif
}

// Until all copies but those of the last LEFT groups have arrived.
template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
