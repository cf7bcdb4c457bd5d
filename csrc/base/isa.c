/* isa.c: CPUID, asked once. */
#include "base/isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static int detect_isa(void) {
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

/* What `detect` says, asked once. *known is written with a value that every thread would compute
   alike, so no lock is needed. */
static int asked_once(atomic_int *known, int (*detect)(void)) {
    int value = atomic_load_explicit(known, memory_order_relaxed);
    if (value < 0) {
        value = detect();
        atomic_store_explicit(known, value, memory_order_relaxed);
    }
    return value;
}

boot_isa_level boot_isa(void) {
    static atomic_int known = -1;
    return (boot_isa_level)asked_once(&known, detect_isa);
}

static int detect_adds_beside(void) {
    const char *told = getenv("BOOT_ADDS_BESIDE");
    if (told && told[0]) return told[0] == '1';
#if defined(__x86_64__)
    enum { ZEN_5 = 0x1a };
    unsigned eax, ebx, ecx, edx;
    char vendor[12];
    if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) return false;
    memcpy(vendor, &ebx, 4), memcpy(vendor + 4, &edx, 4), memcpy(vendor + 8, &ecx, 4);
    if (memcmp(vendor, "AuthenticAMD", 12) || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return false;
    return (eax >> 8 & 0xf) + (eax >> 20 & 0xff) >= ZEN_5; /* the family */
#else
    return false;
#endif
}

bool boot_adds_beside(void) {
    static atomic_int known = -1;
    return asked_once(&known, detect_adds_beside) != 0;
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
