/* tuner.h: which kernel each layer shape uses: timed once, remembered, printable, pinnable. */
#ifndef BOOT_TUNER_H
#define BOOT_TUNER_H

#include <stdbool.h>

#include "base/dnnl.h"
#include "base/status.h"

enum { BOOT_KEY_LENGTH = 96, BOOT_KERNEL_LENGTH = 24 };

typedef struct {
    char key[BOOT_KEY_LENGTH];       /* e.g. "forward n8 32x32x128 o128 k3 s1 p1,1 t2" */
    char kernel[BOOT_KERNEL_LENGTH]; /* e.g. "winograd" */
    double ms;                       /* best time seen; 0 when pinned without timing */
    /* The next one, if it was close enough for another look; else "". */
    char second[BOOT_KERNEL_LENGTH];
    double second_ms;
    int looks;
} boot_choice;

typedef struct {
    boot_choice *choices;
    int count, capacity;
    int timed; /* choices that were timed, not given */
} boot_tuner;

const boot_choice *boot_tuner_find(const boot_tuner *tuner, const char *key); /* NULL: not known */
boot_status boot_tuner_set(boot_tuner *tuner, const char *key, const char *kernel, double ms);
/* The same with everything that a choice has; its key is the argument. */
boot_status boot_tuner_put(boot_tuner *tuner, const char *key, const boot_choice *choice);
void boot_tuner_close(boot_tuner *tuner);

/* What an op's plan function may use. */
typedef struct {
    boot_dnnl *dnnl;
    boot_tuner *tuner;
    const boot_tuner *hints; /* taken instead of timing where the tuner knows nothing; NULL: none */
    bool packed;             /* forward will keep packed weights: packing does not count */
    bool cold;               /* and all of them together are larger than the caches, */
    bool far;                /* or larger than a core's own */
    bool gradient_checkpointing; /* recompute blocks in backward */
    bool by_rule; /* take a fixed kernel for each shape that is not known: nothing is timed */
    bool thread_independent; /* only kernels whose sums do not depend on the number of threads */
    int64_t limit_bytes;     /* of memory for timing; 0: no limit */
} boot_plan_context;

/* The choice that is known for this key, or else hinted at; NULL: none, or none that the context
   allows. */
const boot_choice *boot_tuner_recall(const boot_plan_context *context, const char *key,
                                     bool *hinted);

#endif
