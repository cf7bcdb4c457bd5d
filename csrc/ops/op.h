/* op.h: what an operation is: a descriptor of five functions, and the node that uses it in a graph.
 */
#ifndef BOOT_OP_H
#define BOOT_OP_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "base/tensor.h"
#include "ops/packs.h"

enum { BOOT_MAX_INPUTS = 5, BOOT_MAX_ATTRS = 6, BOOT_NAME_LENGTH = 96 };

typedef struct boot_node boot_node;

/* The arrays of one call. Absent optional inputs have data == NULL. */
typedef struct {
    boot_tensor in[BOOT_MAX_INPUTS];
    boot_tensor out;
    float *saved;      /* what forward leaves for backward: node->saved_floats */
    float *scratch;    /* node->scratch_floats, 64-byte aligned, contents undefined */
    boot_packs *packs; /* where packed weights are kept between calls; NULL: nowhere */
    bool again;        /* forward: a recomputation, `saved` is already filled */

    /* Backward only. din[i].data == NULL: that gradient is not wanted. accumulate[i]: add to din[i]
       instead of overwriting it (never true for the inputs in op->overwrites). */
    boot_tensor dout;
    boot_tensor din[BOOT_MAX_INPUTS];
    bool accumulate[BOOT_MAX_INPUTS];
} boot_call;

enum {
    BOOT_OP_RECOMPUTE = 1, /* so cheap that backward recomputes the output instead of keeping it */
    BOOT_OP_NO_GRADIENT = 2, /* a source: nothing flows back through it */
};

/* One operation. forward and backward are called by every thread of a team with the same arguments:
   what is not shared out by `omp for` or `omp single` is done by all, and all leave with the same
   status, after a barrier behind the last write. Nodes that are `outside` are called by one thread.

   Names are lists separated by blanks; `?` marks an optional input or an attribute
   whose default is 0. Floats in, floats out: integer inputs (class labels) are whole numbers stored
   as float32. */
typedef struct {
    const char *name, *inputs, *attrs, *doc;
    unsigned flags;
    unsigned backward_reads; /* bit i: backward reads in[i]; bit 31: backward reads out */
    unsigned constants;      /* bit i: in[i] has no gradient (labels, times) */
    unsigned overwrites;     /* bit i: backward cannot add into din[i]; the plan then adds for it */
    /* Checks every shape and attribute; sets node->out and the two sizes below. */
    boot_status (*infer)(boot_node *node);
    /* Optional, before plan: tries kernels out. Called BOOT_LOOKS times, each for all nodes: a
       machine that is shared may be disturbed for seconds. */
    boot_status (*look)(const boot_node *node, void *context, int look);
    /* Optional: chooses kernels and creates primitives; may raise node->scratch_floats. */
    boot_status (*plan)(boot_node *node, void *context);
    /* Optional: packs the weights into call->packs where they are out of date. Every node's comes
       before a forward, so that threads which run one weight's nodes find it ready. */
    boot_status (*pack)(const boot_node *node, const boot_call *call);
    boot_status (*forward)(const boot_node *node, const boot_call *call);
    boot_status (*backward)(const boot_node *node, const boot_call *call);
    void (*release)(boot_node *node); /* frees node->state */
} boot_op;

#define BOOT_READS_OUT (1u << 31)
enum { BOOT_LOOKS = 3 };

/* One use of an operation: shapes only, no memory but what `state` holds. */
struct boot_node {
    const boot_op *op;
    char name[BOOT_NAME_LENGTH]; /* the layer's key, e.g. down_blocks.0.resnets.0.conv1 */
    double attr[BOOT_MAX_ATTRS];
    boot_tensor in[BOOT_MAX_INPUTS]; /* n == 0: absent */
    bool wants_grad[BOOT_MAX_INPUTS];
    boot_tensor out;
    bool training;
    int block; /* which block of the network it lies in, 0: none */
    /* Input whose gradient is exactly `dout` (residual adds): the plan lets it share dout's memory
       and then passes din[i].data == dout.data. -1: none. */
    int grad_alias;
    int64_t saved_floats, scratch_floats;
    boot_pack_need packs[2]; /* what it keeps where packed weights are kept; floats 0: nothing */
    /* Set by plan where a kernel brings threads of its own, bit 0 for forward, bit 1 for backward:
       called by one thread, outside of the team. */
    unsigned outside;
    void *state;
};

enum { BOOT_OUTSIDE_FORWARD = 1, BOOT_OUTSIDE_BACKWARD = 2 };

/* Every operation, in the order of ops.def. */
extern const boot_op *const boot_ops[];
extern const int boot_num_ops;
const boot_op *boot_find_op(const char *name); /* NULL: unknown */

#define OP(name) extern const boot_op boot_op_##name;
#include "ops/ops.def"
#undef OP

/* Fails naming op and input unless node->in[i] is a vector of `count` numbers. */
boot_status boot_expect_count(const boot_node *node, int i, const char *input, int64_t count);

/* Fails naming op and inputs unless in[i] and in[j] have the same batch, height and width. */
boot_status boot_expect_pixels(const boot_node *node, int i, const char *first, int j,
                               const char *second);

/* The checked number of elements of a shape, for infer. */
boot_status boot_expect_size(const boot_node *node, const boot_tensor *shape);

#endif
