/* pack_count.h: how much memory the packed weights of some plans take. */
#ifndef BOOT_PACK_COUNT_H
#define BOOT_PACK_COUNT_H

#include "net/shards.h"

/* Bytes of all packs that these plans keep, each pack that several of them share counted once. */
boot_status boot_count_packs(const boot_shards *const *all, int count, int64_t *bytes);

#endif
