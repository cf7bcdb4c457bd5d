/* arena.h: the memory that a run works in; several networks that run in turn may share one. */
#ifndef BOOT_ARENA_H
#define BOOT_ARENA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct {
    float *data;
    int64_t floats;
    atomic_llong packed; /* bytes of its users' packed weights */
    int64_t limit;       /* the most bytes that both may take, 0: any */
    uint64_t epoch;      /* grows with every run: what an older run left here is gone */
    atomic_int users;
    atomic_flag busy;
} boot_arena;

boot_status boot_arena_open(boot_arena **arena); /* one user */
boot_arena *boot_arena_share(boot_arena *arena); /* one user more */
void boot_arena_close(boot_arena *arena);        /* one user less; the last one frees it */
/* At least that large; BOOT_ERR_MEMORY beyond the limit. */
boot_status boot_arena_reserve(boot_arena *arena, int64_t floats);
/* Bytes that the limit leaves beside what is held now; 0: no limit, else at least 1. */
int64_t boot_arena_left(const boot_arena *arena);

/* False: another thread is running in it. */
bool boot_arena_enter(boot_arena *arena);
void boot_arena_leave(boot_arena *arena);

#endif
