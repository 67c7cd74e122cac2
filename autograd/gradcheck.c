/* Central differences against the tape. */
#include "autograd/gradcheck.h"
#include "core/memory.h"
#include "core/ops.h"

#include <math.h>
#include <string.h>

wf_error wf_compare(int64_t n, const double *a, const double *b) {
  double diff2 = 0, b2 = 0, most = 0;
  wf_error e = {0, 0, 0};
  for (int64_t i = 0; i < n; i++) {
    double d = fabs(a[i] - b[i]);
    if (!isfinite(d)) return (wf_error){INFINITY, INFINITY, i};
    diff2 += d * d;
    b2 += b[i] * b[i];
    if (d > most) {
      most = d;
      e.worst = i;
    }
  }
  if (diff2 == 0) return e;
  if (b2 == 0) return (wf_error){INFINITY, INFINITY, e.worst};
  e.err2 = sqrt(diff2 / b2);
  e.errmax = most / sqrt(b2 / (double)n);
  return e;
}

typedef struct check {
  wf_ctx *c;
  wf_fn fn;
  const void *arg;
  int n_in, n_out;
  wf_tensor **in;
} check;

static double weight(int k, int64_t i) {
  return wf_rng_normal(wf_rng_key_make((uint64_t)k, "gradcheck", "cotangent"), (uint64_t)i);
}

/* sum_k <out[k], r_k>, computed on the host in long double. */
static wf_status objective(check *ck, double *value) {
  wf_tensor *out[WF_MAX_IN];
  wf_scope s = wf_scope_open(ck->c);
  wf_status st = ck->fn(ck->c, ck->arg, ck->n_in, ck->in, ck->n_out, out);
  if (st == WF_OK) st = wf_ctx_check(ck->c);
  long double sum = 0;
  for (int k = 0; k < ck->n_out && st == WF_OK; k++) {
    if (!out[k] || out[k]->dtype != WF_F64) continue;
    int64_t n = wf_numel(out[k]);
    double *host = wf_alloc("gradcheck", (size_t)n * sizeof *host);
    st = host ? wf_to_host(out[k], host) : WF_ENOMEM;
    for (int64_t i = 0; i < n && st == WF_OK; i++) sum += (long double)host[i] * (long double)weight(k, i);
    wf_free(host);
  }
  wf_scope_close(ck->c, s);
  *value = (double)sum;
  return st;
}

static wf_status analytic(check *ck, uint32_t wrt, wf_leaf *leaf) {
  wf_ctx *c = ck->c;
  wf_tape *t;
  WF_TRY(wf_tape_create(c, &t));
  wf_tensor *out[WF_MAX_IN], *cot[WF_MAX_IN], *root[WF_MAX_IN];
  wf_status s = WF_OK;
  for (int i = 0; i < ck->n_in && s == WF_OK; i++)
    if (wrt >> i & 1) s = wf_tape_watch(t, ck->in[i], &leaf[i]);
  if (s == WF_OK) {
    wf_tape_record(t);
    s = ck->fn(c, ck->arg, ck->n_in, ck->in, ck->n_out, out);
    wf_tape_pause(t);
    if (s == WF_OK) s = wf_ctx_check(c);
  }
  int roots = 0;
  for (int k = 0; k < ck->n_out && s == WF_OK; k++) {
    if (!out[k] || out[k]->dtype != WF_F64) continue;
    int64_t n = wf_numel(out[k]);
    double *host = wf_alloc("gradcheck", (size_t)n * sizeof *host);
    for (int64_t i = 0; host && i < n; i++) host[i] = weight(k, i);
    root[roots] = out[k];
    cot[roots] = host ? wf_from_host(c, "gradcheck", WF_F64, out[k]->ndim, out[k]->shape, host) : NULL;
    s = !host ? WF_ENOMEM : wf_is_poison(cot[roots]) ? wf_ctx_check(c) : WF_OK;
    roots++;
    wf_free(host);
  }
  if (s == WF_OK) s = wf_backward(t, roots, root, cot);
  wf_tape_free(t);
  return s;
}

