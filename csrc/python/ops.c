/* ops.c: Python access to single operations, for tests and benchmarks. */
#include "python/glue.h"

#include <string.h>

#include "base/memory.h"
#include "net/plan.h"
#include "ops/conv2d.h"

/* The i-th name of a blank-separated list into `name`, without its `?`; 0 when there is none. */
static int nth_name(const char *list, int i, char name[32], int *optional) {
    while (*list == ' ') list++;
    for (; *list; i--) {
        const size_t length = strcspn(list, " ");
        if (i == 0) {
            *optional = list[length - 1] == '?';
            snprintf(name, 32, "%.*s", (int)length - *optional, list);
            return 1;
        }
        list += length;
        while (*list == ' ') list++;
    }
    return 0;
}

/* One op as a graph of one node whose inputs are all parameters. */
typedef struct {
    const boot_op *op;
    PyArrayObject *in[BOOT_MAX_INPUTS];
    boot_params params;
    boot_plan plan;
    boot_dnnl dnnl;
    boot_tuner tuner;
    boot_run run;
    float *block;
} single;

static void single_close(single *s) {
    for (int i = 0; i < BOOT_MAX_INPUTS; i++) Py_XDECREF(s->in[i]);
    boot_plan_close(&s->plan);
    boot_params_close(&s->params);
    boot_tuner_close(&s->tuner);
    boot_dnnl_close(&s->dnnl);
    boot_free(s->block);
}

static int read_inputs(single *s, PyObject *inputs) {
    char name[32];
    int optional, used = 0;
    for (int i = 0; nth_name(s->op->inputs, i, name, &optional); i++) {
        PyObject *value = boot_py_item(inputs, name);
        if (value && value != Py_None) {
            if (!(s->in[i] = boot_py_numbers(value, name))) return -1;
            used++;
        } else if (PyErr_Occurred()) {
            return -1;
        } else if (!optional) {
            PyErr_Format(PyExc_ValueError, "%s: input %s is missing", s->op->name, name);
            return -1;
        }
    }
    if (used < PyDict_GET_SIZE(inputs)) {
        PyErr_Format(PyExc_ValueError, "%s: unknown input; it takes: %s", s->op->name,
                     s->op->inputs);
        return -1;
    }
    return 0;
}

static int read_attrs(const single *s, PyObject *attrs, double *values) {
    char name[32];
    int optional, used = 0;
    for (int i = 0; nth_name(s->op->attrs, i, name, &optional); i++) {
        PyObject *value = boot_py_item(attrs, name);
        if (value) {
            values[i] = PyFloat_AsDouble(value);
            if (values[i] == -1 && PyErr_Occurred()) return -1;
            used++;
        } else if (PyErr_Occurred()) {
            return -1;
        } else if (!optional) {
            PyErr_Format(PyExc_ValueError, "%s: attribute %s is missing", s->op->name, name);
            return -1;
        }
    }
    if (used < PyDict_GET_SIZE(attrs)) {
        PyErr_Format(PyExc_ValueError, "%s: unknown attribute; it takes: %s", s->op->name,
                     s->op->attrs);
        return -1;
    }
    return 0;
}

static boot_status single_plan(single *s, const double *attrs, bool training) {
    boot_graph graph;
    int ids[BOOT_MAX_INPUTS];
    BOOT_TRY(boot_dnnl_open(&s->dnnl));
    boot_graph_init(&graph, &s->params, training);
    for (int i = 0; i < BOOT_MAX_INPUTS; i++) {
        ids[i] = -1;
        if (!s->in[i]) continue;
        int64_t dims[4] = {1, 1, 1, 1};
        for (int d = 0; d < PyArray_NDIM(s->in[i]); d++) dims[d] = PyArray_DIM(s->in[i], d);
        ids[i] = boot_graph_param(&graph, true, PyArray_NDIM(s->in[i]), dims, "%d", i);
    }
    const int out = boot_graph_node(&graph, s->op, s->op->name, ids, attrs);
    boot_plan_context context = {.dnnl = &s->dnnl, .tuner = &s->tuner};
    BOOT_TRY(boot_plan_make(&s->plan, &graph, out, &context));
    const int64_t weights = s->params.floats, arena = s->plan.arena_floats + s->plan.scratch_floats;
    BOOT_TRY(
        boot_alloc((void **)&s->block, (2 * weights + arena + 16) * sizeof(float), true, "op"));
    s->run = (boot_run){
        .weights = s->block, .grads = s->block + weights, .arena = s->block + 2 * weights};
    for (int i = 0, k = 0; i < BOOT_MAX_INPUTS; i++)
        if (s->in[i])
            memcpy(s->block + s->params.items[k].offset, boot_py_data(s->in[i]),
                   s->params.items[k].count * sizeof(float)),
                k++;
    return BOOT_OK;
}

