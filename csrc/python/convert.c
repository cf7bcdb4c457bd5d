/* convert.c: exceptions and NumPy arrays at the border of the core. */
#include "python/glue.h"

PyObject *boot_py_error(boot_status status) {
    PyObject *kind = PyExc_RuntimeError;
    switch (status) {
    case BOOT_ERR_VALUE:
        kind = PyExc_ValueError;
        break;
    case BOOT_ERR_MEMORY:
        kind = PyExc_MemoryError;
        break;
    case BOOT_ERR_UNSUPPORTED:
        kind = PyExc_NotImplementedError;
        break;
    case BOOT_ERR_NONFINITE:
        kind = PyExc_FloatingPointError;
        break;
    default:
        break;
    }
    PyErr_SetString(kind, boot_message());
    return NULL;
}

static PyArrayObject *convert(PyObject *object, int type, const char *name, int rank) {
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (!any) return NULL;
    PyArrayObject *array = NULL;
    if (PyArray_NDIM(any) > 4 || (rank >= 0 && PyArray_NDIM(any) != rank))
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions, expected %d%s", name,
                     PyArray_NDIM(any), rank >= 0 ? rank : 4, rank >= 0 ? "" : " or fewer");
    else
        array = (PyArrayObject *)PyArray_FROMANY((PyObject *)any, type, 0, 4,
                                                 NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST |
                                                     NPY_ARRAY_NOTSWAPPED);
    Py_DECREF(any);
    return array;
}

static int is_floating(PyObject *object, const char *name) {
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (!any) return 0;
    const int type = PyArray_TYPE(any);
    Py_DECREF(any);
    if (type == NPY_FLOAT32 || type == NPY_FLOAT64 || type == NPY_FLOAT16) return 1;
    PyErr_Format(PyExc_TypeError, "%s has an element type that is not float16, float32 or float64",
                 name);
    return 0;
}

PyArrayObject *boot_py_floats(PyObject *object, const char *name, int rank) {
    return is_floating(object, name) ? convert(object, NPY_FLOAT32, name, rank) : NULL;
}

PyArrayObject *boot_py_numbers(PyObject *object, const char *name) {
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object);
    if (!any) return NULL;
    const int number = PyArray_ISNUMBER(any) && !PyArray_ISCOMPLEX(any);
    Py_DECREF(any);
    if (number) return convert(object, NPY_FLOAT32, name, -1);
    PyErr_Format(PyExc_TypeError, "%s has an element type that is not a real number", name);
    return NULL;
}

PyArrayObject *boot_py_doubles(PyObject *object, const char *name, npy_intp count) {
    PyArrayObject *array = convert(object, NPY_FLOAT64, name, 1);
    if (array && PyArray_DIM(array, 0) != count) {
        PyErr_Format(PyExc_ValueError, "%s has %zd elements, expected %zd", name,
                     PyArray_DIM(array, 0), count);
        Py_CLEAR(array);
    }
    return array;
}

int boot_py_same_shape(PyArrayObject *a, const char *name_a, PyArrayObject *b, const char *name_b) {
    if (PyArray_SAMESHAPE(a, b)) return 0;
    PyErr_Format(PyExc_ValueError, "%s and %s have different shapes", name_a, name_b);
    return -1;
}

PyObject *boot_py_item(PyObject *dict, const char *key) {
    PyObject *name = PyUnicode_FromString(key);
    if (!name) return NULL;
    PyObject *item = PyDict_GetItemWithError(dict, name);
    Py_DECREF(name);
    return item;
}

const char *boot_py_text(PyObject *object, const char *name) {
    if (PyUnicode_Check(object)) return PyUnicode_AsUTF8(object);
    PyErr_Format(PyExc_TypeError, "%s must be a str, got %s", name, Py_TYPE(object)->tp_name);
    return NULL;
}
