/* memory.c: aligned allocation and checked products. */
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

boot_status boot_alloc(void **block, size_t bytes, bool zeroed, const char *what) {
    const bool huge = bytes >= 2 * (size_t)HUGE_PAGE;
    const size_t align = huge ? HUGE_PAGE : CACHE_LINE;
    const size_t rounded = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    *block = NULL;
    if (rounded < bytes || posix_memalign(block, align, rounded ? rounded : CACHE_LINE)) {
        *block = NULL;
        return boot_fail(BOOT_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
    }
    /* Advice only: a kernel without transparent huge pages refuses it and nothing is lost. */
    if (huge) madvise(*block, rounded, MADV_HUGEPAGE);
    if (zeroed) memset(*block, 0, rounded);
    return BOOT_OK;
}

void boot_free(void *block) { free(block); }

boot_status boot_mul(int64_t a, int64_t b, int64_t *product) {
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, product))
        return boot_fail(BOOT_ERR_VALUE, "size %lld x %lld: expected a product in [0, 2^63)",
                         (long long)a, (long long)b);
    return BOOT_OK;
}
