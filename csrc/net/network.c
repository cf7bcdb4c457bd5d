/* network.c: one U-Net: its flat buffers, its arena, and a plan for each batch size in use. */
#include "net/network.h"

#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "ops/conv2d.h"

enum { MAX_PLANS = 12, MAX_SHARDS = 256 };

typedef struct {
    boot_shards shards;
    int threads; /* that it was made for; 0: a free place */
    int64_t last_use;
} cached_plan;

struct boot_network {
    boot_unet2d_config config;
    boot_params params;
    float *weights, *grads, *more_grads; /* more_grads: of the second shard and on */
    int64_t more_floats;
    boot_arena *arena;
    boot_dnnl dnnl;
    boot_tuner tuner;
    boot_packs packs;
    bool keep_packed;
    cached_plan plans[MAX_PLANS];
    int64_t clock;
    boot_shards *pending; /* the training plans whose backward may run, unless the arena's epoch has
                             moved on from `epoch` */
    uint64_t epoch;
    boot_shards_run run;
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
        if (network->plans[i].threads) boot_shards_close(&network->plans[i].shards);
        network->plans[i].threads = 0;
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
    boot_free(network->more_grads);
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
        if (!network->plans[i].threads) return &network->plans[i];
        if (network->plans[i].last_use < oldest->last_use) oldest = &network->plans[i];
    }
    if (network->pending == &oldest->shards) network->pending = NULL;
    boot_shards_close(&oldest->shards);
    network->packs.version++;
    oldest->threads = 0;
    return oldest;
}

/* One shard per thread pays where a network is small enough to keep its packed weights: threads
   share those, while a large one would read or pack all its weights once per shard. */
static int shards_for(const boot_network *network, int64_t n) {
    const int threads = omp_get_max_threads();
    return network->keep_packed && n >= threads && threads <= MAX_SHARDS ? threads : 1;
}

static int build(boot_graph *graph, const void *config, int64_t n, int64_t height, int64_t width) {
    return boot_unet2d_build(graph, config, n, height, width);
}

boot_status boot_network_plan(boot_network *network, int64_t n, int64_t height, int64_t width,
                              bool training, boot_shards **shards) {
    for (int i = 0; i < MAX_PLANS; i++) {
        cached_plan *p = &network->plans[i];
        if (p->threads != omp_get_max_threads() || p->shards.n != n || p->shards.height != height ||
            p->shards.width != width || p->shards.training != training)
            continue;
        p->last_use = ++network->clock;
        *shards = &p->shards;
        return BOOT_OK;
    }
    cached_plan *p = place_for_plan(network);
    boot_plan_context context = {&network->dnnl, &network->tuner, network->keep_packed};
    p->shards = (boot_shards){.count = shards_for(network, n),
                              .n = n,
                              .height = height,
                              .width = width,
                              .training = training};
    BOOT_TRY(boot_shards_make(&p->shards, &network->params, build, &network->config, &context));
    p->threads = omp_get_max_threads();
    p->last_use = ++network->clock;
    *shards = &p->shards;
    return BOOT_OK;
}

void boot_network_share_arena(boot_network *network, boot_network *other) {
    if (network->arena == other->arena) return;
    boot_arena_close(network->arena);
    network->arena = boot_arena_share(other->arena);
    network->pending = NULL;
}

boot_arena *boot_network_arena(boot_network *network) { return network->arena; }

/* Readies everything that a run of these plans needs, and notes what it works on. */
static boot_status prepare_run(boot_network *network, const boot_shards *shards,
                               const float *const inputs[BOOT_NUM_SLOTS]) {
    float *grads = NULL;
    if (shards->training) {
        const int64_t more = (shards->count - 1) * network->params.floats;
        BOOT_TRY(boot_network_grads(network, &grads));
        if (more > network->more_floats) {
            boot_free(network->more_grads);
            network->more_grads = NULL, network->more_floats = 0;
            BOOT_TRY(boot_alloc((void **)&network->more_grads, more * sizeof(float), true,
                                "gradients of shards"));
            network->more_floats = more;
        }
    }
    BOOT_TRY(boot_arena_reserve(network->arena, boot_shards_floats(shards)));
    network->arena->epoch++;
    network->run =
        (boot_shards_run){.run = {.weights = network->weights,
                                  .grads = grads,
                                  .arena = network->arena->data,
                                  .packs = network->keep_packed ? &network->packs : NULL},
                          .more_grads = network->more_grads};
    memcpy(network->run.run.inputs, inputs, sizeof network->run.run.inputs);
    return BOOT_OK;
}

boot_status boot_network_forward(boot_network *network, const boot_network_input *input,
                                 float *output) {
    const float *const inputs[BOOT_NUM_SLOTS] = {input->sample, input->timesteps, input->labels,
                                                 input->targets, input->guidance};
    boot_shards *shards;
    network->pending = NULL;
    BOOT_TRY(boot_network_plan(network, input->n, input->height, input->width, input->training,
                               &shards));
    BOOT_TRY(prepare_run(network, shards, inputs));
    BOOT_TRY(boot_shards_forward(shards, &network->run, output));
    if (input->training) network->pending = shards;
    network->epoch = network->arena->epoch;
    return BOOT_OK;
}

boot_status boot_network_backward(boot_network *network, const float *doutput) {
    boot_shards *shards = network->pending;
    if (!shards || network->arena->epoch != network->epoch)
        return boot_fail(
            BOOT_ERR_STATE,
            "backward: no training forward came before it (each backward needs its own, "
            "with no other forward in between)");
    network->pending = NULL;
    return boot_shards_backward(shards, &network->run, doutput);
}

/* Ones everywhere are valid images, times, labels and gradients alike. */
static boot_status profile_runs(boot_network *network, boot_shards *shards, float *ones,
                                float *output, int repeats, double *step_seconds) {
    const float *const inputs[BOOT_NUM_SLOTS] = {ones, ones, ones, ones, ones};
    for (int r = 0; r <= repeats; r++) {
        BOOT_TRY(prepare_run(network, shards, inputs));
        network->run.run.step_seconds = r ? step_seconds : NULL;
        BOOT_TRY(boot_shards_forward(shards, &network->run, output));
        if (shards->training) BOOT_TRY(boot_shards_backward(shards, &network->run, ones));
    }
    return BOOT_OK;
}

boot_status boot_network_profile(boot_network *network, int64_t n, int64_t height, int64_t width,
                                 bool training, int repeats, const boot_plan **plan,
                                 double *step_seconds, int capacity) {
    const boot_unet2d_config *c = &network->config;
    const int64_t image =
        (c->in_channels > c->out_channels ? c->in_channels : c->out_channels) * height * width;
    const int64_t count = n * (image > c->time_embedding_dim ? image : c->time_embedding_dim);
    float *ones;
    boot_shards *shards;
    network->pending = NULL;
    BOOT_TRY(boot_network_plan(network, n, height, width, training, &shards));
    *plan = &shards->plans[0];
    if ((*plan)->num_steps > capacity)
        return boot_fail(BOOT_ERR_STATE, "profile: %d steps, room for %d", (*plan)->num_steps,
                         capacity);
    BOOT_TRY(boot_alloc((void **)&ones, 2 * count * sizeof(float), false, "profile"));
    for (int64_t i = 0; i < count; i++) ones[i] = 1;
    const boot_status status =
        profile_runs(network, shards, ones, ones + count, repeats, step_seconds);
    boot_free(ones);
    return status;
}
