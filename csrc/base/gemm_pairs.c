/* gemm_pairs.c: the inner product of Winograd (1968) on register tiles, for AVX-512. */
#include "base/gemm_pairs.h"

#include <math.h>

#include "base/isa.h"
#include "base/lanes.h"

#if defined(__x86_64__)

enum { MR = 12, NR = BOOT_PAIRS_NR, AHEAD = 24, LINE = 16 };
#define INLINE BOOT_TARGET_AVX512 static inline __attribute__((always_inline))

/* y + x in every lane, and sum += y x. Zen 4 reads x for nothing as a part of an operation; in a
   register of its own, which the compiler would choose, it takes the place of one. */
#define ADD_BROADCAST(sum, y, x)                                                                   \
    __asm__("vaddps %2%{1to16%}, %1, %0" : "=v"(sum) : "v"(y), "m"(*(x)))
#define MULTIPLY_BROADCAST(sum, y, x)                                                              \
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(y), "m"(*(x)))
#define BROADCAST(y, x) __asm__("vbroadcastss %1, %0" : "=v"(y) : "m"(*(x)))

/* sum[w] += (x[0] + odd[w]) (x[16] + even[w]): two additions and a product, or one and two; with
   half of the vectors of each kind, units of both kinds have the same number of operations. HELD:
   both x are read once; Zen 5, which has more units than it reads operands for, is faster so, and
   without fetching B and C ahead, which takes reads too. The bits are the same: what the compiler
   may round once or twice, it does to both. */
INLINE void add_pairs(const bool HELD, const int W, boot_lanes sum[2], const float *x,
                      const boot_lanes even[2], const boot_lanes odd[2]) {
    boot_lanes own[2], first, second;
    if (HELD) {
        BROADCAST(own[0], x);
        BROADCAST(own[1], x + BOOT_LANES);
    }
    BOOT_UNROLLED for (int w = 0; w < W; w++) {
        if (HELD)
            second = own[1] + even[w];
        else
            ADD_BROADCAST(second, even[w], x + BOOT_LANES);
        if (w % 2 == 1) {
            if (HELD)
                first = own[0] + odd[w];
            else
                ADD_BROADCAST(first, odd[w], x);
            sum[w] += first * second;
            continue;
        }
        if (HELD)
            __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum[w]) : "v"(second), "v"(own[0]));
        else
            MULTIPLY_BROADCAST(sum[w], second, x);
        sum[w] += odd[w] * second;
    }
}

/* Vector w of row k of b. */
#define B_VECTOR(k, w) (*(const boot_lanes *)(b + (k) * NR + (w) * BOOT_LANES))

/* Eight steps: sum (R x W 16) += 16 inputs of A by as many of B, whose rows move on; in each a line
   or two of A is fetched. */
INLINE void eight_steps(const bool HELD, const int R, const int W, boot_lanes sum[MR][2],
                        const float *row[MR / 3], int64_t rsa, const float **at,
                        const float *fetch) {
    const float *b = *at;
    for (const float *end = b + 16 * NR; b < end; b += 2 * NR) {
        boot_lanes even[2], odd[2];
        BOOT_UNROLLED for (int w = 0; w < W; w++) {
            even[w] = B_VECTOR(0, w);
            odd[w] = B_VECTOR(1, w);
            if (HELD) continue;
            __builtin_prefetch(&B_VECTOR(AHEAD, w));
            __builtin_prefetch(&B_VECTOR(AHEAD + 1, w));
        }
        __builtin_prefetch(fetch);
        fetch += rsa;
        if (R > 8) {
            __builtin_prefetch(fetch);
            fetch += rsa;
        }
        BOOT_UNROLLED for (int i = 0; i < R; i++)
            add_pairs(HELD, W, sum[i], row[i / 3] + i % 3 * rsa, even, odd);
        BOOT_UNROLLED for (int i = 0; i < R; i += 3) row[i / 3]++;
    }
    *at = b;
}

