/* status.c: the per-thread failure message. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512];

boot_status boot_fail(boot_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return status;
}

const char *boot_message(void) { return message; }
