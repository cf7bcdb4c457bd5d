/* philox.c: ten rounds of multiplication and exchange. */
#include "diffusion/philox.h"

enum { ROUNDS = 10 };

boot_philox boot_philox_at(uint64_t seed, uint64_t stream, uint64_t step, uint64_t sample) {
    return (boot_philox){.key = {seed, stream}, .counter = {0, 0, sample, step}, .used = 4};
}

/* hi, lo: both halves of a product. */
static uint64_t product(uint64_t a, uint64_t b, uint64_t *lo) {
    const unsigned __int128 whole = (unsigned __int128)a * b;
    *lo = (uint64_t)whole;
    return (uint64_t)(whole >> 64);
}

/* NumPy counts before it generates. A sample never needs 2^64 blocks: nothing is carried on. */
static void next_block(boot_philox *p) {
    uint64_t k0 = p->key[0], k1 = p->key[1];
    p->counter[0]++;
    uint64_t x[4] = {p->counter[0], p->counter[1], p->counter[2], p->counter[3]};
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t lo0, lo2;
        const uint64_t hi0 = product(0xD2E7470EE14C6C93u, x[0], &lo0);
        const uint64_t hi2 = product(0xCA5A826395121157u, x[2], &lo2);
        x[0] = hi2 ^ x[1] ^ k0, x[1] = lo2;
        x[2] = hi0 ^ x[3] ^ k1, x[3] = lo0;
        k0 += 0x9E3779B97F4A7C15u, k1 += 0xBB67AE8584CAA73Bu;
    }
    for (int i = 0; i < 4; i++) p->block[i] = x[i];
    p->used = 0;
}

uint64_t boot_philox_64(void *state) {
    boot_philox *p = state;
    if (p->used == 4) next_block(p);
    return p->block[p->used++];
}

uint32_t boot_philox_32(void *state) {
    boot_philox *p = state;
    if (p->has_half) {
        p->has_half = false;
        return p->half;
    }
    const uint64_t bits = boot_philox_64(state);
    p->has_half = true;
    p->half = (uint32_t)(bits >> 32);
    return (uint32_t)bits;
}

double boot_philox_double(void *state) { return (double)(boot_philox_64(state) >> 11) * 0x1p-53; }
