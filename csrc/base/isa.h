/* isa.h: run-time choice of instruction set, and the macro that compiles one body for each. */
#ifndef BOOT_ISA_H
#define BOOT_ISA_H

#include <stdbool.h>

typedef enum { BOOT_ISA_BASE = 0, BOOT_ISA_AVX2, BOOT_ISA_AVX512 } boot_isa_level;

/* Best level that this processor has, capped by the environment variable BOOT_MAX_ISA
   (base, avx2, avx512), read once per process. */
boot_isa_level boot_isa(void);
const char *boot_isa_name(boot_isa_level level);

/* Whether additions of 512 bits have units of their own beside those of products, as in AMD's
   Zen 5 (but for mobile ones): four such operations may begin in a cycle there, and only two of
   them read memory. The environment variable BOOT_ADDS_BESIDE (0, 1), read once, says so instead:
   for tests. */
bool boot_adds_beside(void);

#if defined(__x86_64__)
#define BOOT_TARGET_AVX2 __attribute__((target("avx2,fma,bmi2")))
#define BOOT_TARGET_AVX512                                                                         \
    __attribute__((                                                                                \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")))
#else
#define BOOT_TARGET_AVX2
#define BOOT_TARGET_AVX512
#endif

#define BOOT_INLINE static inline __attribute__((always_inline))

/* Makes the compiler forget how pointer p came about. It would otherwise work out the addresses of
   all rows of an unrolled loop beforehand, and spill them, and sums with them, to the stack. */
#define BOOT_OPAQUE(p) __asm__("" : "+r"(p))

/* Before a loop of up to 12 rounds, constant in number: unrolled before anything else is done. An
   array of sums stays in registers only where all of its indices are constants that early. */
#define BOOT_UNROLLED _Pragma("GCC unroll 12")

/* From an always-inline `name_body PARAMS`, make `name PARAMS`: the same C compiled for every
   level, chosen at run time. Bodies hold plain loops that the compiler vectorises; no OpenMP
   inside. */
#define BOOT_MULTI_ISA(name, PARAMS, ARGS)                                                         \
    static void name##_base PARAMS { name##_body ARGS; }                                           \
    BOOT_TARGET_AVX2 static void name##_avx2 PARAMS { name##_body ARGS; }                          \
    BOOT_TARGET_AVX512 static void name##_avx512 PARAMS { name##_body ARGS; }                      \
    static void name PARAMS {                                                                      \
        switch (boot_isa()) {                                                                      \
        case BOOT_ISA_AVX512:                                                                      \
            name##_avx512 ARGS;                                                                    \
            return;                                                                                \
        case BOOT_ISA_AVX2:                                                                        \
            name##_avx2 ARGS;                                                                      \
            return;                                                                                \
        default:                                                                                   \
            name##_base ARGS;                                                                      \
            return;                                                                                \
        }                                                                                          \
    }

#endif
