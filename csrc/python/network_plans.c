/* network_plans.c: methods of UNet2D around plans: bytes, kernels, profiles and options. */
#include "python/network.h"

static PyObject *kernel_list(UNet2D *self) {
    const boot_tuner *tuner = boot_network_tuner(self->network);
    PyObject *list = PyList_New(tuner->count);
    for (int i = 0; list && i < tuner->count; i++) {
        PyObject *item = Py_BuildValue("ssd", tuner->choices[i].key, tuner->choices[i].kernel,
                                       tuner->choices[i].ms);
        boot_py_put(&list, i, item);
    }
    return list;
}

static PyObject *plan_facts(UNet2D *self, const boot_shards *shards) {
    long long arena = 0, scratch = 0, packs = 0, own = 0;
    for (int i = 0; i < shards->count; i++) {
        const boot_plan *plan = &shards->plans[i];
        arena += plan->arena_floats * 4LL, scratch += plan->scratch_floats * 4LL;
        own += plan->own_pack_floats * 4LL;
        if (plan->pack_floats * 4LL > packs) packs = plan->pack_floats * 4LL;
    }
    const long long flat = boot_network_params(self->network)->floats * 4LL;
    const long long grads = shards->training ? shards->count * flat : 0;
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:i,s:i,s:N}", "peak_bytes",
                         flat + grads + arena + scratch, "weight_bytes", flat, "grad_bytes", grads,
                         "activation_bytes", arena, "scratch_bytes", scratch, "pack_bytes", packs,
                         "own_pack_bytes", own, "nodes", shards->plans[0].graph.num_nodes, "shards",
                         shards->count, "kernels", kernel_list(self));
}

PyObject *boot_py_plan(PyObject *object, PyObject *args) {
    UNet2D *self = (UNet2D *)object;
    long long n, height, width;
    int train, estimate = 0;
    if (!PyArg_ParseTuple(args, "LLLp|p:plan", &n, &height, &width, &train, &estimate)) return NULL;
    if (n < 1 || height < 1 || width < 1)
        return PyErr_Format(PyExc_ValueError, "plan: %lld x %lld x %lld, expected at least 1", n,
                            height, width);
    if (boot_py_enter_network(self)) return NULL;
    boot_shards estimated = {0}, *shards = &estimated;
    boot_status status;
    Py_BEGIN_ALLOW_THREADS;
    status = estimate ? boot_network_estimate(self->network, n, height, width, train, &estimated)
                      : boot_network_plan(self->network, n, height, width, train, &shards);
    Py_END_ALLOW_THREADS;
    PyObject *result = status ? boot_py_error(status) : plan_facts(self, shards);
    boot_shards_close(&estimated);
    boot_py_leave_network(self);
    return result;
}

/* -1: not given. */
typedef struct {
    int keep_packed, in_training, gradient_checkpointing, thread_independent;
    long long memory_limit;
} options;

PyObject *boot_py_configure(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *keys[] = {"keep_packed",        "in_training",  "gradient_checkpointing",
                           "thread_independent", "memory_limit", NULL};
    UNet2D *self = (UNet2D *)object;
    options o = {-1, -1, -1, -1, -1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$ppppL:configure", keys, &o.keep_packed,
                                     &o.in_training, &o.gradient_checkpointing,
                                     &o.thread_independent, &o.memory_limit) ||
        boot_py_enter_network(self))
        return NULL;
    if (o.keep_packed >= 0) boot_network_keep_packed(self->network, o.keep_packed);
    if (o.in_training >= 0) boot_network_in_training(self->network, o.in_training);
    if (o.gradient_checkpointing >= 0)
        boot_network_gradient_checkpointing(self->network, o.gradient_checkpointing);
    if (o.thread_independent >= 0)
        boot_network_thread_independent(self->network, o.thread_independent);
    if (o.memory_limit >= 0) boot_network_limit_memory(self->network, o.memory_limit);
    boot_py_leave_network(self);
    Py_RETURN_NONE;
}

