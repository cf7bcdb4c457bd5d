/* network.c: the Python type UNet2D: a network with its weights, gradients and plans. */
#include "python/network.h"

#include <string.h>

#include "python/unet_config.h"

/* Life cycle. */

static PyObject *unet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *keys[] = {"config", "target_embedding", "guidance_embedding", NULL};
    PyObject *config;
    int target = 0, guidance = 0;
    boot_unet2d_config c = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|pp:UNet2D", keys, &PyDict_Type, &config,
                                     &target, &guidance) ||
        boot_py_enter() || boot_py_read_config(config, &c))
        return NULL;
    c.target_embedding = target;
    c.guidance_embedding = guidance;
    UNet2D *self = (UNet2D *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = boot_network_open(&self->network, &c);
    Py_END_ALLOW_THREADS;
    if (!status) return (PyObject *)self;
    boot_py_error(status);
    Py_DECREF(self);
    return NULL;
}

static void unet_dealloc(PyObject *object) {
    UNet2D *self = (UNet2D *)object;
    PyTypeObject *type = Py_TYPE(object);
    boot_network_close(self->network);
    Py_XDECREF(self->kept);
    type->tp_free(object);
    Py_DECREF(type);
}

/* One thread at a time: a second one gets an exception instead of a broken result. */
int boot_py_enter_network(UNet2D *self) {
    if (boot_py_enter()) return -1;
    if (boot_arena_enter(boot_network_arena(self->network))) return 0;
    PyErr_SetString(PyExc_RuntimeError,
                    "this network is running in another thread; use one object per thread");
    return -1;
}

void boot_py_leave_network(UNet2D *self) { boot_arena_leave(boot_network_arena(self->network)); }

/* Parameters. */

static PyObject *get_parameters(PyObject *object, void *unused) {
    (void)unused;
    const boot_params *params = boot_network_params(((UNet2D *)object)->network);
    PyObject *list = PyList_New(params->count);
    for (int i = 0; list && i < params->count; i++) {
        const boot_param *p = &params->items[i];
        PyObject *shape = PyTuple_New(p->rank);
        for (int d = 0; shape && d < p->rank; d++)
            PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(p->dims[d]));
        if (shape && PyErr_Occurred()) Py_CLEAR(shape); /* one of its numbers could not be made */
        PyObject *item = shape ? Py_BuildValue("sNL", p->name, shape, (long long)p->offset) : NULL;
        boot_py_put(&list, i, item);
    }
    return list;
}

static PyObject *flat_view(PyObject *self, float *data) {
    npy_intp count = boot_network_params(((UNet2D *)self)->network)->floats;
    PyObject *view = PyArray_SimpleNewFromData(1, &count, NPY_FLOAT32, data);
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(self)) < 0) Py_CLEAR(view);
    return view;
}

static PyObject *get_weights(PyObject *self, void *unused) {
    (void)unused;
    return flat_view(self, boot_network_weights(((UNet2D *)self)->network));
}

static PyObject *get_grads(PyObject *self, void *unused) {
    (void)unused;
    float *grads;
    const boot_status status = boot_network_grads(((UNet2D *)self)->network, &grads);
    return status ? boot_py_error(status) : flat_view(self, grads);
}

static PyObject *weights_changed(PyObject *self, PyObject *unused) {
    (void)unused;
    boot_network_weights_changed(((UNet2D *)self)->network);
    Py_RETURN_NONE;
}

/* For functions that must not meet a run. */
static PyObject *alone(PyObject *object, void (*function)(boot_network *)) {
    UNet2D *self = (UNet2D *)object;
    if (boot_py_enter_network(self)) return NULL;
    function(self->network);
    boot_py_leave_network(self);
    Py_RETURN_NONE;
}

static PyObject *discard_weights(PyObject *self, PyObject *unused) {
    (void)unused;
    return alone(self, boot_network_discard_weights);
}

static PyObject *weights_back(PyObject *self, PyObject *unused) {
    (void)unused;
    return alone(self, boot_network_weights_back);
}

static PyObject *discard_grads(PyObject *self, PyObject *unused) {
    (void)unused;
    return alone(self, boot_network_discard_grads);
}

static PyObject *get_weights_away(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(boot_network_weights_away(((UNet2D *)self)->network));
}

/* Running. */

/* A vector of n numbers or, for labels of an identity embedding, an (n, T) matrix. */
static int check_vector(PyArrayObject *a, const char *name, npy_intp n, npy_intp width) {
    const int matrix = width > 1;
    if (PyArray_NDIM(a) == 1 + matrix && PyArray_DIM(a, 0) == n &&
        (!matrix || PyArray_DIM(a, 1) == width))
        return 0;
    if (matrix)
        PyErr_Format(PyExc_ValueError, "%s: expected shape (%zd, %zd)", name, n, width);
    else
        PyErr_Format(PyExc_ValueError, "%s: expected shape (%zd,)", name, n);
    return -1;
}

