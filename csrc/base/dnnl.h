/* dnnl.h: the oneDNN engine and stream of one network, and oneDNN status codes as ours. */
#ifndef BOOT_DNNL_H
#define BOOT_DNNL_H

#include <oneapi/dnnl/dnnl.h>
#include <stdbool.h>

#include "base/status.h"

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
} boot_dnnl;

boot_status boot_dnnl_open(boot_dnnl *dnnl);
void boot_dnnl_close(boot_dnnl *dnnl); /* accepts a half-open one */

/* BOOT_OK for dnnl_success; out of memory, unimplemented and the rest as our codes, naming `what`.
 */
boot_status boot_dnnl_check(dnnl_status_t status, const char *what);

/* What the loaded library says of itself. */
typedef struct {
    int major, minor, patch, effective_isa; /* dnnl_cpu_isa_t */
    bool openmp;
} boot_dnnl_info;
boot_dnnl_info boot_dnnl_describe(void);

#define BOOT_DNNL_TRY(expr, what) BOOT_TRY(boot_dnnl_check((expr), (what)))

#endif
