/* conv2d_dnnl.c: oneDNN's convolutions, direct (NHWC) and Winograd (its own blocked layout), as
 * kernels of conv2d.
 *
 * Our arrays are NHWC and OIHW; where the primitive wants another layout, a reorder primitive runs
 * around it. All memory, oneDNN's scratchpad included, is the caller's: scratchpad_mode_user frees
 * a primitive from the thread that created it. */
#include <limits.h>
#include <string.h>

#include "base/memory.h"
#include "ops/conv2d.h"

/* One argument of the primitive: our layout, its layout, and the reorder between them if they
 * differ. */
typedef struct {
    dnnl_memory_t ours, theirs; /* `theirs` is NULL when both layouts are the same */
    dnnl_primitive_t reorder;
    int64_t offset,
        reorder_pad; /* floats into scratch: the copy, and the reorder's own scratchpad */
    int64_t floats, pad_floats; /* of the copy, and of that scratchpad */
    dnnl_memory_t pad;
    int arg;
} conv_arg;

enum { SRC, WEIGHT, DST, NUM_ARGS };

typedef struct {
    dnnl_primitive_t primitive;
    conv_arg args[NUM_ARGS];
    dnnl_memory_t bias, pad;
    int output; /* which of args the primitive writes */
    dnnl_stream_t stream;
} conv_state;

static int64_t floats_of(const_dnnl_memory_desc_t md) {
    return ((int64_t)dnnl_memory_desc_get_size(md) / (int64_t)sizeof(float) + 15) / 16 * 16 + 16;
}

static void conv_destroy(void *opaque) {
    conv_state *s = opaque;
    if (!s) return;
    for (int i = 0; i < NUM_ARGS; i++) {
        if (s->args[i].ours) dnnl_memory_destroy(s->args[i].ours);
        if (s->args[i].theirs) dnnl_memory_destroy(s->args[i].theirs);
        if (s->args[i].pad) dnnl_memory_destroy(s->args[i].pad);
        if (s->args[i].reorder) dnnl_primitive_destroy(s->args[i].reorder);
    }
    if (s->bias) dnnl_memory_destroy(s->bias);
    if (s->pad) dnnl_memory_destroy(s->pad);
    if (s->primitive) dnnl_primitive_destroy(s->primitive);
    boot_free(s);
}

/* Descriptors of one convolution while it is being set up. */
typedef struct {
    dnnl_memory_desc_t ours[NUM_ARGS], asked[NUM_ARGS], bias;
    dnnl_primitive_desc_t pd, hint;
    dnnl_primitive_attr_t attr;
} conv_setup;

static void setup_close(conv_setup *u) {
    for (int i = 0; i < NUM_ARGS; i++) {
        if (u->ours[i]) dnnl_memory_desc_destroy(u->ours[i]);
        if (u->asked[i]) dnnl_memory_desc_destroy(u->asked[i]);
    }
    if (u->bias) dnnl_memory_desc_destroy(u->bias);
    if (u->pd) dnnl_primitive_desc_destroy(u->pd);
    if (u->hint) dnnl_primitive_desc_destroy(u->hint);
    if (u->attr) dnnl_primitive_attr_destroy(u->attr);
}

