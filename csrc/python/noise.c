/* noise.c: Python functions for random numbers, a sample after the other, drawn by NumPy's own
 * distributions (its library for C) from our generator. */
#include "python/glue.h"

#include <numpy/random/distributions.h>

#include "diffusion/philox.h"

/* Numbers below which one thread is as fast as a team. */
enum { MANY = 2048 };

/* What numbers are a function of, beside their sample. */
typedef struct {
    unsigned long long seed, stream, step, first;
} place;

/* 0, or -1 with OverflowError or TypeError. */
static int read_place(PyObject *const values[4], place *at) {
    unsigned long long *const to[4] = {&at->seed, &at->stream, &at->step, &at->first};
    for (int i = 0; i < 4; i++) {
        PyObject *number = PyNumber_Index(values[i]);
        *to[i] = number ? PyLong_AsUnsignedLongLong(number) : 0;
        Py_XDECREF(number);
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static bitgen_t generator_on(boot_philox *p) {
    return (bitgen_t){p, boot_philox_64, boot_philox_32, boot_philox_double, boot_philox_64};
}

static void fill_normal(const place *at, npy_intp samples, npy_intp count, bool by_team,
                        float *out) {
#pragma omp parallel for schedule(static) if (by_team)
    for (npy_intp i = 0; i < samples; i++) {
        boot_philox p = boot_philox_at(at->seed, at->stream, at->step, at->first + i);
        bitgen_t source = generator_on(&p);
        random_standard_normal_fill_f(&source, count, out + i * count);
    }
}

static void fill_uniform(const place *at, npy_intp samples, double *out) {
    for (npy_intp i = 0; i < samples; i++) {
        boot_philox p = boot_philox_at(at->seed, at->stream, at->step, at->first + i);
        out[i] = boot_philox_double(&p);
    }
}

static PyObject *normal(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *values[4];
    PyArray_Dims shape = {NULL, 0};
    PyArrayObject *out = NULL;
    place at;
    if (!PyArg_ParseTuple(args, "OOOOO&:normal", &values[0], &values[1], &values[2], &values[3],
                          PyArray_IntpConverter, &shape))
        return NULL;
    if (shape.len < 1)
        PyErr_SetString(PyExc_ValueError, "normal: shape is (), expected (samples, ...)");
    else if (!read_place(values, &at))
        out = (PyArrayObject *)PyArray_SimpleNew(shape.len, shape.ptr, NPY_FLOAT32);
    PyDimMem_FREE(shape.ptr);
    if (!out || PyArray_SIZE(out) == 0) return (PyObject *)out;
    const npy_intp samples = PyArray_DIM(out, 0);
    const bool by_team = PyArray_SIZE(out) >= MANY;
    if (by_team && boot_py_enter()) { /* less needs no threads: in a fork, too */
        Py_DECREF(out);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    fill_normal(&at, samples, PyArray_SIZE(out) / samples, by_team, boot_py_data(out));
    Py_END_ALLOW_THREADS;
    return (PyObject *)out;
}

static PyObject *uniform(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *values[4];
    Py_ssize_t samples;
    place at;
    if (!PyArg_ParseTuple(args, "OOOOn:uniform", &values[0], &values[1], &values[2], &values[3],
                          &samples) ||
        read_place(values, &at))
        return NULL;
    PyObject *out = PyArray_SimpleNew(1, (npy_intp[]){samples}, NPY_FLOAT64);
    if (!out) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    fill_uniform(&at, samples, boot_py_ddata((PyArrayObject *)out));
    Py_END_ALLOW_THREADS;
    return out;
}

PyMethodDef boot_noise_methods[] = {
    {"normal", normal, METH_VARARGS,
     "normal(seed, stream, step, first, shape) -> float32 of that shape, (samples, ...)\n"
     "Standard normal; sample i is a function of (seed, stream, step, first + i)."},
    {"uniform", uniform, METH_VARARGS,
     "uniform(seed, stream, step, first, samples) -> float64 (samples,)\nThe same, in [0, 1)."},
    {NULL, NULL, 0, NULL}};
