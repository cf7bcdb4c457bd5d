/* network.h: weights, gradients and a cache of plans: what a caller holds to run a U-Net. */
#ifndef BOOT_NETWORK_H
#define BOOT_NETWORK_H

#include "net/arena.h"
#include "net/shards.h"
#include "net/unet2d.h"

typedef struct boot_network boot_network;

/* Weights start at zero. The caller gives matching pairs of open and close; close accepts NULL. */
boot_status boot_network_open(boot_network **network, const boot_unet2d_config *config);
void boot_network_close(boot_network *network);

const boot_params *boot_network_params(const boot_network *network);
const boot_unet2d_config *boot_network_config(const boot_network *network);
float *boot_network_weights(boot_network *network); /* flat buffer, params->floats long */
boot_status boot_network_grads(boot_network *network,
                               float **grads); /* same layout, allocated on first use */

/* sample: (n, in, h, w); timesteps: (n); labels: (n) whole numbers or (n, T), NULL without class
   embedding; targets: (n), NULL without target embedding; guidance: (n), NULL without guidance
   embedding; output: (n, out, h, w). training: keep what backward needs. */
typedef struct {
    int64_t n, height, width;
    const float *sample, *timesteps, *labels, *targets, *guidance;
    bool training;
} boot_network_input;

boot_status boot_network_forward(boot_network *network, const boot_network_input *input,
                                 float *output);

/* Gradients of sum(output * doutput) for the last training forward, into grads (overwritten). That
   forward's input arrays must still be there. One backward per forward. */
boot_status boot_network_backward(boot_network *network, const float *doutput);

/* Keep packed weights between calls, and let each thread take a part of a batch through the whole
   network (see shards.h): faster for small networks, for about four times the memory of the 3x3
   weights (eight times in training). Off at first. boot_network_weights_changed must follow every
   change of the weights. */
void boot_network_keep_packed(boot_network *network, bool keep);
void boot_network_weights_changed(boot_network *network);

/* The weights change with every step or two: packed ones are made anew in each pass, by each thread
   in its own caches, since to write them to memory and read them back takes longer. Threads still
   take parts of a batch if packed weights are to be kept. Off at first. */
void boot_network_in_training(boot_network *network, bool on);

/* Gives the memory of the weights back. Until boot_network_weights_back, which says that they were
   written again, with the same numbers, every run is refused. Packed weights stay. */
void boot_network_discard_weights(boot_network *network);
void boot_network_weights_back(boot_network *network);
bool boot_network_weights_away(const boot_network *network);
/* The same for the gradients, which the next backward writes anew. */
void boot_network_discard_grads(boot_network *network);

/* Backward recomputes the insides of every block instead of keeping them. Off at first. The same
   bits, less memory, more time. */
void boot_network_gradient_checkpointing(boot_network *network, bool on);

/* Kernels by rule, a fixed number of shards, and sums that do not depend on the number of threads:
   the same bits for any number. Off at first. */
void boot_network_thread_independent(boot_network *network, bool on);

/* The most bytes that working memory, packed weights and kernel timing may take, together with
   those of the networks that share the arena; 0: any. A call that needs more fails. */
void boot_network_limit_memory(boot_network *network, int64_t bytes);

/* Bytes held now; weights and gradients count while their memory is given back. arena: shared with
   other networks. */
typedef struct {
    int64_t weights, grads, arena, packed;
} boot_network_bytes;
boot_network_bytes boot_network_memory(const boot_network *network);

/* Makes `network` work in the arena of `other`, for networks that run in turn. A forward of one
   then forbids the backward of the other's earlier forward. */
void boot_network_share_arena(boot_network *network, boot_network *other);
boot_arena *boot_network_arena(boot_network *network); /* enter it around every call that runs */

/* Builds (or finds) the plans for a size, so that kernels are chosen before the first step. */
boot_status boot_network_plan(boot_network *network, int64_t n, int64_t height, int64_t width,
                              bool training, boot_shards **shards);
/* The same without timing: kernels that are not known are taken by rule. The caller closes
   `shards`. */
boot_status boot_network_estimate(boot_network *network, int64_t n, int64_t height, int64_t width,
                                  bool training, boot_shards *shards);
/* Bytes of packed weights that all plans made so far keep. */
boot_status boot_network_planned_packs(const boot_network *network, int64_t *bytes);
/* Adds the seconds of every step of the first shard's plan (plan->num_steps) over `repeats` runs on
   made-up input, after one to warm up. */
boot_status boot_network_profile(boot_network *network, int64_t n, int64_t height, int64_t width,
                                 bool training, int repeats, const boot_plan **plan,
                                 double *step_seconds, int capacity);
boot_tuner *boot_network_tuner(boot_network *network); /* pin before planning */
boot_tuner *boot_network_hints(boot_network *network); /* taken instead of timing */
/* Forgets all plans, so that pins take effect. */
void boot_network_clear_plans(boot_network *network);

#endif
