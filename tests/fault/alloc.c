/* alloc.c: preloaded under the shipped core: fails its n-th allocation, counts its live blocks.

   What the core gives away is filled with NaN, so that whoever still reads it computes NaN.
   Only allocations that the core's own code asks for count (told by their return address), so the
   interpreter, NumPy and oneDNN go on undisturbed and the core needs no test switch. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Atomic uintptr_t low, high;
static atomic_long fail_at, seen, live;
static atomic_int from_then_on;

/* The live blocks, by open addressing: a free may come through anybody's tail call, so the block
   tells whose it is. */
enum { SLOTS = 1 << 16 };
static void *const removed = (void *)1;
static void *blocks[SLOTS];
static atomic_flag lock = ATOMIC_FLAG_INIT;

static int (*next_memalign)(void **, size_t, size_t);
static void *(*next_mmap)(void *, size_t, int, int, int, off_t);
static void (*next_free)(void *);
static int (*next_munmap)(void *, size_t);

__attribute__((constructor)) static void find_next(void) {
    if (next_free) return;
    next_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    next_mmap = dlsym(RTLD_NEXT, "mmap");
    next_munmap = dlsym(RTLD_NEXT, "munmap");
    next_free = dlsym(RTLD_NEXT, "free");
}

/* The core's code lies in [from, to). */
void fault_range(uintptr_t from, uintptr_t to) {
    low = from;
    high = to;
}

/* Fail allocation n from now (0: none), and with `all` every later one too. */
void fault_arm(long n, int all) {
    seen = 0;
    from_then_on = all;
    fail_at = n;
}

long fault_seen(void) { return seen; }
long fault_live(void) { return live; }

static void **slot_of(const void *block, int empty) {
    for (size_t i = ((uintptr_t)block >> 6) * 2654435761u % SLOTS, n = 0; n < SLOTS; n++) {
        void **slot = &blocks[(i + n) % SLOTS];
        if (*slot == block || (empty && (!*slot || *slot == removed))) return slot;
        if (!*slot) return NULL;
    }
    return NULL;
}

/* Notes a block made or given away; whether it was, or is now, the core's. */
static int note(void *block, int made) {
    while (atomic_flag_test_and_set(&lock)) {}
    void **slot = slot_of(block, made);
    if (slot) {
        *slot = made ? block : removed;
        live += made ? 1 : -1;
    }
    atomic_flag_clear(&lock);
    return slot != NULL;
}

static int from_core(const void *caller) {
    return (uintptr_t)caller >= low && (uintptr_t)caller < high;
}

static int refused(void) {
    const long n = atomic_fetch_add(&seen, 1) + 1, at = fail_at;
    return at && (n == at || (from_then_on && n > at));
}

int posix_memalign(void **block, size_t alignment, size_t bytes) {
    find_next();
    const int ours = from_core(__builtin_return_address(0));
    if (ours && refused()) return ENOMEM;
    const int failed = next_memalign(block, alignment, bytes);
    if (ours && !failed) note(*block, 1);
    return failed;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    find_next();
    const int ours = from_core(__builtin_return_address(0));
    if (ours && refused()) return errno = ENOMEM, MAP_FAILED;
    void *block = next_mmap(at, bytes, protection, flags, file, offset);
    if (ours && block != MAP_FAILED) note(block, 1);
    return block;
}

void free(void *block) {
    if (block && live && note(block, 0)) memset(block, 0xFF, malloc_usable_size(block));
    if (next_free) next_free(block);
}

int munmap(void *block, size_t bytes) {
    find_next();
    note(block, 0);
    return next_munmap(block, bytes);
}