/* C tile (R x W 16); HELD, ON, R and W are constants. */
INLINE void tile(const bool HELD, const bool ON, const int R, const int W, int64_t K,
                 const float *a, int64_t rsa, const float *sums, const float *b, float *c,
                 int64_t ldc) {
    boot_lanes sum[MR][2];
    const float *row[MR / 3], *next = a + R * rsa; /* next: the tile below, to be fetched */
    float *ahead = c;
    BOOT_UNROLLED for (int i = 0; i < R; i++) {
        BOOT_UNROLLED for (int w = 0; w < W; w++) {
            sum[i][w] = B_VECTOR(0, w);
            if (ON)
                sum[i][w] += *(const boot_lanes *)(ahead + w * BOOT_LANES);
            else if (!HELD)
                __builtin_prefetch(ahead + w * BOOT_LANES, 1);
        }
        ahead += ldc;
        BOOT_OPAQUE(ahead);
    }
    BOOT_UNROLLED for (int i = 0; i < R; i += 3) {
        row[i / 3] = a + i * rsa;
        BOOT_OPAQUE(row[i / 3]);
    }
    for (b += NR;; b += NR) {
        const int64_t depth = boot_least(K, BOOT_PAIRS_DEPTH);
        K -= depth;
        for (const float *end = next + depth; next < end; next += 2 * LINE) {
            for (int line = 0; line < 2; line++)
                eight_steps(HELD, R, W, sum, row, rsa, &b, next + line * LINE);
            BOOT_UNROLLED for (int i = 0; i < R; i += 3) row[i / 3] += BOOT_LANES;
        }
        if (K == 0) break;
        BOOT_UNROLLED for (int w = 0; w < W; w++) {
            BOOT_UNROLLED for (int i = 0; i < R; i++) sum[i][w] += B_VECTOR(0, w);
        }
    }
    BOOT_UNROLLED for (int i = 0; i < R; i++) {
        const float less = sums ? sums[i] : 0;
        BOOT_UNROLLED for (int w = 0; w < W; w++) {
            *(boot_lanes *)(c + w * BOOT_LANES) = sum[i][w] - less;
        }
        c += ldc;
        BOOT_OPAQUE(c);
    }
}

/* Tiles of every height, each a function, and their table. */
typedef void (*tile_fn)(int64_t K, const float *a, int64_t rsa, const float *sums, const float *b,
                        float *c, int64_t ldc);
#define TILE(NAME, HELD, ON, W, R)                                                                 \
    BOOT_TARGET_AVX512 static void NAME##_##R(int64_t K, const float *a, int64_t rsa,              \
                                              const float *sums, const float *b, float *c,         \
                                              int64_t ldc) {                                       \
        tile(HELD, ON, R, W, K, a, rsa, sums, b, c, ldc);                                          \
    }
#define ENTRY(NAME, R) NAME##_##R,
#define EACH_HEIGHT(F, ...)                                                                        \
    F(__VA_ARGS__, 1)                                                                              \
    F(__VA_ARGS__, 2)                                                                              \
    F(__VA_ARGS__, 3)                                                                              \
    F(__VA_ARGS__, 4)                                                                              \
    F(__VA_ARGS__, 5)                                                                              \
    F(__VA_ARGS__, 6)                                                                              \
    F(__VA_ARGS__, 7)                                                                              \
    F(__VA_ARGS__, 8)                                                                              \
    F(__VA_ARGS__, 9)                                                                              \
    F(__VA_ARGS__, 10)                                                                             \
    F(__VA_ARGS__, 11)                                                                             \
    F(__VA_ARGS__, 12)
#define TILES(NAME, HELD, ON, W)                                                                   \
    EACH_HEIGHT(TILE, NAME, HELD, ON, W)                                                           \
    static const tile_fn NAME[MR] = {EACH_HEIGHT(ENTRY, NAME)};
TILES(wide, false, false, 2)
TILES(narrow, false, false, 1)
TILES(wide_on, false, true, 2)
TILES(narrow_on, false, true, 1)
TILES(held_wide, true, false, 2)
TILES(held_narrow, true, false, 1)
TILES(held_wide_on, true, true, 2)
TILES(held_narrow_on, true, true, 1)