static boot_status setup_open(conv_setup *u, const boot_conv_shape *c,
                              boot_conv_direction direction, dnnl_alg_kind_t alg,
                              dnnl_engine_t engine) {
    const dnnl_dims_t dims[NUM_ARGS] = {
        {c->N, c->I, c->H, c->W}, {c->O, c->I, c->k, c->k}, {c->N, c->O, c->Ho, c->Wo}};
    const dnnl_format_tag_t tags[NUM_ARGS] = {dnnl_nhwc, dnnl_oihw, dnnl_nhwc};
    const dnnl_dims_t strides = {c->stride, c->stride}, dilates = {0, 0};
    const dnnl_dims_t before = {c->pad_begin, c->pad_begin}, after = {c->pad_end, c->pad_end};
    const dnnl_dims_t bias_dims = {c->O};
    for (int i = 0; i < NUM_ARGS; i++) {
        const bool any = i == WEIGHT || alg == dnnl_convolution_winograd;
        BOOT_DNNL_TRY(dnnl_memory_desc_create_with_tag(&u->ours[i], 4, dims[i], dnnl_f32, tags[i]),
                      "layout");
        BOOT_DNNL_TRY(dnnl_memory_desc_create_with_tag(&u->asked[i], 4, dims[i], dnnl_f32,
                                                       any ? dnnl_format_tag_any : tags[i]),
                      "layout");
    }
    if (c->has_bias)
        BOOT_DNNL_TRY(dnnl_memory_desc_create_with_tag(&u->bias, 1, bias_dims, dnnl_f32, dnnl_a),
                      "bias");
    BOOT_DNNL_TRY(dnnl_primitive_attr_create(&u->attr), "attributes");
    BOOT_DNNL_TRY(dnnl_primitive_attr_set_scratchpad_mode(u->attr, dnnl_scratchpad_mode_user),
                  "attributes");
    BOOT_DNNL_TRY(dnnl_convolution_forward_primitive_desc_create(
                      direction == BOOT_CONV_FORWARD ? &u->pd : &u->hint, engine,
                      dnnl_forward_training, alg, u->asked[SRC], u->asked[WEIGHT],
                      direction == BOOT_CONV_FORWARD ? u->bias : NULL, u->asked[DST], strides,
                      dilates, before, after, u->attr),
                  "convolution");
    if (direction == BOOT_CONV_DATA)
        return boot_dnnl_check(dnnl_convolution_backward_data_primitive_desc_create(
                                   &u->pd, engine, alg, u->asked[SRC], u->asked[WEIGHT],
                                   u->asked[DST], strides, dilates, before, after, u->hint,
                                   u->attr),
                               "convolution data gradient");
    if (direction == BOOT_CONV_WEIGHTS)
        return boot_dnnl_check(dnnl_convolution_backward_weights_primitive_desc_create(
                                   &u->pd, engine, alg, u->asked[SRC], u->asked[WEIGHT], NULL,
                                   u->asked[DST], strides, dilates, before, after, u->hint,
                                   u->attr),
                               "convolution weight gradient");
    return BOOT_OK;
}

/* Memory objects of argument i, and its reorder if the primitive chose another layout than ours. */
static boot_status bind_arg(conv_state *s, conv_setup *u, int i, int dnnl_arg, dnnl_engine_t engine,
                            int64_t *scratch) {
    conv_arg *a = &s->args[i];
    const_dnnl_memory_desc_t chosen =
        dnnl_primitive_desc_query_md(u->pd, dnnl_query_exec_arg_md, dnnl_arg);
    a->arg = dnnl_arg;
    BOOT_DNNL_TRY(dnnl_memory_create(&a->ours, u->ours[i], engine, DNNL_MEMORY_NONE), "memory");
    if (dnnl_memory_desc_equal(chosen, u->ours[i])) return BOOT_OK;
    BOOT_DNNL_TRY(dnnl_memory_create(&a->theirs, chosen, engine, DNNL_MEMORY_NONE), "memory");
    a->offset = *scratch;
    a->floats = floats_of(chosen);
    *scratch += a->floats;
    dnnl_primitive_desc_t pd = NULL;
    const bool out = i == s->output;
    BOOT_DNNL_TRY(dnnl_reorder_primitive_desc_create(&pd, out ? chosen : u->ours[i], engine,
                                                     out ? u->ours[i] : chosen, engine, u->attr),
                  "reorder");
    const_dnnl_memory_desc_t pad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    boot_status status = boot_dnnl_check(dnnl_primitive_create(&a->reorder, pd), "reorder");
    if (!status)
        status =
            boot_dnnl_check(dnnl_memory_create(&a->pad, pad, engine, DNNL_MEMORY_NONE), "memory");
    a->reorder_pad = *scratch;
    a->pad_floats = floats_of(pad);
    *scratch += a->pad_floats;
    dnnl_primitive_desc_destroy(pd);
    return status;
}

