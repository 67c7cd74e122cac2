/* op_trial: an op run on one of its samples, and the outcome compared, for the tests that go over the table.
 */
#ifndef WF_TESTS_OP_TRIAL_H
#define WF_TESTS_OP_TRIAL_H

#include <check.h>
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"

/* The outputs of one run, as doubles. */
typedef struct result {
  int n;
  int64_t size[WF_MAX_OUT];
  double *value[WF_MAX_OUT];
} result;

static inline void drop(result *r) {
  for (int i = 0; i < r->n; i++) wf_free(r->value[i]);
}

static inline double *doubles(wf_ctx *c, wf_tensor *t) {
  int64_t n = wf_numel(t);
  double *v = wf_alloc("test", (size_t)(n ? n : 1) * sizeof *v);
  ck_assert_ptr_nonnull(v);
  if (t->dtype <= WF_F64) {
    wf_status s = wf_to_host(wf_cast(c, t, WF_F64), v);
    ck_assert_msg(s == WF_OK, "%s", wf_error_message());
    return v;
  }
  for (int64_t i = 0; i < n; i++) {
    wf_tensor *one = wf_view_raw(wf_contiguous(c, t), 0, NULL, NULL, i);
    ck_assert(wf_item(one, &v[i]) == WF_OK);
  }
  return v;
}

static inline result outputs(wf_ctx *c, const char *name, int sample, int n, wf_tensor **out) {
  result r = {.n = n};
  wf_status s = wf_ctx_check(c);
  ck_assert_msg(s == WF_OK, "op %s, sample %d: %s", name, sample, wf_error_message());
  for (int i = 0; i < n; i++) {
    r.size[i] = wf_numel(out[i]);
    r.value[i] = doubles(c, out[i]);
  }
  return r;
}

static inline wf_sample make_sample(wf_ctx *c, const wf_op *op, int k, wf_dtype real) {
  wf_sample s = {.ctx = c, .real = real, .index = k};
  ck_assert_msg(op->sample(&s) == WF_OK, "op %s, sample %d: %s", op->name, k, wf_error_message());
  ck_assert_msg(wf_ctx_check(c) == WF_OK, "op %s, sample %d: %s", op->name, k, wf_error_message());
  return s;
}

static inline int n_outputs(const wf_op *op, const wf_sample *s) {
  if (op->n_out > 0) return op->n_out;
  wf_desc d[WF_MAX_OUT];
  int n = 0;
  wf_call call = {s->ctx, op, s->attr, s->n_in, 0, s->in, NULL, 0};
  ck_assert(op->infer(&call, d, &n) == WF_OK);
  return n;
}

static inline result run(wf_ctx *c, const wf_op *op, int k, wf_dtype real, bool contiguous) {
  wf_scope scope = wf_scope_open(c);
  wf_sample s = make_sample(c, op, k, real);
  if (contiguous)
    for (int i = 0; i < s.n_in; i++)
      if (s.in[i]) s.in[i] = wf_contiguous(c, s.in[i]);
  int n = n_outputs(op, &s);
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, op, s.n_in, s.in, s.attr, out);
  result r = outputs(c, op->name, k, n, out);
  wf_scope_close(c, scope);
  return r;
}

static inline void expect_near(const wf_op *op, int k, const char *what, result a, result b,
                               double tolerance) {
  ck_assert_int_eq(a.n, b.n);
  for (int i = 0; i < a.n; i++) {
    ck_assert_int_eq(a.size[i], b.size[i]);
    wf_error e = wf_compare(a.size[i], a.value[i], b.value[i]);
    ck_assert_msg(e.err2 <= tolerance && e.errmax <= 10 * tolerance,
                  "op %s, sample %d, output %d, %s: err2 %.2e, errmax %.2e at %lld: %.9g, not %.9g", op->name,
                  k, i, what, e.err2, e.errmax, (long long)e.worst, a.value[i][e.worst], b.value[i][e.worst]);
  }
}

#endif
