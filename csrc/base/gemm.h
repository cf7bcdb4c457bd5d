/* gemm.h: single-precision matrix product for one thread, and for a team of threads. */
#ifndef BOOT_GEMM_H
#define BOOT_GEMM_H

#include <stdbool.h>
#include <stdint.h>

/* Rows that a product may fetch, never read, beyond its operands. Where another thread writes
   there, so wide a gap keeps its lines from being taken away. */
enum { BOOT_GEMM_AHEAD = 48 };

/* C (M x N, row stride ldc) = A B + bias (N, or NULL), or += A B when `accumulate`. A(i,k) =
   a[i*rsa + k*csa], so a transposed A is only a swap of strides; B(k,j) = b[k*ldb + j]. Runs on the
   calling thread, allocates nothing. */
void boot_gemm(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
               const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
               bool accumulate);

/* One panel of B: nr columns with row stride ldb, C = A B + bias or += A B for all M rows, K >= 1.
 * For kernels that pack B. */
typedef void (*boot_panel_fn)(int64_t M, int64_t K, const float *a, int64_t rsa, int64_t csa,
                              const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                              bool accumulate);
typedef struct {
    boot_panel_fn wide, narrow;       /* of nr columns, and of nr / 2 */
    boot_panel_fn wide_on, narrow_on; /* go on with the sums in C, for K in pieces: the same bits */
    int nr;
} boot_panels;
boot_panels boot_gemm_panels(void);

/* The one for the first `columns` of a panel; on: for a further piece of K. */
static inline boot_panel_fn boot_panel_for(const boot_panels *p, int64_t columns, bool on) {
    if (columns <= p->nr / 2) return on ? p->narrow_on : p->narrow;
    return on ? p->wide_on : p->wide;
}

/* The same as boot_gemm, called by every thread of a team, which share out rows and columns of C
   (never K: the same bits for any number of threads). */
void boot_gemm_team(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                    const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                    bool accumulate);

/* The same, with K more columns of A in another array, of which B has the rows below the others,
   and then with `added` (M x N, row stride lds), or NULL. */
typedef struct {
    int64_t K;
    const float *a;
    int64_t rsa;
    const float *added;
    int64_t lds;
} boot_gemm_more;
void boot_gemm_team_more(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                         const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                         bool accumulate, const boot_gemm_more *more);

/* dst (cols x rows, row stride ldd) = transpose of src (rows x cols, row stride lds). */
void boot_transpose(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                    int64_t ldd);

/* dst (rows x cols, row stride ldd) = src, or += src; called by every thread of a team. */
void boot_copy_rows_team(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                         int64_t ldd, bool accumulate);

/* sum: (cols) = sum of the rows of src (rows x cols, row stride lds), in an order of their own, on
 * the calling thread. */
void boot_column_sums(int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum);
/* The same, called by every thread of a team: a block of columns to a thread. */
void boot_column_sums_team(int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum);

#endif
