/* diffusion.c: Python functions for the Signal-ODE, the loss and the optimiser. */
#include "python/glue.h"

#include <string.h>

#include "diffusion/signal.h"
#include "optim/adamw.h"

/* Image arrays (all of one shape) and per-image vectors of one call. */
enum { MAX_IMAGES = 4, MAX_VECTORS = 2 };

typedef struct {
    PyArrayObject *images[MAX_IMAGES], *vectors[MAX_VECTORS], *out;
    npy_intp n, count;
} batch;

static void batch_close(batch *b) {
    for (int i = 0; i < MAX_IMAGES; i++) Py_XDECREF(b->images[i]);
    for (int i = 0; i < MAX_VECTORS; i++) Py_XDECREF(b->vectors[i]);
}

/* Converts everything and makes b->out of the images' shape; -1 with an exception on failure. */
static int batch_open(batch *b, PyObject **images, const char **image_names, PyObject **vectors,
                      const char **vector_names) {
    if (boot_py_enter()) return -1;
    for (int i = 0; image_names[i]; i++) {
        if (!(b->images[i] = boot_py_floats(images[i], image_names[i], 4))) return -1;
        if (i && boot_py_same_shape(b->images[0], image_names[0], b->images[i], image_names[i]))
            return -1;
    }
    b->n = PyArray_DIM(b->images[0], 0);
    b->count = PyArray_SIZE(b->images[0]) / (b->n ? b->n : 1);
    for (int i = 0; vector_names[i]; i++)
        if (!(b->vectors[i] = boot_py_doubles(vectors[i], vector_names[i], b->n))) return -1;
    b->out = (PyArrayObject *)PyArray_SimpleNew(4, PyArray_DIMS(b->images[0]), NPY_FLOAT32);
    return b->out ? 0 : -1;
}

#define IMAGE(i) boot_py_data(b.images[i])
#define VECTOR(i) boot_py_ddata(b.vectors[i])
#define OUT boot_py_data(b.out)

/* Runs EXPR without the GIL, then returns the output array or the exception. */
#define FINISH(EXPR)                                                                               \
    boot_status status = BOOT_OK;                                                                  \
    Py_BEGIN_ALLOW_THREADS;                                                                        \
    EXPR;                                                                                          \
    Py_END_ALLOW_THREADS;                                                                          \
    batch_close(&b);                                                                               \
    if (!status) return (PyObject *)b.out;                                                         \
    Py_DECREF(b.out);                                                                              \
    return boot_py_error(status)

#define FAIL                                                                                       \
    do {                                                                                           \
        batch_close(&b);                                                                           \
        return NULL;                                                                               \
    } while (0)

static PyObject *signal_from_output(PyObject *self, PyObject *args) {
    (void)self;
    static const char *const names[BOOT_NUM_PREDICTIONS] = {"epsilon", "v_prediction", "sample",
                                                            "flow"};
    const char *type;
    double clip;
    PyObject *images[2], *vectors[2];
    batch b = {0};
    int prediction = 0;
    if (!PyArg_ParseTuple(args, "sOOOOd:signal_from_output", &type, &images[0], &images[1],
                          &vectors[0], &vectors[1], &clip))
        return NULL;
    while (prediction < BOOT_NUM_PREDICTIONS && strcmp(type, names[prediction])) prediction++;
    if (prediction == BOOT_NUM_PREDICTIONS)
        return PyErr_Format(
            PyExc_ValueError,
            "prediction_type is \"%s\", expected epsilon, v_prediction, sample or flow", type);
    if (batch_open(&b, images, (const char *[]){"output", "x_t", NULL}, vectors,
                   (const char *[]){"alpha", "sigma", NULL}))
        FAIL;
    FINISH(status = boot_signal_from_output(prediction, b.n, b.count, IMAGE(0), IMAGE(1), VECTOR(0),
                                            VECTOR(1), clip, OUT));
}

static PyObject *diffuse(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[2], *vectors[2];
    batch b = {0};
    if (!PyArg_ParseTuple(args, "OOOO:diffuse", &images[0], &images[1], &vectors[0], &vectors[1]))
        return NULL;
    if (batch_open(&b, images, (const char *[]){"y", "eps", NULL}, vectors,
                   (const char *[]){"alpha", "sigma", NULL}))
        FAIL;
    FINISH(boot_diffuse(b.n, b.count, IMAGE(0), IMAGE(1), VECTOR(0), VECTOR(1), OUT));
}

