/* What the tests of the sequence ops share: a context, numbers, comparisons, rows. */
#ifndef WF_TESTS_CORE_SEQ_TEST_H
#define WF_TESTS_CORE_SEQ_TEST_H

#include "tests/check_main.h"
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static wf_device *dev;
static wf_ctx *ctx;

static inline void open_cpu(void) {
  ck_assert_int_eq(wf_device_open(WF_CPU, 0, &dev), WF_OK);
  ck_assert_int_eq(wf_ctx_create(dev, &ctx), WF_OK);
}
static inline void close_cpu(void) {
  wf_ctx_free(ctx);
  wf_device_close(dev);
  ck_assert_int_eq(wf_mem_live(), 0);
}

static inline void ok(wf_status s) {
  ck_assert_msg(s == WF_OK, "%s\n%s", wf_error_message(), wf_error_trace());
}

static inline double *doubles(int64_t n) {
  double *p = calloc((size_t)n + 1, sizeof *p);
  ck_assert_ptr_nonnull(p);
  return p;
}
/* Normal numbers that float holds exactly. */
static inline double *numbers(int64_t n, const char *site) {
  double *p = doubles(n);
  wf_rng_key key = wf_rng_key_make(3, "test", site);
  for (int64_t i = 0; i < n; i++) p[i] = (double)(float)wf_rng_normal(key, (uint64_t)i);
  return p;
}
static inline wf_tensor *tensor(wf_dtype dtype, int ndim, const int64_t *shape, const double *x) {
  if (!x) return NULL;
  if (dtype == WF_F64) return wf_from_host(ctx, "test", dtype, ndim, shape, x);
  int64_t n = 1;
  for (int i = 0; i < ndim; i++) n *= shape[i];
  float *f = calloc((size_t)n + 1, sizeof *f);
  for (int64_t i = 0; i < n; i++) f[i] = (float)x[i];
  wf_tensor *t = wf_from_host(ctx, "test", dtype, ndim, shape, f);
  free(f);
  return t;
}
static inline double *values(const wf_tensor *t) {
  int64_t n = wf_numel(t);
  double *d = doubles(n);
  if (t->dtype == WF_F64) {
    ok(wf_to_host(t, d));
    return d;
  }
  float *f = calloc((size_t)n + 1, sizeof *f);
  ok(wf_to_host(t, f));
  for (int64_t i = 0; i < n; i++) d[i] = (double)f[i];
  free(f);
  return d;
}

/* Root mean square and largest error (at 10 times) relative to that of `want`, at least `scale`. */
static inline void near(const char *what, int64_t n, const double *got, const double *want, double tolerance,
                        double scale) {
  double diff2 = 0, want2 = 0, most = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs(got[i] - want[i]);
    if (!isfinite(d)) /* an assertion an element would write to the framework's log each time */
      ck_abort_msg("%s[%lld] is %g, expected %g", what, (long long)i, got[i], want[i]);
    diff2 += d * d;
    want2 += want[i] * want[i];
    most = fmax(most, d);
  }
  double rms = n ? fmax(sqrt(want2 / (double)n), scale) : 0, err = n ? sqrt(diff2 / (double)n) : 0;
  ck_assert_msg(err <= tolerance * rms && most <= 10 * tolerance * rms,
                "%s [%lld]: rms error %.2e, largest %.2e of rms %.2e", what, (long long)n, err, most, rms);
}
static inline void near_tensor(const char *what, const wf_tensor *got, const double *want, double tolerance,
                               double scale) {
  double *d = values(got);
  near(what, wf_numel(got), d, want, tolerance, scale);
  free(d);
}

/* A variable of the tape with its own gradient. */
typedef struct var {
  wf_tensor *x;
  wf_leaf leaf;
} var;

static inline void watch(wf_tape *tape, var *v, wf_tensor *x) {
  *v = (var){.x = x};
  if (!x) return;
  v->leaf.grad = wf_zeros(ctx, "test", x->dtype, x->ndim, x->shape);
  ok(wf_tape_watch(tape, x, &v->leaf));
}

#endif
