/* op.c: the table of operations, expanded from ops.def, and shape checks that several ops share. */
#include "ops/op.h"

#include <string.h>

#include "base/memory.h"

const boot_op *const boot_ops[] = {
#define OP(name) &boot_op_##name,
#include "ops/ops.def"
#undef OP
};
const int boot_num_ops = sizeof boot_ops / sizeof *boot_ops;

const boot_op *boot_find_op(const char *name) {
    for (int i = 0; i < boot_num_ops; i++)
        if (!strcmp(boot_ops[i]->name, name)) return boot_ops[i];
    return NULL;
}

boot_status boot_expect_count(const boot_node *node, int i, const char *input, int64_t count) {
    const int64_t found = boot_count(&node->in[i]);
    if (found == count) return BOOT_OK;
    return boot_fail(BOOT_ERR_VALUE, "%s (%s): %s has %lld elements, expected %lld", node->op->name,
                     node->name, input, (long long)found, (long long)count);
}

boot_status boot_expect_pixels(const boot_node *node, int i, const char *first, int j,
                               const char *second) {
    const boot_tensor *a = &node->in[i], *b = &node->in[j];
    if (a->n == b->n && a->h == b->h && a->w == b->w) return BOOT_OK;
    return boot_fail(BOOT_ERR_VALUE,
                     "%s (%s): %s is (%lld, %lld, %lld, ...), %s is (%lld, %lld, %lld, ...), "
                     "expected equal batch, height and width (is the sample size a multiple of the "
                     "network's downsampling factor?)",
                     node->op->name, node->name, first, (long long)a->n, (long long)a->h,
                     (long long)a->w, second, (long long)b->n, (long long)b->h, (long long)b->w);
}

boot_status boot_expect_size(const boot_node *node, const boot_tensor *shape) {
    int64_t size;
    if (shape->n < 1 || shape->h < 1 || shape->w < 1 || shape->c < 1)
        return boot_fail(BOOT_ERR_VALUE,
                         "%s (%s): shape (%lld, %lld, %lld, %lld) has an empty dimension",
                         node->op->name, node->name, (long long)shape->n, (long long)shape->h,
                         (long long)shape->w, (long long)shape->c);
    return boot_count4(shape->n, shape->h, shape->w, shape->c, &size);
}