/* Opens and runs forward; -1 with an exception on failure (close in any case). */
static int single_open(single *s, const char *name, PyObject *inputs, PyObject *attrs,
                       bool training) {
    double values[BOOT_MAX_ATTRS] = {0};
    if (!(s->op = boot_find_op(name))) {
        PyErr_Format(PyExc_ValueError, "unknown op \"%s\"", name);
        return -1;
    }
    if (boot_py_enter()) return -1;
    if (read_inputs(s, inputs) || read_attrs(s, attrs, values)) return -1;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = single_plan(s, values, training);
    if (!status) status = boot_plan_forward(&s->plan, &s->run);
    Py_END_ALLOW_THREADS;
    if (status) boot_py_error(status);
    return status ? -1 : 0;
}

static PyObject *op_forward(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *inputs, *attrs, *out = NULL;
    single s = {0};
    if (!PyArg_ParseTuple(args, "sO!O!:op_forward", &name, &PyDict_Type, &inputs, &PyDict_Type,
                          &attrs))
        return NULL;
    if (!single_open(&s, name, inputs, attrs, false)) {
        const boot_tensor *t = &s.plan.graph.values[s.plan.output].shape;
        out = PyArray_SimpleNew(4, ((npy_intp[]){t->n, t->h, t->w, t->c}), NPY_FLOAT32);
        if (out)
            memcpy(boot_py_data((PyArrayObject *)out), boot_plan_output(&s.plan, &s.run),
                   boot_count(t) * sizeof(float));
    }
    single_close(&s);
    return out;
}

/* {input name: gradient} of every input that was given. */
static PyObject *collect_grads(const single *s) {
    PyObject *dict = PyDict_New();
    char name[32];
    int optional;
    for (int i = 0, k = 0; dict && nth_name(s->op->inputs, i, name, &optional); i++) {
        if (!s->in[i]) continue;
        const boot_param *p = &s->params.items[k++];
        if (s->op->constants >> i & 1) continue;
        PyObject *grad =
            PyArray_SimpleNew(PyArray_NDIM(s->in[i]), PyArray_DIMS(s->in[i]), NPY_FLOAT32);
        if (grad)
            memcpy(boot_py_data((PyArrayObject *)grad), s->run.grads + p->offset,
                   p->count * sizeof(float));
        if (!grad || PyDict_SetItemString(dict, name, grad)) Py_CLEAR(dict);
        Py_XDECREF(grad);
    }
    return dict;
}

static PyObject *op_backward(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    PyObject *inputs, *attrs, *dy_object, *result = NULL;
    single s = {0};
    if (!PyArg_ParseTuple(args, "sO!O!O:op_backward", &name, &PyDict_Type, &inputs, &PyDict_Type,
                          &attrs, &dy_object))
        return NULL;
    PyArrayObject *dy = boot_py_floats(dy_object, "dy", -1);
    if (dy && !single_open(&s, name, inputs, attrs, true)) {
        const int64_t count = boot_count(&s.plan.graph.values[s.plan.output].shape);
        if (PyArray_SIZE(dy) != count) {
            PyErr_Format(PyExc_ValueError, "%s: dy has %zd elements, expected %lld", name,
                         PyArray_SIZE(dy), (long long)count);
        } else {
            boot_status status;
            Py_BEGIN_ALLOW_THREADS;
            memcpy(boot_plan_output_grad(&s.plan, &s.run), boot_py_data(dy), count * sizeof(float));
            status = boot_plan_backward(&s.plan, &s.run);
            Py_END_ALLOW_THREADS;
            result = status ? boot_py_error(status) : collect_grads(&s);
        }
    }
    Py_XDECREF(dy);
    single_close(&s);
    return result;
}

