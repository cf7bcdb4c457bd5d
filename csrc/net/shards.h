/* shards.h: one batch cut into shards, a plan each, that threads run side by side. */
#ifndef BOOT_SHARDS_H
#define BOOT_SHARDS_H

#include "net/pace.h"
#include "net/plan.h"

/* Plans of one batch size. With one plan, every operation is spread over the threads. With several,
   each thread takes a part of the batch through the whole network on its own: no waiting for each
   other between operations, which small networks spend a fifth of their time on. */
typedef struct {
    boot_plan *plans;
    int count;
    int64_t n, height, width;
    bool training;
    int threads;     /* that they were made for */
    int64_t runs;    /* forwards so far */
    boot_pace pace;  /* of passes that keep nothing for a backward */
    uint64_t packed; /* version of the weights that the packs were last filled for */
} boot_shards;

/* Makes the plans of `count` shards of a batch; build() adds the network for n images to a graph
   and returns the output's value. */
typedef int (*boot_build_fn)(boot_graph *graph, const void *config, int64_t n, int64_t height,
                             int64_t width);
boot_status boot_shards_make(boot_shards *shards, boot_params *params, boot_build_fn build,
                             const void *config, boot_plan_context *context);
void boot_shards_close(boot_shards *shards);

int64_t boot_shards_floats(const boot_shards *shards);           /* of the arena: all shards' */
int64_t boot_shards_first(const boot_shards *shards, int shard); /* its first row */

/* `run` describes the whole batch; the gradients of shards 1 ... lie in `more_grads`,
   params->floats each. */
typedef struct {
    boot_run run;
    float *more_grads;
} boot_shards_run;

/* output, doutput: (n, C, H, W) of the whole batch. step_seconds of the run: those of shard 0. */
boot_status boot_shards_forward(boot_shards *shards, const boot_shards_run *run, float *output);
boot_status boot_shards_backward(boot_shards *shards, const boot_shards_run *run,
                                 const float *doutput);

#endif
