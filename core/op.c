/* The op registry, dispatch (validate, infer, allocate, run, record) and the profile. */
#include "core/clock.h"
#include "core/ctx_impl.h"
#include "core/memory.h"
#include "core/ops.h"

#include <stdlib.h>
#include <string.h>

/* ---- registry ---- */

static const wf_op *const core_ops[] = {
#define WF_OP(name) &wf_op_##name,
#include "core/ops.def"
#undef WF_OP
};
enum { N_CORE = sizeof core_ops / sizeof *core_ops, MAX_ADDED = 512 };

static const wf_op *added[MAX_ADDED];
static int n_added;

int wf_op_count(void) {
  return N_CORE + n_added;
}
const wf_op *wf_op_at(int i) {
  return i < 0 || i >= wf_op_count() ? NULL : i < N_CORE ? core_ops[i] : added[i - N_CORE];
}
const wf_op *wf_op_find(const char *name) {
  for (int i = 0; i < wf_op_count(); i++)
    if (strcmp(wf_op_at(i)->name, name) == 0) return wf_op_at(i);
  return NULL;
}
wf_status wf_op_register(const wf_op *op) {
  const wf_op *have = wf_op_find(op->name);
  if (have == op) return WF_OK;
  if (have) return WF_FAIL(WF_EEXISTS, "an op named '%s' is registered already", op->name);
  if (!op->vjp && !op->nondiff)
    return WF_FAIL(WF_EINVAL, "op '%s' has neither a gradient nor a reason for having none", op->name);
  if (n_added == MAX_ADDED) return WF_FAIL(WF_EINVAL, "more than %d ops added", MAX_ADDED);
  added[n_added++] = op;
  return WF_OK;
}

/* ---- profile ---- */

void wf_ctx_profile(wf_ctx *c, bool on) {
  c->profiling = on;
  c->n_profile = 0;
}

/* What a kernel does of the op's cost: those beside the op's own (wf_carry) form A and B. */
static double share_of(const wf_call *call, wf_cpu_fn fn) {
  const wf_carry *y = call->op->carry;
  wf_desc A = {.ndim = 0};
  if (!y || !fn || (fn != y->factor && fn != y->advance)) return 1;
  if (y->kind(call, &A) == WF_CARRY_DENSE) return y->share / 2; /* A is a scan as well */
  return fn == y->advance ? y->share : 0;
}

static void add_profile(wf_ctx *c, const wf_call *call, wf_cpu_fn fn, double seconds) {
  double flops = 0, bytes = 0, share = share_of(call, fn);
  if (call->op->cost)
    call->op->cost(call, &flops, &bytes);
  else {
    for (int i = 0; i < call->n_in; i++)
      if (call->in[i]) bytes += (double)wf_numel(call->in[i]) * (double)wf_dtype_size(call->in[i]->dtype);
    for (int i = 0; i < call->n_out; i++)
      bytes += (double)wf_numel(call->out[i]) * (double)wf_dtype_size(call->out[i]->dtype);
  }
  int i = 0;
  while (i < c->n_profile && (c->profile[i].op != call->op || c->profile[i].label != c->label)) i++;
  if (i == c->n_profile) {
    if (wf_grow("profile", (void **)&c->profile, sizeof *c->profile, (size_t)i, &c->cap_profile) != WF_OK)
      return;
    c->profile[c->n_profile++] = (wf_op_profile){.op = call->op, .label = c->label};
  }
  wf_op_profile *p = &c->profile[i];
  p->calls++;
  p->seconds += seconds;
  p->flops += share * flops;
  p->bytes += share * bytes;
}

static int slower_first(const void *a, const void *b) {
  double x = ((const wf_op_profile *)a)->seconds, y = ((const wf_op_profile *)b)->seconds;
  return (x < y) - (x > y);
}

