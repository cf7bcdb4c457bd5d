/* conv2d_time.c: times one convolution kernel on made-up data, for the choice in conv2d.c and for
 * benchmarks. */
#include <omp.h>

#include "base/memory.h"
#include "ops/conv2d.h"

enum { AWAY_FLOATS = 1 << 19, SHORT_REPEATS = 30 };
static const double SHORT = 2e-5; /* seconds; of so short runs a few are not enough */

typedef struct {
    const boot_conv_kernel *kernel;
    void *state;
    const boot_conv_shape *shape;
    boot_conv_direction direction;
    const boot_conv_args *args;
    boot_conv_packing packing;
    const float *away; /* 2 MiB to read */
    int64_t weights;
} timed_runs;

/* Weights out of all caches, by one thread; or out of the first two, by each. */
static void send_weights_away(const timed_runs *t) {
    const boot_packs *packs = t->args->packs;
    if (t->packing == BOOT_PACK_KEPT_FAR) {
        float sum = 0;
        for (int64_t i = 0; i < AWAY_FLOATS; i += 16) sum += t->away[i];
        __asm__ volatile("" : : "r"(&sum) : "memory"); /* the reads matter */
    }
    if (t->packing != BOOT_PACK_KEPT_COLD || omp_get_thread_num() > 0) return;
    boot_evict(t->args->weight, t->weights * sizeof(float));
    for (int i = 0; i < packs->count; i++)
        boot_evict(packs->items[i].data, packs->items[i].floats * sizeof(float));
}

static boot_status run_once(const timed_runs *t, double *spent) {
    if (t->kernel->team) {
        send_weights_away(t);
#pragma omp barrier
    } else {
#pragma omp parallel
        send_weights_away(t);
    }
    const double start = omp_get_wtime();
    const boot_status status = t->kernel->run(t->state, t->shape, t->direction, t->args);
    *spent = omp_get_wtime() - start;
    return status;
}

/* The best of `repeats` runs, or of more short ones, after one that warms up. Called by a team
   where the kernel is for one; *seconds and *status are the team's. */
static void time_runs(const timed_runs *t, int repeats, double give_up, double *seconds,
                      boot_status *status) {
    for (int r = 0; r <= (*seconds < SHORT ? SHORT_REPEATS : repeats); r++) {
        double spent;
        const boot_status own = run_once(t, &spent);
#pragma omp barrier
        if (omp_get_thread_num() == 0) {
            *status = own;
            if (r > 0 && spent < *seconds) *seconds = spent;
        }
#pragma omp barrier
        if (own || (r > 0 && *seconds > give_up)) break;
    }
}

boot_status boot_conv_time(const boot_conv_kernel *kernel, const boot_conv_shape *s,
                           boot_conv_direction direction, boot_dnnl *dnnl, int repeats,
                           double give_up, boot_conv_packing packing, int64_t limit,
                           double *seconds) {
    int64_t nx, ny, nw;
    BOOT_TRY(boot_count4(s->N, s->H, s->W, s->I, &nx));
    BOOT_TRY(boot_count4(s->N, s->Ho, s->Wo, s->O, &ny));
    BOOT_TRY(boot_count4(s->O, s->I, s->k, s->k, &nw));
    int64_t scratch = 0;
    void *state = NULL, *block = NULL;
    boot_packs packs = {.version = 1};
    BOOT_TRY(kernel->create(s, direction, dnnl, &state, &scratch));
    const int64_t away = packing == BOOT_PACK_KEPT_FAR ? AWAY_FLOATS : 0;
    const int64_t total = nx + ny + nw + s->O + scratch + away + 6 * 16;
    boot_status status = BOOT_OK;
    if (limit && total * 4 > limit)
        status =
            boot_fail(BOOT_ERR_MEMORY, "kernel timing: more than %lld bytes", (long long)limit);
    if (!status) status = boot_alloc(&block, total * sizeof(float), true, "kernel timing");
    *seconds = 1e30;
    if (!status) {
        float *x = block, *y = x + (nx + 15) / 16 * 16, *w = y + (ny + 15) / 16 * 16,
              *b = w + (nw + 15) / 16 * 16, *b_end = b + (s->O + 15) / 16 * 16;
        for (int64_t i = 0; i < nx; i++) x[i] = (float)(i % 13 - 6) * 0.1f;
        for (int64_t i = 0; i < ny; i++) y[i] = (float)(i % 11 - 5) * 0.1f;
        for (int64_t i = 0; i < nw; i++) w[i] = (float)(i % 7 - 3) * 0.01f; /* no denormals */
        const boot_conv_args args = {.x = x,
                                     .weight = w,
                                     .bias = s->has_bias ? b : NULL,
                                     .dy = y,
                                     .y = y,
                                     .dx = x,
                                     .dweight = w,
                                     .ldx = s->I,
                                     .ldy = s->O,
                                     .scale = 1,
                                     .scratch = b_end + (away + 15) / 16 * 16,
                                     .packs = packing == BOOT_PACK_AGAIN ? NULL : &packs};
        if (args.packs && kernel->pack) status = kernel->pack(state, s, direction, &args);
        const timed_runs runs = {kernel, state, s, direction, &args, packing, b_end, nw};
        *seconds = 1e30;
        if (!status && kernel->team) {
#pragma omp parallel
            time_runs(&runs, repeats, give_up, seconds, &status);
        } else if (!status) {
            time_runs(&runs, repeats, give_up, seconds, &status);
        }
    }
    kernel->destroy(state);
    boot_packs_close(&packs);
    boot_free(block);
    return status;
}
