/* run.c: running a plan forwards and backwards: look up every array of a step, call the op. */
#include "net/plan.h"

#include <omp.h>
#include <stdio.h>

#include "base/isa.h"

static float *buffer_data(const boot_plan *plan, const boot_run *run, int index) {
    return index < 0 ? NULL : run->arena + plan->buffers[index].offset;
}

static float *value_data(const boot_plan *plan, const boot_run *run, int id, bool backward) {
    const boot_value *value = &plan->graph.values[id];
    switch (value->kind) {
    case BOOT_VALUE_INPUT:
        return (float *)run->inputs[value->index];
    case BOOT_VALUE_PARAM:
        return run->weights + plan->graph.params->items[value->index].offset;
    default:
        return buffer_data(plan, run, (backward ? plan->value_again : plan->value_buffer)[id]);
    }
}

/* The arrays that forward and backward share. Inputs that backward does not read stay NULL: their
   memory may hold something else by then. */
static boot_call make_call(const boot_plan *plan, const boot_run *run, const boot_step *step) {
    const boot_graph *graph = &plan->graph;
    const boot_node *node = &graph->nodes[step->node];
    const bool backward = step->kind != BOOT_STEP_FORWARD;
    const unsigned reads = step->kind == BOOT_STEP_BACKWARD ? node->op->backward_reads : ~0u;
    boot_call call = {.out = node->out, .again = step->kind == BOOT_STEP_AGAIN};
    for (int j = 0; j < BOOT_MAX_INPUTS; j++) {
        const int id = graph->node_values[step->node][j];
        call.in[j] = node->in[j];
        if (id < 0 || !(reads >> j & 1)) continue;
        call.in[j].data = value_data(plan, run, id, backward);
    }
    if (reads & BOOT_READS_OUT)
        call.out.data = value_data(plan, run, graph->node_out[step->node], backward);
    call.saved = buffer_data(plan, run, plan->node_buffers[step->node].saved);
    call.scratch = run->arena + plan->arena_floats;
    call.packs = run->packs;
    return call;
}

BOOT_INLINE void add_into_body(int64_t count, const float *src, float *restrict dst) {
    for (int64_t i = 0; i < count; i++) dst[i] += src[i];
}
BOOT_MULTI_ISA(add_into, (int64_t count, const float *src, float *restrict dst), (count, src, dst))

static void add_shared(int64_t count, const float *src, float *dst) {
    const int64_t block = 16384;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i += block)
        add_into(count - i < block ? count - i : block, src + i, dst + i);
}

static boot_status run_backward(const boot_plan *plan, const boot_run *run, const boot_step *step) {
    const boot_graph *graph = &plan->graph;
    const boot_node *node = &graph->nodes[step->node];
    const boot_node_buffers *use = &plan->node_buffers[step->node];
    boot_call call = make_call(plan, run, step);
    call.dout = node->out;
    call.dout.data = buffer_data(plan, run, plan->grad_buffer[graph->node_out[step->node]]);
    for (int j = 0; j < BOOT_MAX_INPUTS; j++) {
        const int id = graph->node_values[step->node][j];
        call.din[j] = node->in[j];
        if (id < 0 || !node->wants_grad[j]) continue;
        if (graph->values[id].kind == BOOT_VALUE_PARAM) {
            call.din[j].data = run->grads + graph->params->items[graph->values[id].index].offset;
            continue;
        }
        const bool detour = use->temporary[j] >= 0;
        call.din[j].data = buffer_data(plan, run, detour ? use->temporary[j] : use->din[j]);
        call.accumulate[j] = use->add[j] && !detour;
    }
    BOOT_TRY(node->op->backward(node, &call));
    for (int j = 0; j < BOOT_MAX_INPUTS; j++) {
        if (use->temporary[j] < 0) continue;
        const int64_t count = boot_count(&node->in[j]);
        float *sum = buffer_data(plan, run, use->din[j]);
        if (node->outside & BOOT_OUTSIDE_BACKWARD) {
#pragma omp parallel
            add_shared(count, call.din[j].data, sum);
        } else {
            add_shared(count, call.din[j].data, sum);
        }
    }
    return BOOT_OK;
}

static boot_status run_step(const boot_plan *plan, const boot_run *run, int i) {
    const boot_step *step = &plan->steps[i];
    const bool timed = run->step_seconds && omp_get_thread_num() == 0;
    const double start = timed ? omp_get_wtime() : 0;
    if (step->kind == BOOT_STEP_BACKWARD) {
        BOOT_TRY(run_backward(plan, run, step));
    } else {
        const boot_call call = make_call(plan, run, step);
        const boot_node *node = &plan->graph.nodes[step->node];
        BOOT_TRY(node->op->forward(node, &call));
    }
    if (timed) run->step_seconds[i] += omp_get_wtime() - start;
    return BOOT_OK;
}

static bool is_outside(const boot_plan *plan, int i) {
    const boot_step *step = &plan->steps[i];
    return plan->graph.nodes[step->node].outside &
           (step->kind == BOOT_STEP_BACKWARD ? BOOT_OUTSIDE_BACKWARD : BOOT_OUTSIDE_FORWARD);
}

/* Steps [from, to): each stretch of them on one team, whose threads go from step to step together;
   a fork for every step would take as long as a small network's arithmetic. */
static boot_status run_steps(const boot_plan *plan, const boot_run *run, int from, int to) {
    const int threads = run->threads ? run->threads : plan->threads;
    while (from < to) {
        if (is_outside(plan, from)) {
            BOOT_TRY(run_step(plan, run, from++));
            continue;
        }
        int end = from;
        while (end < to && !is_outside(plan, end)) end++;
        boot_status status = BOOT_OK;
#pragma omp parallel num_threads(threads)
        {
            boot_status own = BOOT_OK;
            for (int i = from; i < end && !own; i++) own = run_step(plan, run, i);
            if (omp_get_thread_num() == 0) status = own; /* and its message: the caller's thread */
        }
        BOOT_TRY(status);
        from = end;
    }
    return BOOT_OK;
}

boot_status boot_plan_pack(const boot_plan *plan, const boot_run *run) {
    boot_status status = BOOT_OK;
    char message[512] = ""; /* of the thread that failed */
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < plan->graph.num_nodes; i++) {
        const boot_node *node = &plan->graph.nodes[i];
        if (!node->op->pack) continue;
        const boot_call call = make_call(plan, run, &(boot_step){BOOT_STEP_FORWARD, i});
        const boot_status result = node->op->pack(node, &call);
#pragma omp critical(boot_pack_failure)
        if (result && !status) {
            status = result;
            snprintf(message, sizeof message, "%s", boot_message());
        }
    }
    return status ? boot_fail(status, "%s", message) : BOOT_OK;
}

boot_status boot_plan_forward(const boot_plan *plan, const boot_run *run) {
    return run_steps(plan, run, 0, plan->forward_steps);
}

boot_status boot_plan_backward(const boot_plan *plan, const boot_run *run) {
    return run_steps(plan, run, plan->forward_steps, plan->num_steps);
}

float *boot_plan_output(const boot_plan *plan, const boot_run *run) {
    return buffer_data(plan, run, plan->value_buffer[plan->output]);
}

float *boot_plan_output_grad(const boot_plan *plan, const boot_run *run) {
    return buffer_data(plan, run, plan->grad_buffer[plan->output]);
}
