/* packs.c: a small list of packed weights. */
#include "ops/packs.h"

#include <string.h>

#include "base/memory.h"

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
    BOOT_TRY(boot_alloc((void **)&(*added)->data, bytes, false, "packed weights"));
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
    if (!pack) BOOT_TRY(add_pack(packs, &(boot_pack){weight, kernel, floats, 0, NULL}, &pack));
    *data = pack->data;
    return BOOT_OK;
}

/* Held for a look through a short list. */
static void lock(boot_packs *packs) {
    while (atomic_flag_test_and_set_explicit(&packs->busy, memory_order_acquire)) {
    }
}

static void unlock(boot_packs *packs) {
    atomic_flag_clear_explicit(&packs->busy, memory_order_release);
}

boot_status boot_packs_get(boot_packs *packs, const void *weight, const void *kernel,
                           int64_t floats, float **data, bool *fresh) {
    lock(packs);
    const boot_status status = get_pack(packs, weight, kernel, floats, data, fresh);
    unlock(packs);
    return status;
}

void boot_packs_filled(boot_packs *packs, const void *weight, const void *kernel, int64_t floats) {
    lock(packs);
    boot_pack *pack = look_up(packs, weight, kernel, floats);
    if (pack) pack->version = packs->version;
    unlock(packs);
}

void boot_packs_drop(boot_packs *packs, const void *kernel) {
    int kept = 0;
    for (int i = 0; i < packs->count; i++) {
        if (packs->items[i].kernel != kernel) {
            packs->items[kept++] = packs->items[i];
            continue;
        }
        packs->bytes -= packs->items[i].floats * (int64_t)sizeof(float);
        boot_free(packs->items[i].data);
    }
    packs->count = kept;
}

void boot_packs_close(boot_packs *packs) {
    for (int i = 0; i < packs->count; i++) boot_free(packs->items[i].data);
    boot_free(packs->items);
    *packs = (boot_packs){.version = packs->version, .limit = packs->limit};
}
