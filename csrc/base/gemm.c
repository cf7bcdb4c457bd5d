/* gemm.c: matrix product on broadcast-A, vector-B register tiles, for AVX-512, AVX2 and plain SSE2.
 */
#include "base/gemm.h"

#include <omp.h>
#include <string.h>

#include "base/isa.h"
#include "base/lanes.h"

/* Steps of K between an operand's prefetch and its use; floats in a cache line. */
enum { AHEAD = 40, LINE = 16 };
_Static_assert((int)AHEAD < (int)BOOT_GEMM_AHEAD, "products fetch further than they say");

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
enum { KC = 256, MAX_MR = 12, MAX_NR = 32, MC = 96, NC = 256 };

boot_panels boot_gemm_panels(void) {
    switch (boot_isa()) {
    case BOOT_ISA_AVX512:
        return (boot_panels){avx512_panel, avx512_narrow, avx512_panel_on, avx512_narrow_on,
                             avx512_NR};
    case BOOT_ISA_AVX2:
        return (boot_panels){avx2_panel, avx2_narrow, avx2_panel_on, avx2_narrow_on, avx2_NR};
    default:
        return (boot_panels){sse_panel, sse_narrow, sse_panel_on, sse_narrow_on, sse_NR};
    }
}

/* The last, partial panel of `cols` < nr columns, in one or two narrow ones; the very last goes
   through zero-padded copies of B, C and bias, so that the kernel needs no masks. */
static void edge_panel(const boot_panels *f, int64_t M, int64_t cols, int64_t K, const float *a,
                       int64_t rsa, int64_t csa, const float *b, int64_t ldb, const float *bias,
                       float *c, int64_t ldc, bool accumulate) {
    const int nr = f->nr / 2;
    float bpad[KC * MAX_NR / 2] __attribute__((aligned(64)));
    float cpad[MC * MAX_NR / 2] __attribute__((aligned(64)));
    float bias_pad[MAX_NR / 2] = {0};
    if (cols >= nr) {
        f->narrow(M, K, a, rsa, csa, b, ldb, bias, c, ldc, accumulate);
        b += nr, c += nr, cols -= nr;
        if (bias) bias += nr;
    }
    if (cols == 0) return;
    for (int64_t k = 0; k < K; k++) {
        memcpy(bpad + k * nr, b + k * ldb, cols * sizeof(float));
        memset(bpad + k * nr + cols, 0, (nr - cols) * sizeof(float));
    }
    if (bias) memcpy(bias_pad, bias, cols * sizeof(float));
    if (accumulate) memset(cpad, 0, sizeof cpad);
    for (int64_t i = 0; i < M; i += MC) {
        const int64_t rows = boot_least(M - i, MC);
        for (int64_t r = 0; r < rows && accumulate; r++)
            memcpy(cpad + r * nr, c + (i + r) * ldc, cols * sizeof(float));
        f->narrow(rows, K, a + i * rsa, rsa, csa, bpad, nr, bias ? bias_pad : NULL, cpad, nr,
                  accumulate);
        for (int64_t r = 0; r < rows; r++)
            memcpy(c + (i + r) * ldc, cpad + r * nr, cols * sizeof(float));
    }
}

void boot_gemm(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
               const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
               bool accumulate) {
    const boot_panels f = boot_gemm_panels();
    const int nr = f.nr;
    for (int64_t i = 0; K == 0 && !accumulate && i < M; i++)
        if (bias)
            memcpy(c + i * ldc, bias, N * sizeof(float));
        else
            memset(c + i * ldc, 0, N * sizeof(float));
    for (int64_t k = 0; k < K; k += KC) {
        const int64_t kc = boot_least(K - k, KC);
        const bool add = accumulate || k > 0;
        const float *ak = a + k * csa, *bk = b + k * ldb;
        for (int64_t j = 0; j < N; j += nr) {
            const int64_t cols = boot_least(N - j, nr);
            const float *start = bias ? bias + j : NULL;
            if (cols == nr)
                f.wide(M, kc, ak, rsa, csa, bk + j, ldb, start, c + j, ldc, add);
            else
                edge_panel(&f, M, cols, kc, ak, rsa, csa, bk + j, ldb, start, c + j, ldc, add);
        }
    }
}

/* C (M x N) cut into rows x columns parts, one to a thread, at register tiles of MAX_MR x nr. */
typedef struct {
    int64_t M, N, row_tiles, panels, nr;
    int64_t rows, columns;
} grid;

static int64_t largest_part(const grid *g) {
    return boot_least(g->M, (g->row_tiles + g->rows - 1) / g->rows * MAX_MR) *
           boot_least(g->N, (g->panels + g->columns - 1) / g->columns * g->nr);
}

/* The cut whose largest part is smallest; rows before columns. */
static grid cut_grid(int64_t M, int64_t N, int nr, int threads) {
    grid best = {M, N, (M + MAX_MR - 1) / MAX_MR, (N + nr - 1) / nr, nr, threads, 1};
    for (int64_t rows = threads - 1; rows > 0; rows--) {
        grid g = best;
        g.rows = rows, g.columns = threads / rows;
        if (largest_part(&g) < largest_part(&best)) best = g;
    }
    return best;
}

BOOT_INLINE void add_rows_body(int64_t rows, int64_t cols, const float *restrict src, int64_t lds,
                               float *restrict dst, int64_t ldd) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) dst[r * ldd + c] += src[r * lds + c];
}
BOOT_MULTI_ISA(add_rows,
               (int64_t rows, int64_t cols, const float *src, int64_t lds, float *restrict dst,
                int64_t ldd),
               (rows, cols, src, lds, dst, ldd))

