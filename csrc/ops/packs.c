/* packs.c: a small list of packed weights, which lie together in slabs on huge pages: on small ones
 * a product would miss the TLB with every kernel of a network. */
#include "ops/packs.h"

#include <string.h>

#include "base/lock.h"
#include "base/memory.h"

/* Bytes; a slab and what boot_alloc puts before it fill two huge pages. */
enum { LINE = 64, SLAB = (4 << 20) - 4096 };

/* A stretch of memory for packs one after the other; given back with the last of them. */
struct boot_slab {
    boot_slab *next;
    int64_t bytes, used, packs;
};

static int64_t in_lines(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

/* A slab with room for a pack; under a limit, and for a large one, it has no more. */
static boot_status add_slab(boot_packs *packs, int64_t bytes, boot_slab **slab) {
    const int64_t head = in_lines(sizeof **slab), least = head + in_lines(bytes);
    const int64_t whole = packs->limit || least > SLAB ? least : SLAB;
    BOOT_TRY(boot_alloc((void **)slab, whole, false, "packed weights"));
    **slab = (boot_slab){packs->slabs, whole, head, 0};
    packs->slabs = *slab;
    return BOOT_OK;
}

/* Room in the first slab that has it, or in a new one. */
static boot_status take(boot_packs *packs, int64_t bytes, boot_pack *pack) {
    boot_slab *slab = packs->slabs;
    while (slab && slab->used + in_lines(bytes) > slab->bytes) slab = slab->next;
    if (!slab) BOOT_TRY(add_slab(packs, bytes, &slab));
    pack->data = (float *)(void *)((char *)slab + slab->used);
    pack->slab = slab;
    slab->used += in_lines(bytes);
    slab->packs++;
    return BOOT_OK;
}

static void give_back(boot_packs *packs, const boot_pack *pack) {
    packs->bytes -= pack->floats * (int64_t)sizeof(float);
    if (--pack->slab->packs) return;
    boot_slab **at = &packs->slabs;
    while (*at != pack->slab) at = &(*at)->next;
    *at = pack->slab->next;
    boot_free(pack->slab);
}

static boot_status add_pack(boot_packs *packs, const boot_pack *pack, boot_pack **added) {
    if (packs->count == packs->capacity) {
        const int capacity = packs->capacity ? 2 * packs->capacity : 32;
        void *grown;
        BOOT_TRY(boot_alloc(&grown, capacity * sizeof *pack, true, "packed weights"));
        if (packs->count) memcpy(grown, packs->items, packs->count * sizeof *pack);
        boot_free(packs->items);
        packs->items = grown;
        packs->capacity = capacity;
    }
    const int64_t bytes = pack->floats * (int64_t)sizeof(float);
    if (packs->limit && packs->bytes + bytes > packs->limit)
        return boot_fail(BOOT_ERR_MEMORY,
                         "packed weights: %lld bytes needed, the memory limit leaves %lld",
                         (long long)bytes, (long long)(packs->limit - packs->bytes));
    *added = &packs->items[packs->count];
    **added = *pack;
    BOOT_TRY(take(packs, bytes, *added));
    packs->count++;
    packs->bytes += bytes;
    return BOOT_OK;
}

static boot_pack *look_up(const boot_packs *packs, const void *weight, const void *kernel,
                          int64_t floats) {
    for (int i = 0; i < packs->count; i++)
        if (packs->items[i].weight == weight && packs->items[i].kernel == kernel &&
            packs->items[i].floats == floats)
            return &packs->items[i];
    return NULL;
}

float *boot_packs_find(const boot_packs *packs, const void *weight, const void *kernel,
                       int64_t floats) {
    const boot_pack *pack = look_up(packs, weight, kernel, floats);
    return pack && pack->version == packs->version ? pack->data : NULL;
}

static boot_status get_pack(boot_packs *packs, const void *weight, const void *kernel,
                            int64_t floats, float **data, bool *fresh) {
    boot_pack *pack = look_up(packs, weight, kernel, floats);
    *fresh = pack && pack->version == packs->version;
    if (!pack)
        BOOT_TRY(add_pack(packs, &(boot_pack){weight, kernel, floats, 0, NULL, NULL}, &pack));
    *data = pack->data;
    return BOOT_OK;
}

boot_status boot_packs_get(boot_packs *packs, const void *weight, const void *kernel,
                           int64_t floats, float **data, bool *fresh) {
    boot_lock(&packs->busy);
    const boot_status status = get_pack(packs, weight, kernel, floats, data, fresh);
    boot_unlock(&packs->busy);
    return status;
}

void boot_packs_filled(boot_packs *packs, const void *weight, const void *kernel, int64_t floats) {
    boot_lock(&packs->busy);
    boot_pack *pack = look_up(packs, weight, kernel, floats);
    if (pack) pack->version = packs->version;
    boot_unlock(&packs->busy);
}

void boot_packs_drop(boot_packs *packs, const void *kernel) {
    int kept = 0;
    for (int i = 0; i < packs->count; i++) {
        if (packs->items[i].kernel != kernel) {
            packs->items[kept++] = packs->items[i];
            continue;
        }
        give_back(packs, &packs->items[i]);
    }
    packs->count = kept;
}

void boot_packs_close(boot_packs *packs) {
    for (int i = 0; i < packs->count; i++) give_back(packs, &packs->items[i]);
    boot_free(packs->items);
    *packs = (boot_packs){.version = packs->version, .limit = packs->limit};
}
