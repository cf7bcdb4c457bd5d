/* unet2d.c: builds diffusers' UNet2DModel (Ho et al. 2020) node by node, under the checkpoint's own
 * keys. */
#include "net/unet2d.h"

#include <stdio.h>

#include "base/vmath.h"

/* What every part of the builder needs. `emb`: act(time embedding), (N, T), ready for
 * time_emb_proj. */
typedef struct {
    boot_graph *graph;
    const boot_unet2d_config *config;
    int64_t n;
    int emb;
    int blocks; /* entered so far */
} builder;

enum { MAX_SKIPS = BOOT_MAX_LEVELS * 64 };

typedef struct {
    int ids[MAX_SKIPS];
    int count;
} skip_stack;

static int weight2(builder *b, const char *key, int64_t out, int64_t in) {
    return boot_graph_param(b->graph, true, 2, (int64_t[]){out, in}, "%s.weight", key);
}

static int vector(builder *b, const char *key, const char *suffix, int64_t count) {
    return boot_graph_param(b->graph, true, 1, (int64_t[]){count}, "%s.%s", key, suffix);
}

static int64_t channels_of(builder *b, int x) { return boot_graph_shape(b->graph, x).c; }

/* residual: what is added, or -1. */
static int linear(builder *b, int x, const char *key, int64_t out, int residual) {
    const int w = weight2(b, key, out, channels_of(b, x)), bias = vector(b, key, "bias", out);
    return boot_graph_node(b->graph, &boot_op_linear, key, (int[]){x, w, bias, -1, residual}, NULL);
}

/* Linear `right` from C to C channels, then `left`; see linear_pair.c for `transposed`. */
static int linear_pair(builder *b, int x, const char *right, const char *left, bool transposed) {
    const int64_t C = channels_of(b, x);
    const int w = weight2(b, right, C, C), bias = vector(b, right, "bias", C);
    return boot_graph_node(b->graph, &boot_op_linear_pair, right,
                           (int[]){x, w, weight2(b, left, C, C), bias, vector(b, left, "bias", C)},
                           (double[BOOT_MAX_ATTRS]){transposed});
}

/* A 1x1 convolution of [x, more] is a linear map of each pixel; only its weight's shape differs. */
static int conv1x1(builder *b, int x, int more, const char *key, int64_t out) {
    const int64_t in = channels_of(b, x) + channels_of(b, more);
    const int w = boot_graph_param(b->graph, true, 4, (int64_t[]){out, in, 1, 1}, "%s.weight", key);
    const int bias = vector(b, key, "bias", out);
    return boot_graph_node(b->graph, &boot_op_linear, key, (int[]){x, w, bias, more, -1}, NULL);
}

/* attrs: stride, padding at the begin and at the end, scale, kernel, upsampled. */
static int conv_node(builder *b, int x, const char *key, int64_t out, int temb, int residual,
                     const double attrs[BOOT_MAX_ATTRS]) {
    const int w = boot_graph_param(b->graph, true, 4, (int64_t[]){out, channels_of(b, x), 3, 3},
                                   "%s.weight", key);
    const int bias = vector(b, key, "bias", out);
    return boot_graph_node(b->graph, &boot_op_conv2d, key, (int[]){x, w, bias, temb, residual},
                           attrs);
}

/* Of the same size as x, or of twice the size: of x upsampled. */
static int conv3x3(builder *b, int x, const char *key, int64_t out, bool upsampled) {
    return conv_node(b, x, key, out, -1, -1, (double[]){1, 1, 1, 1, 0, upsampled});
}

static int conv_down(builder *b, int x, const char *key, int64_t out) {
    const double pad_begin = (double)b->config->downsample_padding;
    return conv_node(b, x, key, out, -1, -1, (double[]){2, pad_begin, 1, 1, 0, 0});
}

/* Of [x, more]. */
static int group_norm(builder *b, int x, int more, const char *key, int64_t groups, int act,
                      int scale_shift) {
    const int64_t C = channels_of(b, x) + channels_of(b, more);
    const int w = vector(b, key, "weight", C), bias = vector(b, key, "bias", C);
    return boot_graph_node(b->graph, &boot_op_group_norm, key,
                           (int[]){x, w, bias, scale_shift, more},
                           (double[BOOT_MAX_ATTRS]){(double)groups, b->config->norm_eps, act});
}

static int unary(builder *b, const boot_op *op, int x, const char *key, double attr) {
    return boot_graph_node(b->graph, op, key, (int[]){x, -1, -1, -1, -1},
                           (double[BOOT_MAX_ATTRS]){attr});
}

static int binary(builder *b, const boot_op *op, int x, int y, const char *key, double attr) {
    return boot_graph_node(b->graph, op, key, (int[]){x, y, -1, -1, -1},
                           (double[BOOT_MAX_ATTRS]){attr});
}

