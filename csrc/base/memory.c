/* memory.c: aligned allocation and checked products. */
#define _GNU_SOURCE /* madvise */
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

#ifdef __SANITIZE_ADDRESS__
enum { MAPS = 0, ROUND = 1, AFTER = 0 }; /* it fences in what malloc gave, to the last byte */
#else
enum { MAPS = 1, ROUND = CACHE_LINE, AFTER = CACHE_LINE };
#endif

/* Sits in the cache line before every block. */
typedef struct {
    void *start;   /* what to give back */
    size_t mapped; /* bytes of a mapping, 0: malloc's */
} block_header;

/* Large blocks get a mapping of their own, on a huge-page border, so that they can be backed by
   huge pages. malloc would hand out heap again that has small pages already: Winograd's 36 streams
   then miss the TLB, measured at up to 2.5 times the time; and of what kernels took while they were
   timed, some 10 MB would stay. */
static void *map_block(size_t bytes, block_header *header) {
    const size_t whole = bytes + 2 * (size_t)HUGE_PAGE;
    char *start = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    const size_t skip = (HUGE_PAGE - (uintptr_t)start % HUGE_PAGE) % HUGE_PAGE;
    *header = (block_header){start, whole};
    /* A last page that is not nearly full would be resident for nothing. Advice only: a kernel
       without transparent huge pages refuses it and nothing is lost. */
    madvise(start + skip, (bytes + HUGE_PAGE / 4) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return start + skip;
}

boot_status boot_alloc(void **block, size_t bytes, bool zeroed, const char *what) {
    const size_t whole = CACHE_LINE + (bytes + ROUND - 1) / ROUND * ROUND + AFTER;
    block_header header = {NULL, 0};
    void *start = NULL;
    *block = NULL;
    if (whole > bytes && whole < PTRDIFF_MAX - 2 * (size_t)HUGE_PAGE) {
        if (MAPS && whole >= (size_t)HUGE_PAGE / 2)
            start = map_block(whole, &header);
        else if (!posix_memalign(&start, CACHE_LINE, whole))
            header.start = start;
    }
    if (!header.start)
        return boot_fail(BOOT_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
    *(block_header *)start = header;
    *block = (char *)start + CACHE_LINE;
    if (zeroed && !header.mapped) memset(*block, 0, whole - CACHE_LINE); /* mappings are zero */
    return BOOT_OK;
}

void boot_free(void *block) {
    if (!block) return;
    const block_header header = *(block_header *)((char *)block - CACHE_LINE);
    if (header.mapped)
        munmap(header.start, header.mapped);
    else
        free(header.start);
}

/* Whole huge pages only: one that is cut would be made of small pages from then on. The first one
   of a mapping stays, for the header is in it. */
void boot_discard(void *block, size_t bytes) {
    if (!((block_header *)((char *)block - CACHE_LINE))->mapped) {
        memset(block, 0, bytes);
        return;
    }
    char *begin = (char *)block + (HUGE_PAGE - (uintptr_t)block % HUGE_PAGE) % HUGE_PAGE;
    char *end = (char *)block + bytes;
    end += (HUGE_PAGE - (uintptr_t)end % HUGE_PAGE) % HUGE_PAGE;
    if (end > begin) madvise(begin, (size_t)(end - begin), MADV_DONTNEED); /* or it stays */
}

void boot_evict(const void *block, size_t bytes) {
#if defined(__x86_64__)
    const char *at = block;
    for (size_t i = 0; i < bytes; i += CACHE_LINE) __builtin_ia32_clflush(at + i);
#else
    (void)block, (void)bytes;
#endif
}

boot_status boot_count4(int64_t a, int64_t b, int64_t c, int64_t d, int64_t *count) {
    BOOT_TRY(boot_mul(a, b, count));
    BOOT_TRY(boot_mul(*count, c, count));
    return boot_mul(*count, d, count);
}

boot_status boot_mul(int64_t a, int64_t b, int64_t *product) {
    if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, product) || *product > BOOT_COUNT_MAX)
        return boot_fail(BOOT_ERR_VALUE, "size %lld x %lld: expected a product in [0, 2^48]",
                         (long long)a, (long long)b);
    return BOOT_OK;
}
