/* graph.c: adding values, parameters and nodes. */
#include "net/graph.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

void boot_graph_init(boot_graph *graph, boot_params *params, bool training) {
    *graph = (boot_graph){.params = params, .training = training};
}

void boot_graph_close(boot_graph *graph) {
    for (int i = 0; i < graph->num_nodes; i++)
        if (graph->nodes[i].op->release) graph->nodes[i].op->release(&graph->nodes[i]);
    boot_free(graph->values);
    boot_free(graph->nodes);
    boot_free(graph->node_values);
    boot_free(graph->node_out);
    *graph = (boot_graph){0};
}

void boot_params_close(boot_params *params) {
    boot_free(params->items);
    *params = (boot_params){0};
}

/* Doubles *block when it is full. */
static boot_status grow(void **block, size_t item, int count, int *capacity, const char *what) {
    if (count < *capacity) return BOOT_OK;
    const int larger = *capacity ? 2 * *capacity : 64;
    void *grown;
    BOOT_TRY(boot_alloc(&grown, larger * item, true, what));
    if (count) memcpy(grown, *block, count * item);
    boot_free(*block);
    *block = grown;
    *capacity = larger;
    return BOOT_OK;
}

static int add_value(boot_graph *graph, boot_value value) {
    if (graph->status) return -1;
    graph->status = grow((void **)&graph->values, sizeof value, graph->num_values,
                         &graph->value_capacity, "graph");
    if (graph->status) return -1;
    graph->values[graph->num_values] = value;
    return graph->num_values++;
}

int boot_graph_input(boot_graph *graph, int slot, boot_tensor shape) {
    return add_value(graph, (boot_value){BOOT_VALUE_INPUT, slot, shape, false});
}

static int find_param(const boot_params *params, const char *name) {
    for (int i = 0; i < params->count; i++)
        if (!strcmp(params->items[i].name, name)) return i;
    return -1;
}

static boot_status add_param(boot_params *params, const boot_param *param) {
    BOOT_TRY(grow((void **)&params->items, sizeof *param, params->count, &params->capacity,
                  "parameters"));
    boot_param *added = &params->items[params->count++];
    *added = *param;
    added->offset = params->floats;
    params->floats += (param->count + 15) / 16 * 16;
    return BOOT_OK;
}

int boot_graph_param(boot_graph *graph, bool trainable, int rank, const int64_t *dims,
                     const char *format, ...) {
    if (graph->status) return -1;
    boot_param param = {.rank = rank, .dims = {1, 1, 1, 1}, .count = 1, .trainable = trainable};
    va_list args;
    va_start(args, format);
    vsnprintf(param.name, sizeof param.name, format, args);
    va_end(args);
    for (int i = 0; i < rank && !graph->status; i++) {
        param.dims[i] = dims[i];
        graph->status = boot_mul(param.count, dims[i], &param.count);
    }
    int index = find_param(graph->params, param.name);
    if (index < 0 && !graph->status) {
        graph->status = add_param(graph->params, &param);
        index = graph->params->count - 1;
    }
    const boot_tensor shape =
        boot_shape(param.dims[0], param.dims[1], param.dims[2], param.dims[3]);
    return add_value(graph,
                     (boot_value){BOOT_VALUE_PARAM, index, shape, trainable && graph->training});
}

static boot_status check_capacity(boot_graph *graph) {
    int capacity = graph->node_capacity;
    BOOT_TRY(grow((void **)&graph->nodes, sizeof(boot_node), graph->num_nodes, &capacity, "graph"));
    capacity = graph->node_capacity;
    BOOT_TRY(grow((void **)&graph->node_values, sizeof *graph->node_values, graph->num_nodes,
                  &capacity, "graph"));
    return grow((void **)&graph->node_out, sizeof(int), graph->num_nodes, &graph->node_capacity,
                "graph");
}

int boot_graph_node(boot_graph *graph, const boot_op *op, const char *name, const int *inputs,
                    const double *attrs) {
    if (graph->status || (graph->status = check_capacity(graph))) return -1;
    boot_node *node = &graph->nodes[graph->num_nodes];
    *node =
        (boot_node){.op = op, .training = graph->training, .block = graph->block, .grad_alias = -1};
    snprintf(node->name, sizeof node->name, "%s", name);
    bool wants_grad = false;
    for (int i = 0; i < BOOT_MAX_INPUTS; i++) {
        const int id = inputs[i];
        graph->node_values[graph->num_nodes][i] = id;
        if (id < 0) continue;
        node->in[i] = graph->values[id].shape;
        node->wants_grad[i] = graph->values[id].wants_grad && !(op->flags & BOOT_OP_NO_GRADIENT) &&
                              !(op->constants >> i & 1);
        wants_grad |= node->wants_grad[i];
    }
    for (int i = 0; attrs && i < BOOT_MAX_ATTRS; i++) node->attr[i] = attrs[i];
    graph->status = op->infer(node);
    if (graph->status) return -1;
    const int out =
        add_value(graph, (boot_value){BOOT_VALUE_NODE, graph->num_nodes, node->out, wants_grad});
    if (out < 0) return -1;
    graph->node_out[graph->num_nodes++] = out;
    return out;
}

boot_tensor boot_graph_shape(const boot_graph *graph, int id) {
    return graph->status || id < 0 ? (boot_tensor){0} : graph->values[id].shape;
}
