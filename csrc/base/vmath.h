/* vmath.h: exp, sigmoid and activation functions as branch-free float code that compilers
 * vectorise. */
#ifndef BOOT_VMATH_H
#define BOOT_VMATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/isa.h"

typedef enum {
    BOOT_ACT_NONE = 0,
    BOOT_ACT_SILU,
    BOOT_ACT_GELU,
    BOOT_ACT_MISH,
    BOOT_ACT_RELU,
    BOOT_NUM_ACTS
} boot_act;

/* e^x to 2.5 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, the polynomial of degree 5 that is nearest to
   e^r there among those that begin 1 + r (1e-7 off at most), exponent added as bits. x is kept
   within -87.3 ... 88, so that no result is zero or infinite; a NaN is not kept. */
BOOT_INLINE float boot_exp_number(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    /* Compared as bits, for which there are vector instructions: a float minimum would have to mind
       NaN. As signed numbers all negative floats lie below 88, as unsigned ones all positive floats
       below -87.3. */
    const int32_t most = 0x42b00000;
    const uint32_t least = 0xc2ae999au;
    int32_t top;
    memcpy(&top, &x, 4);
    top = top < most ? top : most;
    const uint32_t kept = (uint32_t)top < least ? (uint32_t)top : least;
    float c;
    memcpy(&c, &kept, 4);
    const float shifted = c * 1.44269504089f + magic;
    const float n = shifted - magic;
    const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 8.30927e-3f;
    p = p * r + 4.188819e-2f;
    p = p * r + 1.6667162e-1f;
    p = p * r + 0.49999264f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t q, bits;
    memcpy(&bits, &shifted, 4);
    memcpy(&q, &p, 4);
    q += bits << 23; /* the low bits of `shifted` are n */
    memcpy(&p, &q, 4);
    return p;
}

/* The same; NaN stays NaN. */
BOOT_INLINE float boot_exp(float x) { return x != x ? x : boot_exp_number(x); }

/* 1 / (1 + e^-x); of a NaN, some number: multiply by x where it matters. */
BOOT_INLINE float boot_sigmoid(float x) { return 1.0f / (1.0f + boot_exp_number(-x)); }

/* Value of an activation; `act` is a constant at every inlined use. */
BOOT_INLINE float boot_act_value(const boot_act act, float x) {
    switch (act) {
    case BOOT_ACT_SILU:
        return x / (1.0f + boot_exp_number(-x));
    case BOOT_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case BOOT_ACT_MISH: { /* x tanh(softplus x) = x (u^2 + 2u) / (u^2 + 2u + 2), u = e^x */
        const float u = boot_exp(x < 20.0f ? x : 20.0f), v = u * (u + 2.0f);
        return x < 20.0f || x != x ? x * v / (v + 2.0f) : x;
    }
    case BOOT_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    default:
        return x;
    }
}

/* Derivative at x. */
BOOT_INLINE float boot_act_slope(const boot_act act, float x) {
    switch (act) {
    case BOOT_ACT_SILU: {
        const float s = boot_sigmoid(x);
        return s * (1.0f + x * (1.0f - s));
    }
    case BOOT_ACT_GELU:
        return 0.5f * (1.0f + erff(x * 0.70710678118654752f)) +
               x * 0.39894228040143268f * boot_exp(-0.5f * x * x);
    case BOOT_ACT_MISH: { /* tanh(sp) + x sech^2(sp) sigmoid(x) */
        const float u = boot_exp(x < 20.0f ? x : 20.0f), v = u * (u + 2.0f), t = v / (v + 2.0f);
        return x < 20.0f || x != x ? t + x * (1.0f - t * t) * (u / (1.0f + u)) : 1.0f;
    }
    case BOOT_ACT_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    default:
        return 1.0f;
    }
}

/* LOOP(A) with the constant A for `act`: a switch outside the loops keeps each of them
   branch-free. */
#define BOOT_FOR_ACT(LOOP)                                                                         \
    switch (act) {                                                                                 \
    case BOOT_ACT_SILU:                                                                            \
        LOOP(BOOT_ACT_SILU) break;                                                                 \
    case BOOT_ACT_GELU:                                                                            \
        LOOP(BOOT_ACT_GELU) break;                                                                 \
    case BOOT_ACT_MISH:                                                                            \
        LOOP(BOOT_ACT_MISH) break;                                                                 \
    case BOOT_ACT_RELU:                                                                            \
        LOOP(BOOT_ACT_RELU) break;                                                                 \
    default:                                                                                       \
        LOOP(BOOT_ACT_NONE) break;                                                                 \
    }

#endif