/* An input that exactly the networks with a certain embedding have. */
static int check_presence(PyArrayObject *a, bool wanted, const char *name, const char *embedding) {
    if (!a == !wanted) return 0;
    PyErr_Format(PyExc_ValueError,
                 wanted ? "%s missing: this network has a %s embedding"
                        : "%s given to a network without %s embedding",
                 name, embedding);
    return -1;
}

/* arrays: sample, timesteps, labels, targets, guidance; NULL where absent. */
static int check_input(const boot_unet2d_config *c, PyArrayObject **arrays,
                       boot_network_input *input) {
    const npy_intp n = PyArray_DIM(arrays[0], 0);
    if (n < 1 || PyArray_DIM(arrays[0], 1) != c->in_channels) {
        PyErr_Format(PyExc_ValueError,
                     "sample is (%zd, %zd, %zd, %zd), expected (N >= 1, %lld, H, W)", n,
                     PyArray_DIM(arrays[0], 1), PyArray_DIM(arrays[0], 2),
                     PyArray_DIM(arrays[0], 3), (long long)c->in_channels);
        return -1;
    }
    const npy_intp width = c->class_embedding == BOOT_CLASS_IDENTITY ? c->time_embedding_dim : 1;
    if (check_presence(arrays[2], c->class_embedding != BOOT_CLASS_NONE, "class_labels", "class") ||
        check_presence(arrays[3], c->target_embedding, "target_timesteps", "target") ||
        check_presence(arrays[4], c->guidance_embedding, "guidance", "guidance") ||
        check_vector(arrays[1], "timesteps", n, 1) ||
        (arrays[2] && check_vector(arrays[2], "class_labels", n, width)) ||
        (arrays[3] && check_vector(arrays[3], "target_timesteps", n, 1)) ||
        (arrays[4] && check_vector(arrays[4], "guidance", n, 1)))
        return -1;
    input->n = n, input->height = PyArray_DIM(arrays[0], 2),
    input->width = PyArray_DIM(arrays[0], 3);
    input->sample = boot_py_data(arrays[0]), input->timesteps = boot_py_data(arrays[1]);
    input->labels = arrays[2] ? boot_py_data(arrays[2]) : NULL;
    input->targets = arrays[3] ? boot_py_data(arrays[3]) : NULL;
    input->guidance = arrays[4] ? boot_py_data(arrays[4]) : NULL;
    return 0;
}

static PyObject *run_forward(UNet2D *self, PyArrayObject **arrays, boot_network_input *input) {
    const boot_unet2d_config *c = boot_network_config(self->network);
    npy_intp dims[4] = {input->n, c->out_channels, input->height, input->width};
    PyObject *out = PyArray_SimpleNew(4, dims, NPY_FLOAT32);
    PyObject *kept = input->training ? PyTuple_New(BOOT_NUM_SLOTS) : NULL;
    if (!out || (input->training && !kept) || boot_py_enter_network(self)) {
        Py_XDECREF(out);
        Py_XDECREF(kept);
        return NULL;
    }
    if (kept) { /* backward reads these arrays again */
        for (int i = 0; i < BOOT_NUM_SLOTS; i++)
            PyTuple_SET_ITEM(kept, i, Py_NewRef(arrays[i] ? (PyObject *)arrays[i] : Py_None));
        Py_XSETREF(self->kept, kept);
    }
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = boot_network_forward(self->network, input, boot_py_data((PyArrayObject *)out));
    Py_END_ALLOW_THREADS;
    boot_py_leave_network(self);
    if (!status) return out;
    Py_DECREF(out);
    return boot_py_error(status);
}

static PyObject *unet_forward(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *keys[] = {"sample", "timesteps", "class_labels", "target_timesteps", "guidance",
                           "train",  NULL};
    UNet2D *self = (UNet2D *)object;
    PyObject *given[BOOT_NUM_SLOTS] = {NULL, NULL, Py_None, Py_None, Py_None}, *out = NULL;
    PyArrayObject *arrays[BOOT_NUM_SLOTS] = {NULL};
    boot_network_input input = {0};
    int train = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OOOp:forward", keys, &given[0], &given[1],
                                     &given[2], &given[3], &given[4], &train))
        return NULL;
    input.training = train;
    arrays[0] = boot_py_floats(given[0], keys[0], 4);
    for (int i = 1; i < BOOT_NUM_SLOTS && !PyErr_Occurred(); i++)
        if (given[i] != Py_None || i == 1) arrays[i] = boot_py_numbers(given[i], keys[i]);
    if (!PyErr_Occurred() && !check_input(boot_network_config(self->network), arrays, &input))
        out = run_forward(self, arrays, &input);
    for (int i = 0; i < BOOT_NUM_SLOTS; i++) Py_XDECREF(arrays[i]);
    return out;
}

