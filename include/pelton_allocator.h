/* Where Pelton's heaps come from: a shared library may give them.
 *
 * A library exports one constant object, `pelton_allocator_v1`, of the type below:
 *
 *     const struct pelton_allocator_table pelton_allocator_v1 = { PELTON_ALLOCATOR_ABI, ... };
 *
 * and is named in the configuration as `heap_pool.allocator`. Pelton calls it when a model is
 * loaded, when a heap pool grows, and when a model is unloaded; never while a step runs. Both
 * functions may be called by any thread at any time. See docs/allocator.md.
 */
#ifndef PELTON_ALLOCATOR_H
#define PELTON_ALLOCATOR_H

#include <stdint.h>

#define PELTON_ALLOCATOR_ABI 1u

/* In pelton_memory.flags: all bytes are 0. Set it only if they are: Pelton then does not write
 * zeros, which would make every page resident. */
#define PELTON_MEMORY_ZEROED 1u

/* Kinds of memory: ordinary; page-locked for a device; at the same address for a device. */
#define PELTON_MEMORY_HOST 0u
#define PELTON_MEMORY_PINNED 1u
#define PELTON_MEMORY_UNIFIED 2u

struct pelton_memory {
    void *address;
    uint64_t bytes; /* as many as were asked for, or more */
    uint32_t flags;
    uint32_t reserved; /* 0 */
};

struct pelton_allocator_table {
    uint32_t abi_version; /* PELTON_ALLOCATOR_ABI */
    uint32_t table_bytes; /* sizeof(struct pelton_allocator_table) */
    const char *name;     /* UTF-8; as errors and statistics call it */
    uint32_t memory_kind;
    uint32_t reserved; /* 0 */
    void *context;     /* given to both functions */

    /* Fills `memory` with at least `bytes` bytes at a multiple of `alignment` (a power of two) that
     * belong to the caller until they are freed, and answers 0; anything else when there is no
     * such memory. */
    int (*allocate)(void *context, uint64_t bytes, uint64_t alignment,
                    struct pelton_memory *memory);

    /* Takes back what `allocate` gave: the same address and bytes, once. */
    void (*free)(void *context, const struct pelton_memory *memory);
};

#ifdef __cplusplus
extern "C" {
#endif
extern const struct pelton_allocator_table pelton_allocator_v1;
#ifdef __cplusplus
}
#endif

#endif