/* One thread's part. Rows go in blocks whose A stays in the second-level cache while the columns
   pass; where K is long, each piece of K takes all rows and columns at once, so that A and B are
   read only once. */
static void gemm_part(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                      const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                      bool accumulate, const boot_gemm_more *more) {
    const bool deep = K > 2 * KC;
    const int64_t bm = deep ? M : MC, bn = deep ? N : NC;
    for (int64_t i = 0; i < M; i += bm)
        for (int64_t j = 0; j < N; j += bn) {
            const int64_t rows = boot_least(M - i, bm), columns = boot_least(N - j, bn);
            boot_gemm(rows, columns, K, a + i * rsa, rsa, csa, b + j, ldb, bias ? bias + j : NULL,
                      c + i * ldc + j, ldc, accumulate);
            if (more->K)
                boot_gemm(rows, columns, more->K, more->a + i * more->rsa, more->rsa, 1,
                          b + K * ldb + j, ldb, NULL, c + i * ldc + j, ldc, true);
            if (more->added)
                add_rows(rows, columns, more->added + i * more->lds + j, more->lds, c + i * ldc + j,
                         ldc);
        }
}

void boot_gemm_team_more(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                         const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                         bool accumulate, const boot_gemm_more *more) {
    const int nr = boot_gemm_panels().nr;
    const grid g = cut_grid(M, N, nr, omp_get_num_threads());
#pragma omp for collapse(2) schedule(static)
    for (int64_t i = 0; i < g.rows; i++)
        for (int64_t j = 0; j < g.columns; j++) {
            const int64_t m = g.row_tiles * i / g.rows * MAX_MR, n = g.panels * j / g.columns * nr;
            const int64_t m_end = boot_least(M, g.row_tiles * (i + 1) / g.rows * MAX_MR);
            const int64_t n_end = boot_least(N, g.panels * (j + 1) / g.columns * nr);
            boot_gemm_more rest = *more;
            if (rest.K) rest.a += m * rest.rsa;
            if (rest.added) rest.added += m * rest.lds + n;
            gemm_part(m_end - m, n_end - n, K, a + m * rsa, rsa, csa, b + n, ldb,
                      bias ? bias + n : NULL, c + m * ldc + n, ldc, accumulate, &rest);
        }
}

void boot_gemm_team(int64_t M, int64_t N, int64_t K, const float *a, int64_t rsa, int64_t csa,
                    const float *b, int64_t ldb, const float *bias, float *c, int64_t ldc,
                    bool accumulate) {
    boot_gemm_team_more(M, N, K, a, rsa, csa, b, ldb, bias, c, ldc, accumulate,
                        &(boot_gemm_more){0});
}

/* A block of at most 16 x 16. */
static void transpose_block(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                            int64_t ldd) {
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++) dst[j * ldd + i] = src[i * lds + j];
}

BOOT_TARGET_AVX512 static void transpose_full_block(const float *src, int64_t lds, float *dst,
                                                    int64_t ldd) {
    boot_lanes r[16];
    for (int i = 0; i < 16; i++) r[i] = *(const boot_lanes *)(src + i * lds);
    boot_transpose_lanes(r);
    for (int j = 0; j < 16; j++) *(boot_lanes *)(dst + j * ldd) = r[j];
}

void boot_transpose(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                    int64_t ldd) {
    const bool wide = boot_isa() == BOOT_ISA_AVX512;
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < cols; j += 16) {
            const float *from = src + i * lds + j;
            float *to = dst + j * ldd + i;
            if (wide && i + 16 <= rows && j + 16 <= cols)
                transpose_full_block(from, lds, to, ldd);
            else
                transpose_block(boot_least(rows - i, 16), boot_least(cols - j, 16), from, lds, to,
                                ldd);
        }
}

void boot_copy_rows_team(int64_t rows, int64_t cols, const float *src, int64_t lds, float *dst,
                         int64_t ldd, bool accumulate) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        if (accumulate)
            add_rows(1, cols, src + r * lds, lds, dst + r * ldd, ldd);
        else
            memcpy(dst + r * ldd, src + r * lds, cols * sizeof(float));
}

BOOT_INLINE void column_sums_body(int64_t rows, int64_t cols, const float *restrict src,
                                  int64_t lds, float *restrict sum) {
    enum { PART = 64 }; /* rows added up by themselves: long sums would lose digits */
    for (int64_t c = 0; c < cols; c += BOOT_LANES) {
        boot_lanes total = {0};
        for (int64_t first = 0; first < rows; first += PART) {
            boot_lanes part = {0}, v;
            for (int64_t r = first; r < rows && r < first + PART; r++) {
                boot_load_lanes(&v, src + r * lds, c, cols);
                part += v;
            }
            total += part;
        }
        boot_store_lanes(sum, c, cols, &total);
    }
}
BOOT_MULTI_ISA(column_sums, (int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum),
               (rows, cols, src, lds, sum))

void boot_column_sums(int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum) {
    column_sums(rows, cols, src, lds, sum);
}

void boot_column_sums_team(int64_t rows, int64_t cols, const float *src, int64_t lds, float *sum) {
    enum { COLUMNS = 64 };
#pragma omp for schedule(static)
    for (int64_t c = 0; c < cols; c += COLUMNS)
        boot_column_sums(rows, boot_least(cols - c, COLUMNS), src + c, lds, sum + c);
}
