
// What kernels for Hopper share: barriers of copies, asynchronous tensor cores, rings of stages.
//
// wgmma and mbarrier: https://docs.nvidia.com/cuda/parallel-thread-execution

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define DEVICE __device__ __forceinline__

// What all lanes of a warp have in common, said in a way that the compiler sees it: where it cannot
// tell that lanes stay together, descriptors of products take a detour through registers of lanes.
DEVICE u32 common(u32 value) { return __shfl_sync(0xffffffff, value, 0); }

DEVICE void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Until the phase of this parity has ended.
DEVICE void wait_barrier(u32 barrier, u32 parity) {
    asm volatile(
        "{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; "
        "@p bra done; bra again; done: }" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

DEVICE void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

DEVICE void arrive_expecting(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
        : "memory");
}

// Asks for bytes that lie side by side.
DEVICE void copy_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

DEVICE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int LEFT>
DEVICE void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

#define D4(a) "+f"(d[a]), "+f"(d[a + 1]), "+f"(d[a + 2]), "+f"(d[a + 3])
#define D16(a) D4(a), D4(a + 4), D4(a + 8), D4(a + 12)
#define D64(a) D16(a), D16(a + 16), D16(a + 32), D16(a + 48)

// d = a b, or d += a b: 64 rows, N tokens, 16 columns.
#define PRODUCT(TOKENS, NAMES, A, B, ADDS, ...)                                                    \
    asm volatile(                                                                                  \
        "{.reg .pred p; setp.ne.b32 p, " ADDS ", 0; "                                              \
        "wgmma.mma_async.sync.aligned.m64n" TOKENS "k16.f32.f16.f16 {" NAMES "}, {" A "}, " B      \
        ", p, 1, 1, 0;}"                                                                           \
        : __VA_ARGS__                                                                              \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds))

#define NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"

#define NAMES_16 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"

#define NAMES_32 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"

#define NAMES_64 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
        "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, " \
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
        "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define NAMES_88 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
        "%87"

#define NAMES_96 \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
        "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
        "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
        "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
        "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
        "%87, %88, %89, %90, %91, %92, %93, %94, %95"

DEVICE void multiply_group(float (&d)[8], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("16", NAMES_8, "%8, %9, %10, %11", "%12", "%13", D4(0), D4(4));
}

DEVICE void multiply_group(float (&d)[16], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("32", NAMES_16, "%16, %17, %18, %19", "%20", "%21", D16(0));
}

DEVICE void multiply_group(float (&d)[32], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("64", NAMES_32, "%32, %33, %34, %35", "%36", "%37", D16(0), D16(16));
}

DEVICE void multiply_group(float (&d)[64], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("128", NAMES_64, "%64, %65, %66, %67", "%68", "%69", D64(0));
}

DEVICE void multiply_group(float (&d)[88], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("176", NAMES_88, "%88, %89, %90, %91", "%92", "%93", D64(0), D16(64), D4(80), D4(84));
}

DEVICE void multiply_group(float (&d)[96], const u32 (&a)[4], u64 b, int adds) {
    PRODUCT("192", NAMES_96, "%96, %97, %98, %99", "%100", "%101", D64(0), D16(64), D16(80));
}

// What products under way write is not read before they have ended: all but the last LEFT groups.
template <int LEFT = 0>
DEVICE void settle(float (&d)[8]) {
    wait_for_products<LEFT>();
    asm volatile("" : D4(0), D4(4)::"memory");
}

template <int LEFT = 0>
DEVICE void settle(float (&d)[16]) {
    wait_for_products<LEFT>();
    asm volatile("" : D16(0)::"memory");
}

template <int LEFT = 0>
DEVICE void settle(float (&d)[32]) {
    wait_for_products<LEFT>();
    asm volatile("" : D16(0), D16(16)::"memory");
}

template <int LEFT = 0>
DEVICE void settle(float (&d)[64]) {
    wait_for_products<LEFT>();
    asm volatile("" : D64(0)::"memory");
}

template <int LEFT = 0>
DEVICE void settle(float (&d)[88]) {
    wait_for_products<LEFT>();
    asm volatile("" : D64(0), D16(64), D4(80), D4(84)::"memory");
}

template <int LEFT = 0>
DEVICE void settle(float (&d)[96]) {
    wait_for_products<LEFT>();
    asm volatile("" : D64(0), D16(64), D16(80)::"memory");
}

// A place in the ring of stages.
struct Ring {
    u32 stage, parity;

    template <u32 STAGES>
    DEVICE void next() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (stage == 0) parity ^= 1;
    }
};

#endif
