/* pace.c: trials of team sizes among the passes that are made anyway.
 *
 * Two cores exchange a cache line in 0.1 us, or 0.5 us where a hypervisor has put them far apart,
 * and it may move them at any time. A pass of a hundred small operations over one small image takes
 * 0.1 ms: which team is the fastest one is only known by trying, again and again. */
#include "net/pace.h"

enum { TRIES = 6, AGAIN = 1000 }; /* passes with each size, and from trial to trial */
static const double LOST = 1.5;   /* times the best: the trial is over */
static const double LONG = 2e-3;  /* seconds; the operations of such passes keep all threads busy */

static int count_sizes(int most) {
    int sizes = 1;
    while (sizes < BOOT_PACE_SIZES && most >> sizes > 0) sizes++;
    return sizes;
}

/* The size that the next pass tries; -1: none. */
static int trial_of(const boot_pace *pace, int most) {
    const int64_t at = pace->calls % AGAIN;
    return at < (int64_t)count_sizes(most) * TRIES ? (int)(at / TRIES) : -1;
}

int boot_pace_threads(const boot_pace *pace, int most) {
    const int trial = pace->settled ? -1 : trial_of(pace, most);
    return most >> (trial < 0 ? pace->chosen : trial);
}

void boot_pace_note(boot_pace *pace, int most, double seconds) {
    const int trial = trial_of(pace, most);
    if (pace->settled) return;
    if (trial >= 0) {
        /* The first pass finds its data in the caches of the team before. */
        const int64_t nth = pace->calls % AGAIN % TRIES;
        if (nth == 1 || (nth > 1 && seconds < pace->best[trial])) pace->best[trial] = seconds;
    }
    pace->calls++;
    if (trial < 0 || trial_of(pace, most) == trial) return;
    if (trial == 0 && pace->best[0] > LONG) {
        pace->settled = 1, pace->chosen = 0;
        return;
    }
    int best = 0;
    for (int i = 1; i <= trial; i++)
        if (pace->best[i] < pace->best[best]) best = i;
    if (trial_of(pace, most) >= 0 && pace->best[trial] < LOST * pace->best[best]) return;
    pace->chosen = best;
    /* Smaller teams would be slower still. */
    while (trial_of(pace, most) >= 0) pace->calls++;
}
