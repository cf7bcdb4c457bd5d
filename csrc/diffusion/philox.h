/* philox.h: random bits that are a function of (seed, stream, step, sample) and a position. */
#ifndef BOOT_PHILOX_H
#define BOOT_PHILOX_H

#include <stdbool.h>
#include <stdint.h>

/* Philox 4x64-10 (Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011)
   with key (seed, stream) and counter (0, 0, sample, step), read in the order in which NumPy's
   generator of that name hands its bits out. */
typedef struct {
    uint64_t key[2], counter[4], block[4];
    int used; /* of the block */
    bool has_half;
    uint32_t half; /* the upper one of a number whose lower one was taken */
} boot_philox;

boot_philox boot_philox_at(uint64_t seed, uint64_t stream, uint64_t step, uint64_t sample);

/* The next 64 or 32 bits, or number in [0, 1). `state`: a boot_philox, in the form in which NumPy's
   distributions call a generator. */
uint64_t boot_philox_64(void *state);
uint32_t boot_philox_32(void *state);
double boot_philox_double(void *state);

#endif
