/* packs.h: weights in the layout that a kernel wants, kept from call to call while they do not
 * change. */
#ifndef BOOT_PACKS_H
#define BOOT_PACKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct boot_slab boot_slab;

typedef struct {
    const void *weight, *kernel; /* the key: whose weight, packed for which kernel */
    int64_t floats;
    uint64_t version; /* of the weights that `data` was made from */
    float *data;
    boot_slab *slab; /* that data lies in */
} boot_pack;

typedef struct {
    boot_pack *items;
    int count, capacity;
    boot_slab *slabs;     /* newest first */
    uint64_t version;     /* of the weights now; a larger number makes every pack stale */
    int64_t bytes, limit; /* held now, and the most that may be held; limit 0: no limit */
    atomic_flag busy;
} boot_packs;

/* A pack that a node keeps. own: no other node can use it, so it goes with the node. */
typedef struct {
    const void *key;
    int64_t floats;
    bool own;
} boot_pack_need;

/* The buffer for that key, made on first use. *fresh: it already holds the weights as they are now;
   else the caller fills it, and says so by boot_packs_filled once nothing can fail any more. Any
   thread may call; two that ask for one key must not do so at once unless it is fresh. */
boot_status boot_packs_get(boot_packs *packs, const void *weight, const void *kernel,
                           int64_t floats, float **data, bool *fresh);
void boot_packs_filled(boot_packs *packs, const void *weight, const void *kernel, int64_t floats);
/* What boot_packs_get made, if it holds the weights as they are now; else NULL. Any thread may call
   while none gets. */
float *boot_packs_find(const boot_packs *packs, const void *weight, const void *kernel,
                       int64_t floats);
/* Gives back every pack that was made for `kernel`. */
void boot_packs_drop(boot_packs *packs, const void *kernel);
void boot_packs_close(boot_packs *packs); /* keeps the limit */

#endif
