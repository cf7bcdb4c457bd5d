/* isa.c: CPUID, asked once. */
#include "base/isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static boot_isa_level detect(void) {
    boot_isa_level level = BOOT_ISA_BASE;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) level = BOOT_ISA_AVX2;
    if (level == BOOT_ISA_AVX2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        level = BOOT_ISA_AVX512;
#endif
    const char *cap = getenv("BOOT_MAX_ISA");
    for (int i = BOOT_ISA_BASE; cap && i < (int)level; i++)
        if (!strcmp(cap, boot_isa_name(i))) level = i;
    return level;
}

boot_isa_level boot_isa(void) {
    /* Written once with a value that every thread would compute alike, so no lock is needed. */
    static atomic_int known = -1;
    int level = atomic_load_explicit(&known, memory_order_relaxed);
    if (level < 0) {
        level = detect();
        atomic_store_explicit(&known, level, memory_order_relaxed);
    }
    return (boot_isa_level)level;
}

const char *boot_isa_name(boot_isa_level level) {
    switch (level) {
    case BOOT_ISA_AVX512:
        return "avx512";
    case BOOT_ISA_AVX2:
        return "avx2";
    default:
        return "base";
    }
}
