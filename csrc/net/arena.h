/* arena.h: the memory that a run works in; several networks that run in turn may share one. */
#ifndef BOOT_ARENA_H
#define BOOT_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "ops/packs.h"

/* Packed weights that count where their owner works; in a list. */
typedef struct boot_arena_user {
    boot_packs *packs;
    struct boot_arena_user *next;
} boot_arena_user;

typedef struct {
    float *data;
    int64_t floats;
    atomic_llong packed; /* bytes of its users' packed weights */
    int64_t limit;       /* the most bytes that both may take, 0: any */
    uint64_t epoch;      /* grows with every run: what an older run left here is gone */
    boot_arena_user *users;
    atomic_flag listing; /* held for a look through them */
    atomic_flag busy;
} boot_arena;

boot_status boot_arena_open(boot_arena **arena, boot_arena_user *user);
void boot_arena_share(boot_arena *arena, boot_arena_user *user);
void boot_arena_close(boot_arena *arena, boot_arena_user *user); /* the last user's frees it */
/* At least that large. Its users' packed weights, which only save time, make room where the limit
   wants it; BOOT_ERR_MEMORY where that is not enough. By the thread that has entered. */
boot_status boot_arena_reserve(boot_arena *arena, int64_t floats);
/* Bytes that the limit leaves beside what is held now; 0: no limit, else at least 1. */
int64_t boot_arena_left(const boot_arena *arena);

/* False: another thread is running in it. */
bool boot_arena_enter(boot_arena *arena);
void boot_arena_leave(boot_arena *arena);

#endif
