/* gemm.c: matrix product on broadcast-A, vector-B register tiles, for AVX-512, AVX2 and plain SSE2.
 */
#include "base/gemm.h"

#include <omp.h>
#include <string.h>

#include "base/isa.h"

enum { AHEAD = 40 }; /* steps of K between an operand's prefetch and its use */

#define VL 16
#define MR 12
#define NAME(x) avx512_##x
#define TARGET BOOT_TARGET_AVX512
#include "base/gemm_kernel.inc"
#undef VL
#undef MR
#undef NAME
#undef TARGET

#define VL 8
#define MR 6
#define NAME(x) avx2_##x
#define TARGET BOOT_TARGET_AVX2
#include "base/gemm_kernel.inc"
#undef VL
#undef MR
#undef NAME
#undef TARGET

#define VL 4
#define MR 4
#define NAME(x) sse_##x
#define TARGET
#include "base/gemm_kernel.inc"
#undef VL
#undef MR
#undef NAME
#undef TARGET

/* K is cut so that a B panel (KC x 2 VL floats) stays in the first-level cache. */
enum { KC = 256, MAX_NR = 32, MC = 96 };

boot_panel_fn boot_gemm_panel(int *nr) {
    switch (boot_isa()) {
    case BOOT_ISA_AVX512:
        *nr = avx512_NR;
        return avx512_panel;
    case BOOT_ISA_AVX2:
        *nr = avx2_NR;
        return avx2_panel;
    default:
        *nr = sse_NR;
        return sse_panel;
    }
}

/* The last, partial panel: B and C go through zero-padded copies so that the kernel needs no masks.
 */
static void edge_panel(boot_panel_fn panel, int nr, int64_t M, int64_t cols, int64_t K,
                       const float *a, int64_t rsa, int64_t csa, const float *b, int64_t ldb,
                       const float *bias, float *c, int64_t ldc, bool accumulate) {
    float bpad[KC * MAX_NR] __attribute__((aligned(64)));
    float cpad[MC * MAX_NR] __attribute__((aligned(64)));
    for (int64_t k = 0; k < K; k++) {
        memcpy(bpad + k * nr, b + k * ldb, cols * sizeof(float));
        memset(bpad + k * nr + cols, 0, (nr - cols) * sizeof(float));
    }
    for (int64_t i = 0; i < M; i += MC) {
        const int64_t rows = M - i < MC ? M - i : MC;
        panel(rows, K, a + i * rsa, rsa, csa, bpad, nr, NULL, cpad, nr, false);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < cols; j++) {
                float *dst = c + (i + r) * ldc + j;
                const float start = accumulate ? *dst : bias ? bias[j] : 0;
                *dst = start + cpad[r * nr + j];
            }
    }
}

void boot_gemm(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
               const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
               bool accumulate) {
    int nr;
    const boot_panel_fn panel = boot_gemm_panel(&nr);
    for (int64_t i = 0; K == 0 && !accumulate && i < M; i++)
        if (bias)
            memcpy(c + i * ldc, bias, N * sizeof(float));
        else
            memset(c + i * ldc, 0, N * sizeof(float));
    for (int64_t k = 0; k < K; k += KC) {
        const int64_t kc = K - k < KC ? K - k : KC;
        const bool add = accumulate || k > 0;
        const float *ak = a + k * csa, *bk = b + k * ldb;
        for (int64_t j = 0; j < N; j += nr) {
            const int64_t cols = N - j < nr ? N - j : nr;
            const float *start = bias ? bias + j : NULL;
            if (cols == nr)
                panel(M, kc, ak, rsa, csa, bk + j, ldb, start, c + j, ldc, add);
            else
                edge_panel(panel, nr, M, cols, kc, ak, rsa, csa, bk + j, ldb, start, c + j, ldc,
                           add);
        }
    }
}

void boot_gemm_parallel(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                        const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                        bool accumulate) {
    /* Below this many multiplications a fork and join costs more than it saves. */
    if (M * N * K < 65536 || omp_get_max_threads() == 1) {
        boot_gemm(M, N, K, a, rsa, csa, b, ldb, bias, c, ldc, accumulate);
        return;
    }
    const int64_t bm = MC, bn = N <= 256 ? N : 256;
    const int64_t rows = (M + bm - 1) / bm;
    /* Few rows: cut the columns finer so that every thread has work. */
    const int64_t step = rows >= 2 * omp_get_max_threads() ? bn : (N >= 64 ? 32 : N);
    const int64_t cols = (N + step - 1) / step;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            const int64_t m = M - i * bm < bm ? M - i * bm : bm;
            const int64_t n = N - j * step < step ? N - j * step : step;
            boot_gemm(m, n, K, a + i * bm * rsa, rsa, csa, b + j * step, ldb,
                      bias ? bias + j * step : NULL, c + i * bm * ldc + j * step, ldc, accumulate);
        }
}

void boot_transpose(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                    int64_t ldd) {
    enum { B = 16 };
    for (int64_t i = 0; i < rows; i += B)
        for (int64_t j = 0; j < cols; j += B)
            for (int64_t jj = j; jj < j + B && jj < cols; jj++)
                for (int64_t ii = i; ii < i + B && ii < rows; ii++)
                    dst[jj * ldd + ii] = src[ii * lds + jj];
}

BOOT_INLINE void column_sums_body(int64_t rows, int64_t cols, const float *restrict src,
                                  int64_t lds, float *restrict sum) {
    memset(sum, 0, cols * sizeof(float));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) sum[c] += src[r * lds + c];
}
BOOT_MULTI_ISA(column_sums, (int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum),
               (rows, cols, src, lds, sum))

void boot_column_sums(int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum) {
    column_sums(rows, cols, src, lds, sum);
}
