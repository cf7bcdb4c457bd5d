/* status.h: how the core reports failure: a code, and a message naming what, found, expected. */
#ifndef BOOT_STATUS_H
#define BOOT_STATUS_H

typedef enum {
    BOOT_OK = 0,
    BOOT_ERR_VALUE,       /* a shape, size or number is outside what the call allows */
    BOOT_ERR_MEMORY,      /* an allocation failed */
    BOOT_ERR_UNSUPPORTED, /* valid, but not something this build or kernel can do */
    BOOT_ERR_STATE,       /* calls in an order that makes no sense */
    BOOT_ERR_NONFINITE,   /* NaN or infinity where a number is needed */
    BOOT_ERR_BACKEND      /* oneDNN refused */
} boot_status;

/* Writes the calling thread's message (printf rules, cut at 511 bytes) and returns `status`. */
boot_status boot_fail(boot_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The last message written by boot_fail on this thread; never NULL. */
const char *boot_message(void);

/* Forward a failure to the caller. For functions that own nothing at that point. */
#define BOOT_TRY(expr)                                                                             \
    do {                                                                                           \
        boot_status boot_try_status_ = (expr);                                                     \
        if (boot_try_status_) return boot_try_status_;                                             \
    } while (0)

#endif
