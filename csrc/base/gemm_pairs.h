/* gemm_pairs.h: matrix products with half of the multiplications, each of which takes two additions
 * more (Winograd 1968, "A new algorithm for inner product").
 *
 *   sum_k a_k b_k = sum_p (a_p + b_p') (a_p' + b_p) - sum_p a_p a_p' - sum_p b_p b_p'
 *
 * The last two sums are of one row of A and of one column of B: they are made once for many
 * products. A processor that adds beside multiplying could compute 4/3 as many products in a second
 * as by multiplications alone; a core of AMD's Zen 4 does 142 instead of 112 GFLOP/s, one of Zen 5
 * 308 instead of 260. Digits are lost where a row of A has larger numbers than a column of B, or
 * smaller: the caller brings both to about 16 (boot_pairs_scale). */
#ifndef BOOT_GEMM_PAIRS_H
#define BOOT_GEMM_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

/* Columns of B in a panel, and its rows in a piece. Every piece begins with a row of minus the sums
   of its pairs, added there: K in pieces gives the same bits as K at once. */
enum { BOOT_PAIRS_NR = 32, BOOT_PAIRS_DEPTH = 96 };

/* Rows of a panel. */
static inline int64_t boot_pairs_rows(int64_t K) {
    return K + (K + BOOT_PAIRS_DEPTH - 1) / BOOT_PAIRS_DEPTH;
}

/* Row p of a piece, behind the sums, is this row of B: a pair is 16 apart, so that sums of pairs
   are those of vectors. */
static inline int64_t boot_pairs_row(int64_t p) { return p / 32 * 32 + p % 2 * 16 + p % 32 / 2; }

/* Whether this processor has the instructions (AVX-512). */
bool boot_pairs_available(void);

/* The first `columns` of one panel: C (M x columns, row stride ldc, written up to the next 16) = A
   B, or += where `on`. A: M x K, row stride rsa. sums: of the pairs of each row of A, subtracted
   last; NULL: more pieces of K follow. b: boot_pairs_rows(K) rows of 32. K: a multiple of 32. */
void boot_pairs_panel(int64_t M, int64_t columns, int64_t K, const float *a, int64_t rsa,
                      const float *sums, const float *b, float *c, int64_t ldc, bool on);

/* sums[i] = sum_p a_p a_p' of row i of A (rows x K, row stride rsa). A row whose root mean square
   is not within 1/2 ... 128 is brought to about 16 by a power of two, and C's row is to be
   multiplied by backs[i] afterwards, 0 for a row of zeros; false: none was, and backs is unchanged.
   Up to 15 floats more of each are written. */
bool boot_pairs_row_sums(int64_t rows, int64_t K, float *a, int64_t rsa, float *sums, float *backs);

/* A power of two that brings the root of a mean square to between 0.7 and 1.4; 0 where that is 0,
   1 where it is not finite. */
float boot_pairs_scale_of(double mean_square);
/* The same for the rows of x (rows x cols, row stride ld), whose columns count `factors` (cols)
   times, or NULL: once; as the median of a few that are not zero has it: a row that is unlike the
   others does not count. */
float boot_pairs_scale(int64_t rows, int64_t cols, const float *x, int64_t ld,
                       const float *factors);

#endif
