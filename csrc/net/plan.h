/* plan.h: a graph made ready to run: kernels chosen, lifetimes computed, every buffer given its
 * place in one arena. */
#ifndef BOOT_PLAN_H
#define BOOT_PLAN_H

#include "net/graph.h"
#include "ops/tuner.h"

/* A stretch of the arena. */
typedef struct {
    int64_t floats, offset;
    int start, end; /* first and last step that uses it; start > end: never placed */
} boot_buffer;

typedef enum { BOOT_STEP_FORWARD, BOOT_STEP_AGAIN, BOOT_STEP_BACKWARD } boot_step_kind;

typedef struct {
    boot_step_kind kind;
    int node;
} boot_step;

/* Buffers that one node's call uses, by index into plan->buffers; -1: none. */
typedef struct {
    int saved;
    int din[BOOT_MAX_INPUTS];       /* gradient of each activation input */
    bool add[BOOT_MAX_INPUTS];      /* it already holds something: add */
    int temporary[BOOT_MAX_INPUTS]; /* where an op that cannot add writes first */
} boot_node_buffers;

typedef struct {
    boot_graph graph;
    int output; /* value id */
    int threads;
    bool checkpointing; /* backward recomputes what lies inside blocks */
    boot_step *steps;
    int num_steps, forward_steps;
    boot_buffer *buffers;
    int num_buffers, buffer_capacity;
    int *value_buffer; /* per value: its buffer in the forward pass, -1 = not in the arena */
    int *value_again;  /* per value: its buffer when recomputed for backward, or value_buffer */
    int *grad_buffer;  /* per value: its gradient's buffer, -1 = none */
    boot_node_buffers *node_buffers;
    int64_t arena_floats, scratch_floats; /* scratch lies behind arena_floats */
    int64_t pack_floats, own_pack_floats; /* packed weights kept: common to all plans; its own */
} boot_plan;

/* Takes over `graph` (also on failure). The graph must have been built for the mode it says. */
boot_status boot_plan_make(boot_plan *plan, boot_graph *graph, int output,
                           boot_plan_context *context);
void boot_plan_close(boot_plan *plan);

/* Arrays of a run. `inputs` per slot; `arena` has arena_floats + scratch_floats, 64-byte aligned.
 */
typedef struct {
    const float *inputs[BOOT_NUM_SLOTS];
    float *weights, *grads; /* flat parameter buffers */
    float *arena;
    boot_packs *packs;    /* where packed weights are kept between calls; or NULL */
    double *step_seconds; /* per step of the plan, added to; NULL: no timing */
    int threads;          /* of the team, which change no bit; 0: all */
} boot_run;

/* Packs every weight whose pack is out of date, a node to a thread; needs run->packs. */
boot_status boot_plan_pack(const boot_plan *plan, const boot_run *run);
boot_status boot_plan_forward(const boot_plan *plan, const boot_run *run);
/* The output value's place, valid until the next run in the same arena. */
float *boot_plan_output(const boot_plan *plan, const boot_run *run);
/* Where to put the gradient of the output before boot_plan_backward. */
float *boot_plan_output_grad(const boot_plan *plan, const boot_run *run);
boot_status boot_plan_backward(const boot_plan *plan, const boot_run *run);

#endif
