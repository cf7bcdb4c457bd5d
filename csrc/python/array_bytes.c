/* array_bytes.c: the most bytes that the NumPy arrays of one call take, for distiller.plan().

   NumPy's memory handler (NEP 49) belongs to the context of a thread, so other threads are neither
   counted nor disturbed. tracemalloc would do both, and CPython before 3.14 may crash when it is
   switched off while another thread allocates (python/cpython#128679). */
#include "python/glue.h"

#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"

/* Lives as long as any array that was made with it: they hold its capsule. */
typedef struct {
    PyDataMem_Handler handler;
    atomic_llong bytes, peak;
} counter;

/* A block's size lies in the cache line before its data, which keeps the alignment. */
enum { LINE = 64 };

static size_t *size_of(void *data) { return (size_t *)((char *)data - LINE); }

static void *counted(counter *c, size_t size, bool zeroed) {
    void *block;
    if (size > SIZE_MAX - LINE || boot_alloc(&block, LINE + size, zeroed, "array")) return NULL;
    void *data = (char *)block + LINE;
    *size_of(data) = size;
    const long long now = atomic_fetch_add(&c->bytes, (long long)size) + (long long)size;
    long long peak = atomic_load(&c->peak);
    while (now > peak && !atomic_compare_exchange_weak(&c->peak, &peak, now)) {
    }
    return data;
}

static void *counter_malloc(void *c, size_t size) { return counted(c, size, false); }

static void *counter_calloc(void *c, size_t n, size_t size) {
    return size && n > SIZE_MAX / size ? NULL : counted(c, n * size, true);
}

static void counter_free(void *c, void *data, size_t unused) {
    (void)unused; /* NumPy's idea of the size; what was counted is known */
    if (!data) return;
    atomic_fetch_sub(&((counter *)c)->bytes, (long long)*size_of(data));
    boot_free(size_of(data));
}

static void *counter_realloc(void *c, void *data, size_t size) {
    void *moved = counted(c, size, false);
    if (!moved || !data) return moved;
    const size_t before = *size_of(data);
    memcpy(moved, data, before < size ? before : size);
    counter_free(c, data, 0);
    return moved;
}

static void counter_close(PyObject *capsule) {
    boot_free(PyCapsule_GetPointer(capsule, "mem_handler"));
}

static PyObject *counter_new(counter **c) {
    void *block;
    const boot_status status = boot_alloc(&block, sizeof **c, true, "counter of array bytes");
    if (status) return boot_py_error(status);
    *c = block;
    (*c)->handler = (PyDataMem_Handler){
        .name = "boot_counter",
        .version = 1,
        .allocator = {*c, counter_malloc, counter_calloc, counter_realloc, counter_free}};
    PyObject *capsule = PyCapsule_New(*c, "mem_handler", counter_close);
    if (!capsule) boot_free(*c);
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
