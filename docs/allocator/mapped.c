/* An allocator of Pelton's heaps in C: anonymous mappings, counted.
 *
 *     cc -shared -fPIC -O2 -I include -o libmapped.so docs/allocator/mapped.c
 */
#define _GNU_SOURCE
#include <pelton_allocator.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>

static _Atomic uint64_t bytes_given;

static int give(void *context, uint64_t bytes, uint64_t alignment, struct pelton_memory *memory)
{
    (void)context;
    if (alignment > 4096)
        return 1; /* a mapping is aligned to a page and no further */
    void *address =
        mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED)
        return 2;
    memory->address = address;
    memory->bytes = bytes;
    memory->flags = PELTON_MEMORY_ZEROED;
    atomic_fetch_add(&bytes_given, bytes);
    return 0;
}

static void take_back(void *context, const struct pelton_memory *memory)
{
    (void)context;
    munmap(memory->address, memory->bytes);
    atomic_fetch_sub(&bytes_given, memory->bytes);
}

/* For whoever wants to know; Pelton does not ask. */
uint64_t mapped_bytes_given(void)
{
    return atomic_load(&bytes_given);
}

const struct pelton_allocator_table pelton_allocator_v1 = {
    .abi_version = PELTON_ALLOCATOR_ABI,
    .table_bytes = sizeof(struct pelton_allocator_table),
    .name = "mapped (C)",
    .memory_kind = PELTON_MEMORY_HOST,
    .allocate = give,
    .free = take_back,
};
