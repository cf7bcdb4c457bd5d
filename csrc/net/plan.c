/* plan.c: making a plan: the list of steps, each buffer's lifetime, and its place in the arena. */
#define _GNU_SOURCE /* qsort_r */
#include "net/plan.h"

#include <limits.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Asks every node for its kernels; the scratch area fits the neediest. */
static boot_status plan_nodes(boot_plan *plan, boot_plan_context *context) {
    for (int look = 0; look < BOOT_LOOKS; look++)
        for (int i = 0; i < plan->graph.num_nodes; i++) {
            const boot_node *node = &plan->graph.nodes[i];
            if (node->op->look) BOOT_TRY(node->op->look(node, context, look));
        }
    for (int i = 0; i < plan->graph.num_nodes; i++) {
        boot_node *node = &plan->graph.nodes[i];
        if (node->op->plan) BOOT_TRY(node->op->plan(node, context));
        if (node->scratch_floats > plan->scratch_floats)
            plan->scratch_floats = node->scratch_floats;
        for (int k = 0; context->packed && k < 2; k++)
            *(node->packs[k].own ? &plan->own_pack_floats : &plan->pack_floats) +=
                node->packs[k].floats;
    }
    plan->scratch_floats = (plan->scratch_floats + 15) / 16 * 16; /* another arena lies behind it */
    return BOOT_OK;
}

static boot_status new_buffer(boot_plan *plan, int64_t floats, int *index) {
    if (plan->num_buffers == plan->buffer_capacity)
        return boot_fail(BOOT_ERR_STATE, "plan: more than %d buffers", plan->buffer_capacity);
    plan->buffers[plan->num_buffers] = (boot_buffer){(floats + 15) / 16 * 16, 0, INT_MAX, -1};
    *index = plan->num_buffers++;
    return BOOT_OK;
}

/* Buffer `index` is in use at the step that is being planned. */
static void touch(boot_plan *plan, int index) {
    if (index < 0) return;
    boot_buffer *buffer = &plan->buffers[index];
    if (plan->num_steps < buffer->start) buffer->start = plan->num_steps;
    if (plan->num_steps > buffer->end) buffer->end = plan->num_steps;
}

static void add_step(boot_plan *plan, boot_step_kind kind, int node) {
    plan->steps[plan->num_steps++] = (boot_step){kind, node};
}

static boot_status value_buffer(boot_plan *plan, int id) {
    BOOT_TRY(new_buffer(plan, boot_count(&plan->graph.values[id].shape), &plan->value_buffer[id]));
    plan->value_again[id] = plan->value_buffer[id];
    return BOOT_OK;
}

static boot_status plan_forward_steps(boot_plan *plan) {
    const boot_graph *graph = &plan->graph;
    for (int i = 0; i < graph->num_nodes; i++) {
        const int out = graph->node_out[i];
        BOOT_TRY(value_buffer(plan, out));
        if (graph->nodes[i].saved_floats)
            BOOT_TRY(new_buffer(plan, graph->nodes[i].saved_floats, &plan->node_buffers[i].saved));
        for (int j = 0; j < BOOT_MAX_INPUTS; j++)
            if (graph->node_values[i][j] >= 0)
                touch(plan, plan->value_buffer[graph->node_values[i][j]]);
        touch(plan, plan->value_buffer[out]);
        touch(plan, plan->node_buffers[i].saved);
        add_step(plan, BOOT_STEP_FORWARD, i);
    }
    plan->forward_steps = plan->num_steps;
    return BOOT_OK;
}

/* Whether the forward pass leaves value `id` for backward: what is dear to compute and, with
   gradient checkpointing, is read outside of the block that made it. */
static bool is_kept(const boot_plan *plan, int id) {
    const boot_graph *graph = &plan->graph;
    const boot_node *maker = &graph->nodes[graph->values[id].index];
    if (maker->op->flags & BOOT_OP_RECOMPUTE) return false;
    if (!plan->checkpointing || !maker->block || id == plan->output) return true;
    for (int i = 0; i < graph->num_nodes; i++)
        for (int j = 0; j < BOOT_MAX_INPUTS; j++)
            if (graph->node_values[i][j] == id && graph->nodes[i].block != maker->block)
                return true;
    return false;
}