void boot_pairs_panel(int64_t M, int64_t columns, int64_t K, const float *a, int64_t rsa,
                      const float *sums, const float *b, float *c, int64_t ldc, bool on) {
    /* [held][narrow][on] */
    static const tile_fn *const tables[2][2][2] = {
        {{wide, wide_on}, {narrow, narrow_on}},
        {{held_wide, held_wide_on}, {held_narrow, held_narrow_on}}};
    const tile_fn *const tiles = tables[boot_adds_beside()][columns <= NR / 2][on];
    /* Of about one height: low tiles leave units without work. */
    for (int64_t i = 0, left = (M + MR - 1) / MR; left > 0; left--) {
        const int64_t height = (M - i + left - 1) / left;
        tiles[height - 1](K, a + i * rsa, rsa, sums ? sums + i : NULL, b, c + i * ldc, ldc);
        i += height;
    }
}

bool boot_pairs_available(void) { return boot_isa() == BOOT_ISA_AVX512; }

/* Rows i and i + S of r become one: the sums of the lanes whose numbers differ in bit S, those of
   row i in the lanes without it. */
#define MERGE(S)                                                                                   \
    BOOT_UNROLLED for (int i = 0; i < S; i++) {                                                    \
        const boot_lanes x = r[i], y = r[i + S];                                                   \
        r[i] = __builtin_shuffle(x, y, (boot_lane_bits)BOOT_ALL_LANES(BOOT_KEEP, S)) +             \
               __builtin_shuffle(x, y, (boot_lane_bits)BOOT_ALL_LANES(BOOT_MOVE, S));              \
    }

enum { SUMS = 8 }; /* rows whose sums are made together */

/* Of eight rows, or the first `rows`: the sums of pairs, and behind them those of squares. */
INLINE boot_lanes some_row_sums(int64_t rows, int64_t K, const float *a, int64_t rsa) {
    boot_lanes r[2 * SUMS];
    const float *x[SUMS];
    BOOT_UNROLLED for (int i = 0; i < SUMS; i++) {
        x[i] = a + (i < rows ? i : 0) * rsa;
        BOOT_OPAQUE(x[i]);
        r[i] = r[SUMS + i] = (boot_lanes){0};
    }
    for (int64_t k = 0; k < K; k += 2 * BOOT_LANES) {
        BOOT_UNROLLED for (int i = 0; i < SUMS; i++) {
            const boot_lanes v = *(const boot_lanes *)(x[i] + k);
            const boot_lanes w = *(const boot_lanes *)(x[i] + k + BOOT_LANES);
            r[i] += v * w;
            r[SUMS + i] += v * v;
            r[SUMS + i] += w * w;
        }
    }
    MERGE(8)
    MERGE(4)
    MERGE(2)
    MERGE(1)
    return r[0];
}

/* What the squares of a row that is left alone add up to: a root mean square of 1/2 to 128. */
static float least_squares(int64_t K) { return 0.25f * (float)K; }
static float most_squares(int64_t K) { return 128.0f * 128.0f * (float)K; }

/* Brings a row, whose squares add up to that, to about 16; returns what to multiply its products
   by. */
INLINE float tame_row(int64_t K, float squares, float *row, float *sum) {
    const bool usual = squares > 1e-30f && squares < 1e30f;
    const float size = usual ? boot_pairs_scale_of((double)squares / (double)K)
                             : boot_pairs_scale(1, K, row, K, NULL);
    const float scale = 16 * (size < 0x1p120f ? size : 0x1p120f);
    *sum = 0;
    if (size == 0) return 0; /* products of nothing with anything */
    for (int64_t k = 0; k < K; k++) row[k] *= scale;
    for (int64_t k = 0; k < K; k += 2 * BOOT_LANES)
        *sum += boot_row_product(row + k, row + k + BOOT_LANES, BOOT_LANES);
    return 1 / scale;
}