static boot_status conv_create(const boot_conv_shape *c, boot_conv_direction direction,
                               boot_dnnl *dnnl, dnnl_alg_kind_t alg, void **state,
                               int64_t *scratch) {
    static const int arg_of[BOOT_CONV_DIRECTIONS][NUM_ARGS] = {
        {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
        {DNNL_ARG_DIFF_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_DST},
        {DNNL_ARG_SRC, DNNL_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_DST}};
    static const int output_of[BOOT_CONV_DIRECTIONS] = {DST, SRC, WEIGHT};
    conv_setup u = {0};
    BOOT_TRY(boot_alloc(state, sizeof(conv_state), true, "convolution"));
    conv_state *s = *state;
    s->output = output_of[direction];
    s->stream = dnnl->stream;
    *scratch = 0;
    boot_status status = setup_open(&u, c, direction, alg, dnnl->engine);
    if (!status) {
        const_dnnl_memory_desc_t pad =
            dnnl_primitive_desc_query_md(u.pd, dnnl_query_scratchpad_md, 0);
        status = boot_dnnl_check(dnnl_memory_create(&s->pad, pad, dnnl->engine, DNNL_MEMORY_NONE),
                                 "memory");
        *scratch = floats_of(pad);
    }
    for (int i = 0; !status && i < NUM_ARGS; i++)
        status = bind_arg(s, &u, i, arg_of[direction][i], dnnl->engine, scratch);
    if (!status && direction == BOOT_CONV_FORWARD && c->has_bias)
        status = boot_dnnl_check(
            dnnl_memory_create(&s->bias, u.bias, dnnl->engine, DNNL_MEMORY_NONE), "memory");
    if (!status)
        status = boot_dnnl_check(dnnl_primitive_create(&s->primitive, u.pd), "convolution");
    setup_close(&u);
    if (status) {
        conv_destroy(s);
        *state = NULL;
    }
    return status;
}

static boot_status run_reorder(conv_state *s, conv_arg *a, bool to_ours, float *pad) {
    const dnnl_exec_arg_t list[] = {{DNNL_ARG_FROM, to_ours ? a->theirs : a->ours},
                                    {DNNL_ARG_TO, to_ours ? a->ours : a->theirs},
                                    {DNNL_ARG_SCRATCHPAD, a->pad}};
    BOOT_DNNL_TRY(dnnl_memory_set_data_handle(a->pad, pad), "scratch");
    return boot_dnnl_check(dnnl_primitive_execute(a->reorder, s->stream, 3, list), "reorder");
}

static boot_status conv_run(void *opaque, const boot_conv_shape *c, boot_conv_direction direction,
                            const boot_conv_args *args) {
    (void)c;
    conv_state *s = opaque;
    const void *ours[NUM_ARGS] = {args->x, args->weight, args->dy};
    if (direction == BOOT_CONV_FORWARD) ours[DST] = args->y;
    if (direction == BOOT_CONV_DATA) ours[SRC] = args->dx;
    if (direction == BOOT_CONV_WEIGHTS) ours[WEIGHT] = args->dweight;
    dnnl_exec_arg_t list[NUM_ARGS + 2];
    int count = 0;
    for (int i = 0; i < NUM_ARGS; i++) {
        conv_arg *a = &s->args[i];
        BOOT_DNNL_TRY(dnnl_memory_set_data_handle(a->ours, (void *)ours[i]), "argument");
        if (a->theirs) {
            float *theirs = args->scratch + a->offset;
            float *kept = NULL;
            if (i == WEIGHT && i != s->output && args->packs)
                kept = boot_packs_find(args->packs, args->weight, s, a->floats);
            BOOT_DNNL_TRY(dnnl_memory_set_data_handle(a->theirs, kept ? kept : theirs), "argument");
            if (!kept && i != s->output)
                BOOT_TRY(run_reorder(s, a, false, args->scratch + a->reorder_pad));
        }
        list[count++] = (dnnl_exec_arg_t){a->arg, a->theirs ? a->theirs : a->ours};
    }
    if (s->bias) {
        BOOT_DNNL_TRY(dnnl_memory_set_data_handle(s->bias, (void *)args->bias), "bias");
        list[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, s->bias};
    }
    BOOT_DNNL_TRY(dnnl_memory_set_data_handle(s->pad, args->scratch), "scratch");
    list[count++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, s->pad};
    BOOT_DNNL_TRY(dnnl_primitive_execute(s->primitive, s->stream, count, list), "convolution");
    conv_arg *out = &s->args[s->output];
    if (out->theirs) return run_reorder(s, out, true, args->scratch + out->reorder_pad);
    return BOOT_OK;
}

/* The weights in the primitive's layout. The state is the key: each primitive has a layout of its
   own. Nodes are packed by several threads at once, so the reorder's scratch is its own too. */
static boot_status conv_pack(void *opaque, const boot_conv_shape *c, boot_conv_direction direction,
                             const boot_conv_args *args) {
    (void)c, (void)direction;
    conv_state *s = opaque;
    conv_arg *a = &s->args[WEIGHT];
    float *theirs, *pad;
    bool fresh;
    if (!a->theirs || s->output == WEIGHT) return BOOT_OK;
    BOOT_TRY(boot_packs_get(args->packs, args->weight, s, a->floats, &theirs, &fresh));
    if (fresh) return BOOT_OK;
    BOOT_DNNL_TRY(dnnl_memory_set_data_handle(a->ours, (void *)args->weight), "argument");
    BOOT_DNNL_TRY(dnnl_memory_set_data_handle(a->theirs, theirs), "argument");
    BOOT_TRY(boot_alloc((void **)&pad, a->pad_floats * sizeof(float), false, "reorder"));
    const boot_status status = run_reorder(s, a, false, pad);
    boot_free(pad);
    if (!status) boot_packs_filled(args->packs, args->weight, s, a->floats);
    return status;
}

/* oneDNN's kernels count in int: beyond that they were seen to divide by zero. */
static bool fits_int(const boot_conv_shape *c) {
    enum { SIDE = 1 << 24 };
    if (c->H > SIDE || c->W > SIDE || c->I > SIDE || c->O > SIDE || c->N > SIDE) return false;
    return c->N * c->H <= INT_MAX / c->W && c->N * c->Ho <= INT_MAX / c->Wo;
}

/* Only where the primitive wants another layout than ours; that layout is its own. */
static boot_pack_need conv_pack_need(const void *opaque, const boot_conv_shape *c,
                                     boot_conv_direction direction) {
    (void)c, (void)direction;
    const conv_state *s = opaque;
    return (boot_pack_need){s, s->args[WEIGHT].theirs ? s->args[WEIGHT].floats : 0, true};
}

static bool direct_applies(const boot_conv_shape *c, boot_conv_direction direction) {
    (void)direction;
    return !c->upsampled && fits_int(c);
}

static bool winograd_applies(const boot_conv_shape *c, boot_conv_direction direction) {
    (void)direction;
    return !c->upsampled && c->k == 3 && c->stride == 1 && c->pad_begin == 1 && c->pad_end == 1 &&
           fits_int(c);
}

static boot_status direct_create(const boot_conv_shape *c, boot_conv_direction direction,
                                 boot_dnnl *dnnl, void **state, int64_t *scratch) {
    return conv_create(c, direction, dnnl, dnnl_convolution_direct, state, scratch);
}

static boot_status winograd_create(const boot_conv_shape *c, boot_conv_direction direction,
                                   boot_dnnl *dnnl, void **state, int64_t *scratch) {
    return conv_create(c, direction, dnnl, dnnl_convolution_winograd, state, scratch);
}

const boot_conv_kernel boot_conv_direct = {.name = "direct",
                                           .automatic = BOOT_CONV_ALL,
                                           .handicap = 1.08,
                                           .applies = direct_applies,
                                           .create = direct_create,
                                           .pack = conv_pack,
                                           .run = conv_run,
                                           .destroy = conv_destroy,
                                           .pack_need = conv_pack_need};
const boot_conv_kernel boot_conv_dnnl_winograd = {
    .name = "dnnl_winograd",
    .automatic = BOOT_CONV_ALL,
    .handicap = 1.25, /* keeps whole transformed tensors, up to 100 MB */
    .applies = winograd_applies,
    .create = winograd_create,
    .pack = conv_pack,
    .run = conv_run,
    .destroy = conv_destroy,
    .pack_need = conv_pack_need};