static PyObject *signal_step(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[2], *vectors[1];
    batch b = {0};
    if (!PyArg_ParseTuple(args, "OOO:signal_step", &images[0], &images[1], &vectors[0]))
        return NULL;
    if (batch_open(&b, images, (const char *[]){"y", "f", NULL}, vectors,
                   (const char *[]){"c", NULL}))
        FAIL;
    FINISH(boot_signal_step(b.n, b.count, IMAGE(0), IMAGE(1), NULL, VECTOR(0), OUT));
}

static PyObject *signal_step_heun(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[3], *vectors[1];
    batch b = {0};
    if (!PyArg_ParseTuple(args, "OOOO:signal_step_heun", &images[0], &images[1], &images[2],
                          &vectors[0]))
        return NULL;
    if (batch_open(&b, images, (const char *[]){"y", "f", "f2", NULL}, vectors,
                   (const char *[]){"c", NULL}))
        FAIL;
    FINISH(boot_signal_step(b.n, b.count, IMAGE(0), IMAGE(1), IMAGE(2), VECTOR(0), OUT));
}

static PyObject *guide(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[2], *vectors[1];
    batch b = {0};
    if (!PyArg_ParseTuple(args, "OOO:guide", &images[0], &images[1], &vectors[0])) return NULL;
    if (batch_open(&b, images, (const char *[]){"f_cond", "f_null", NULL}, vectors,
                   (const char *[]){"w", NULL}))
        FAIL;
    FINISH(boot_guide(b.n, b.count, IMAGE(0), IMAGE(1), VECTOR(0), OUT));
}

/* c < 0: mean square, else pseudo-Huber. */
static PyObject *weighted_loss(PyObject *images[2], PyObject *vectors[1], double c) {
    batch b = {0};
    boot_status status;
    double loss = 0;
    if (batch_open(&b, images, (const char *[]){"y", "target", NULL}, vectors,
                   (const char *[]){"weight", NULL}))
        FAIL;
    Py_BEGIN_ALLOW_THREADS;
    status = c < 0
                 ? boot_weighted_mse(b.n, b.count, IMAGE(0), IMAGE(1), VECTOR(0), &loss, OUT)
                 : boot_weighted_huber(b.n, b.count, IMAGE(0), IMAGE(1), VECTOR(0), c, &loss, OUT);
    Py_END_ALLOW_THREADS;
    batch_close(&b);
    if (!status) return Py_BuildValue("dN", loss, (PyObject *)b.out);
    Py_DECREF(b.out);
    return boot_py_error(status);
}

static PyObject *weighted_mse(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[2], *vectors[1];
    if (!PyArg_ParseTuple(args, "OOO:weighted_mse", &images[0], &images[1], &vectors[0]))
        return NULL;
    return weighted_loss(images, vectors, -1);
}

static PyObject *weighted_huber(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *images[2], *vectors[1];
    double c;
    if (!PyArg_ParseTuple(args, "OOOd:weighted_huber", &images[0], &images[1], &vectors[0], &c))
        return NULL;
    if (c < 0) return PyErr_Format(PyExc_ValueError, "c is negative, expected > 0");
    return weighted_loss(images, vectors, c);
}

static int is_array(PyObject *object, int type) {
    return PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == type;
}

/* A flat buffer of a type, float32 or uint16, that may be written in place; borrowed, no copies. */
static void *flat_buffer(PyObject *object, int type, const char *name, npy_intp *count) {
    if (!is_array(object, type)) {
        PyErr_Format(PyExc_TypeError, "%s is not a %s array", name,
                     type == NPY_UINT16 ? "uint16" : "float32");
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)object;
    if (PyArray_NDIM(a) != 1 || !PyArray_ISCARRAY(a) ||
        (*count >= 0 && PyArray_DIM(a, 0) != *count)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected a writable contiguous vector as long as weights", name);
        return NULL;
    }
    *count = PyArray_DIM(a, 0);
    return PyArray_DATA(a);
}

