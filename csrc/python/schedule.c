/* schedule.c: Python functions for noise schedules. */
#include "python/glue.h"

#include "diffusion/schedule.h"

static PyObject *alphas_cumprod(PyObject *self, PyObject *args) {
    (void)self;
    boot_schedule_config c = {0};
    PyObject *trained;
    Py_ssize_t n;
    int rescale;
    if (!PyArg_ParseTuple(args, "snddOp:alphas_cumprod", &c.beta_schedule, &n, &c.beta_start,
                          &c.beta_end, &trained, &rescale))
        return NULL;
    PyArrayObject *betas = NULL;
    if (trained != Py_None) {
        if (!(betas = boot_py_doubles(trained, "trained_betas", n))) return NULL;
        c.trained_betas = boot_py_ddata(betas);
        c.beta_schedule = "trained_betas";
    }
    c.rescale_betas_zero_snr = rescale;
    PyObject *out = n >= 1 ? PyArray_SimpleNew(1, &n, NPY_FLOAT64)
                           : PyErr_Format(PyExc_ValueError,
                                          "num_train_timesteps is %zd, expected at least 1", n);
    if (out) {
        const boot_status status = boot_alphas_cumprod(&c, n, boot_py_ddata((PyArrayObject *)out));
        if (status) {
            Py_CLEAR(out);
            boot_py_error(status);
        }
    }
    Py_XDECREF(betas);
    return out;
}

/* A table and one or two arrays of times, of one shape. */
typedef struct {
    PyArrayObject *log_abar, *t, *s;
    boot_schedule_table table;
    npy_intp count;
} table_call;

static void table_close(const table_call *c) {
    Py_XDECREF(c->log_abar);
    Py_XDECREF(c->t);
    Py_XDECREF(c->s);
}

static PyArrayObject *times_of(PyObject *object) {
    return (PyArrayObject *)PyArray_FROMANY(object, NPY_FLOAT64, 0, 0,
                                            NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST |
                                                NPY_ARRAY_NOTSWAPPED);
}

/* s: NULL where there is one array. Returns -1 with an exception on failure. */
static int table_open(table_call *c, PyObject *log_abar, PyObject *t, PyObject *s) {
    const Py_ssize_t entries = PyObject_Size(log_abar);
    if (entries < 0) return -1;
    if (entries < 2) {
        PyErr_Format(PyExc_ValueError, "log_abar has %zd elements, expected at least 2", entries);
        return -1;
    }
    if (!(c->log_abar = boot_py_doubles(log_abar, "log_abar", entries))) return -1;
    if (!(c->t = times_of(t)) || (s && !(c->s = times_of(s)))) return -1;
    if (s && boot_py_same_shape(c->t, "t", c->s, "s")) return -1;
    c->table = (boot_schedule_table){boot_py_ddata(c->log_abar), entries - 1};
    c->count = PyArray_SIZE(c->t);
    return 0;
}

static PyArrayObject *like_times(const table_call *c) {
    return (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(c->t), PyArray_DIMS(c->t), NPY_FLOAT64);
}

static PyObject *table_alpha_sigma(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *log_abar, *t, *result = NULL;
    table_call c = {0};
    if (!PyArg_ParseTuple(args, "OO:table_alpha_sigma", &log_abar, &t)) return NULL;
    if (!table_open(&c, log_abar, t, NULL)) {
        PyArrayObject *alpha = like_times(&c), *sigma = alpha ? like_times(&c) : NULL;
        if (sigma) {
            Py_BEGIN_ALLOW_THREADS;
            boot_table_alpha_sigma(&c.table, c.count, boot_py_ddata(c.t), boot_py_ddata(alpha),
                                   boot_py_ddata(sigma));
            Py_END_ALLOW_THREADS;
            result = Py_BuildValue("NN", PyArray_Return(alpha), PyArray_Return(sigma));
        } else {
            Py_XDECREF(alpha);
        }
    }
    table_close(&c);
    return result;
}

static PyObject *table_lambda(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *log_abar, *t;
    PyArrayObject *lambda = NULL;
    table_call c = {0};
    if (!PyArg_ParseTuple(args, "OO:table_lambda", &log_abar, &t)) return NULL;
    if (!table_open(&c, log_abar, t, NULL) && (lambda = like_times(&c))) {
        Py_BEGIN_ALLOW_THREADS;
        boot_table_lambda(&c.table, c.count, boot_py_ddata(c.t), boot_py_ddata(lambda));
        Py_END_ALLOW_THREADS;
    }
    table_close(&c);
    return lambda ? PyArray_Return(lambda) : NULL;
}

static PyObject *table_step_coefficient(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *log_abar, *t, *s;
    PyArrayObject *out = NULL;
    boot_status status = BOOT_OK;
    table_call c = {0};
    if (!PyArg_ParseTuple(args, "OOO:table_step_coefficient", &log_abar, &t, &s)) return NULL;
    if (!table_open(&c, log_abar, t, s) && (out = like_times(&c))) {
        Py_BEGIN_ALLOW_THREADS;
        status = boot_table_step_coefficient(&c.table, c.count, boot_py_ddata(c.t),
                                             boot_py_ddata(c.s), boot_py_ddata(out));
        Py_END_ALLOW_THREADS;
    }
    table_close(&c);
    if (!status) return out ? PyArray_Return(out) : NULL;
    Py_DECREF(out);
    return boot_py_error(status);
}

PyMethodDef boot_schedule_methods[] = {
    {"alphas_cumprod", alphas_cumprod, METH_VARARGS,
     "alphas_cumprod(beta_schedule, num_train_timesteps, beta_start, beta_end, trained_betas, "
     "rescale_zero_snr)\n"
     "-> float64 (num_train_timesteps,)"},
    {"table_alpha_sigma", table_alpha_sigma, METH_VARARGS,
     "table_alpha_sigma(log_abar, t) -> float64 alpha_t, sigma_t, of the shape of t\n"
     "log_abar: (N + 1,) at the times 0, 1/N, ..., 1."},
    {"table_lambda", table_lambda, METH_VARARGS,
     "table_lambda(log_abar, t) -> float64 log(sigma_t / alpha_t), of the shape of t"},
    {"table_step_coefficient", table_step_coefficient, METH_VARARGS,
     "table_step_coefficient(log_abar, t, s) -> float64 1 - (sigma_s alpha_t) / (alpha_s sigma_t)"},
    {NULL, NULL, 0, NULL}};
