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

/* a * b into *product, or BOOT_ERR_VALUE when it does not fit in int64 or a factor is negative. */
boot_status boot_mul(int64_t a, int64_t b, int64_t *product);

#endif
