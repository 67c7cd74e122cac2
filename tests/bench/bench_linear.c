/* The linear-recurrence family, forward and backward, f32, B 1, H 4, all threads:
 *
 *     OMP_NUM_THREADS=2 build/tests/bench_linear [MEMBER [K = V [LONGEST [LOW]]]]
 *
 * A line for each length: nanoseconds a token and head of the kernel's own choice, forward and backward; the
 * same of the recurrence token by token (chunk 1), as far as 4,096 tokens; of blockwise attention with the
 * same q, k, v, as far as 8,192; and 14 K V operations a token and head (20 with the delta rule) over the
 * time, as a share of this machine's sgemm. Log decays are uniform in [LOW, 0]. Each time is the best of
 * several.
 */
#include "autograd/tape.h"
#include "core/ops.h"
#include "experiments/rates.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { H = 4, VARS = 5 }; /* q, k, v, g, w or beta */

typedef struct member {
  const char *name;
  int decay; /* dimensions of g; 0: none */
  enum write { ADDITIVE, WEIGHTED, DELTA } write;
} member;
static const member members[] = {{"none", 0, ADDITIVE},      {"scalar", 2, ADDITIVE},
                                 {"channel", 3, ADDITIVE},   {"channel_weighted", 3, WEIGHTED},
                                 {"delta", 0, DELTA},        {"gated_delta", 2, DELTA},
                                 {"channel_delta", 3, DELTA}};

typedef struct bench {
  wf_ctx *c;
  const wf_rows *rows;
  const member *m; /* NULL: attention */
  int64_t chunk;
  wf_tensor *x[VARS], *span;
  wf_leaf leaf[VARS];
} bench;

static wf_tensor *run(const bench *b) {
  double scale = 1 / sqrt((double)b->x[0]->shape[2]);
  if (!b->m) {
    wf_attend_options o = {.scale = scale, .kind = WF_ATTEND_SOFTMAX};
    return wf_attend(b->c, b->x[0], b->x[1], b->x[2], b->span, NULL, NULL, NULL, &o);
  }
  wf_scan_options o = {.scale = scale, .chunk = b->chunk};
  wf_scan_in in = {.q = b->x[0], .k = b->x[1], .v = b->x[2], .g = b->x[3]};
  *(b->m->write == DELTA ? &in.beta : &in.w) = b->x[4];
  return wf_scan(b->c, &in, NULL, b->rows, &o, NULL);
}

static wf_status once(bench *b, wf_tape *tape, double *forward, double *backward) {
  for (int i = 0; i < VARS; i++) {
    if (!b->x[i]) continue;
    wf_leaf_reset(&b->leaf[i]);
    WF_TRY(wf_tape_watch(tape, b->x[i], &b->leaf[i]));
  }
  double t0 = wf_now();
  wf_tape_record(tape);
  wf_tensor *y = run(b);
  wf_tape_pause(tape);
  *forward = wf_now() - t0;
  WF_TRY(wf_ctx_check(b->c));
  t0 = wf_now();
  WF_TRY(wf_backward(tape, 1, &y, &b->x[2]));
  *backward = wf_now() - t0;
  return WF_OK;
}

/* Nanoseconds a token and head. */
static wf_status best(bench *b, double *forward, double *backward) {
  wf_tape *tape;
  WF_TRY(wf_tape_create(b->c, &tape));
  *forward = *backward = 1e30;
  wf_status st = WF_OK;
  double start = wf_now();
  for (int i = 0; (i < 3 || wf_now() - start < 0.7) && st == WF_OK; i++) {
    wf_scope s = wf_scope_open(b->c);
    double f = 1, w = 1;
    st = once(b, tape, &f, &w);
    wf_scope_close(b->c, s);
    if (f < *forward) *forward = f;
    if (w < *backward) *backward = w;
  }
  wf_tape_free(tape);
  double each = 1e9 / (double)(b->x[2]->shape[0] * H);
  *forward *= each, *backward *= each;
  return st;
}

