/* network.h: the Python type UNet2D, shared by the files that give it its methods. */
#ifndef BOOT_PYTHON_NETWORK_H
#define BOOT_PYTHON_NETWORK_H

#include "net/network.h"
#include "python/glue.h"

typedef struct {
    PyObject_HEAD boot_network *network;
    PyObject *kept; /* input arrays of the last training forward, which backward reads */
} UNet2D;

/* One thread at a time: a second one gets an exception instead of a broken result. 0 or -1. */
int boot_py_enter_network(UNet2D *self);
void boot_py_leave_network(UNet2D *self);

/* list[i] = item, which is stolen; without an item the list is given up. */
static inline void boot_py_put(PyObject **list, int i, PyObject *item) {
    if (item)
        PyList_SET_ITEM(*list, i, item);
    else
        Py_CLEAR(*list);
}

/* network_plans.c */
PyObject *boot_py_plan(PyObject *self, PyObject *args);
PyObject *boot_py_profile(PyObject *self, PyObject *args);
PyObject *boot_py_configure(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *boot_py_memory(PyObject *self, PyObject *unused);
PyObject *boot_py_pin_kernels(PyObject *self, PyObject *arg);
PyObject *boot_py_hint_kernels(PyObject *self, PyObject *arg);
PyObject *boot_py_get_timed(PyObject *self, void *unused);
PyObject *boot_py_get_chosen(PyObject *self, void *unused);
PyObject *boot_py_get_kernels(PyObject *self, void *unused);

#endif