static PyObject *adamw_step(PyObject *self, PyObject *args, PyObject *kwargs) {
    (void)self;
    static char *keys[] = {"weights",      "grads",         "m",         "v",     "ema",
                           "step",         "learning_rate", "beta1",     "beta2", "epsilon",
                           "weight_decay", "max_grad_norm", "ema_decay", NULL};
    PyObject *arrays[5];
    boot_adamw_config c = {0};
    long long step;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO$Lddddddd:adamw_step", keys, &arrays[0],
                                     &arrays[1], &arrays[2], &arrays[3], &arrays[4], &step,
                                     &c.learning_rate, &c.beta1, &c.beta2, &c.epsilon,
                                     &c.weight_decay, &c.max_grad_norm, &c.ema_decay))
        return NULL;
    if (boot_py_enter()) return NULL;
    void *data[5] = {NULL};
    npy_intp count = -1;
    const int halves = is_array(arrays[2], NPY_UINT16);
    for (int i = 0; i < 5; i++) {
        const int type = halves && (i == 2 || i == 3) ? NPY_UINT16 : NPY_FLOAT32;
        if (!(i == 4 && arrays[i] == Py_None) &&
            !(data[i] = flat_buffer(arrays[i], type, keys[i], &count)))
            return NULL;
    }
    if (step < 1) return PyErr_Format(PyExc_ValueError, "step is %lld, expected at least 1", step);
    c.step = step;
    double norm = 0;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status =
        (halves ? boot_adamw_step_bfloat16(&c, count, data[0], data[1], data[2], data[3], data[4],
                                           &norm)
                : boot_adamw_step(&c, count, data[0], data[1], data[2], data[3], data[4], &norm));
    Py_END_ALLOW_THREADS;
    return status ? boot_py_error(status) : PyFloat_FromDouble(norm);
}

static PyObject *check_grads(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *array;
    double max_grad_norm, norm = 0;
    npy_intp count = -1;
    if (!PyArg_ParseTuple(args, "Od:check_grads", &array, &max_grad_norm)) return NULL;
    if (boot_py_enter()) return NULL;
    const float *grads = flat_buffer(array, NPY_FLOAT32, "grads", &count);
    if (!grads) return NULL;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = boot_check_grads(count, grads, max_grad_norm, &norm);
    Py_END_ALLOW_THREADS;
    return status ? boot_py_error(status) : PyFloat_FromDouble(norm);
}

PyMethodDef boot_diffusion_methods[] = {
    {"signal_from_output", signal_from_output, METH_VARARGS,
     "signal_from_output(prediction_type, output, x_t, alpha, sigma, clip) -> f\n\nThe teacher as "
     "signal predictor; "
     "images (N, C, H, W), alpha and sigma (N,)."},
    {"diffuse", diffuse, METH_VARARGS, "diffuse(y, eps, alpha, sigma) -> alpha y + sigma eps"},
    {"signal_step", signal_step, METH_VARARGS, "signal_step(y, f, c) -> y + c (f - y)"},
    {"signal_step_heun", signal_step_heun, METH_VARARGS,
     "signal_step_heun(y, f, f2, c) -> y + c ((f + f2)/2 - y)"},
    {"guide", guide, METH_VARARGS, "guide(f_cond, f_null, w) -> f_null + w (f_cond - f_null)"},
    {"weighted_mse", weighted_mse, METH_VARARGS,
     "weighted_mse(y, target, weight) -> (sum_n weight_n mean (y - target)^2, gradient)"},
    {"weighted_huber", weighted_huber, METH_VARARGS,
     "weighted_huber(y, target, weight, c) -> (sum_n weight_n (sqrt(mean (y - target)^2 + c^2) - "
     "c), gradient)"},
    {"adamw_step", (PyCFunction)(void (*)(void))adamw_step, METH_VARARGS | METH_KEYWORDS,
     "adamw_step(weights, grads, m, v, ema, *, step, learning_rate, beta1, beta2, epsilon, "
     "weight_decay, "
     "max_grad_norm, ema_decay) -> grad_norm\n\nUpdates weights, m, v and ema (or None) in place. "
     "m and v: float32, or "
     "uint16, the bits of bfloat16."},
    {"check_grads", check_grads, METH_VARARGS,
     "check_grads(grads, max_grad_norm) -> grad_norm\n\nRaises FloatingPointError where adamw_step "
     "would refuse the gradient."},
    {NULL, NULL, 0, NULL}};
