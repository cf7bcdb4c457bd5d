/* fma_peak.c: the fp32 multiply-add peak of this machine, as GFLOP/s on stdout; argument: threads.
 *
 * Twelve independent accumulators per thread hide the latency of an FMA; compiled by machine.py. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

typedef float vec __attribute__((vector_size(WIDTH * 4)));
enum { CHAINS = 12, ROUNDS = 200000, TRIALS = 5 };

static float spin(void) {
    vec a[CHAINS], x, y;
    for (int k = 0; k < WIDTH; k++) x[k] = 0.999f, y[k] = 1e-3f;
    for (int c = 0; c < CHAINS; c++) a[c] = x * (float)c;
    for (int i = 0; i < ROUNDS; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) a[c] = a[c] * x + y;
    }
    float sum = 0;
    for (int c = 0; c < CHAINS; c++)
        for (int k = 0; k < WIDTH; k++) sum += a[c][k];
    return sum;
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    volatile float sink = 0;
    double best = 1e30;
    for (int t = 0; t <= TRIALS; t++) { /* the first one wakes the cores */
        const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
        {
            const float r = spin();
#pragma omp atomic
            sink += r;
        }
        const double spent = omp_get_wtime() - start;
        if (t > 0 && spent < best) best = spent;
    }
    printf("%.1f\n", 2.0 * WIDTH * CHAINS * (double)ROUNDS * threads / best / 1e9);
    return 0;
}