/* Calls a builder function with the key "<prefix>.<name>". */
#define WITH_KEY(key, prefix, ...)                                                                 \
    char key[BOOT_NAME_LENGTH];                                                                    \
    do {                                                                                           \
        const int used_ = snprintf(key, sizeof key, "%s.", prefix);                                \
        snprintf(key + used_, sizeof key - used_, __VA_ARGS__);                                    \
    } while (0)

typedef enum { KEEP, DOWN, UP } resampling;

/* Blocks are what gradient checkpointing recomputes as a whole. Numbers start at 1. */
static void enter_block(builder *b) { b->graph->block = ++b->blocks; }

static int leave_block(builder *b, int out) {
    b->graph->block = 0;
    return out;
}

/* ResnetBlock2D: conv2(act(norm2(conv1(act(norm1(x))) + time))) + shortcut(x), both branches
   resampled first where the block changes size. skip: further channels of x, or -1; its first
   operations take the two as they are. */
static int resnet(builder *b, int x, int skip, const char *prefix, int64_t out, resampling resample,
                  double output_scale) {
    const boot_unet2d_config *c = b->config;
    const boot_op *const resample_op =
        resample == UP ? &boot_op_upsample_nearest : &boot_op_mean2x2;
    WITH_KEY(norm1, prefix, "norm1");
    WITH_KEY(conv1, prefix, "conv1");
    WITH_KEY(proj, prefix, "time_emb_proj");
    WITH_KEY(norm2, prefix, "norm2");
    WITH_KEY(conv2, prefix, "conv2");
    WITH_KEY(shortcut, prefix, "conv_shortcut");
    if (skip >= 0 && channels_of(b, x) + channels_of(b, skip) == out) {
        x = binary(b, &boot_op_concat, x, skip, prefix, 0); /* it is the residual as well */
        skip = -1;
    }
    enter_block(b);
    int h = group_norm(b, x, skip, norm1, c->norm_num_groups, c->act, -1);
    if (resample == DOWN) h = unary(b, &boot_op_mean2x2, h, prefix, 0);
    if (resample != KEEP) x = unary(b, resample_op, x, prefix, 0);
    const int temb = linear(b, b->emb, proj, c->scale_shift ? 2 * out : out, -1);
    h = conv_node(b, h, conv1, out, c->scale_shift ? -1 : temb, -1,
                  (double[]){1, 1, 1, 1, 0, resample == UP});
    h = group_norm(b, h, -1, norm2, c->norm_num_groups, c->act, c->scale_shift ? temb : -1);
    if (skip >= 0 || channels_of(b, x) != out) x = conv1x1(b, x, skip, shortcut, out);
    return leave_block(
        b, conv_node(b, h, conv2, out, -1, x, (double[]){1, 1, 1, 1 / output_scale, 0, 0}));
}

/* Whether W = L R costs less than a product with each: more rows than channels, or none at all. */
static bool pairs_pay(builder *b, int x) {
    const boot_tensor shape = boot_graph_shape(b->graph, x);
    return b->graph->packed || boot_pixels(&shape) > shape.c;
}

/* One head: to_q and to_k are one map, and so are to_v and to_out. */
static int attention_of_one_head(builder *b, int h, const char *prefix, const char *const keys[4]) {
    const int64_t C = channels_of(b, h);
    for (int i = 0; i < 4; i++) weight2(b, keys[i], C, C), vector(b, keys[i], "bias", C);
    const int q = linear_pair(b, h, keys[0], keys[1], true);
    const int v = linear_pair(b, h, keys[2], keys[3], false);
    return boot_graph_node(b->graph, &boot_op_attention, prefix, (int[]){q, h, v, -1, -1},
                           (double[BOOT_MAX_ATTRS]){1});
}

static int attention_of_heads(builder *b, int h, const char *prefix, const char *const keys[4],
                              int64_t heads, int residual) {
    const int64_t C = channels_of(b, h);
    const int q = linear(b, h, keys[0], C, -1), k = linear(b, h, keys[1], C, -1),
              v = linear(b, h, keys[2], C, -1);
    const int o = boot_graph_node(b->graph, &boot_op_attention, prefix, (int[]){q, k, v, -1, -1},
                                  (double[BOOT_MAX_ATTRS]){(double)heads});
    return linear(b, o, keys[3], C, residual);
}

