/* arena.c: shared working memory. */
#include "net/arena.h"

#include "base/lock.h"
#include "base/memory.h"

boot_status boot_arena_open(boot_arena **arena, boot_arena_user *user) {
    BOOT_TRY(boot_alloc((void **)arena, sizeof **arena, true, "arena"));
    atomic_flag_clear(&(*arena)->listing);
    atomic_flag_clear(&(*arena)->busy);
    boot_arena_share(*arena, user);
    return BOOT_OK;
}

void boot_arena_share(boot_arena *arena, boot_arena_user *user) {
    boot_lock(&arena->listing);
    user->next = arena->users;
    arena->users = user;
    arena->packed += user->packs->bytes;
    boot_unlock(&arena->listing);
}

void boot_arena_close(boot_arena *arena, boot_arena_user *user) {
    if (!arena) return;
    boot_lock(&arena->listing);
    boot_arena_user **at = &arena->users;
    while (*at != user) at = &(*at)->next;
    *at = user->next;
    arena->packed -= user->packs->bytes;
    const bool last = !arena->users;
    boot_unlock(&arena->listing);
    if (!last) return;
    boot_free(arena->data);
    boot_free(arena);
}

/* Others' too: none of them runs now. */
static void drop_packs(boot_arena *arena) {
    boot_lock(&arena->listing);
    for (boot_arena_user *user = arena->users; user; user = user->next) {
        arena->packed -= user->packs->bytes;
        boot_packs_close(user->packs);
        user->packs->version++; /* plans that had packed their weights are to do it again */
    }
    boot_unlock(&arena->listing);
}

boot_status boot_arena_reserve(boot_arena *arena, int64_t floats) {
    const int64_t bytes = floats * (int64_t)sizeof(float);
    if (floats <= arena->floats) return BOOT_OK;
    if (arena->limit && bytes + arena->packed > arena->limit) drop_packs(arena);
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
