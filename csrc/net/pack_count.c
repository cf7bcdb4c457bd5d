/* pack_count.c: counting packed weights before they are made. */
#include "net/pack_count.h"

#include "base/memory.h"

typedef struct {
    boot_pack_need need;
    int weight; /* parameter index */
} planned_pack;

typedef struct {
    planned_pack *items;
    int count;
    int64_t bytes;
} pack_list;

static void add(pack_list *list, boot_pack_need need, int weight) {
    for (int i = 0; i < list->count; i++)
        if (list->items[i].need.key == need.key && list->items[i].need.floats == need.floats &&
            list->items[i].weight == weight)
            return;
    list->items[list->count++] = (planned_pack){need, weight};
    list->bytes += need.floats * (int64_t)sizeof(float);
}

static void add_plan(pack_list *list, const boot_graph *graph) {
    for (int i = 0; i < graph->num_nodes; i++)
        for (int k = 0; k < 2; k++) {
            /* The operations that pack all have their weight second. */
            const int id = graph->node_values[i][1];
            if (graph->nodes[i].packs[k].floats)
                add(list, graph->nodes[i].packs[k], graph->values[id].index);
        }
}

boot_status boot_count_packs(const boot_shards *const *all, int count, int64_t *bytes) {
    pack_list list = {0};
    int64_t capacity = 0;
    for (int p = 0; p < count; p++)
        for (int i = 0; i < all[p]->count; i++) capacity += 2 * all[p]->plans[i].graph.num_nodes;
    *bytes = 0;
    if (!capacity) return BOOT_OK;
    BOOT_TRY(boot_alloc((void **)&list.items, capacity * sizeof(planned_pack), false, "packs"));
    for (int p = 0; p < count; p++)
        for (int i = 0; i < all[p]->count; i++) add_plan(&list, &all[p]->plans[i].graph);
    boot_free(list.items);
    *bytes = list.bytes;
    return BOOT_OK;
}
