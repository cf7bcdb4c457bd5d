/* conv2d_time.c: times one convolution kernel on made-up data, for the choice in conv2d.c and for
 * benchmarks. */
#include <omp.h>

#include "base/memory.h"
#include "ops/conv2d.h"

static void evict(const boot_packs *packs, const float *weight, int64_t floats) {
    boot_evict(weight, floats * sizeof(float));
    for (int i = 0; i < packs->count; i++)
        boot_evict(packs->items[i].data, packs->items[i].floats * sizeof(float));
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
    const int64_t total = nx + ny + nw + s->O + scratch + 5 * 16;
    boot_status status = BOOT_OK;
    if (limit && total * 4 > limit)
        status =
            boot_fail(BOOT_ERR_MEMORY, "kernel timing: more than %lld bytes", (long long)limit);
    if (!status) status = boot_alloc(&block, total * sizeof(float), true, "kernel timing");
    *seconds = 1e30;
    if (!status) {
        float *x = block, *y = x + (nx + 15) / 16 * 16, *w = y + (ny + 15) / 16 * 16,
              *b = w + (nw + 15) / 16 * 16;
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
                                     .scratch = b + (s->O + 15) / 16 * 16,
                                     .packs = packing == BOOT_PACK_AGAIN ? NULL : &packs};
        for (int r = 0; r <= repeats && !status; r++) { /* the first run warms up */
            if (packing == BOOT_PACK_KEPT_COLD) evict(&packs, w, nw);
            const double start = omp_get_wtime();
            status = kernel->run(state, s, direction, &args);
            const double spent = omp_get_wtime() - start;
            if (r > 0 && spent < *seconds) *seconds = spent;
            if (r > 0 && spent > give_up) break;
        }
    }
    kernel->destroy(state);
    boot_packs_close(&packs);
    boot_free(block);
    return status;
}
