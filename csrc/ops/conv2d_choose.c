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

/* Kernels that may take so many times as long as the best so far stay in: of the first look's
   second round, and of the looks after it. */
static const double FAST = 2, CLOSE = 1.25;

/* Seconds of each kernel, the best so far: 1e30 where it was not timed, negative where it cannot
   be. */
typedef struct {
    double best[BOOT_NUM_CONV_KERNELS];
} kernel_times;

static kernel_times untimed(void) {
    kernel_times t;
    for (int i = 0; i < BOOT_NUM_CONV_KERNELS; i++) t.best[i] = 1e30;
    return t;
}

/* The fastest but one, 0 where there is none; `one` 0: the fastest. */
static int fastest_but(const kernel_times *t, int one) {
    int found = 0;
    for (int i = 1; i < BOOT_NUM_CONV_KERNELS; i++)
        if (i != one && t->best[i] >= 0 && t->best[i] < (found ? t->best[found] : 1e30)) found = i;
    return found;
}

/* Times kernel i, and keeps the better time. */
static boot_status time_one(int i, const boot_conv_shape *s, boot_conv_direction direction,
                            const boot_plan_context *context, kernel_times *t) {
    enum { REPEATS = 3 };
    const boot_conv_packing packing = !context->packed ? BOOT_PACK_AGAIN
                                      : context->cold  ? BOOT_PACK_KEPT_COLD
                                      : context->far   ? BOOT_PACK_KEPT_FAR
                                                       : BOOT_PACK_KEPT;
    const boot_conv_kernel *kernel = boot_conv_kernels[i];
    const int lead = fastest_but(t, 0);
    double seconds;
    const boot_status status =
        boot_conv_time(kernel, s, direction, context->dnnl, REPEATS,
                       lead ? FAST * t->best[lead] : 1e30, packing, context->limit_bytes, &seconds);
    /* Not on this processor, or larger than the memory limit; or there is no memory in a later
       look, which leaves what is known. */
    if (status == BOOT_ERR_UNSUPPORTED || status == BOOT_ERR_MEMORY) {
        if (t->best[i] == 1e30) t->best[i] = -1;
        return BOOT_OK;
    }
    BOOT_TRY(status);
    seconds *= kernel->handicap;
    if (!kernel->team && omp_get_max_threads() > 1) seconds += FORK;
    if (seconds < t->best[i]) t->best[i] = seconds;
    return BOOT_OK;
}

/* Remembers the fastest kernel, and the next one if that is close. */
static boot_status remember(boot_plan_context *context, const char *key, int looks,
                            const kernel_times *t) {
    const int first = fastest_but(t, 0), second = fastest_but(t, first);
    if (!first) return BOOT_OK; /* the caller says so */
    boot_choice choice = {.ms = t->best[first] * 1e3 / boot_conv_kernels[first]->handicap,
                          .looks = looks};
    snprintf(choice.kernel, sizeof choice.kernel, "%s", boot_conv_kernels[first]->name);
    if (second && t->best[second] < CLOSE * t->best[first]) {
        choice.second_ms = t->best[second] * 1e3 / boot_conv_kernels[second]->handicap;
        snprintf(choice.second, sizeof choice.second, "%s", boot_conv_kernels[second]->name);
    }
    return boot_tuner_put(context->tuner, key, &choice);
}

/* Every automatic kernel that applies, in alternating rounds. */
static boot_status first_look(const boot_conv_shape *s, boot_conv_direction direction,
                              boot_plan_context *context, const char *key) {
    enum { ROUNDS = 2 };
    kernel_times t = untimed();
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 1; i < BOOT_NUM_CONV_KERNELS; i++) {
            const boot_conv_kernel *kernel = boot_conv_kernels[i];
            if (!(kernel->automatic >> direction & 1) || !kernel->applies(s, direction) ||
                t.best[i] < 0 || (round > 0 && t.best[i] > FAST * t.best[fastest_but(&t, 0)]))
                continue;
            BOOT_TRY(time_one(i, s, direction, context, &t));
        }
    if (fastest_but(&t, 0)) context->tuner->timed++;
    return remember(context, key, 1, &t);
}

static int index_of(const char *kernel) {
    int i = 1;
    while (i < BOOT_NUM_CONV_KERNELS && strcmp(kernel, boot_conv_kernels[i]->name)) i++;
    return i < BOOT_NUM_CONV_KERNELS ? i : 0;
}