int wf_ctx_profile_read(const wf_ctx *c, wf_op_profile *out, int max) {
  int n = c->n_profile < max ? c->n_profile : max;
  if (c->n_profile > 1) qsort(c->profile, (size_t)c->n_profile, sizeof *c->profile, slower_first);
  if (n) memcpy(out, c->profile, (size_t)n * sizeof *out);
  return n;
}

const char *wf_ctx_set_label(wf_ctx *c, const char *label) {
  const char *old = c->label;
  c->label = label;
  return old;
}
const char *wf_ctx_label(const wf_ctx *c) {
  return c->label;
}

int64_t wf_ctx_copies(const wf_ctx *c) {
  return c->copies;
}

wf_recorder wf_ctx_set_recorder(wf_ctx *c, wf_recorder r) {
  wf_recorder old = c->recorder;
  c->recorder = r;
  return old;
}
wf_recorder wf_ctx_recorder(const wf_ctx *c) {
  return c->recorder;
}

/* ---- dispatch ---- */

wf_tensor *wf_contiguous_raw(wf_ctx *c, const wf_tensor *t) {
  if (wf_is_contiguous(t)) return (wf_tensor *)t;
  wf_tensor *flat = wf_empty_like(c, "activation", t);
  if (wf_is_poison(flat)) return flat;
  c->copies++;
  wf_status s = wf_op_run(c, &wf_op_copy, 1, (wf_tensor *const[]){(wf_tensor *)t}, NULL, 1, &flat, 0);
  return s == WF_OK ? flat : wf_poison(c, s);
}

/* Bring in[i] into a layout the kernel takes. */
static wf_tensor *laid_out(wf_ctx *c, const wf_op *op, int i, wf_tensor *t) {
  if (!t || op->strided >> i & 1) return t;
  if (op->rowmajor >> i & 1) {
    int last = t->ndim - 1;
    if (last < 0 || t->stride[last] == 1 || t->shape[last] <= 1) return t;
  }
  return wf_contiguous_raw(c, t);
}

/* What a composed op runs is labelled. */
static wf_status run_labelled(const wf_call *call, wf_cpu_fn fn) {
  wf_ctx *c = call->ctx;
  if (!call->op->composed) return fn(call);
  const char *label = wf_ctx_set_label(c, c->label ? c->label : call->op->name);
  wf_status s = fn(call);
  wf_ctx_set_label(c, label);
  return s;
}

wf_status wf_op_run_beside(const wf_call *call, wf_cpu_fn fn) {
  const wf_op *op = call->op;
  wf_ctx *c = call->ctx;
  bool on_paper = wf_device_on_paper(c->dev);
  if (on_paper && !op->composed) {
    if (c->profiling) add_profile(c, call, fn, 0);
    return WF_OK;
  }
  if (!c->profiling || on_paper) return run_labelled(call, fn);
  wf_device_sync(c->dev);
  double t0 = wf_now();
  wf_status s = run_labelled(call, fn);
  wf_device_sync(c->dev);
  add_profile(c, call, fn, wf_now() - t0);
  return s;
}

static wf_status run_kernel(const wf_call *call) {
  const wf_op *op = call->op;
  wf_ctx *c = call->ctx;
  wf_cpu_fn fn = NULL;
  if (wf_device_kind(c->dev) == WF_CUDA)
    fn = op->cuda;
  else if (op->cpu) {
    bool f64 = false, first = op->flags & WF_OP_TYPE_OF_FIRST;
    for (int i = 0; i < (first ? 1 : call->n_in); i++) f64 |= call->in[i] && call->in[i]->dtype == WF_F64;
    for (int i = 0; i < (first ? 0 : call->n_out); i++) f64 |= call->out[i]->dtype == WF_F64;
    fn = (f64 ? op->cpu->f64 : op->cpu->f32)[wf_device_isa(c->dev)];
  }
  if (!fn) return WF_FAIL(WF_EUNSUPPORTED, "op '%s' has no kernel for %s", op->name, wf_device_name(c->dev));
  return wf_op_run_beside(call, fn);
}