static wf_status one_input(check *ck, int i, const wf_leaf *leaf, const wf_gradcheck_options *o) {
  wf_device *dev = wf_ctx_device(ck->c);
  wf_tensor *x = ck->in[i];
  int64_t n = wf_numel(x);
  double *buf;
  WF_CALLOC(buf, "gradcheck", 3 * n + 1);
  double *value = buf, *exact = buf + n, *numeric = buf + 2 * n;
  wf_status s;
  WF_TRY_GOTO(s, out, wf_to_host(x, value));
  if (leaf->written) WF_TRY_GOTO(s, out, wf_to_host(leaf->grad, exact));
  double mean2 = 0;
  for (int64_t e = 0; e < n; e++) {
    double h = o->step * fmax(1, fabs(value[e])), keep = value[e], plus, minus;
    double *at = (double *)wf_data(x) + e;
    value[e] = keep + h;
    double up = value[e];
    WF_TRY_GOTO(s, out, wf_device_write(dev, at, &value[e], sizeof *at));
    WF_TRY_GOTO(s, out, objective(ck, &plus));
    value[e] = keep - h;
    double down = value[e];
    WF_TRY_GOTO(s, out, wf_device_write(dev, at, &value[e], sizeof *at));
    WF_TRY_GOTO(s, out, objective(ck, &minus));
    value[e] = keep;
    WF_TRY_GOTO(s, out, wf_device_write(dev, at, &value[e], sizeof *at));
    numeric[e] = (plus - minus) / (up - down);
    mean2 += numeric[e] * numeric[e] / (double)n;
  }
  wf_error e = wf_compare(n, exact, numeric);
  bool bad = !(e.err2 <= o->tolerance && e.errmax <= 10 * o->tolerance);
  if (bad && mean2 < o->floor * o->floor) { /* nothing to be relative to */
    bad = false;
    for (int64_t k = 0; k < n; k++) bad |= !(fabs(exact[k] - numeric[k]) <= o->floor);
  }
  if (bad)
    s = WF_FAIL(WF_ENUMERIC,
                "input %d: err2 %.2e, errmax %.2e; element %lld has gradient %.10g, differences say %.10g", i,
                e.err2, e.errmax, (long long)e.worst, n ? exact[e.worst] : 0, n ? numeric[e.worst] : 0);
out:
  wf_free(buf);
  return s;
}

wf_status wf_gradcheck(wf_ctx *c, wf_fn fn, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                       const wf_gradcheck_options *options) {
  wf_gradcheck_options o = options ? *options : (wf_gradcheck_options){0};
  if (o.step == 0) o.step = 1e-5;
  if (o.tolerance == 0) o.tolerance = 1e-7;
  if (o.floor == 0) o.floor = 1e-6;
  wf_tensor *x[WF_MAX_IN];
  wf_leaf leaf[WF_MAX_IN];
  memset(leaf, 0, sizeof leaf);
  wf_scope s = wf_scope_open(c);
  uint32_t wrt = 0;
  wf_status st = WF_OK;
  for (int i = 0; i < n_in && st == WF_OK; i++) {
    x[i] = in[i];
    if (!in[i] || in[i]->dtype != WF_F64 || (o.wrt && !(o.wrt >> i & 1))) continue;
    if (!wf_is_contiguous(in[i])) st = WF_FAIL(WF_EINVAL, "gradcheck: input %d is not contiguous", i);
    wrt |= 1u << i;
    leaf[i].grad = wf_zeros(c, "gradcheck", WF_F64, in[i]->ndim, in[i]->shape);
    if (wf_is_poison(leaf[i].grad)) st = wf_ctx_check(c);
  }
  check ck = {c, fn, arg, n_in, n_out, x};
  if (st == WF_OK) st = analytic(&ck, wrt, leaf);
  for (int i = 0; i < n_in && st == WF_OK; i++)
    if (wrt >> i & 1) st = one_input(&ck, i, &leaf[i], &o);
  wf_scope_close(c, s);
  return st;
}

/* ---- ops ---- */

typedef struct op_arg {
  const wf_op *op;
  const wf_sample *sample;
} op_arg;

static wf_status apply_op(wf_ctx *c, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                          wf_tensor **out) {
  const op_arg *a = arg;
  wf_op_apply(c, a->op, n_in, in, a->sample->attr, out);
  for (int k = 0; k < n_out; k++)
    if (a->op->nograd_out >> k & 1) out[k] = NULL; /* statistics have no part in the objective */
  return WF_OK;
}

wf_status wf_gradcheck_op(wf_ctx *c, const wf_op *op) {
  if (!op->vjp) return WF_OK;
  for (int k = 0; k < op->n_samples; k++) {
    wf_sample smp = {.ctx = c, .real = WF_F64, .index = k};
    wf_scope s = wf_scope_open(c);
    wf_status st = op->sample(&smp);
    if (st == WF_OK) st = wf_ctx_check(c);
    wf_tensor *in[WF_MAX_IN] = {NULL}, *out[WF_MAX_OUT] = {NULL};
    wf_gradcheck_options o = {.wrt = 0};
    for (int i = 0; i < smp.n_in && st == WF_OK; i++) {
      in[i] = smp.in[i] && smp.in[i]->dtype == WF_F64 ? wf_contiguous(c, smp.in[i]) : smp.in[i];
      bool real = in[i] && in[i]->dtype == WF_F64 && !(op->nograd_in >> i & 1);
      if (real && (!smp.wrt || smp.wrt >> i & 1)) o.wrt |= 1u << i;
    }
    op_arg a = {op, &smp};
    int n_out = op->n_out;
    if (st == WF_OK && n_out < 0) { /* let infer say how many */
      wf_desc d[WF_MAX_OUT];
      wf_call call = {c, op, smp.attr, smp.n_in, 0, in, out, 0};
      st = op->infer(&call, d, &n_out);
    }
    if (st == WF_OK && o.wrt && !(op->flags & WF_OP_INPLACE))
      st = wf_gradcheck(c, apply_op, &a, smp.n_in, in, n_out, &o);
    wf_scope_close(c, s);
    if (st != WF_OK) return wf_context(st, "op %s, sample %d", op->name, k);
  }
  return WF_OK;
}