static PyObject *unet_backward(PyObject *object, PyObject *arg) {
    UNet2D *self = (UNet2D *)object;
    PyArrayObject *dy = boot_py_floats(arg, "doutput", 4);
    if (!dy) return NULL;
    PyArrayObject *sample = self->kept ? (PyArrayObject *)PyTuple_GET_ITEM(self->kept, 0) : NULL;
    const boot_unet2d_config *c = boot_network_config(self->network);
    if (sample &&
        (PyArray_DIM(dy, 0) != PyArray_DIM(sample, 0) || PyArray_DIM(dy, 1) != c->out_channels ||
         PyArray_DIM(dy, 2) != PyArray_DIM(sample, 2) ||
         PyArray_DIM(dy, 3) != PyArray_DIM(sample, 3))) {
        PyErr_SetString(PyExc_ValueError,
                        "doutput: expected the shape of the last training forward's output");
        Py_DECREF(dy);
        return NULL;
    }
    if (boot_py_enter_network(self)) {
        Py_DECREF(dy);
        return NULL;
    }
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = boot_network_backward(self->network, boot_py_data(dy));
    Py_END_ALLOW_THREADS;
    boot_py_leave_network(self);
    Py_DECREF(dy);
    return status ? boot_py_error(status) : Py_NewRef(Py_None);
}

static PyObject *unet_share_arena(PyObject *object, PyObject *other) {
    UNet2D *self = (UNet2D *)object;
    if (!PyObject_TypeCheck(other, Py_TYPE(object)))
        return PyErr_Format(PyExc_TypeError, "share_arena: expected a UNet2D");
    if (boot_py_enter_network(self)) return NULL;
    boot_py_leave_network(self); /* nothing runs in the arena that may be freed now */
    if (other != object) boot_network_share_arena(self->network, ((UNet2D *)other)->network);
    Py_RETURN_NONE;
}

static PyMethodDef unet_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))unet_forward, METH_VARARGS | METH_KEYWORDS,
     "forward(sample, timesteps, class_labels=None, target_timesteps=None, guidance=None, "
     "train=False) -> (N, out, H, W) float32"},
    {"backward", unet_backward, METH_O,
     "backward(doutput): fills grads for the last forward with train=True."},
    {"plan", boot_py_plan, METH_VARARGS,
     "plan(batch, height, width, train, estimate=False) -> dict of bytes and kernels. estimate: "
     "time "
     "no kernels, keep nothing."},
    {"profile", boot_py_profile, METH_VARARGS,
     "profile(batch, height, width, train, repeats) -> [(kind, op, layer, ms)] of every step"},
    {"share_arena", unet_share_arena, METH_O,
     "share_arena(other): work in the memory of a network that runs in turn with this one."},
    {"configure", (PyCFunction)(void (*)(void))boot_py_configure, METH_VARARGS | METH_KEYWORDS,
     "configure(*, keep_packed, in_training, gradient_checkpointing, thread_independent, "
     "memory_limit): change "
     "those that are given."},
    {"memory", boot_py_memory, METH_NOARGS,
     "memory() -> bytes held now: weights, grads, arena (shared), packed; and planned_packs."},
    {"hint_kernels", boot_py_hint_kernels, METH_O,
     "hint_kernels({key: name}): the same for shapes that come up later and were not pinned."},
    {"pin_kernels", boot_py_pin_kernels, METH_O,
     "pin_kernels({key: name}): use these kernels instead of timing."},
    {"weights_changed", weights_changed, METH_NOARGS, "To be called after writing into weights."},
    {"discard_weights", discard_weights, METH_NOARGS,
     "discard_weights(): give their memory back; no run until weights_back()."},
    {"weights_back", weights_back, METH_NOARGS,
     "weights_back(): the weights were written again, with the same numbers."},
    {"discard_grads", discard_grads, METH_NOARGS,
     "discard_grads(): give their memory back until the next backward."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef unet_getset[] = {
    {"parameters", get_parameters, NULL, "[(name, shape, offset)] in flat-buffer order.", NULL},
    {"weights", get_weights, NULL, "Flat float32 buffer, writable.", NULL},
    {"weights_away", get_weights_away, NULL, "Whether their memory was given back.", NULL},
    {"grads", get_grads, NULL, "Flat float32 gradients, same layout.", NULL},
    {"timed_kernels", boot_py_get_timed, NULL, "How many choices were timed so far.", NULL},
    {"chosen_kernels", boot_py_get_chosen, NULL, "How many choices were made so far.", NULL},
    {"kernels", boot_py_get_kernels, NULL, "[(key, kernel, ms)] chosen so far.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot unet_slots[] = {
    {Py_tp_new, unet_new},
    {Py_tp_dealloc, unet_dealloc},
    {Py_tp_methods, unet_methods},
    {Py_tp_getset, unet_getset},
    {Py_tp_doc, "UNet2D(config, target_embedding=False, guidance_embedding=False): "
                "diffusers' UNet2DModel."},
    {0, NULL}};

PyType_Spec boot_unet2d_spec = {.name = "boot._core.UNet2D",
                                .basicsize = sizeof(UNet2D),
                                .flags = Py_TPFLAGS_DEFAULT,
                                .slots = unet_slots};