BOOT_TARGET_AVX512 static void tame_rows(int64_t rows, int64_t K, float *a, int64_t rsa,
                                         float *sums, float *backs) {
    for (int64_t first = 0; first < rows; first += SUMS) {
        const boot_lanes both = some_row_sums(rows - first, K, a + first * rsa, rsa);
        for (int64_t i = first; i < boot_least(first + SUMS, rows); i++) {
            const float squares = both[SUMS + i - first];
            backs[i] = 1;
            if (squares < least_squares(K) || squares > most_squares(K))
                backs[i] = tame_row(K, squares, a + i * rsa, sums + i);
        }
    }
}

/* Returns whether there are rows to be tamed. */
BOOT_TARGET_AVX512 static bool row_sums(int64_t rows, int64_t K, const float *a, int64_t rsa,
                                        float *sums) {
    boot_lane_bits tame = {0};
    int bits[BOOT_LANES], any = 0;
    for (int64_t i = 0; i < rows; i += SUMS) {
        const boot_lanes both = some_row_sums(rows - i, K, a + i * rsa, rsa);
        *(boot_lanes *)(sums + i) = both;
        tame |= (both < least_squares(K)) | (both > most_squares(K));
    }
    memcpy(bits, &tame, sizeof bits);
    for (int lane = SUMS; lane < 2 * SUMS; lane++) any |= bits[lane];
    return any != 0;
}

bool boot_pairs_row_sums(int64_t rows, int64_t K, float *a, int64_t rsa, float *sums,
                         float *backs) {
    if (!row_sums(rows, K, a, rsa, sums)) return false;
    tame_rows(rows, K, a, rsa, sums, backs);
    return true;
}

#else

bool boot_pairs_available(void) { return false; }
void boot_pairs_panel(int64_t M, int64_t columns, int64_t K, const float *a, int64_t rsa,
                      const float *sums, const float *b, float *c, int64_t ldc, bool on) {
    (void)M, (void)columns, (void)K, (void)a, (void)rsa, (void)sums;
    (void)b, (void)c, (void)ldc, (void)on;
}
bool boot_pairs_row_sums(int64_t rows, int64_t K, float *a, int64_t rsa, float *sums,
                         float *backs) {
    (void)rows, (void)K, (void)a, (void)rsa, (void)sums, (void)backs;
    return false;
}

#endif

float boot_pairs_scale_of(double mean_square) {
    int exponent;
    if (mean_square == 0) return 0;
    if (!(mean_square > 0 && mean_square < 1e80)) return 1;      /* above that: infinite */
    const double mantissa = frexp(sqrt(mean_square), &exponent); /* of 0.5 to 1, times 2^exponent */
    if (mantissa < sqrt(0.5)) exponent--;
    return (float)ldexp(1, exponent < -126 ? 126 : -exponent);
}

static double mean_square(int64_t cols, const float *row, const float *factors) {
    double sum = factors ? 0 : (double)boot_row_product(row, row, cols);
    if (sum > 1e-30 && sum < 1e30) return sum / (double)cols;
    sum = 0; /* in double precision, for squares beyond single */
    for (int64_t c = 0; c < cols; c++) {
        const double number = (double)row[c] * (factors ? factors[c] : 1);
        sum += number * number;
    }
    return sum / (double)cols;
}

float boot_pairs_scale(int64_t rows, int64_t cols, const float *x, int64_t ld,
                       const float *factors) {
    enum { SAMPLES = 32, STEP = 7919 }; /* a prime: else all could lie on an image's edge */
    double means[SAMPLES];              /* in order */
    int count = 0;
    const int64_t samples = boot_least(rows, SAMPLES);
    for (int64_t i = 0; i < samples; i++) {
        const int64_t first = rows * i / samples, stretch = rows * (i + 1) / samples - first;
        const double mean = mean_square(cols, x + (first + i * STEP % stretch) * ld, factors);
        int at = count;
        if (mean == 0) continue;
        for (; at > 0 && means[at - 1] > mean; at--) means[at] = means[at - 1];
        means[at] = mean, count++;
    }
    for (int64_t i = 0; count == 0 && i < rows; i++)
        if ((means[0] = mean_square(cols, x + i * ld, factors)) != 0) count = 1;
    return count ? boot_pairs_scale_of(means[count / 2]) : 0;
}