/* The two that were close, once more. */
static boot_status look_again(const boot_conv_shape *s, boot_conv_direction direction,
                              boot_plan_context *context, const char *key,
                              const boot_choice *known) {
    const int pair[2] = {index_of(known->kernel), index_of(known->second)};
    const int looks = known->looks + 1;
    kernel_times t = untimed();
    t.best[pair[0]] = known->ms * 1e-3 * boot_conv_kernels[pair[0]]->handicap;
    t.best[pair[1]] = known->second_ms * 1e-3 * boot_conv_kernels[pair[1]]->handicap;
    for (int i = 0; i < 2; i++) BOOT_TRY(time_one(pair[i], s, direction, context, &t));
    return remember(context, key, looks, &t);
}

/* Where nothing was timed: the first that applies. */
static const boot_conv_kernel *const by_rule[] = {&boot_conv_columns, &boot_conv_winograd,
                                                  &boot_conv_direct};

static void write_key(char key[BOOT_KEY_LENGTH], const boot_conv_shape *s,
                      boot_conv_direction direction, const boot_plan_context *context) {
    static const char *const direction_name[] = {"forward", "data", "weights"};
    const bool kept = context->packed && direction != BOOT_CONV_WEIGHTS;
    snprintf(key, BOOT_KEY_LENGTH, "%s n%lld %lldx%lldx%lld o%lld k%lld s%lld p%lld,%lld t%d%s%s",
             direction_name[direction], (long long)s->N, (long long)s->H, (long long)s->W,
             (long long)s->I, (long long)s->O, (long long)s->k, (long long)s->stride,
             (long long)s->pad_begin, (long long)s->pad_end, omp_get_max_threads(),
             s->upsampled ? " doubled" : "",
             !kept           ? ""
             : context->cold ? " packed cold"
             : context->far  ? " packed far"
                             : " packed");
}

/* What is known for the key, a hint included, and its kernel: NULL where there is no such kernel,
   or it does not do the shape. A hint at such a one is as good as none. */
static boot_status recall(const char *key, const boot_conv_shape *s, boot_conv_direction direction,
                          const boot_plan_context *context, const boot_choice **known,
                          const boot_conv_kernel **kernel) {
    bool hinted;
    *kernel = NULL;
    *known = boot_tuner_recall(context, key, &hinted);
    const int i = *known ? index_of((*known)->kernel) : 0;
    if (i && boot_conv_kernels[i]->applies(s, direction)) *kernel = boot_conv_kernels[i];
    if (hinted && *kernel)
        BOOT_TRY(boot_tuner_set(context->tuner, key, (*known)->kernel, (*known)->ms));
    if (hinted && !*kernel) *known = NULL;
    return BOOT_OK;
}

boot_status boot_conv_look(int pinned, const boot_conv_shape *s, boot_conv_direction direction,
                           boot_plan_context *context, int look) {
    char key[BOOT_KEY_LENGTH];
    const boot_choice *known;
    const boot_conv_kernel *kernel;
    if (pinned || context->by_rule) return BOOT_OK;
    write_key(key, s, direction, context);
    BOOT_TRY(recall(key, s, direction, context, &known, &kernel));
    if (look == 0) return known ? BOOT_OK : first_look(s, direction, context, key);
    /* Another layer of this shape may have had this look already. */
    if (!known || !known->second[0] || known->looks != look) return BOOT_OK;
    return look_again(s, direction, context, key, known);
}

boot_status boot_conv_choose(const char *name, int pinned, const boot_conv_shape *s,
                             boot_conv_direction direction, const boot_plan_context *context,
                             const boot_conv_kernel **chosen) {
    char key[BOOT_KEY_LENGTH];
    const boot_choice *known;
    *chosen = boot_conv_kernels[pinned];
    if (pinned) {
        if ((*chosen)->applies(s, direction)) return BOOT_OK;
        return boot_fail(BOOT_ERR_UNSUPPORTED, "conv2d (%s): kernel %s does not do this shape",
                         name, (*chosen)->name);
    }
    write_key(key, s, direction, context);
    BOOT_TRY(recall(key, s, direction, context, &known, chosen));
    if (*chosen) return BOOT_OK;
    for (int i = 0; !known && i < (int)(sizeof by_rule / sizeof *by_rule); i++)
        if (by_rule[i]->applies(s, direction)) {
            *chosen = by_rule[i];
            return BOOT_OK;
        }
    return boot_fail(BOOT_ERR_UNSUPPORTED, "conv2d (%s): no kernel for \"%s\"%s%s", name, key,
                     known ? ", pinned to " : "", known ? known->kernel : "");
}
