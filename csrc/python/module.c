/* module.c: the module boot._core: its tables, threads, and what it says about its own build. */
#define BOOT_IMPORTS_ARRAY
#include "python/glue.h"

#include <omp.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/dnnl.h"
#include "base/isa.h"
#include "ops/conv2d.h"

#ifndef BOOT_COMPILER
#define BOOT_COMPILER __VERSION__
#endif
#ifndef BOOT_FLAGS
#define BOOT_FLAGS "unknown"
#endif
#ifndef BOOT_VERSION
#define BOOT_VERSION "unknown"
#endif

/* A setting of the whole process, like OMP_NUM_THREADS; 0: OpenMP's own default. */
static atomic_int num_threads;

void boot_py_use_threads(void) {
    const int n = atomic_load_explicit(&num_threads, memory_order_relaxed);
    if (n > 0) omp_set_num_threads(n);
}

/* The process that first used the core's threads; 0: none yet. */
static atomic_int owner;

int boot_py_enter(void) {
    const int here = (int)getpid();
    int first = 0;
    if (!atomic_compare_exchange_strong(&owner, &first, here) && first != here) {
        PyErr_Format(
            PyExc_RuntimeError,
            "process %d is a fork of process %d, which has used boot already: its threads "
            "are missing here; start processes with multiprocessing's \"spawn\" method, or "
            "fork before the first use",
            here, first);
        return -1;
    }
    boot_py_use_threads();
    return 0;
}

static PyObject *show_config(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    boot_py_use_threads();
    const boot_dnnl_info d = boot_dnnl_describe();
    return Py_BuildValue(
        "{s:s, s:N, s:s, s:s, s:i, s:i, s:s, s:s, s:i}", "boot_version", BOOT_VERSION,
        "onednn_version", PyUnicode_FromFormat("%d.%d.%d", d.major, d.minor, d.patch),
        "onednn_runtime", d.openmp ? "openmp" : "other", "isa", boot_isa_name(boot_isa()),
        "onednn_isa", d.effective_isa, "threads", omp_get_max_threads(), "compiler", BOOT_COMPILER,
        "flags", BOOT_FLAGS, "openmp", _OPENMP);
}

static PyObject *set_num_threads(PyObject *self, PyObject *arg) {
    (void)self;
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (n < 1 || n > 1024)
        return PyErr_Format(PyExc_ValueError,
                            "num_threads is %ld, expected a whole number in [1, 1024]", n);
    atomic_store_explicit(&num_threads, (int)n, memory_order_relaxed);
    Py_RETURN_NONE;
}

static PyObject *get_num_threads(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    boot_py_use_threads();
    return PyLong_FromLong(omp_get_max_threads());
}

static PyObject *conv_kernels(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(BOOT_NUM_CONV_KERNELS);
    for (int i = 0; list && i < BOOT_NUM_CONV_KERNELS; i++) {
        PyObject *name = PyUnicode_FromString(i ? boot_conv_kernels[i]->name : "auto");
        if (!name)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, name);
    }
    return list;
}

static PyMethodDef methods[] = {
    {"show_config", show_config, METH_NOARGS,
     "Versions, instruction set, threads, compiler and flags."},
    {"set_num_threads", set_num_threads, METH_O,
     "Threads that every core call of this process uses."},
    {"get_num_threads", get_num_threads, METH_NOARGS,
     "Threads that a core call made now would use."},
    {"conv_kernels", conv_kernels, METH_NOARGS,
     "Names of the convolution kernels; the index is conv2d's attribute."},
    {NULL, NULL, 0, NULL}};

static int module_exec(PyObject *module) {
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    if (PyModule_AddFunctions(module, boot_op_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, boot_diffusion_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, boot_schedule_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, boot_noise_methods) < 0) return -1;
    if (PyModule_AddFunctions(module, boot_array_methods) < 0) return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &boot_unet2d_spec, NULL);
    if (!type) return -1;
    const int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                 .m_name = "boot._core",
                                 .m_doc = "The C core of boot: networks, method and optimiser.",
                                 .m_size = 0,
                                 .m_methods = methods,
                                 .m_slots = slots};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
