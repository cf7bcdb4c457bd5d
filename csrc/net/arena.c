/* arena.c: shared working memory. */
#include "net/arena.h"

#include "base/memory.h"

boot_status boot_arena_open(boot_arena **arena) {
    BOOT_TRY(boot_alloc((void **)arena, sizeof **arena, true, "arena"));
    atomic_init(&(*arena)->users, 1);
    atomic_flag_clear(&(*arena)->busy);
    return BOOT_OK;
}

boot_arena *boot_arena_share(boot_arena *arena) {
    atomic_fetch_add(&arena->users, 1);
    return arena;
}

void boot_arena_close(boot_arena *arena) {
    if (!arena || atomic_fetch_sub(&arena->users, 1) > 1) return;
    boot_free(arena->data);
    boot_free(arena);
}

boot_status boot_arena_reserve(boot_arena *arena, int64_t floats) {
    const int64_t bytes = floats * (int64_t)sizeof(float);
    if (floats <= arena->floats) return BOOT_OK;
    if (arena->limit && bytes + arena->packed > arena->limit)
        return boot_fail(BOOT_ERR_MEMORY,
                         "activations: %lld bytes needed, the memory limit leaves %lld",
                         (long long)bytes, (long long)(arena->limit - arena->packed));
    arena->epoch++; /* even if what follows fails, a pending backward has lost its memory */
    boot_free(arena->data);
    arena->data = NULL;
    arena->floats = 0;
    BOOT_TRY(boot_alloc((void **)&arena->data, bytes, false, "activations"));
    arena->floats = floats;
    return BOOT_OK;
}

int64_t boot_arena_left(const boot_arena *arena) {
    const int64_t left = arena->limit - arena->packed - arena->floats * (int64_t)sizeof(float);
    return !arena->limit ? 0 : left > 1 ? left : 1;
}

bool boot_arena_enter(boot_arena *arena) { return !atomic_flag_test_and_set(&arena->busy); }
void boot_arena_leave(boot_arena *arena) { atomic_flag_clear(&arena->busy); }
