/* network.c: one U-Net: its flat buffers, its arena, and a plan for each batch size in use. */
#include "net/network.h"

#include <omp.h>
#include <string.h>

#include "base/memory.h"
#include "net/pack_count.h"
#include "ops/conv2d.h"

enum { MAX_PLANS = 12, MAX_SHARDS = 256, FIXED_SHARDS = 4 };
/* Above it a call's packed weights (four times the weights where Winograd takes all) are more than
   a last-level cache holds: each call reads them from memory. Above the other one, the weights
   themselves are more than a core's own cache holds. */
enum { COLD_PARAMETERS = 8000000, FAR_PARAMETERS = 250000 };

typedef struct {
    boot_shards shards; /* threads 0: a free place */
    int64_t last_use;
} cached_plan;

struct boot_network {
    boot_unet2d_config config;
    boot_params params;
    float *weights, *grads, *more_grads; /* more_grads: of the second shard and on */
    int64_t more_floats;
    boot_arena *arena;
    boot_arena_user user;
    boot_dnnl dnnl;
    boot_tuner tuner, hints;
    boot_packs packs;
    bool keep_packed, in_training, gradient_checkpointing, thread_independent, weights_away;
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
    (*network)->user.packs = &(*network)->packs;
    boot_status status = boot_dnnl_open(&(*network)->dnnl);
    if (!status) status = boot_arena_open(&(*network)->arena, &(*network)->user);
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

/* What the packs of a network take is counted in the arena, so that one limit bounds all. */
static void count_packs(boot_network *network, int64_t before) {
    if (network->arena) network->arena->packed += network->packs.bytes - before;
}

/* Packs whose layout belongs to a kernel's state go with it. */
static void close_plan(boot_network *network, cached_plan *p) {
    const int64_t before = network->packs.bytes;
    for (int i = 0; i < p->shards.count; i++) {
        const boot_graph *graph = &p->shards.plans[i].graph;
        for (int j = 0; j < graph->num_nodes; j++)
            for (int k = 0; k < 2; k++)
                if (graph->nodes[j].packs[k].own)
                    boot_packs_drop(&network->packs, graph->nodes[j].packs[k].key);
    }
    count_packs(network, before);
    boot_shards_close(&p->shards);
}

void boot_network_clear_plans(boot_network *network) {
    for (int i = 0; i < MAX_PLANS; i++) {
        if (network->plans[i].shards.threads) close_plan(network, &network->plans[i]);
    }
    network->pending = NULL;
}

void boot_network_close(boot_network *network) {
    if (!network) return;
    boot_arena_close(network->arena, &network->user); /* first: others may drop packs */
    network->arena = NULL;
    boot_network_clear_plans(network);
    boot_tuner_close(&network->tuner);
    boot_tuner_close(&network->hints);
    boot_packs_close(&network->packs);
    boot_dnnl_close(&network->dnnl);
    boot_params_close(&network->params);
    boot_free(network->weights);
    boot_free(network->grads);
    boot_free(network->more_grads);
    boot_free(network);
}

const boot_params *boot_network_params(const boot_network *network) { return &network->params; }
const boot_unet2d_config *boot_network_config(const boot_network *network) {
    return &network->config;
}
float *boot_network_weights(boot_network *network) { return network->weights; }
/* Forgets plans, whose best kernels may be others now, and packs. */
static void start_again(boot_network *network) {
    const int64_t before = network->packs.bytes;
    boot_network_clear_plans(network);
    boot_packs_close(&network->packs);
    count_packs(network, before);
}

void boot_network_keep_packed(boot_network *network, bool keep) {
    if (keep != network->keep_packed) start_again(network);
    network->keep_packed = keep;
}

void boot_network_in_training(boot_network *network, bool on) {
    if (on != network->in_training) start_again(network);
    network->in_training = on;
}

static bool packs_stay(const boot_network *network) {
    return network->keep_packed && !network->in_training;
}

void boot_network_gradient_checkpointing(boot_network *network, bool on) {
    if (on != network->gradient_checkpointing) boot_network_clear_plans(network);
    network->gradient_checkpointing = on;
}

void boot_network_thread_independent(boot_network *network, bool on) {
    if (on != network->thread_independent) boot_network_clear_plans(network);
    network->thread_independent = on;
}

void boot_network_limit_memory(boot_network *network, int64_t bytes) {
    network->arena->limit = bytes;
}

boot_network_bytes boot_network_memory(const boot_network *network) {
    const int64_t size = sizeof(float), flat = network->params.floats * size;
    return (boot_network_bytes){.weights = flat,
                                .grads = (network->grads ? flat : 0) + network->more_floats * size,
                                .arena = network->arena->floats * size,
                                .packed = network->packs.bytes};
}

void boot_network_weights_changed(boot_network *network) { network->packs.version++; }

boot_tuner *boot_network_tuner(boot_network *network) { return &network->tuner; }
boot_tuner *boot_network_hints(boot_network *network) { return &network->hints; }

boot_status boot_network_grads(boot_network *network, float **grads) {
    if (!network->grads)
        BOOT_TRY(boot_alloc((void **)&network->grads, network->params.floats * sizeof(float), true,
                            "gradients"));
    *grads = network->grads;
    return BOOT_OK;
}

void boot_network_discard_weights(boot_network *network) {
    network->weights_away = true;
    network->pending = NULL; /* its backward would read them */
    boot_discard(network->weights, network->params.floats * sizeof(float));
}

void boot_network_weights_back(boot_network *network) { network->weights_away = false; }
bool boot_network_weights_away(const boot_network *network) { return network->weights_away; }

void boot_network_discard_grads(boot_network *network) {
    if (network->grads) boot_discard(network->grads, network->params.floats * sizeof(float));
}

/* A free place, or the one unused for longest. */
static cached_plan *place_for_plan(boot_network *network) {
    cached_plan *oldest = &network->plans[0];
    for (int i = 0; i < MAX_PLANS; i++) {
        if (!network->plans[i].shards.threads) return &network->plans[i];
        if (network->plans[i].last_use < oldest->last_use) oldest = &network->plans[i];
    }
    if (network->pending == &oldest->shards) network->pending = NULL;
    close_plan(network, oldest);
    return oldest;
}

static bool is_cold(const boot_network *network) {
    return network->params.floats > COLD_PARAMETERS;
}

/* One shard per thread pays where a network is small enough to keep its packed weights in the
   caches: threads share those, while a large one would read or pack all its weights once per
   shard. */
static int shards_for(const boot_network *network, int64_t n) {
    const int threads = omp_get_max_threads();
    /* Gradients are summed over shards: their number must not follow that of the threads then. Four
       keep up to four threads busy. */
    const int shards = network->thread_independent ? FIXED_SHARDS : threads;
    const bool pays = network->keep_packed && (network->thread_independent || !is_cold(network));
    return pays && n >= shards && shards <= MAX_SHARDS ? shards : 1;
}

static int build(boot_graph *graph, const void *config, int64_t n, int64_t height, int64_t width) {
    return boot_unet2d_build(graph, config, n, height, width);
}

static boot_status make_plans(boot_network *network, int64_t n, int64_t height, int64_t width,
                              bool training, bool by_rule, boot_shards *shards) {
    boot_plan_context context = {.dnnl = &network->dnnl,
                                 .tuner = &network->tuner,
                                 .hints = &network->hints,
                                 .packed = packs_stay(network),
                                 .cold = is_cold(network),
                                 .far = network->params.floats > FAR_PARAMETERS,
                                 .gradient_checkpointing = network->gradient_checkpointing,
                                 .by_rule = by_rule || network->thread_independent,
                                 .thread_independent = network->thread_independent,
                                 .limit_bytes = boot_arena_left(network->arena)};
    *shards = (boot_shards){.count = shards_for(network, n),
                            .n = n,
                            .height = height,
                            .width = width,
                            .training = training};
    return boot_shards_make(shards, &network->params, build, &network->config, &context);
}

boot_status boot_network_estimate(boot_network *network, int64_t n, int64_t height, int64_t width,
                                  bool training, boot_shards *shards) {
    return make_plans(network, n, height, width, training, true, shards);
}

boot_status boot_network_planned_packs(const boot_network *network, int64_t *bytes) {
    const boot_shards *all[MAX_PLANS];
    int count = 0;
    for (int i = 0; i < MAX_PLANS; i++)
        if (network->plans[i].shards.threads) all[count++] = &network->plans[i].shards;
    *bytes = 0;
    return packs_stay(network) ? boot_count_packs(all, count, bytes) : BOOT_OK;
}

boot_status boot_network_plan(boot_network *network, int64_t n, int64_t height, int64_t width,
                              bool training, boot_shards **shards) {
    for (int i = 0; i < MAX_PLANS; i++) {
        cached_plan *p = &network->plans[i];
        if (p->shards.threads != omp_get_max_threads() || p->shards.n != n ||
            p->shards.height != height || p->shards.width != width ||
            p->shards.training != training)
            continue;
        p->last_use = ++network->clock;
        *shards = &p->shards;
        return BOOT_OK;
    }
    cached_plan *p = place_for_plan(network);
    BOOT_TRY(make_plans(network, n, height, width, training, false, &p->shards));
    p->last_use = ++network->clock;
    *shards = &p->shards;
    return BOOT_OK;
}

void boot_network_share_arena(boot_network *network, boot_network *other) {
    if (network->arena == other->arena) return;
    boot_arena_close(network->arena, &network->user);
    network->arena = other->arena;
    boot_arena_share(network->arena, &network->user);
    network->pending = NULL;
}

boot_arena *boot_network_arena(boot_network *network) { return network->arena; }

/* Not for the first run of a plan, which may be its only one: memory for packs is slow to get. The
   bits are the same, since the same kernels pack into scratch then. Shards share their packs. */
static bool keeps_packs(const boot_network *network, const boot_shards *shards) {
    return packs_stay(network) && (shards->runs > 1 || shards->count > 1);
}

/* Readies everything that a run of these plans needs, and notes what it works on. */
static boot_status prepare_run(boot_network *network, boot_shards *shards,
                               const float *const inputs[BOOT_NUM_SLOTS]) {
    float *grads = NULL;
    if (network->weights_away)
        return boot_fail(BOOT_ERR_STATE, "the weights' memory was given back: write them again "
                                         "and call weights_back");
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
    shards->runs++;
    network->arena->epoch++;
    network->run =
        (boot_shards_run){.run = {.weights = network->weights,
                                  .grads = grads,
                                  .arena = network->arena->data,
                                  .packs = keeps_packs(network, shards) ? &network->packs : NULL},
                          .more_grads = network->more_grads};
    memcpy(network->run.run.inputs, inputs, sizeof network->run.run.inputs);
    return BOOT_OK;
}

/* Forward into `output`, or backward from `doutput`. Packs are made on the way, out of what the
   arena's limit leaves. */
static boot_status run(boot_network *network, boot_shards *shards, float *output,
                       const float *doutput) {
    const int64_t before = network->packs.bytes, left = boot_arena_left(network->arena);
    network->packs.limit = left ? before + left : 0;
    const boot_status status = output ? boot_shards_forward(shards, &network->run, output)
                                      : boot_shards_backward(shards, &network->run, doutput);
    count_packs(network, before);
    return status;
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
    BOOT_TRY(run(network, shards, output, NULL));
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
    const int threads = omp_get_max_threads();
    omp_set_num_threads(shards->threads); /* as many as scratch is for */
    const boot_status status = run(network, shards, NULL, doutput);
    omp_set_num_threads(threads);
    return status;
}

/* Ones everywhere are valid images, times, labels and gradients alike. */
static boot_status profile_runs(boot_network *network, boot_shards *shards, float *ones,
                                float *output, int repeats, double *step_seconds) {
    const float *const inputs[BOOT_NUM_SLOTS] = {ones, ones, ones, ones, ones};
    for (int r = 0; r <= repeats; r++) {
        BOOT_TRY(prepare_run(network, shards, inputs));
        network->run.run.step_seconds = r ? step_seconds : NULL;
        BOOT_TRY(run(network, shards, output, NULL));
        if (shards->training) BOOT_TRY(run(network, shards, NULL, ones));
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
