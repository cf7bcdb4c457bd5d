/* pace.h: on how many threads a small network's passes are fastest, found by trying as they run. */
#ifndef BOOT_PACE_H
#define BOOT_PACE_H

#include <stdint.h>

enum { BOOT_PACE_SIZES = 8 };

/* Zero at first. Sizes are `most`, most / 2, ... 1 threads. */
typedef struct {
    int64_t calls;
    double best[BOOT_PACE_SIZES]; /* seconds, of the trial under way or the last one */
    int chosen;                   /* a size */
    int settled;                  /* passes so long that all threads are right */
} boot_pace;

/* How many threads of `most` the next pass is to use; then how long it took. The results of a pass
   must not depend on it. */
int boot_pace_threads(const boot_pace *pace, int most);
void boot_pace_note(boot_pace *pace, int most, double seconds);

#endif
