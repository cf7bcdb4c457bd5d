/* dnnl.c: oneDNN engine, stream and status codes. */
#include "base/dnnl.h"

boot_status boot_dnnl_check(dnnl_status_t status, const char *what) {
    switch (status) {
    case dnnl_success:
        return BOOT_OK;
    case dnnl_out_of_memory:
        return boot_fail(BOOT_ERR_MEMORY, "%s: oneDNN is out of memory", what);
    case dnnl_unimplemented:
        return boot_fail(BOOT_ERR_UNSUPPORTED, "%s: oneDNN has no kernel for this shape", what);
    default:
        return boot_fail(BOOT_ERR_BACKEND, "%s: oneDNN status %d", what, (int)status);
    }
}

boot_status boot_dnnl_open(boot_dnnl *dnnl) {
    *dnnl = (boot_dnnl){0};
    BOOT_DNNL_TRY(dnnl_engine_create(&dnnl->engine, dnnl_cpu, 0), "engine");
    return boot_dnnl_check(
        dnnl_stream_create(&dnnl->stream, dnnl->engine, dnnl_stream_default_flags), "stream");
}

void boot_dnnl_close(boot_dnnl *dnnl) {
    if (dnnl->stream) dnnl_stream_destroy(dnnl->stream);
    if (dnnl->engine) dnnl_engine_destroy(dnnl->engine);
    *dnnl = (boot_dnnl){0};
}

boot_dnnl_info boot_dnnl_describe(void) {
    const dnnl_version_t *v = dnnl_version();
    return (boot_dnnl_info){v->major, v->minor, v->patch, (int)dnnl_get_effective_cpu_isa(),
                            v->cpu_runtime == DNNL_RUNTIME_OMP};
}