/* Attention with its group norm and residual; groups 0: no norm. */
static int attention(builder *b, int x, const char *prefix, int64_t groups, double output_scale) {
    const int64_t C = channels_of(b, x), head_dim = b->config->attention_head_dim;
    WITH_KEY(norm, prefix, "group_norm");
    WITH_KEY(to_q, prefix, "to_q");
    WITH_KEY(to_k, prefix, "to_k");
    WITH_KEY(to_v, prefix, "to_v");
    WITH_KEY(to_out, prefix, "to_out.0");
    enter_block(b);
    const int h = groups ? group_norm(b, x, -1, norm, groups, BOOT_ACT_NONE, -1) : x;
    const char *const keys[] = {to_q, to_k, to_v, to_out};
    const int64_t heads = head_dim ? C / head_dim : 1;
    if (heads == 1 && pairs_pay(b, h)) {
        const int out = attention_of_one_head(b, h, prefix, keys);
        return leave_block(b, binary(b, &boot_op_add, x, out, prefix, 1 / output_scale));
    }
    if (output_scale == 1) return leave_block(b, attention_of_heads(b, h, prefix, keys, heads, x));
    const int out = attention_of_heads(b, h, prefix, keys, heads, -1);
    return leave_block(b, binary(b, &boot_op_add, x, out, prefix, 1 / output_scale));
}

/* Features of a time: (N) -> (N, C0 or 2 C0). Only the real timestep trains a learned table. */
static int time_features(builder *b, int t, bool trains) {
    const boot_unet2d_config *c = b->config;
    const int64_t C0 = c->channels[0];
    if (c->time_embedding == BOOT_TIME_POSITIONAL)
        return boot_graph_node(
            b->graph, &boot_op_timestep_embedding, "time_proj", (int[]){t, -1, -1, -1, -1},
            (double[BOOT_MAX_ATTRS]){(double)C0, c->flip_sin_to_cos, c->freq_shift});
    if (c->time_embedding == BOOT_TIME_FOURIER) {
        const int w = boot_graph_param(b->graph, false, 1, (int64_t[]){C0}, "time_proj.weight");
        return binary(b, &boot_op_fourier_embedding, t, w, "time_proj", 0);
    }
    const int w = boot_graph_param(b->graph, trains, 2, (int64_t[]){c->num_train_timesteps, C0},
                                   "time_proj.weight");
    return binary(b, &boot_op_embedding, t, w, "time_proj", 0);
}

/* Features of a guidance scale's position: sinusoids for every kind of network. */
static int guidance_features(builder *b, int position) {
    return boot_graph_node(b->graph, &boot_op_timestep_embedding, "guidance_proj",
                           (int[]){position, -1, -1, -1, -1},
                           (double[BOOT_MAX_ATTRS]){(double)b->config->channels[0], true, 0});
}

/* TimestepEmbedding: linear_2(SiLU(linear_1(v))). */
static int time_mlp(builder *b, int v, const char *prefix) {
    WITH_KEY(linear_1, prefix, "linear_1");
    WITH_KEY(linear_2, prefix, "linear_2");
    const int64_t T = b->config->time_embedding_dim;
    const int h =
        unary(b, &boot_op_activation, linear(b, v, linear_1, T, -1), prefix, BOOT_ACT_SILU);
    return linear(b, h, linear_2, T, -1);
}

/* act(time + class + target embedding), (N, T). */
static int embeddings(builder *b, int t) {
    const boot_unet2d_config *c = b->config;
    int emb = time_mlp(b, time_features(b, t, true), "time_embedding");
    if (c->class_embedding != BOOT_CLASS_NONE) {
        const bool identity = c->class_embedding == BOOT_CLASS_IDENTITY;
        int label = boot_graph_input(b->graph, 2,
                                     boot_shape(b->n, 1, 1, identity ? c->time_embedding_dim : 1));
        if (c->class_embedding == BOOT_CLASS_TIMESTEP)
            label = time_mlp(b, time_features(b, label, false), "class_embedding");
        if (c->class_embedding == BOOT_CLASS_TABLE)
            label =
                binary(b, &boot_op_embedding, label,
                       weight2(b, "class_embedding", c->num_class_embeds, c->time_embedding_dim),
                       "class_embedding", 0);
        emb = binary(b, &boot_op_add, emb, label, "class_embedding", 1);
    }
    if (c->target_embedding) {
        const int target = boot_graph_input(b->graph, 3, boot_shape(b->n, 1, 1, 1));
        const int extra = time_mlp(b, time_features(b, target, false), "boot_target_embedding");
        emb = binary(b, &boot_op_add, emb, extra, "boot_target_embedding", 1);
    }
    if (c->guidance_embedding) {
        const int position = boot_graph_input(b->graph, 4, boot_shape(b->n, 1, 1, 1));
        const int extra = time_mlp(b, guidance_features(b, position), "boot_guidance_embedding");
        emb = binary(b, &boot_op_add, emb, extra, "boot_guidance_embedding", 1);
    }
    return unary(b, &boot_op_activation, emb, "time_embedding", c->act);
}