static wf_status line(bench b, const member *m, int64_t T, int64_t K, double low, double rate) {
  wf_ctx *c = b.c;
  wf_rows *rows;
  WF_TRY(wf_rows_fresh(c, 1, T, 0, &rows));
  wf_sample s = {.ctx = c, .real = WF_F32};
  for (int i = 0; i < 3; i++) b.x[i] = wf_sample_real(&s, WF_SHAPE(T, H, K));
  b.x[1] = wf_l2norm(c, b.x[1], 1e-6); /* as the delta rule wants keys */
  wf_tensor *g = m->decay ? wf_sample_range(&s, m->decay, (int64_t[]){T, H, K}, low, 0) : NULL;
  wf_tensor *w = m->write != ADDITIVE ? wf_sample_range(&s, WF_SHAPE(T, H), 0.1, 0.9) : NULL;
  b.span = wf_from_host(c, "bench", WF_I64, WF_SHAPE(1, 4), (int64_t[]){0, T, 0, 0});
  b.rows = rows;
  for (int i = 0; i < 3; i++) b.leaf[i].grad = wf_zeros(c, "bench", WF_F32, 3, b.x[i]->shape);
  double f = 0, w_ = 0;
  printf("%-16s %4lld %7lld", m->name, (long long)K, (long long)T);
  bench kernel = b;
  kernel.m = m, kernel.x[3] = g, kernel.x[4] = w;
  for (int i = 3; i < VARS; i++)
    if (kernel.x[i])
      kernel.leaf[i].grad = wf_zeros(c, "bench", WF_F32, kernel.x[i]->ndim, kernel.x[i]->shape);
  WF_TRY(best(&kernel, &f, &w_));
  printf(" %8.1f %8.1f  %5.1f %%", f, w_,
         100 * (m->write == DELTA ? 20 : 14) * (double)(K * K) / ((f + w_) * 1e-9) / rate);
  if (T <= 4096) {
    kernel.chunk = 1;
    WF_TRY(best(&kernel, &f, &w_));
    printf("   %8.1f %8.1f", f, w_);
  } else {
    printf("   %8s %8s", "", "");
  }
  if (T <= 8192) {
    WF_TRY(best(&b, &f, &w_));
    printf("   %8.1f %8.1f", f, w_);
  }
  printf("\n");
  fflush(stdout);
  wf_rows_free(rows);
  return wf_ctx_check(c);
}

int main(int argc, char **argv) {
  wf_device *dev;
  wf_ctx *c;
  const char *name = argc > 1 ? argv[1] : "all";
  int64_t only = argc > 2 ? atoll(argv[2]) : 0, longest = argc > 3 ? atoll(argv[3]) : 65536;
  double low = argc > 4 ? atof(argv[4]) : -0.2, rate = 1;
  wf_status st = wf_device_open(WF_CPU, 0, &dev);
  if (st == WF_OK) st = wf_ctx_create(dev, &c);
  if (st == WF_OK) st = wf_rate_matrix(c, 1024, 1, &rate);
  if (st == WF_OK)
    printf("sgemm %.0f GF/s; nanoseconds a token and head, forward and backward\n%-16s %4s %7s %17s  %7s   "
           "%17s   "
           "%17s\n",
           rate / 1e9, "decay", "K=V", "T", "chosen", "sgemm", "recurrence", "attention");
  for (size_t i = 0; i < sizeof members / sizeof *members; i++)
    for (int64_t K = 32; K <= 256; K *= 2)
      for (int64_t T = 64; T <= longest && st == WF_OK; T *= 4) {
        if (strcmp(name, "all") != 0 && strcmp(name, members[i].name) != 0) continue;
        if (only ? K != only : K != 64 && K != 128) continue;
        wf_scope s = wf_scope_open(c);
        st = line((bench){.c = c}, &members[i], T, K, low, rate);
        wf_scope_close(c, s);
      }
  if (st != WF_OK) {
    fprintf(stderr, "%s\n", wf_error_message());
    return 1;
  }
  wf_ctx_free(c);
  wf_device_close(dev);
  return 0;
}
