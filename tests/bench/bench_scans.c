/* The elementwise scans and Mamba's selective scan against their floors on this machine, f32, all threads.
 *
 *   bench_scans [tokens [channels [states]]]
 *
 * scan_diag, scan_sum and scan_max read and write memory: their floor is the bytes they must move at the rate
 * of a copy. selective_scan's is 2 N exponentials for each token and channel, forward and backward, at the
 * rate of vectors of exponentials in cache. Each time is the best of several.
 */
#include "autograd/tape.h"
#include "core/ops.h"
#include "experiments/rates.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_VARS = 6, TRIALS = 7 };

typedef struct bench {
  wf_ctx *c;
  const wf_rows *rows;
  int n;
  wf_tensor *x[MAX_VARS];
  wf_leaf leaf[MAX_VARS];
  wf_tensor *(*scan)(const struct bench *b);
} bench;

static wf_tensor *diag(const bench *b) {
  return wf_scan_diag(b->c, b->x[0], b->x[1], NULL, NULL, b->rows, NULL);
}
static wf_tensor *sum(const bench *b) {
  return wf_scan_diag(b->c, b->x[0], NULL, NULL, NULL, b->rows, NULL);
}
static wf_tensor *max(const bench *b) {
  wf_tensor *drop;
  return wf_scan_max(b->c, b->x[0], b->x[1], NULL, NULL, b->rows, &drop, NULL);
}
static wf_tensor *selective(const bench *b) {
  wf_selective_in in = {b->x[0], b->x[1], b->x[2], b->x[3], b->x[4], b->x[5], NULL};
  return wf_selective_scan(b->c, &in, NULL, b->rows, NULL);
}

/* One forward, and one backward where the scan has one; their seconds. */
static wf_status once(bench *b, wf_tape *tape, double *forward, double *backward) {
  for (int i = 0; i < b->n; i++) {
    wf_leaf_reset(&b->leaf[i]);
    WF_TRY(wf_tape_watch(tape, b->x[i], &b->leaf[i]));
  }
  double t0 = wf_now();
  wf_tape_record(tape);
  wf_tensor *y = b->scan(b);
  wf_tape_pause(tape);
  *forward = wf_now() - t0;
  WF_TRY(wf_ctx_check(b->c));
  t0 = wf_now();
  WF_TRY(wf_backward(tape, 1, &y, &b->x[0])); /* any cotangent of y's shape */
  *backward = wf_now() - t0;
  return WF_OK;
}

static wf_status best(bench *b, double *forward, double *backward) {
  wf_tape *tape;
  WF_TRY(wf_tape_create(b->c, &tape));
  for (int i = 0; i < b->n; i++)
    b->leaf[i].grad = wf_zeros(b->c, "bench", WF_F32, b->x[i]->ndim, b->x[i]->shape);
  *forward = *backward = 1e30;
  wf_status st = wf_ctx_check(b->c);
  for (int i = 0; i < TRIALS && st == WF_OK; i++) {
    wf_scope s = wf_scope_open(b->c);
    double f = 1, w = 1;
    st = once(b, tape, &f, &w);
    wf_scope_close(b->c, s);
    if (f < *forward) *forward = f;
    if (w < *backward) *backward = w;
  }
  wf_tape_free(tape);
  return st;
}

static wf_status memory_row(bench *b, const char *name, double forward_words, double backward_words,
                            double rate) {
  double f = 1, w = 1;
  WF_TRY(best(b, &f, &w));
  double bytes = 4.0 * (double)wf_numel(b->x[0]);
  printf("%-16s forward %8.3f ms, %.2f of the copy rate", name, f * 1e3, bytes * forward_words / f / rate);
  if (backward_words > 0) printf("; backward %8.3f ms, %.2f", w * 1e3, bytes * backward_words / w / rate);
  printf("\n");
  return WF_OK;
}

static wf_status run(wf_ctx *c, int64_t n, int64_t d, int64_t N) {
  double read, copy, exps, f = 1, w = 1;
  WF_TRY(wf_rate_memory(c, 0.3, &read, &copy));
  WF_TRY(wf_rate_exp(c, 0.3, &exps));
  printf("%lld tokens, %lld channels, %lld states; copies %.1f GB/s, %.2f G exponentials/s\n", (long long)n,
         (long long)d, (long long)N, copy / 1e9, exps / 1e9);
  wf_rows *rows;
  WF_TRY(wf_rows_fresh(c, 1, n, 0, &rows));
  wf_sample s = {.ctx = c, .real = WF_F32};
  wf_tensor *x = wf_sample_real(&s, WF_SHAPE(n, d)), *g = wf_sample_range(&s, WF_SHAPE(n, d), -1, 0);
  bench b = {.c = c, .rows = rows, .n = 2, .x = {x, g}, .scan = diag};
  WF_TRY(memory_row(&b, "scan_diag", 3, 5, copy));
  b.n = 1, b.scan = sum;
  WF_TRY(memory_row(&b, "scan_sum", 2, 2, copy));
  b.n = 2, b.scan = max;
  WF_TRY(memory_row(&b, "scan_max", 4, 0, copy));
  b = (bench){.c = c,
              .rows = rows,
              .n = 6,
              .x = {x, wf_sample_range(&s, WF_SHAPE(n, d), 0.001, 0.1),
                    wf_sample_range(&s, WF_SHAPE(d, N), -16, -1), wf_sample_real(&s, WF_SHAPE(n, N)),
                    wf_sample_real(&s, WF_SHAPE(n, N)), wf_sample_real(&s, WF_SHAPE(d))},
              .scan = selective};
  WF_TRY(best(&b, &f, &w));
  double floor = 2.0 * (double)(n * d * N) / exps;
  printf("%-16s forward %8.3f ms, backward %8.3f ms, together %.2f of 2 N exponentials\n", "selective_scan",
         f * 1e3, w * 1e3, (f + w) / floor);
  wf_rows_free(rows);
  return wf_ctx_check(c);
}

int main(int argc, char **argv) {
  wf_device *dev;
  wf_ctx *c;
  int64_t n = argc > 1 ? atoll(argv[1]) : 4096, d = argc > 2 ? atoll(argv[2]) : 1536,
          N = argc > 3 ? atoll(argv[3]) : 16;
  if (wf_device_open(WF_CPU, 0, &dev) != WF_OK || wf_ctx_create(dev, &c) != WF_OK ||
      run(c, n, d, N) != WF_OK) {
    fprintf(stderr, "%s\n", wf_error_message());
    return 1;
  }
  wf_ctx_free(c);
  wf_device_close(dev);
  return 0;
}
