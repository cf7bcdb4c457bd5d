/* network.c: one U-Net: its flat buffers, its arena, and a plan for each batch size in use. */
#include "net/network.h"

#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "ops/conv2d.h"

enum { MAX_PLANS = 12 };

typedef struct {
    boot_plan plan;
    int64_t n, height, width;
    bool training, used;
    int64_t last_use;
} cached_plan;

struct boot_network {
    boot_unet2d_config config;
    boot_params params;
    float *weights, *grads;
    boot_arena *arena;
    boot_dnnl dnnl;
    boot_tuner tuner;
    boot_packs packs;
    bool keep_packed;
    cached_plan plans[MAX_PLANS];
    int64_t clock;
    const boot_plan *pending; /* the training plan whose backward may run, unless the arena's epoch
                                 has moved on from `epoch` */
    uint64_t epoch;
    boot_run run;
};

/* One dry build for a single image of the smallest size finds every parameter and every config
 * error. */
static boot_status find_params(boot_network *network) {
    boot_graph graph;
    const int64_t side = (int64_t)1 << (network->config.levels - 1);
    boot_graph_init(&graph, &network->params, false);
    boot_unet2d_build(&graph, &network->config, 1, side, side);
    const boot_status status = graph.status;
    boot_graph_close(&graph);
    return status;
}

boot_status boot_network_open(boot_network **network, const boot_unet2d_config *config) {
    BOOT_TRY(boot_alloc((void **)network, sizeof **network, true, "network"));
    (*network)->config = *config;
    (*network)->packs.version = 1;
    boot_status status = boot_dnnl_open(&(*network)->dnnl);
    if (!status) status = boot_arena_open(&(*network)->arena);
    if (!status) status = find_params(*network);
    if (!status)
        status = boot_alloc((void **)&(*network)->weights,
                            ((*network)->params.floats + BOOT_CONV_SLACK) * sizeof(float), true,
                            "weights");
    if (status) {
        boot_network_close(*network);
        *network = NULL;
    }
    return status;
}

void boot_network_clear_plans(boot_network *network) {
    for (int i = 0; i < MAX_PLANS; i++) {
        if (network->plans[i].used) boot_plan_close(&network->plans[i].plan);
        network->plans[i].used = false;
    }
    network->packs
        .version++; /* kernels' states are gone, and with them the layouts of their packs */
    network->pending = NULL;
}

void boot_network_close(boot_network *network) {
    if (!network) return;
    boot_network_clear_plans(network);
    boot_tuner_close(&network->tuner);
    boot_packs_close(&network->packs);
    boot_dnnl_close(&network->dnnl);
    boot_params_close(&network->params);
    boot_free(network->weights);
    boot_free(network->grads);
    boot_arena_close(network->arena);
    boot_free(network);
}

const boot_params *boot_network_params(const boot_network *network) { return &network->params; }
const boot_unet2d_config *boot_network_config(const boot_network *network) {
    return &network->config;
}
float *boot_network_weights(boot_network *network) { return network->weights; }
void boot_network_keep_packed(boot_network *network, bool keep) {
    if (keep == network->keep_packed) return;
    network->keep_packed = keep;
    boot_network_clear_plans(network); /* the best kernels may be others now */
    boot_packs_close(&network->packs);
    network->packs.version = 1;
}

void boot_network_weights_changed(boot_network *network) { network->packs.version++; }

boot_tuner *boot_network_tuner(boot_network *network) { return &network->tuner; }

boot_status boot_network_grads(boot_network *network, float **grads) {
    if (!network->grads)
        BOOT_TRY(boot_alloc((void **)&network->grads, network->params.floats * sizeof(float), true,
                            "gradients"));
    *grads = network->grads;
    return BOOT_OK;
}

/* A free place, or the one unused for longest. */
static cached_plan *place_for_plan(boot_network *network) {
    cached_plan *oldest = &network->plans[0];
    for (int i = 0; i < MAX_PLANS; i++) {
        if (!network->plans[i].used) return &network->plans[i];
        if (network->plans[i].last_use < oldest->last_use) oldest = &network->plans[i];
    }
    if (network->pending == &oldest->plan) network->pending = NULL;
    boot_plan_close(&oldest->plan);
    network->packs.version++;
    oldest->used = false;
    return oldest;
}

