/* glue.h: what the Python-facing files share: exceptions, array conversion, module state. */
#ifndef BOOT_GLUE_H
#define BOOT_GLUE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef NPY_NO_DEPRECATED_API
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#endif
#ifndef NPY_TARGET_VERSION
#define NPY_TARGET_VERSION NPY_1_23_API_VERSION
#endif
#define PY_ARRAY_UNIQUE_SYMBOL boot_ARRAY_API
#ifndef BOOT_IMPORTS_ARRAY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#undef I /* complex.h's; our shapes have an I */

#include "base/status.h"

/* Sets the Python exception for a failed status (its message is boot_message()) and returns NULL.
 */
PyObject *boot_py_error(boot_status status);

/* New reference to a C-contiguous aligned float32 copy or view of `object`; `rank` -1 takes any.
   Floating types only; TypeError or ValueError naming `name` otherwise. */
PyArrayObject *boot_py_floats(PyObject *object, const char *name, int rank);
/* The same for a vector of `count` float64 numbers (any real type). */
PyArrayObject *boot_py_doubles(PyObject *object, const char *name, npy_intp count);
/* The same for any numeric type, converted to float32. */
PyArrayObject *boot_py_numbers(PyObject *object, const char *name);
/* 0, or -1 with an exception unless both arrays have the same shape. */
int boot_py_same_shape(PyArrayObject *a, const char *name_a, PyArrayObject *b, const char *name_b);

/* dict[key], borrowed; NULL when it is absent, or with an exception when there is no memory for the
   key (PyDict_GetItemString would call that absent). */
PyObject *boot_py_item(PyObject *dict, const char *key);

/* UTF-8 of a str, borrowed; NULL with TypeError naming `name` for anything else. */
const char *boot_py_text(PyObject *object, const char *name);

static inline float *boot_py_data(PyArrayObject *a) { return (float *)PyArray_DATA(a); }
static inline double *boot_py_ddata(PyArrayObject *a) { return (double *)PyArray_DATA(a); }

/* Makes the calling thread's OpenMP teams as large as set_num_threads said, since OpenMP keeps that
   number per thread. */
void boot_py_use_threads(void);

/* The first line of every entry that may use several threads: the above, and 0; or -1 with
   RuntimeError in a fork of a process that has used the core: the parent's OpenMP threads do not
   exist there, and waiting for them would hang. */
int boot_py_enter(void);

/* Type and method tables of the other files. */
extern PyType_Spec boot_unet2d_spec;
extern PyMethodDef boot_op_methods[], boot_diffusion_methods[], boot_schedule_methods[],
    boot_noise_methods[], boot_array_methods[];

#endif
