/* array_bytes.c: the most bytes that the NumPy arrays of one call take, for distiller.plan().

   NumPy's memory handler (NEP 49) belongs to the context of a thread, so other threads are neither
   counted nor disturbed. tracemalloc would do both, and CPython before 3.14 may crash when it is
   switched off while another thread allocates (python/cpython#128679). */
#include "python/glue.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

/* Lives as long as any array that was made with it: they hold its capsule. */
typedef struct {
    PyDataMem_Handler handler;
    atomic_llong bytes, peak;
} counter;

/* In front of each block, as large as malloc's alignment, so that the data keeps it. */
typedef union {
    size_t size;
    max_align_t alignment;
} header;

static void *counted(counter *c, header *h, size_t size) {
    if (!h) return NULL;
    h->size = size;
    const long long now = atomic_fetch_add(&c->bytes, (long long)size) + (long long)size;
    long long peak = atomic_load(&c->peak);
    while (now > peak && !atomic_compare_exchange_weak(&c->peak, &peak, now)) {
    }
    return h + 1;
}

static void *counter_malloc(void *c, size_t size) {
    return size > SIZE_MAX - sizeof(header) ? NULL
                                            : counted(c, malloc(sizeof(header) + size), size);
}

static void *counter_calloc(void *c, size_t n, size_t size) {
    if (size && n > (SIZE_MAX - sizeof(header)) / size) return NULL;
    return counted(c, calloc(1, sizeof(header) + n * size), n * size);
}

static void counter_free(void *context, void *data, size_t size) {
    (void)size; /* NumPy's idea of it; the header knows what was counted */
    if (!data) return;
    header *h = (header *)data - 1;
    atomic_fetch_sub(&((counter *)context)->bytes, (long long)h->size);
    free(h);
}

static void *counter_realloc(void *context, void *data, size_t size) {
    if (!data) return counter_malloc(context, size);
    if (size > SIZE_MAX - sizeof(header)) return NULL;
    header *h = (header *)data - 1;
    const size_t before = h->size;
    if (!(h = realloc(h, sizeof(header) + size))) return NULL;
    atomic_fetch_sub(&((counter *)context)->bytes, (long long)before);
    return counted(context, h, size);
}

static void counter_close(PyObject *capsule) { free(PyCapsule_GetPointer(capsule, "mem_handler")); }

static PyObject *counter_new(counter **c) {
    if (!(*c = calloc(1, sizeof **c))) return PyErr_NoMemory();
    (*c)->handler = (PyDataMem_Handler){
        .name = "boot_counter",
        .version = 1,
        .allocator = {*c, counter_malloc, counter_calloc, counter_realloc, counter_free}};
    PyObject *capsule = PyCapsule_New(*c, "mem_handler", counter_close);
    if (!capsule) free(*c);
    return capsule;
}

static PyObject *peak_array_bytes(PyObject *self, PyObject *function) {
    (void)self;
    counter *c;
    PyObject *capsule = counter_new(&c), *result = NULL;
    if (!capsule) return NULL;
    PyObject *context = PyContext_CopyCurrent(); /* leaving it leaves the handler behind */
    if (context && !PyContext_Enter(context)) {
        PyObject *outer = PyDataMem_SetHandler(capsule);
        if (outer) result = PyObject_CallNoArgs(function);
        Py_XDECREF(outer);
        if (PyContext_Exit(context)) Py_CLEAR(result);
    }
    Py_XDECREF(context);
    const long long peak = atomic_load(&c->peak);
    Py_DECREF(capsule);
    return result ? Py_BuildValue("NL", result, peak) : NULL;
}

PyMethodDef boot_array_methods[] = {
    {"peak_array_bytes", peak_array_bytes, METH_O,
     "peak_array_bytes(function) -> (function(), most bytes at once of the NumPy arrays that this "
     "thread made in it)"},
    {NULL, NULL, 0, NULL}};