PyObject *boot_py_memory(PyObject *object, PyObject *unused) {
    (void)unused;
    UNet2D *self = (UNet2D *)object;
    if (boot_py_enter_network(self)) return NULL;
    int64_t planned;
    const boot_network_bytes held = boot_network_memory(self->network);
    const boot_status status = boot_network_planned_packs(self->network, &planned);
    boot_py_leave_network(self);
    if (status) return boot_py_error(status);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L}", "weights", (long long)held.weights, "grads",
                         (long long)held.grads, "arena", (long long)held.arena, "packed",
                         (long long)held.packed, "planned_packs", (long long)planned);
}

enum { MAX_PROFILE_STEPS = 8192 };

PyObject *boot_py_profile(PyObject *object, PyObject *args) {
    static const char *const kinds[] = {"forward", "again", "backward"};
    UNet2D *self = (UNet2D *)object;
    long long n, height, width;
    int train, repeats;
    if (!PyArg_ParseTuple(args, "LLLpi:profile", &n, &height, &width, &train, &repeats))
        return NULL;
    if (n < 1 || height < 1 || width < 1 || repeats < 1)
        return PyErr_Format(PyExc_ValueError, "profile: sizes and repeats must be at least 1");
    double *seconds = PyMem_Calloc(MAX_PROFILE_STEPS, sizeof(double));
    if (!seconds) return PyErr_NoMemory();
    PyObject *list = NULL;
    if (!boot_py_enter_network(self)) {
        const boot_plan *plan = NULL;
        boot_status status;
        Py_BEGIN_ALLOW_THREADS;
        status = boot_network_profile(self->network, n, height, width, train, repeats, &plan,
                                      seconds, MAX_PROFILE_STEPS);
        Py_END_ALLOW_THREADS;
        list = status ? boot_py_error(status) : PyList_New(plan->num_steps);
        for (int i = 0; list && i < plan->num_steps; i++) {
            const boot_node *node = &plan->graph.nodes[plan->steps[i].node];
            PyObject *item = Py_BuildValue("sssd", kinds[plan->steps[i].kind], node->op->name,
                                           node->name, seconds[i] * 1e3 / repeats);
            boot_py_put(&list, i, item);
        }
        boot_py_leave_network(self);
    }
    PyMem_Free(seconds);
    return list;
}

PyObject *boot_py_get_kernels(PyObject *object, void *unused) {
    (void)unused;
    return kernel_list((UNet2D *)object);
}

/* Copies {key: kernel name} into a tuner. 0, or -1 with an exception. */
static int read_kernels(PyObject *dict, const char *method, boot_tuner *tuner) {
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a dict {key: kernel name}", method);
        return -1;
    }
    while (PyDict_Next(dict, &at, &key, &value)) {
        const char *k = boot_py_text(key, "a key of the dict"),
                   *v = k ? boot_py_text(value, "a kernel of the dict") : NULL;
        if (!v) return -1;
        const boot_status status = boot_tuner_set(tuner, k, v, 0);
        if (status) {
            boot_py_error(status);
            return -1;
        }
    }
    return 0;
}

PyObject *boot_py_pin_kernels(PyObject *object, PyObject *arg) {
    UNet2D *self = (UNet2D *)object;
    if (boot_py_enter_network(self)) return NULL;
    const int failed = read_kernels(arg, "pin_kernels", boot_network_tuner(self->network));
    boot_network_clear_plans(self->network);
    boot_py_leave_network(self);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

PyObject *boot_py_hint_kernels(PyObject *object, PyObject *arg) {
    UNet2D *self = (UNet2D *)object;
    if (boot_py_enter_network(self)) return NULL;
    const int failed = read_kernels(arg, "hint_kernels", boot_network_hints(self->network));
    boot_py_leave_network(self);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

PyObject *boot_py_get_chosen(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromLong(boot_network_tuner(((UNet2D *)object)->network)->count);
}

PyObject *boot_py_get_timed(PyObject *object, void *unused) {
    (void)unused;
    return PyLong_FromLong(boot_network_tuner(((UNet2D *)object)->network)->timed);
}