/* Outputs that are slices the kernel cannot write: contiguous scratch for them, and the copy afterwards. */
static bool writable(const wf_op *op, int i, const wf_tensor *t) {
  bool slices = op->flags & WF_OP_JOINED_OUT || op == &wf_op_copy || op->rowmajor_out >> i & 1;
  return slices || op->flags & WF_OP_INPLACE || wf_is_contiguous(t);
}

static wf_status run_to_slices(wf_call *call, wf_tensor *const *out) {
  wf_ctx *c = call->ctx;
  wf_tensor *tmp[WF_MAX_OUT];
  uint32_t add = call->add;
  for (int i = 0; i < call->n_out; i++) {
    bool direct = writable(call->op, i, out[i]);
    tmp[i] = direct ? out[i] : wf_empty_like(c, "activation", out[i]);
    if (wf_is_poison(tmp[i])) return wf_ctx_check(c);
    if (!direct) call->add &= ~(1u << i);
  }
  call->out = tmp;
  WF_TRY(run_kernel(call));
  for (int i = 0; i < call->n_out; i++) {
    if (tmp[i] == out[i]) continue;
    c->copies++;
    WF_TRY(wf_op_run(c, &wf_op_copy, 1, &tmp[i], NULL, 1, &out[i], add >> i & 1));
  }
  return WF_OK;
}

static wf_status check_inputs(const wf_op *op, int n_in, wf_tensor *const *in) {
  if (n_in < op->min_in || n_in > op->max_in)
    return WF_FAIL(WF_EINVAL, "op '%s' takes %d to %d inputs, not %d", op->name, op->min_in, op->max_in,
                   n_in);
  for (int i = 0; i < n_in; i++)
    if (!in[i] && !(op->optional >> i & 1))
      return WF_FAIL(WF_EINVAL, "input %d of op '%s' is missing", i, op->name);
  return WF_OK;
}

wf_status wf_op_run(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, const void *attr, int n_out,
                    wf_tensor *const *out, uint32_t add) {
  WF_TRY(check_inputs(op, n_in, in));
  if (add & ~op->adds) return WF_FAIL(WF_EINTERNAL, "op '%s' cannot add to its outputs", op->name);
  for (int i = 0; i < n_in; i++)
    if (in[i] && wf_is_poison(in[i])) return wf_ctx_failure(c);
  for (int i = 0; i < n_out; i++)
    if (wf_is_poison(out[i])) return wf_ctx_failure(c);
  wf_scope s = wf_scope_open(c);
  wf_tensor *tmp[WF_MAX_IN];
  wf_call call = {c, op, attr, n_in, n_out, tmp, out, add};
  wf_status st = WF_OK;
  for (int i = 0; i < n_in; i++) {
    tmp[i] = laid_out(c, op, i, in[i]);
    if (tmp[i] && wf_is_poison(tmp[i])) st = c->status;
  }
  bool direct = true;
  for (int i = 0; i < n_out; i++) direct &= writable(op, i, out[i]);
  if (st == WF_OK) st = direct ? run_kernel(&call) : run_to_slices(&call, out);
  wf_scope_close(c, s);
  if (st == WF_OK) return WF_OK;
  wf_ctx_check(c); /* a failure is returned or sticky, not both */
  return wf_frame_at(op->name, 0, "wf_op_run", st);
}

static wf_status joined_outputs(wf_ctx *c, const wf_desc *d, int n, wf_tensor **out) {
  int64_t rows = 1, width = 0;
  for (int i = 0; i + 1 < d[0].ndim; i++) rows *= d[0].shape[i];
  for (int k = 0; k < n; k++) width += d[k].shape[d[k].ndim - 1];
  wf_tensor *whole = wf_empty(c, "activation", d[0].dtype, WF_SHAPE(rows, width));
  int64_t at = 0;
  for (int k = 0; k < n; k++) {
    int64_t stride[WF_MAX_DIMS], s = width;
    int last = d[k].ndim - 1;
    stride[last] = 1;
    for (int i = last - 1; i >= 0; i--) {
      stride[i] = s;
      s *= d[k].shape[i];
    }
    out[k] = wf_view_raw(whole, d[k].ndim, d[k].shape, stride, at);
    if (wf_is_poison(out[k])) return wf_ctx_failure(c);
    at += d[k].shape[last];
  }
  return WF_OK;
}

