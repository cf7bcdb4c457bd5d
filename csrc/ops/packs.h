/* packs.h: weights in the layout that a kernel wants, kept from call to call while they do not
 * change. */
#ifndef BOOT_PACKS_H
#define BOOT_PACKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct {
    const void *weight, *kernel; /* the key: whose weight, packed for which kernel */
    int64_t floats;
    uint64_t version; /* of the weights that `data` was made from */
    float *data;
} boot_pack;

typedef struct {
    boot_pack *items;
    int count, capacity;
    uint64_t version; /* of the weights now; a larger number makes every pack stale */
    atomic_flag busy;
} boot_packs;

/* The buffer for that key, made on first use. *fresh: it already holds the weights as they are now;
   else the caller fills it. Any thread may call; two that ask for one key must not do so at once
   unless it is fresh. */
boot_status boot_packs_get(boot_packs *packs, const void *weight, const void *kernel,
                           int64_t floats, float **data, bool *fresh);
void boot_packs_close(boot_packs *packs);

#endif