/* Makes sure that value `id` exists during backward: kept since forward, or recomputed now. */
static boot_status require(boot_plan *plan, int id) {
    const boot_graph *graph = &plan->graph;
    const boot_value *value = &graph->values[id];
    if (value->kind != BOOT_VALUE_NODE) return BOOT_OK;
    const int node = value->index;
    if (is_kept(plan, id) || plan->value_again[id] != plan->value_buffer[id]) {
        touch(plan, plan->value_again[id]);
        return BOOT_OK;
    }
    for (int j = 0; j < BOOT_MAX_INPUTS; j++)
        if (graph->node_values[node][j] >= 0) BOOT_TRY(require(plan, graph->node_values[node][j]));
    BOOT_TRY(new_buffer(plan, boot_count(&value->shape), &plan->value_again[id]));
    for (int j = 0; j < BOOT_MAX_INPUTS; j++)
        if (graph->node_values[node][j] >= 0)
            touch(plan, plan->value_again[graph->node_values[node][j]]);
    touch(plan, plan->value_again[id]);
    touch(plan, plan->node_buffers[node].saved);
    add_step(plan, BOOT_STEP_AGAIN, node);
    touch(plan, plan->value_again[id]);
    return BOOT_OK;
}

/* Where the gradient of input j of node i goes: a buffer of its own, dout's own memory, or added to
   what an earlier consumer left. */
static boot_status plan_din(boot_plan *plan, int i, int j) {
    const boot_graph *graph = &plan->graph;
    boot_node_buffers *use = &plan->node_buffers[i];
    const int id = graph->node_values[i][j];
    if (id < 0 || !graph->nodes[i].wants_grad[j] || graph->values[id].kind != BOOT_VALUE_NODE)
        return BOOT_OK;
    const int64_t floats = boot_count(&graph->values[id].shape);
    use->add[j] = plan->grad_buffer[id] >= 0;
    if (!use->add[j] && graph->nodes[i].grad_alias == j)
        plan->grad_buffer[id] = plan->grad_buffer[graph->node_out[i]];
    else if (!use->add[j])
        BOOT_TRY(new_buffer(plan, floats, &plan->grad_buffer[id]));
    use->din[j] = plan->grad_buffer[id];
    touch(plan, use->din[j]);
    if (use->add[j] && (graph->nodes[i].op->overwrites >> j & 1)) {
        BOOT_TRY(new_buffer(plan, floats, &use->temporary[j]));
        touch(plan, use->temporary[j]);
    }
    return BOOT_OK;
}

static boot_status plan_backward_steps(boot_plan *plan) {
    const boot_graph *graph = &plan->graph;
    BOOT_TRY(new_buffer(plan, boot_count(&graph->values[plan->output].shape),
                        &plan->grad_buffer[plan->output]));
    touch(plan, plan->grad_buffer[plan->output]);
    for (int i = graph->num_nodes - 1; i >= 0; i--) {
        const boot_node *node = &graph->nodes[i];
        const int out = graph->node_out[i];
        if (!graph->values[out].wants_grad || plan->grad_buffer[out] < 0) continue;
        for (int j = 0; j < BOOT_MAX_INPUTS; j++)
            if (graph->node_values[i][j] >= 0 && (node->op->backward_reads >> j & 1))
                BOOT_TRY(require(plan, graph->node_values[i][j]));
        if (node->op->backward_reads & BOOT_READS_OUT) BOOT_TRY(require(plan, out));
        /* Recomputing one input adds steps; what was required before must live until this one. */
        for (int j = 0; j < BOOT_MAX_INPUTS; j++)
            if (graph->node_values[i][j] >= 0 && (node->op->backward_reads >> j & 1))
                touch(plan, plan->value_again[graph->node_values[i][j]]);
        touch(plan, plan->node_buffers[i].saved);
        touch(plan, plan->grad_buffer[out]);
        for (int j = 0; j < BOOT_MAX_INPUTS; j++) BOOT_TRY(plan_din(plan, i, j));
        add_step(plan, BOOT_STEP_BACKWARD, i);
    }
    return BOOT_OK;
}

static int by_size(const void *a, const void *b, void *buffers) {
    const boot_buffer *x = (const boot_buffer *)buffers + *(const int *)a;
    const boot_buffer *y = (const boot_buffer *)buffers + *(const int *)b;
    if (x->floats != y->floats) return x->floats < y->floats ? 1 : -1;
    return *(const int *)a - *(const int *)b;
}

