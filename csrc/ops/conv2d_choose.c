/* conv2d_choose.c: which kernel a convolution runs: pinned, known, or found by timing. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "ops/conv2d.h"
#include "ops/tuner.h"

const boot_conv_kernel *const boot_conv_kernels[BOOT_NUM_CONV_KERNELS] = {
    NULL,
    &boot_conv_direct,
    &boot_conv_dnnl_winograd,
    &boot_conv_winograd,
    &boot_conv_plain,
    &boot_conv_taps,
    &boot_conv_columns,
    &boot_conv_winograd_pairs};

/* Seconds that a team's break for a kernel with threads of its own takes. */
static const double FORK = 1e-6;

/* Times every automatic kernel that applies, in alternating rounds: machines are shared. */
static boot_status time_kernels(const boot_conv_shape *s, boot_conv_direction direction,
                                boot_plan_context *context, const char *key) {
    enum { ROUNDS = 2, REPEATS = 3 };
    const boot_conv_packing packing = !context->packed ? BOOT_PACK_AGAIN
                                      : context->cold  ? BOOT_PACK_KEPT_COLD
                                      : context->far   ? BOOT_PACK_KEPT_FAR
                                                       : BOOT_PACK_KEPT;
    double best[BOOT_NUM_CONV_KERNELS], lead = 1e30;
    int winner = 0;
    for (int i = 0; i < BOOT_NUM_CONV_KERNELS; i++) best[i] = 1e30;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 1; i < BOOT_NUM_CONV_KERNELS; i++) {
            const boot_conv_kernel *kernel = boot_conv_kernels[i];
            double seconds;
            if (!(kernel->automatic >> direction & 1) || !kernel->applies(s, direction) ||
                best[i] < 0)
                continue;
            if (round > 0 && best[i] > 2 * lead) continue;
            const boot_status status =
                boot_conv_time(kernel, s, direction, context->dnnl, REPEATS, 2 * lead, packing,
                               context->limit_bytes, &seconds);
            /* Not on this processor, or larger than the memory limit. */
            if (status == BOOT_ERR_UNSUPPORTED || status == BOOT_ERR_MEMORY) best[i] = -1;
            if (best[i] < 0) continue;
            BOOT_TRY(status);
            seconds *= kernel->handicap;
            if (!kernel->team && omp_get_max_threads() > 1) seconds += FORK;
            if (seconds < best[i]) best[i] = seconds;
            if (best[i] < lead) lead = best[i], winner = i;
        }
    if (!winner) return BOOT_OK; /* the caller says so */
    context->tuner->timed++;
    const double ms = lead * 1e3 / boot_conv_kernels[winner]->handicap;
    return boot_tuner_set(context->tuner, key, boot_conv_kernels[winner]->name, ms);
}

/* Where nothing was timed: the first that applies. */
static const boot_conv_kernel *const by_rule[] = {&boot_conv_columns, &boot_conv_winograd,
                                                  &boot_conv_direct};

/* NULL where there is no such kernel, or it does not do the shape. */
static const boot_conv_kernel *kernel_named(const boot_choice *choice, const boot_conv_shape *s,
                                            boot_conv_direction direction) {
    for (int i = 1; choice && i < BOOT_NUM_CONV_KERNELS; i++)
        if (!strcmp(choice->kernel, boot_conv_kernels[i]->name))
            return boot_conv_kernels[i]->applies(s, direction) ? boot_conv_kernels[i] : NULL;
    return NULL;
}

boot_status boot_conv_choose(const char *name, int pinned, const boot_conv_shape *s,
                             boot_conv_direction direction, boot_plan_context *context,
                             const boot_conv_kernel **chosen) {
    static const char *const direction_name[] = {"forward", "data", "weights"};
    char key[BOOT_KEY_LENGTH];
    *chosen = boot_conv_kernels[pinned];
    if (pinned) {
        if ((*chosen)->applies(s, direction)) return BOOT_OK;
        return boot_fail(BOOT_ERR_UNSUPPORTED, "conv2d (%s): kernel %s does not do this shape",
                         name, (*chosen)->name);
    }
    const bool kept = context->packed && direction != BOOT_CONV_WEIGHTS;
    snprintf(key, sizeof key, "%s n%lld %lldx%lldx%lld o%lld k%lld s%lld p%lld,%lld t%d%s%s",
             direction_name[direction], (long long)s->N, (long long)s->H, (long long)s->W,
             (long long)s->I, (long long)s->O, (long long)s->k, (long long)s->stride,
             (long long)s->pad_begin, (long long)s->pad_end, omp_get_max_threads(),
             s->upsampled ? " doubled" : "",
             !kept           ? ""
             : context->cold ? " packed cold"
             : context->far  ? " packed far"
                             : " packed");
    bool hinted;
    const boot_choice *known = boot_tuner_recall(context, key, &hinted);
    *chosen = kernel_named(known, s, direction);
    if (hinted && *chosen) /* a hint at one that does not do the shape is as good as none */
        BOOT_TRY(boot_tuner_set(context->tuner, key, known->kernel, known->ms));
    if (hinted && !*chosen) known = NULL;
    if (!known && !context->by_rule) {
        BOOT_TRY(time_kernels(s, direction, context, key));
        known = boot_tuner_find(context->tuner, key);
        *chosen = kernel_named(known, s, direction);
    }
    if (*chosen) return BOOT_OK;
    for (int i = 0; !known && i < (int)(sizeof by_rule / sizeof *by_rule); i++)
        if (by_rule[i]->applies(s, direction)) {
            *chosen = by_rule[i];
            return BOOT_OK;
        }
    return boot_fail(BOOT_ERR_UNSUPPORTED, "conv2d (%s): no kernel for \"%s\"%s%s", name, key,
                     known ? ", pinned to " : "", known ? known->kernel : "");
}
