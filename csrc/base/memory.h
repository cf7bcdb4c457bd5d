/* memory.h: the one door to the heap: aligned, zeroed on request, huge pages for large blocks. */
#ifndef BOOT_MEMORY_H
#define BOOT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Aligned block of `bytes` (64-byte aligned; above 4 MiB a mapping advised for huge pages).
   `*block` is NULL on failure. `what` names the block in the message. */
boot_status boot_alloc(void **block, size_t bytes, bool zeroed, const char *what);

/* Accepts NULL. */
void boot_free(void *block);

/* Gives the memory of a block of boot_alloc back to the system until the block is written again.
   Its numbers are lost: each is zero afterwards, or what it was. */
void boot_discard(void *block, size_t bytes);

/* Drops a block from the processor's caches, where it can (x86): what is timed then reads it from
   memory, as a network does that is larger than the caches. */
void boot_evict(const void *block, size_t bytes);

/* Most numbers that one tensor may hold. A thousand such tensors still have an int64 of bytes, so
   that sums and sizeof need no checks of their own. */
#define BOOT_COUNT_MAX ((int64_t)1 << 48)

/* a * b into *product, or BOOT_ERR_VALUE beyond BOOT_COUNT_MAX or when a factor is negative. */
boot_status boot_mul(int64_t a, int64_t b, int64_t *product);
/* The same for a tensor's four sizes. */
boot_status boot_count4(int64_t a, int64_t b, int64_t c, int64_t d, int64_t *count);

#endif