/* Largest first, each at the lowest place that is free during its whole life. `order` and `placed`
   have room for every buffer; `placed` is kept sorted by offset. */
static void place_buffers(boot_plan *plan, int *order, int *placed) {
    int num_placed = 0;
    for (int i = 0; i < plan->num_buffers; i++) order[i] = i;
    qsort_r(order, plan->num_buffers, sizeof(int), by_size, plan->buffers);
    for (int i = 0; i < plan->num_buffers; i++) {
        boot_buffer *buffer = &plan->buffers[order[i]];
        if (buffer->end < 0) continue;
        int64_t offset = 0;
        for (int k = 0; k < num_placed; k++) {
            const boot_buffer *other = &plan->buffers[placed[k]];
            if (other->end < buffer->start || other->start > buffer->end) continue;
            if (offset + buffer->floats <= other->offset) break;
            if (other->offset + other->floats > offset) offset = other->offset + other->floats;
        }
        buffer->offset = offset;
        if (offset + buffer->floats > plan->arena_floats)
            plan->arena_floats = offset + buffer->floats;
        int k = num_placed++;
        for (; k > 0 && plan->buffers[placed[k - 1]].offset > offset; k--)
            placed[k] = placed[k - 1];
        placed[k] = order[i];
    }
}

static boot_status allocate_tables(boot_plan *plan) {
    const int V = plan->graph.num_values, N = plan->graph.num_nodes;
    /* Per node at most: value, saved, recomputed value, and a gradient and a temporary per input.
     */
    plan->buffer_capacity = N * (3 + 2 * BOOT_MAX_INPUTS) + 1;
    BOOT_TRY(boot_alloc((void **)&plan->buffers, plan->buffer_capacity * sizeof(boot_buffer), true,
                        "plan"));
    BOOT_TRY(boot_alloc((void **)&plan->steps, (3 * N + 1) * sizeof(boot_step), true, "plan"));
    BOOT_TRY(boot_alloc((void **)&plan->value_buffer, 3 * V * sizeof(int), true, "plan"));
    BOOT_TRY(boot_alloc((void **)&plan->node_buffers, N * sizeof(boot_node_buffers), true, "plan"));
    plan->value_again = plan->value_buffer + V;
    plan->grad_buffer = plan->value_buffer + 2 * V;
    memset(plan->value_buffer, -1, 3 * V * sizeof(int));
    for (int i = 0; i < N; i++) {
        plan->node_buffers[i].saved = -1;
        memset(plan->node_buffers[i].din, -1, sizeof plan->node_buffers[i].din);
        memset(plan->node_buffers[i].temporary, -1, sizeof plan->node_buffers[i].temporary);
    }
    return BOOT_OK;
}

static boot_status fill_plan(boot_plan *plan, boot_plan_context *context) {
    int *order = NULL;
    if (plan->graph.status) return plan->graph.status; /* the builder failed; its message stands */
    BOOT_TRY(allocate_tables(plan));
    BOOT_TRY(plan_nodes(plan, context));
    BOOT_TRY(plan_forward_steps(plan));
    if (plan->graph.training) BOOT_TRY(plan_backward_steps(plan));
    BOOT_TRY(boot_alloc((void **)&order, 2 * plan->num_buffers * sizeof(int), false, "plan"));
    place_buffers(plan, order, order + plan->num_buffers);
    boot_free(order);
    return BOOT_OK;
}

boot_status boot_plan_make(boot_plan *plan, boot_graph *graph, int output,
                           boot_plan_context *context) {
    *plan = (boot_plan){.graph = *graph,
                        .output = output,
                        .threads = omp_get_max_threads(),
                        .checkpointing = context->gradient_checkpointing};
    *graph = (boot_graph){0};
    const boot_status status = fill_plan(plan, context);
    if (status) boot_plan_close(plan);
    return status;
}

void boot_plan_close(boot_plan *plan) {
    boot_graph_close(&plan->graph);
    boot_free(plan->steps);
    boot_free(plan->buffers);
    boot_free(plan->value_buffer);
    boot_free(plan->node_buffers);
    *plan = (boot_plan){0};
}