wf_status wf_op_alloc_joined(wf_ctx *c, int n, wf_tensor *const *like, wf_tensor **out) {
  wf_desc d[WF_MAX_OUT];
  for (int k = 0; k < n; k++) {
    d[k].dtype = like[k]->dtype;
    d[k].ndim = like[k]->ndim;
    memcpy(d[k].shape, like[k]->shape, sizeof d[k].shape);
  }
  return joined_outputs(c, d, n, out);
}

static wf_status apply(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, const void *attr,
                       wf_tensor **out, int *n_out) {
  WF_TRY(check_inputs(op, n_in, in));
  wf_call call = {c, op, attr, n_in, 0, in, out, 0};
  if (op->flags & WF_OP_VIEW) {
    out[0] = op->view(&call);
    *n_out = call.n_out = 1;
    if (wf_is_poison(out[0])) return wf_ctx_failure(c);
  } else {
    wf_desc d[WF_MAX_OUT];
    int n = op->n_out;
    WF_TRY(op->infer(&call, d, &n));
    *n_out = call.n_out = n;
    if (op->flags & WF_OP_INPLACE) {
      out[0] = wf_view_raw(in[0], in[0]->ndim, in[0]->shape, in[0]->stride, 0);
      if (wf_is_poison(out[0])) return wf_ctx_failure(c);
      out[0]->var = in[0]->var;
      out[0]->tape = in[0]->tape;
    } else if (op->flags & WF_OP_JOINED_OUT) {
      WF_TRY(joined_outputs(c, d, n, out));
    }
    for (int i = op->flags & WF_OP_JOINED_OUT ? n : op->flags & WF_OP_INPLACE ? 1 : 0; i < n; i++)
      out[i] = wf_empty(c, "activation", d[i].dtype, d[i].ndim, d[i].shape);
    for (int i = 0; i < n; i++)
      if (wf_is_poison(out[i])) return wf_ctx_failure(c);
    WF_TRY(wf_op_run(c, op, n_in, in, attr, n, out, 0));
  }
  if (c->recorder.record) WF_TRY(c->recorder.record(c->recorder.self, &call));
  return WF_OK;
}

wf_tensor *wf_op_apply(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, const void *attr,
                       wf_tensor **out) {
  wf_tensor *made[WF_MAX_OUT];
  int n = op->n_out > 0 ? op->n_out : 0;
  bool poisoned = c->status != WF_OK;
  for (int i = 0; i < n_in; i++) poisoned |= in[i] && wf_is_poison(in[i]);
  wf_status s = poisoned ? c->status : apply(c, op, n_in, in, attr, made, &n);
  if (poisoned || s != WF_OK) {
    if (s != WF_OK && !poisoned) wf_frame_at(op->name, 0, "wf_op_apply", s);
    for (int i = 0; i < WF_MAX_OUT; i++) made[i] = wf_poison(c, s);
    if (n < 1) n = WF_MAX_OUT;
  }
  if (out) memcpy(out, made, (size_t)n * sizeof *out);
  return made[0];
}

wf_tensor *wf_op_apply_rows(wf_ctx *c, const wf_rows *rows, const wf_op *op, int n_in, wf_tensor *const *in,
                            const void *attr, wf_tensor **out) {
  if (!rows->carrier) return wf_op_apply(c, op, n_in, in, attr, out);
  return rows->carrier->apply(rows->carrier, c, op, n_in, in, attr, out);
}