boot_status boot_network_plan(boot_network *network, int64_t n, int64_t height, int64_t width,
                              bool training, const boot_plan **plan) {
    for (int i = 0; i < MAX_PLANS; i++) {
        cached_plan *p = &network->plans[i];
        if (!p->used || p->n != n || p->height != height || p->width != width ||
            p->training != training || p->plan.threads != omp_get_max_threads())
            continue;
        p->last_use = ++network->clock;
        *plan = &p->plan;
        return BOOT_OK;
    }
    cached_plan *p = place_for_plan(network);
    boot_graph graph;
    boot_plan_context context = {&network->dnnl, &network->tuner,
                                 network->keep_packed && !training};
    boot_graph_init(&graph, &network->params, training);
    const int output = boot_unet2d_build(&graph, &network->config, n, height, width);
    BOOT_TRY(boot_plan_make(&p->plan, &graph, output, &context));
    p->n = n, p->height = height, p->width = width, p->training = training;
    p->used = true;
    p->last_use = ++network->clock;
    *plan = &p->plan;
    return BOOT_OK;
}

void boot_network_share_arena(boot_network *network, boot_network *other) {
    if (network->arena == other->arena) return;
    boot_arena_close(network->arena);
    network->arena = boot_arena_share(other->arena);
    network->pending = NULL;
}

boot_arena *boot_network_arena(boot_network *network) { return network->arena; }

boot_status boot_network_forward(boot_network *network, const boot_network_input *input,
                                 float *output) {
    const boot_plan *plan;
    float *grads = NULL;
    network->pending = NULL;
    if (input->training) BOOT_TRY(boot_network_grads(network, &grads));
    BOOT_TRY(
        boot_network_plan(network, input->n, input->height, input->width, input->training, &plan));
    BOOT_TRY(boot_arena_reserve(network->arena, plan->arena_floats + plan->scratch_floats));
    network->arena->epoch++;
    network->run = (boot_run){
        .inputs = {input->sample, input->timesteps, input->labels, input->targets, input->guidance},
        .weights = network->weights,
        .grads = grads,
        .arena = network->arena->data,
        .packs = network->keep_packed ? &network->packs : NULL};
    BOOT_TRY(boot_plan_forward(plan, &network->run));
    const boot_tensor *shape = &plan->graph.values[plan->output].shape;
    memcpy(output, boot_plan_output(plan, &network->run), boot_count(shape) * sizeof(float));
    if (input->training) network->pending = plan;
    network->epoch = network->arena->epoch;
    return BOOT_OK;
}

boot_status boot_network_backward(boot_network *network, const float *doutput) {
    const boot_plan *plan = network->pending;
    if (!plan || network->arena->epoch != network->epoch)
        return boot_fail(
            BOOT_ERR_STATE,
            "backward: no training forward came before it (each backward needs its own, "
            "with no other forward in between)");
    network->pending = NULL;
    const boot_tensor *shape = &plan->graph.values[plan->output].shape;
    memcpy(boot_plan_output_grad(plan, &network->run), doutput, boot_count(shape) * sizeof(float));
    return boot_plan_backward(plan, &network->run);
}

/* Inputs for timing: ones everywhere are valid images, times and labels alike. */
static boot_status profile_runs(boot_network *network, const boot_plan *plan, float *ones,
                                int repeats, double *step_seconds) {
    float *grads = NULL;
    if (plan->graph.training) BOOT_TRY(boot_network_grads(network, &grads));
    BOOT_TRY(boot_arena_reserve(network->arena, plan->arena_floats + plan->scratch_floats));
    network->arena->epoch++;
    for (int r = 0; r <= repeats; r++) {
        network->run = (boot_run){.inputs = {ones, ones, ones, ones, ones},
                                  .weights = network->weights,
                                  .grads = grads,
                                  .arena = network->arena->data,
                                  .packs = network->keep_packed ? &network->packs : NULL,
                                  .step_seconds = r ? step_seconds : NULL};
        BOOT_TRY(boot_plan_forward(plan, &network->run));
        if (!plan->graph.training) continue;
        const int64_t count = boot_count(&plan->graph.values[plan->output].shape);
        memcpy(boot_plan_output_grad(plan, &network->run), boot_plan_output(plan, &network->run),
               count * sizeof(float));
        BOOT_TRY(boot_plan_backward(plan, &network->run));
    }
    return BOOT_OK;
}

boot_status boot_network_profile(boot_network *network, int64_t n, int64_t height, int64_t width,
                                 bool training, int repeats, const boot_plan **plan,
                                 double *step_seconds, int capacity) {
    const int64_t T = network->config.time_embedding_dim, C = network->config.in_channels;
    const int64_t count = n * (C * height * width > T ? C * height * width : T);
    float *ones;
    network->pending = NULL;
    BOOT_TRY(boot_network_plan(network, n, height, width, training, plan));
    if ((*plan)->num_steps > capacity)
        return boot_fail(BOOT_ERR_STATE, "profile: %d steps, room for %d", (*plan)->num_steps,
                         capacity);
    BOOT_TRY(boot_alloc((void **)&ones, count * sizeof(float), false, "profile"));
    for (int64_t i = 0; i < count; i++) ones[i] = 1;
    const boot_status status = profile_runs(network, *plan, ones, repeats, step_seconds);
    boot_free(ones);
    return status;
}
