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
    uint64_t epoch; /* grows with every run: what an older run left here is gone */
    atomic_int users;
    atomic_flag busy;
} boot_arena;

boot_status boot_arena_open(boot_arena **arena); /* one user */
boot_arena *boot_arena_share(boot_arena *arena); /* one user more */
void boot_arena_close(boot_arena *arena);        /* one user less; the last one frees it */
boot_status boot_arena_reserve(boot_arena *arena, int64_t floats); /* at least that large */

/* False: another thread is running in it. */
bool boot_arena_enter(boot_arena *arena);
void boot_arena_leave(boot_arena *arena);

#endif
