/* What the tests of optim share: a context, groups over given numbers, errors. */
#ifndef WF_TESTS_OPTIM_TEST_H
#define WF_TESTS_OPTIM_TEST_H

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "core/op.h"
#include "core/rng.h"
#include "optim/optimizer.h"
#include "tests/check_main.h"

#define OK(expr) ck_assert_msg((expr) == WF_OK, "%s: %s\n%s", #expr, wf_error_message(), wf_error_trace())

static wf_device *dev;
static wf_ctx *ctx;

static inline void setup(void) {
  OK(wf_device_open(WF_CPU, 0, &dev));
  OK(wf_ctx_create(dev, &ctx));
}
static inline void teardown(void) {
  wf_ctx_free(ctx);
  wf_device_close(dev);
}

/* Uniform in [-1, 1), the same in f32 and f64. */
static inline double draw(int stream, int64_t i) {
  char site[16];
  snprintf(site, sizeof site, "%d", stream);
  return (double)(float)(2 * wf_rng_uniform(wf_rng_key_make(7, "test", site), (uint64_t)i) - 1);
}

static inline wf_tensor *from_doubles(wf_dtype dtype, int64_t n, const double *x) {
  float *f = calloc((size_t)n + 1, sizeof *f);
  for (int64_t i = 0; i < n; i++) f[i] = (float)x[i];
  wf_tensor *t = wf_from_host(ctx, "test", dtype, 1, &n, dtype == WF_F64 ? (const void *)x : f);
  free(f);
  ck_assert(!wf_is_poison(t));
  return t;
}

static inline void to_doubles(const wf_tensor *t, double *x) {
  int64_t n = wf_numel(t);
  OK(wf_to_host(t, x));
  if (t->dtype == WF_F32)
    for (int64_t i = n - 1; i >= 0; i--) { /* from the end: the floats lie in the front half */
      float f;
      memcpy(&f, (const float *)(const void *)x + i, sizeof f);
      x[i] = (double)f;
    }
}

static inline void overwrite(wf_tensor *t, const double *x) {
  wf_tensor *fresh = from_doubles(t->dtype, wf_numel(t), x);
  OK(wf_op_run(ctx, &wf_op_copy, 1, &fresh, NULL, 1, &t, 0));
}

/* |a - b| / |b|, and 0 for two empty vectors. */
static inline double err2(int64_t n, const double *a, const double *b) {
  double d = 0, s = 0;
  for (int64_t i = 0; i < n; i++) d += (a[i] - b[i]) * (a[i] - b[i]), s += b[i] * b[i];
  return d > 0 || isnan(d) ? sqrt(d / s) : 0;
}

/* A group of values and gradients with one range each of the given sizes; range memory is the caller's. */
static inline wf_opt_group make_group(wf_dtype dtype, int64_t n, const double *p, const double *g,
                                      int n_ranges, const wf_opt_range *range) {
  return (wf_opt_group){.value = from_doubles(dtype, n, p),
                        .grad = from_doubles(dtype, n, g),
                        .decay = true,
                        .lr_scale = 1,
                        .n_ranges = n_ranges,
                        .range = range};
}

/* An optimiser of `kind` with options set from "name=value" texts, NULL-terminated. */
static inline wf_optimizer *make_optimizer(const char *kind, const char *const *settings, int n_groups,
                                           const wf_opt_group *groups) {
  const wf_optimizer_type *type = wf_optimizer_find(kind);
  ck_assert_ptr_nonnull(type);
  void *options = calloc(1, type->options_size);
  OK(wf_options_defaults(type->options, options));
  for (; settings && *settings; settings++) {
    char name[64];
    size_t n = strcspn(*settings, "=");
    memcpy(name, *settings, n);
    name[n] = '\0';
    OK(wf_options_set(type->options, options, name, *settings + n + 1));
  }
  wf_optimizer *opt = NULL;
  OK(wf_optimizer_create(ctx, type, options, n_groups, groups, &opt));
  wf_options_free(type->options, options);
  free(options);
  return opt;
}

#endif