static PyObject *ops(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < boot_num_ops; i++) {
        const boot_op *op = boot_ops[i];
        PyObject *entry = Py_BuildValue("{s:s, s:s, s:s, s:O}", "inputs", op->inputs, "attrs",
                                        op->attrs, "doc", op->doc, "differentiable",
                                        op->flags & BOOT_OP_NO_GRADIENT ? Py_False : Py_True);
        if (!entry || PyDict_SetItemString(dict, op->name, entry)) Py_CLEAR(dict);
        Py_XDECREF(entry);
    }
    return dict;
}

static PyObject *bench_conv(PyObject *self, PyObject *args) {
    (void)self;
    boot_conv_shape c = {.has_bias = true};
    long long d[9];
    const char *name;
    int direction, repeats, kernel = 1, packed = 0;
    if (!PyArg_ParseTuple(args, "LLLLLLLLLsii|p:bench_conv", &d[0], &d[1], &d[2], &d[3], &d[4],
                          &d[5], &d[6], &d[7], &d[8], &name, &direction, &repeats, &packed))
        return NULL;
    while (kernel < BOOT_NUM_CONV_KERNELS && strcmp(name, boot_conv_kernels[kernel]->name))
        kernel++;
    for (int i = 0; i < 7; i++)
        if (d[i] < 1 || d[i] > 1 << 20) kernel = BOOT_NUM_CONV_KERNELS;
    for (int i = 7; i < 9; i++)
        if (d[i] < 0 || d[i] > 1 || d[1] + 2 < d[5] || d[2] + 2 < d[5])
            kernel = BOOT_NUM_CONV_KERNELS;
    if (kernel == BOOT_NUM_CONV_KERNELS || direction < 0 || direction >= BOOT_CONV_DIRECTIONS ||
        repeats < 1)
        return PyErr_Format(
            PyExc_ValueError,
            "bench_conv: expected sizes in [1, 2^20], a kernel of conv_kernels(), a "
            "direction in [0, 2] and repeats >= 1");
    c.N = d[0], c.H = d[1], c.W = d[2], c.I = d[3], c.O = d[4], c.k = d[5], c.stride = d[6],
    c.pad_begin = d[7];
    c.pad_end = d[8];
    c.Ho = (c.H + c.pad_begin + c.pad_end - c.k) / c.stride + 1;
    c.Wo = (c.W + c.pad_begin + c.pad_end - c.k) / c.stride + 1;
    if (!boot_conv_kernels[kernel]->applies(&c, direction))
        return PyErr_Format(PyExc_NotImplementedError, "bench_conv: %s does not do this shape",
                            name);
    if (boot_py_enter()) return NULL;
    boot_dnnl dnnl;
    double seconds = 0;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = boot_dnnl_open(&dnnl);
    if (!status)
        status = boot_conv_time(boot_conv_kernels[kernel], &c, direction, &dnnl, repeats, 1e30,
                                packed ? BOOT_PACK_KEPT : BOOT_PACK_AGAIN, 0, &seconds);
    boot_dnnl_close(&dnnl);
    Py_END_ALLOW_THREADS;
    return status ? boot_py_error(status) : PyFloat_FromDouble(seconds);
}

PyMethodDef boot_op_methods[] = {
    {"ops", ops, METH_NOARGS, "{name: {inputs, attrs, doc, differentiable}} of every operation."},
    {"op_forward", op_forward, METH_VARARGS,
     "op_forward(name, inputs, attrs) -> output, by the network's own code."},
    {"op_backward", op_backward, METH_VARARGS,
     "op_backward(name, inputs, attrs, dy) -> {input: gradient}"},
    {"bench_conv", bench_conv, METH_VARARGS,
     "bench_conv(N, H, W, I, O, k, stride, pad_begin, pad_end, kernel, direction, repeats, "
     "packed=False) -> best "
     "seconds\n\n"
     "direction: 0 forward, 1 data gradient, 2 weight gradient."},
    {NULL, NULL, 0, NULL}};
