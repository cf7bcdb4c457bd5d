/* unet_config.c: a UNet2DModel config, from a Python dict of diffusers' keys to the C struct. */
#include "python/unet_config.h"

#include <string.h>

#include "base/vmath.h"

static int read_int(PyObject *config, const char *key, int64_t absent, int64_t *value) {
    PyObject *item = boot_py_item(config, key);
    *value = absent;
    if (!item || item == Py_None) return PyErr_Occurred() ? -1 : 0;
    *value = PyLong_AsLongLong(item);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_double(PyObject *config, const char *key, double absent, double *value) {
    PyObject *item = boot_py_item(config, key);
    *value = absent;
    if (!item || item == Py_None) return PyErr_Occurred() ? -1 : 0;
    *value = PyFloat_AsDouble(item);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_bool(PyObject *config, const char *key, bool absent, bool *value) {
    PyObject *item = boot_py_item(config, key);
    const int truth = item && item != Py_None ? PyObject_IsTrue(item) : absent;
    *value = truth == 1;
    return truth < 0 || PyErr_Occurred() ? -1 : 0;
}

/* The position of config[key] in `names`; `absent` when missing or None. */
static int read_choice(PyObject *config, const char *key, const char *const *names, int absent,
                       int *value) {
    PyObject *item = boot_py_item(config, key);
    *value = absent;
    if (!item || item == Py_None) return PyErr_Occurred() ? -1 : 0;
    const char *text = boot_py_text(item, key);
    if (!text) return -1;
    for (*value = 0; names[*value]; ++*value)
        if (!strcmp(names[*value], text)) return 0;
    PyErr_Format(PyExc_NotImplementedError, "%s: \"%s\" is not supported", key, text);
    return -1;
}

/* One list of block types: which levels have attention, which resample by a resnet. */
static int read_blocks(PyObject *config, const char *key, const char *sampling_key,
                       const char *const *names, int levels, bool *attention, bool *resnet) {
    static const char *const sampling_names[] = {"conv", "resnet", NULL};
    PyObject *list = boot_py_item(config, key);
    int sampling;
    if (PyErr_Occurred() || read_choice(config, sampling_key, sampling_names, 0, &sampling))
        return -1;
    if (!list || !PySequence_Check(list) || PySequence_Size(list) != levels) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected a list of %d block types, as long as block_out_channels", key,
                     levels);
        return -1;
    }
    for (int i = 0; i < levels; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        const char *text = item ? boot_py_text(item, key) : NULL;
        int kind = 0;
        while (text && names[kind] && strcmp(names[kind], text)) kind++;
        if (text && !names[kind])
            PyErr_Format(PyExc_NotImplementedError, "%s: \"%s\" is not supported", key, text);
        Py_XDECREF(item);
        if (PyErr_Occurred()) return -1;
        attention[i] = kind == 1;
        resnet[i] = kind == 2 || (kind == 1 && sampling);
    }
    return 0;
}

static int read_channels(PyObject *config, boot_unet2d_config *c) {
    PyObject *list = boot_py_item(config, "block_out_channels");
    const Py_ssize_t levels = list && PySequence_Check(list) ? PySequence_Size(list) : 0;
    if (PyErr_Occurred()) return -1;
    if (levels < 1 || levels > BOOT_MAX_LEVELS) {
        PyErr_Format(PyExc_ValueError, "block_out_channels: expected a list of 1 to %d widths",
                     BOOT_MAX_LEVELS);
        return -1;
    }
    c->levels = (int)levels;
    for (int i = 0; i < c->levels; i++) {
        PyObject *item = PySequence_GetItem(list, i);
        c->channels[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred()) return -1;
        if (c->channels[i] < 1 || c->channels[i] > 1 << 16) {
            PyErr_Format(PyExc_ValueError,
                         "block_out_channels: %lld, expected a width in [1, 65536]",
                         (long long)c->channels[i]);
            return -1;
        }
    }
    return 0;
}

static int read_embeddings(PyObject *config, boot_unet2d_config *c) {
    static const char *const time_names[] = {"positional", "fourier", "learned", NULL};
    static const char *const class_names[] = {"timestep", "identity", NULL};
    int time_kind, class_kind;
    if (read_choice(config, "time_embedding_type", time_names, 0, &time_kind) ||
        read_choice(config, "class_embed_type", class_names, -1, &class_kind) ||
        read_int(config, "time_embedding_dim", 4 * c->channels[0], &c->time_embedding_dim) ||
        read_int(config, "num_train_timesteps", 0, &c->num_train_timesteps) ||
        read_int(config, "num_class_embeds", 0, &c->num_class_embeds) ||
        read_double(config, "freq_shift", 0, &c->freq_shift) ||
        read_bool(config, "flip_sin_to_cos", true, &c->flip_sin_to_cos))
        return -1;
    c->time_embedding = (boot_time_kind)time_kind;
    c->class_embedding = class_kind == 0           ? BOOT_CLASS_TIMESTEP
                         : class_kind == 1         ? BOOT_CLASS_IDENTITY
                         : c->num_class_embeds > 0 ? BOOT_CLASS_TABLE
                                                   : BOOT_CLASS_NONE;
    if (c->time_embedding == BOOT_TIME_LEARNED && c->num_train_timesteps < 1) {
        PyErr_SetString(PyExc_ValueError,
                        "num_train_timesteps: a learned time embedding needs at least 1");
        return -1;
    }
    return 0;
}

int boot_py_read_config(PyObject *config, boot_unet2d_config *c) {
    static const char *const down_names[] = {"DownBlock2D", "AttnDownBlock2D",
                                             "ResnetDownsampleBlock2D", NULL};
    static const char *const up_names[] = {"UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D",
                                           NULL};
    static const char *const mid_names[] = {"UNetMidBlock2D", NULL};
    static const char *const shift_names[] = {"default", "scale_shift", NULL};
    static const char *const act_names[] = {"none", "silu", "gelu", "mish", "relu", NULL};
    int mid, shift;
    if (read_channels(config, c) || read_embeddings(config, c) ||
        read_blocks(config, "down_block_types", "downsample_type", down_names, c->levels,
                    c->down_attention, c->down_resnet) ||
        read_blocks(config, "up_block_types", "upsample_type", up_names, c->levels, c->up_attention,
                    c->up_resnet) ||
        read_choice(config, "mid_block_type", mid_names, -1, &mid) ||
        read_choice(config, "resnet_time_scale_shift", shift_names, 0, &shift) ||
        read_choice(config, "act_fn", act_names, BOOT_ACT_SILU, &c->act) ||
        read_int(config, "in_channels", 3, &c->in_channels) ||
        read_int(config, "out_channels", 3, &c->out_channels) ||
        read_bool(config, "center_input_sample", false, &c->center_input_sample) ||
        read_int(config, "layers_per_block", 2, &c->layers_per_block) ||
        read_double(config, "mid_block_scale_factor", 1, &c->mid_block_scale_factor) ||
        read_int(config, "downsample_padding", 1, &c->downsample_padding) ||
        read_int(config, "attention_head_dim", 0, &c->attention_head_dim) ||
        read_int(config, "norm_num_groups", 32, &c->norm_num_groups) ||
        read_int(config, "attn_norm_num_groups", 0, &c->mid_attention_groups) ||
        read_double(config, "norm_eps", 1e-5, &c->norm_eps) ||
        read_bool(config, "add_attention", true, &c->mid_attention))
        return -1;
    c->mid_block = mid == 0;
    c->scale_shift = shift == 1;
    if (!c->mid_attention_groups && !c->scale_shift) c->mid_attention_groups = c->norm_num_groups;
    return 0;
}