static void push(skip_stack *skips, builder *b, int id) {
    if (skips->count == MAX_SKIPS && !b->graph->status)
        b->graph->status = boot_fail(BOOT_ERR_UNSUPPORTED,
                                     "layers_per_block: %lld makes more than %d skip "
                                     "connections",
                                     (long long)b->config->layers_per_block, MAX_SKIPS);
    if (b->graph->status) return;
    skips->ids[skips->count++] = id;
}

static int down_path(builder *b, int x, skip_stack *skips) {
    const boot_unet2d_config *c = b->config;
    char key[BOOT_NAME_LENGTH];
    push(skips, b, x);
    for (int i = 0; i < c->levels; i++) {
        for (int j = 0; j < c->layers_per_block && !b->graph->status; j++) {
            snprintf(key, sizeof key, "down_blocks.%d.resnets.%d", i, j);
            x = resnet(b, x, -1, key, c->channels[i], KEEP, 1);
            snprintf(key, sizeof key, "down_blocks.%d.attentions.%d", i, j);
            if (c->down_attention[i]) x = attention(b, x, key, c->norm_num_groups, 1);
            push(skips, b, x);
        }
        if (i + 1 == c->levels) break;
        snprintf(key, sizeof key, "down_blocks.%d.downsamplers.0%s", i,
                 c->down_resnet[i] ? "" : ".conv");
        x = c->down_resnet[i] ? resnet(b, x, -1, key, c->channels[i], DOWN, 1)
                              : conv_down(b, x, key, c->channels[i]);
        push(skips, b, x);
    }
    return x;
}

static int mid_path(builder *b, int x) {
    const boot_unet2d_config *c = b->config;
    const int64_t C = c->channels[c->levels - 1];
    if (!c->mid_block) return x;
    x = resnet(b, x, -1, "mid_block.resnets.0", C, KEEP, c->mid_block_scale_factor);
    if (c->mid_attention)
        x = attention(b, x, "mid_block.attentions.0", c->mid_attention_groups,
                      c->mid_block_scale_factor);
    return resnet(b, x, -1, "mid_block.resnets.1", C, KEEP, c->mid_block_scale_factor);
}

static int up_path(builder *b, int x, skip_stack *skips) {
    const boot_unet2d_config *c = b->config;
    char key[BOOT_NAME_LENGTH];
    for (int i = 0; i < c->levels; i++) {
        const int64_t C = c->channels[c->levels - 1 - i];
        for (int j = 0; j <= c->layers_per_block && !b->graph->status; j++) {
            snprintf(key, sizeof key, "up_blocks.%d.resnets.%d", i, j);
            const int skip = skips->count ? skips->ids[--skips->count] : -1;
            x = resnet(b, x, skip, key, C, KEEP, 1);
            snprintf(key, sizeof key, "up_blocks.%d.attentions.%d", i, j);
            if (c->up_attention[i]) x = attention(b, x, key, c->norm_num_groups, 1);
        }
        if (i + 1 == c->levels) break;
        snprintf(key, sizeof key, "up_blocks.%d.upsamplers.0%s", i, c->up_resnet[i] ? "" : ".conv");
        x = c->up_resnet[i] ? resnet(b, x, -1, key, C, UP, 1) : conv3x3(b, x, key, C, true);
    }
    return x;
}

int boot_unet2d_build(boot_graph *graph, const boot_unet2d_config *config, int64_t n,
                      int64_t height, int64_t width) {
    builder b = {.graph = graph, .config = config, .n = n};
    skip_stack skips = {.count = 0};
    const int sample =
        boot_graph_input(graph, 0, boot_shape(n, config->in_channels, height, width));
    const int t = boot_graph_input(graph, 1, boot_shape(n, 1, 1, 1));
    const bool center = config->center_input_sample;
    b.emb = embeddings(&b, t);
    int x = boot_graph_node(graph, &boot_op_to_nhwc, "sample", (int[]){sample, -1, -1, -1, -1},
                            (double[BOOT_MAX_ATTRS]){center ? 2 : 1, center ? -1 : 0});
    x = conv3x3(&b, x, "conv_in", config->channels[0], false);
    x = up_path(&b, mid_path(&b, down_path(&b, x, &skips)), &skips);
    x = group_norm(&b, x, -1, "conv_norm_out", config->norm_num_groups, BOOT_ACT_SILU, -1);
    x = conv3x3(&b, x, "conv_out", config->out_channels, false);
    const bool divide = config->time_embedding == BOOT_TIME_FOURIER;
    return binary(&b, &boot_op_to_nchw, x, divide ? t : -1, "output", 0);
}
