/* shards.c: planning and running the shards of a batch. */
#include "net/shards.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "base/isa.h"
#include "base/memory.h"

int64_t boot_shards_first(const boot_shards *shards, int shard) {
    const int64_t each = shards->n / shards->count, left = shards->n % shards->count;
    return shard * each + (shard < left ? shard : left);
}

static boot_status make_plans(boot_shards *shards, boot_params *params, boot_build_fn build,
                              const void *config, boot_plan_context *context) {
    for (int i = 0; i < shards->count; i++) {
        const int64_t rows = boot_shards_first(shards, i + 1) - boot_shards_first(shards, i);
        boot_graph graph;
        boot_graph_init(&graph, params, shards->training);
        graph.packed = context->packed;
        const int output = build(&graph, config, rows, shards->height, shards->width);
        BOOT_TRY(boot_plan_make(&shards->plans[i], &graph, output, context));
    }
    return BOOT_OK;
}

boot_status boot_shards_make(boot_shards *shards, boot_params *params, boot_build_fn build,
                             const void *config, boot_plan_context *context) {
    const int threads = omp_get_max_threads();
    shards->packed = 0;
    BOOT_TRY(boot_alloc((void **)&shards->plans, shards->count * sizeof(boot_plan), true, "plans"));
    if (shards->count > 1) omp_set_num_threads(1); /* kernels that run inside one thread */
    const boot_status status = make_plans(shards, params, build, config, context);
    omp_set_num_threads(threads);
    if (status)
        boot_shards_close(shards);
    else
        shards->threads = threads; /* it is there only now */
    return status;
}

void boot_shards_close(boot_shards *shards) {
    for (int i = 0; shards->plans && i < shards->count; i++) boot_plan_close(&shards->plans[i]);
    boot_free(shards->plans);
    *shards = (boot_shards){0};
}

static int64_t arena_of(const boot_plan *plan) { return plan->arena_floats + plan->scratch_floats; }

int64_t boot_shards_floats(const boot_shards *shards) {
    int64_t floats = 0;
    for (int i = 0; i < shards->count; i++) floats += arena_of(&shards->plans[i]);
    return floats;
}

/* The part of the batch's run that is shard i's. */
static boot_run run_of(const boot_shards *shards, const boot_shards_run *whole, int i) {
    const boot_graph *graph = &shards->plans[i].graph;
    boot_run run = whole->run;
    for (int v = 0; v < graph->num_values; v++)
        if (graph->values[v].kind == BOOT_VALUE_INPUT)
            run.inputs[graph->values[v].index] +=
                boot_shards_first(shards, i) * boot_row(&graph->values[v].shape);
    for (int k = 0; k < i; k++) run.arena += arena_of(&shards->plans[k]);
    if (i > 0) {
        run.grads = whole->more_grads + (i - 1) * shards->plans[0].graph.params->floats;
        run.step_seconds = NULL;
    }
    return run;
}

static int64_t output_floats(const boot_plan *plan) {
    return boot_count(&plan->graph.values[plan->output].shape);
}

static boot_status forward_one(const boot_shards *shards, const boot_shards_run *whole, int i,
                               float *output) {
    const boot_plan *plan = &shards->plans[i];
    const boot_run run = run_of(shards, whole, i);
    const int64_t floats = output_floats(plan),
                  row = floats / plan->graph.values[plan->output].shape.n;
    BOOT_TRY(boot_plan_forward(plan, &run));
    memcpy(output + boot_shards_first(shards, i) * row, boot_plan_output(plan, &run),
           floats * sizeof(float));
    return BOOT_OK;
}

static boot_status backward_one(const boot_shards *shards, const boot_shards_run *whole, int i,
                                const float *doutput) {
    const boot_plan *plan = &shards->plans[i];
    const boot_run run = run_of(shards, whole, i);
    const int64_t floats = output_floats(plan),
                  row = floats / plan->graph.values[plan->output].shape.n;
    memcpy(boot_plan_output_grad(plan, &run), doutput + boot_shards_first(shards, i) * row,
           floats * sizeof(float));
    return boot_plan_backward(plan, &run);
}

/* Runs every shard in a thread of its own: forward into `output`, or backward from `doutput`.
   Messages are kept per thread, so a failure's travels to the caller's. */
static boot_status run_all(const boot_shards *shards, const boot_shards_run *run, float *output,
                           const float *doutput) {
    boot_status status = BOOT_OK;
    char message[512] = "";
    if (shards->count == 1)
        return output ? forward_one(shards, run, 0, output) : backward_one(shards, run, 0, doutput);
    const int threads = omp_get_max_threads();
#pragma omp parallel num_threads(threads < shards->count ? threads : shards->count)
    {
        omp_set_num_threads(1);
#pragma omp for schedule(static, 1)
        for (int i = 0; i < shards->count; i++) {
            const boot_status result = output ? forward_one(shards, run, i, output)
                                              : backward_one(shards, run, i, doutput);
#pragma omp critical(boot_shards_failure)
            if (result && !status) {
                status = result;
                snprintf(message, sizeof message, "%s", boot_message());
            }
        }
    }
    return status ? boot_fail(status, "%s", message) : BOOT_OK;
}

/* Before the threads start: none may write packed weights while another reads them. What there is
   no memory for is packed into scratch in every run. */
static boot_status pack_all(boot_shards *shards, const boot_shards_run *run) {
    if (!run->run.packs || shards->packed == run->run.packs->version) return BOOT_OK;
    for (int i = 0; i < shards->count; i++) {
        const boot_status status = boot_plan_pack(&shards->plans[i], &run->run);
        if (status && status != BOOT_ERR_MEMORY) return status;
    }
    shards->packed = run->run.packs->version;
    return BOOT_OK;
}

boot_status boot_shards_forward(boot_shards *shards, const boot_shards_run *run, float *output) {
    BOOT_TRY(pack_all(shards, run));
    if (shards->training || shards->count > 1 || run->run.step_seconds)
        return run_all(shards, run, output, NULL);
    boot_shards_run paced = *run;
    const int most = omp_get_max_threads();
    paced.run.threads = boot_pace_threads(&shards->pace, most);
    const double start = omp_get_wtime();
    BOOT_TRY(run_all(shards, &paced, output, NULL));
    boot_pace_note(&shards->pace, most, omp_get_wtime() - start);
    return BOOT_OK;
}

BOOT_INLINE void add_grads_body(int64_t count, int more, int64_t apart, const float *src,
                                float *restrict dst) {
    for (int k = 0; k < more; k++)
        for (int64_t i = 0; i < count; i++) dst[i] += src[k * apart + i];
}
BOOT_MULTI_ISA(add_grads,
               (int64_t count, int more, int64_t apart, const float *src, float *restrict dst),
               (count, more, apart, src, dst))

boot_status boot_shards_backward(boot_shards *shards, const boot_shards_run *run,
                                 const float *doutput) {
    const int64_t floats = shards->plans[0].graph.params->floats, block = 4096;
    const int more = shards->count - 1;
    BOOT_TRY(pack_all(shards, run));
    BOOT_TRY(run_all(shards, run, NULL, doutput));
#pragma omp parallel for schedule(static) if (more)
    for (int64_t i = 0; i < (more ? floats : 0); i += block)
        add_grads(floats - i < block ? floats - i : block, more, floats, run->more_grads + i,
                  run->run.grads + i);
    return BOOT_OK;
}
