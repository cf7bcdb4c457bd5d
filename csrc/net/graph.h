/* graph.h: a network as a list of nodes in execution order, over values and named parameters. */
#ifndef BOOT_GRAPH_H
#define BOOT_GRAPH_H

#include <stdbool.h>

#include "ops/op.h"

/* Where a value's numbers come from. */
typedef enum { BOOT_VALUE_INPUT, BOOT_VALUE_PARAM, BOOT_VALUE_NODE } boot_value_kind;

typedef struct {
    boot_value_kind kind;
    int index; /* input slot, parameter index or node index */
    boot_tensor shape;
    bool wants_grad;
} boot_value;

typedef struct {
    char name[BOOT_NAME_LENGTH]; /* diffusers' key */
    int64_t dims[4];
    int rank;
    int64_t count, offset; /* floats; offset into the flat buffer, a multiple of 16 */
    bool trainable;
} boot_param;

typedef struct {
    boot_param *items;
    int count, capacity;
    int64_t floats; /* length of the flat buffer */
} boot_params;

typedef struct {
    boot_value *values;
    boot_node *nodes;
    int (*node_values)[BOOT_MAX_INPUTS]; /* per node: value of each input, -1 = absent */
    int *node_out;                       /* per node: its output's value */
    int num_values, num_nodes, value_capacity, node_capacity;
    boot_params *params; /* shared by all graphs of one network */
    bool training;
    bool packed; /* weights are kept packed: what is made from them costs nothing in a call */
    int block;   /* given to the nodes that are added; 0: outside of all blocks */
    boot_status status; /* first failure; later calls do nothing and return -1 */
} boot_graph;

enum { BOOT_NUM_SLOTS = 5 }; /* sample, timesteps, class labels, target timesteps, guidance */

void boot_graph_init(boot_graph *graph, boot_params *params, bool training);
void boot_graph_close(boot_graph *graph);
void boot_params_close(boot_params *params);

/* All return the id of a value, or -1 once anything has failed (see graph->status), so that
   builders need no checks of their own. A parameter is made on first use and found by name
   afterwards. */
int boot_graph_input(boot_graph *graph, int slot, boot_tensor shape);
int boot_graph_param(boot_graph *graph, bool trainable, int rank, const int64_t *dims,
                     const char *format, ...) __attribute__((format(printf, 5, 6)));
int boot_graph_node(boot_graph *graph, const boot_op *op, const char *name, const int *inputs,
                    const double *attrs);

/* The shape of value `id`; all zero after a failure. */
boot_tensor boot_graph_shape(const boot_graph *graph, int id);

#endif
