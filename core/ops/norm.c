/* norm: RMS, layer and L2 normalisation over the last dimension, alone or of a sum x + r in one pass.
 *
 * Nothing but the input is saved: the gradient forms the statistics of a row again while the row is in cache.
 * The gradients of weight and bias are summed by each thread's range of rows, in double every 32 rows, and
 * the ranges are combined in order. */
#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/memory.h"
#  include "core/ops/lines_impl.h"

/* 1 / d, by which sums become means; 1 for L2. */
static real share_of(const norm_attr *o, int64_t d) {
  return o->kind == L2 ? R(1.0) : R(1.0) / (real)(d > 0 ? d : 1);
}

static real mean_of(const real *x, int64_t d) {
  real s = 0;
#  pragma omp simd reduction(+ : s)
  for (int64_t j = 0; j < d; j++) s += x[j];
  return s / (real)(d > 0 ? d : 1);
}

static void forward_row(const norm_attr *o, int64_t d, const real *x, const real *r, real *h, const real *w,
                        const real *b, real *y) {
  if (r) {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) h[j] = x[j] + r[j];
    x = h;
  }
  real mean = o->kind == WF_NORM_LAYER ? mean_of(x, d) : R(0.0), sum2 = 0;
#  pragma omp simd reduction(+ : sum2)
  for (int64_t j = 0; j < d; j++) sum2 += (x[j] - mean) * (x[j] - mean);
  real s = R(1.0) / r_sqrt(sum2 * share_of(o, d) + (real)o->eps);
  if (w && b) {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) y[j] = (x[j] - mean) * s * w[j] + b[j];
  } else if (w) {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) y[j] = (x[j] - mean) * s * w[j];
  } else if (b) {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) y[j] = (x[j] - mean) * s + b[j];
  } else {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) y[j] = (x[j] - mean) * s;
  }
}

static wf_status forward(const wf_call *call, const wf_tensor *r, const wf_tensor *w, const wf_tensor *b) {
  const wf_tensor *x = call->in[0], *y = call->out[0], *h = r ? call->out[1] : NULL;
  int64_t n = wf_outer(x), d = wf_inner(x);
  WF_PARALLEL_FOR(t0, t1, n, d * 4) {
    for (int64_t t = t0; t < t1; t++)
      forward_row(call->attr, d, (const real *)wf_data(x) + wf_row_at(x, t),
                  r ? (const real *)wf_data(r) + wf_row_at(r, t) : NULL,
                  h ? (real *)wf_data(h) + wf_row_at(h, t) : NULL, w ? wf_data(w) : NULL,
                  b ? wf_data(b) : NULL, (real *)wf_data(y) + wf_row_at(y, t));
  }
  return WF_OK;
}

WF_KERNEL(norm) {
  return forward(call, NULL, wf_in(call, 1), wf_in(call, 2));
}
WF_KERNEL(add_norm) {
  return forward(call, call->in[1], wf_in(call, 2), wf_in(call, 3));
}

/* What one thread's range of rows adds to the gradients of weight and bias. */
typedef struct sums {
  double *w, *b; /* [d] each */
  real *w32, *b32;
  real *row; /* dx of one row */
  int64_t pending;
} sums;

static void flush(sums *s, int64_t d) {
#  pragma omp simd
  for (int64_t j = 0; j < d; j++) {
    s->w[j] += (double)s->w32[j];
    s->b[j] += (double)s->b32[j];
    s->w32[j] = s->b32[j] = 0;
  }
  s->pending = 0;
}

static void put_row(int64_t d, const real *v, real *to, bool add) {
  if (add) {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) to[j] += v[j];
  } else {
#  pragma omp simd
    for (int64_t j = 0; j < d; j++) to[j] = v[j];
  }
}

/* With t = (x - mean) s and g = dy w:  dx = s (g - mean g - t mean(g t)), dw = sum dy t, db = sum dy; the
 * means of g stay out where nothing was centred, and are sums for L2. */
static void backward_row(const norm_attr *o, int64_t d, const real *dy, const real *x, const real *w,
                         const real *dh, real *dx, sums *acc) {
  real mean = 0, sum2 = 0, gx = 0, gs = 0;
  if (o->kind == WF_NORM_LAYER) {
    mean = mean_of(x, d);
#  pragma omp simd reduction(+ : sum2, gx, gs)
    for (int64_t j = 0; j < d; j++) {
      real c = x[j] - mean, g = dy[j] * w[j];
      sum2 += c * c;
      gx += g * c;
      gs += g;
    }
  } else {
#  pragma omp simd reduction(+ : sum2, gx)
    for (int64_t j = 0; j < d; j++) {
      sum2 += x[j] * x[j];
      gx += dy[j] * w[j] * x[j];
    }
  }
  real share = share_of(o, d), s = R(1.0) / r_sqrt(sum2 * share + (real)o->eps);
  real mean_g = gs * share, along = gx * s * share;
  real *dw = o->outs & GRAD_W ? acc->w32 : NULL, *db = o->outs & GRAD_B ? acc->b32 : NULL;
/* One pass, whatever is wanted of it. */
#  define PASS(...)                                       \
    _Pragma("omp simd") for (int64_t j = 0; j < d; j++) { \
      real t = (x[j] - mean) * s, g = dy[j];              \
      real v = s * (g * w[j] - mean_g - t * along);       \
      __VA_ARGS__;                                        \
    }
  if (dh && dw && db)
    PASS(dx[j] = v + dh[j]; dw[j] += g * t; db[j] += g)
  else if (dw && db)
    PASS(dx[j] = v; dw[j] += g * t; db[j] += g)
  else if (dh && dw)
    PASS(dx[j] = v + dh[j]; dw[j] += g * t)
  else if (dw)
    PASS(dx[j] = v; dw[j] += g * t)
  else {
    if (dh)
      PASS(dx[j] = v + dh[j])
    else
      PASS(dx[j] = v)
    if (db) put_row(d, dy, db, true);
  }
#  undef PASS
}

WF_KERNEL(norm_grad) {
  const norm_attr *o = call->attr;
  const wf_tensor *dy = call->in[0], *x = call->in[1], *w = wf_in(call, 2), *dh = wf_in(call, 3);
  const wf_tensor *out[4] = {call->out[0]}; /* dx, dr, dw, db */
  bool add[4] = {call->add & 1};
  for (int k = 1, at = 1; k < 4; k++)
    if (o->outs >> (k - 1) & 1) {
      add[k] = call->add >> at & 1;
      out[k] = call->out[at++];
    }
  const int64_t n = wf_outer(x), d = wf_inner(x), wide = (d + 15) / 16 * 16;
  const int parts = wf_threads_for(n, d * 8);
  const size_t part_bytes = (size_t)wide * (2 * sizeof(double) + 3 * sizeof(real));
  char *scratch;
  WF_ALLOC(scratch, "norm", part_bytes * (size_t)parts + (size_t)wide * sizeof(real));
  real *ones = (real *)(void *)(scratch + part_bytes * (size_t)parts);
  for (int64_t j = 0; j < wide; j++) ones[j] = 1;
  const real *pw = w ? wf_data(w) : ones;
  WF_PARALLEL_FOR(t0, t1, n, d * 8) {
    double *own = (double *)(void *)(scratch + part_bytes * (size_t)wf_part);
    real *own32 = (real *)(void *)(own + 2 * wide);
    sums acc = {own, own + wide, own32, own32 + wide, own32 + 2 * wide, 0};
    for (int64_t j = 0; j < 2 * wide; j++) own[j] = 0, own32[j] = 0;
    for (int64_t t = t0; t < t1; t++) {
      real *dx = (real *)wf_data(out[0]) + wf_row_at(out[0], t);
      real *to = add[0] ? acc.row : dx;
      backward_row(o, d, (const real *)wf_data(dy) + wf_row_at(dy, t),
                   (const real *)wf_data(x) + wf_row_at(x, t), pw,
                   dh ? (const real *)wf_data(dh) + wf_row_at(dh, t) : NULL, to, &acc);
      if (out[1]) put_row(d, to, (real *)wf_data(out[1]) + wf_row_at(out[1], t), add[1]);
      if (add[0]) put_row(d, to, dx, true);
      if (++acc.pending == 32) flush(&acc, d);
    }
    flush(&acc, d);
  }
  for (int k = 2; k < 4; k++) {
    if (!out[k]) continue;
    real *to = wf_data(out[k]);
    for (int64_t j = 0; j < d; j++) {
      double sum = 0;
      for (int part = 0; part < parts; part++)
        sum += ((double *)(void *)(scratch + part_bytes * (size_t)part))[(k - 2) * wide + j];
      to[j] = add[k] ? to[j] + (real)sum : (real)sum;
    }
  }
  wf_free(scratch);
  return WF_OK;
}

#else
#  include <string.h>

WF_CPU(norm)
WF_CUDA_DECLARE(norm)
WF_CPU(add_norm)
WF_CUDA_DECLARE(add_norm)
WF_CPU(norm_grad)
WF_CUDA_DECLARE(norm_grad)

static wf_status want(const wf_call *call, int first_weight) {
  const wf_tensor *x = call->in[0];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 15));
  WF_SHAPE_CHECK(x->ndim >= 1, "a norm of a scalar");
  for (int i = 1; i < first_weight; i++)
    WF_SHAPE_CHECK(wf_same_shape(x, call->in[i]), "%s and %s differ", wf_shape_text(x, a),
                   wf_shape_text(call->in[i], b));
  return WF_OK;
}

static wf_status want_weight(const wf_call *call, int i) {
  const wf_tensor *w = wf_in(call, i);
  char a[96], b[96];
  WF_SHAPE_CHECK(!w || (w->ndim == 1 && w->shape[0] == wf_inner(call->in[0])),
                 "a norm of %s with weight or bias %s", wf_shape_text(call->in[0], a), wf_shape_text(w, b));
  return WF_OK;
}

static wf_status norm_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want(call, 1));
  WF_TRY(want_weight(call, 1));
  WF_TRY(want_weight(call, 2));
  wf_desc_like(&out[0], call->in[0]);
  return WF_OK;
}

static wf_status add_norm_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want(call, 2));
  WF_TRY(want_weight(call, 2));
  WF_TRY(want_weight(call, 3));
  wf_desc_like(&out[0], call->in[0]);
  wf_desc_like(&out[1], call->in[0]);
  return WF_OK;
}

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  const norm_attr *o = call->attr;
  WF_TRY(want(call, 2));
  WF_TRY(want_weight(call, 2));
  WF_SHAPE_CHECK(!wf_in(call, 3) || wf_same_shape(call->in[0], call->in[3]), "gradients of y and h differ");
  int n = 0;
  wf_desc_like(&out[n++], call->in[0]);
  if (o->outs & GRAD_R) wf_desc_like(&out[n++], call->in[0]);
  for (int k = GRAD_W; k <= GRAD_B; k *= 2)
    if (o->outs & k) wf_desc_set(&out[n++], call->in[0]->dtype, WF_SHAPE(wf_inner(call->in[0])));
  *n_out = n;
  return WF_OK;
}

/* The gradient for `rows` inputs of x's shape (x; or x and r), then weight and bias. */
static wf_status gradient(const wf_vjp *g, int rows, wf_tensor *x, wf_tensor *w) {
  wf_ctx *c = g->ctx;
  wf_tensor *dy = g->dout[0], *dh = g->n_out > 1 ? g->dout[1] : NULL;
  norm_attr o = *(const norm_attr *)g->attr;
  o.outs = 0;
  wf_tensor *out[4];
  uint32_t add = 0;
  int n = 0;
  for (int i = 0; i < rows; i++) {
    if (!g->din[i]) continue;
    if (!dy) { /* h alone */
      WF_TRY(wf_copy_into(c, dh, g->din[i], g->add >> i & 1));
      continue;
    }
    if (n == 1) o.outs |= GRAD_R;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  if (dy && n == 0) {
    out[n++] = wf_empty_like(c, "activation", dy);
    if (wf_is_poison(out[0])) return c->status;
  }
  for (int k = 0; k < 2 && rows + k < g->n_in; k++) {
    wf_tensor *d = g->din[rows + k];
    if (!d) continue;
    bool adds = g->add >> (rows + k) & 1;
    if (!dy) {
      if (!adds) WF_TRY(wf_zero_raw(c, d));
      continue;
    }
    o.outs |= k ? GRAD_B : GRAD_W;
    add |= (uint32_t)adds << n;
    out[n++] = d;
  }
  if (!dy) return WF_OK;
  return wf_op_run(c, &wf_op_norm_grad, 4, (wf_tensor *[]){dy, x, w, dh}, &o, n, out, add);
}

static wf_status scoped_gradient(const wf_vjp *g, int rows, wf_tensor *x, wf_tensor *w) {
  wf_scope s = wf_scope_open(g->ctx);
  wf_status st = gradient(g, rows, x, w);
  wf_scope_close(g->ctx, s);
  return st;
}

static wf_status norm_vjp(const wf_vjp *g) {
  return scoped_gradient(g, 1, g->in[0], g->n_in > 1 ? g->in[1] : NULL);
}
static wf_status add_norm_vjp(const wf_vjp *g) {
  return scoped_gradient(g, 2, g->out[1], g->n_in > 2 ? g->in[2] : NULL);
}

/* Each kind; with weight and bias, with neither; strided; empty; more rows than a flush. */
static norm_attr sample_attr(wf_sample *s) {
  static const norm_attr o[] = {{1e-6, WF_NORM_RMS, 0}, {1e-5, WF_NORM_LAYER, 0}, {1e-3, L2, 0},
                                {1e-6, WF_NORM_RMS, 0}, {1e-5, WF_NORM_LAYER, 0}, {1e-5, WF_NORM_LAYER, 0}};
  memcpy(s->attr, &o[s->index], sizeof *o);
  return o[s->index];
}

static wf_tensor *sample_rows(wf_sample *s) {
  switch (s->index) {
  case 3: /* heads in the columns of a wider buffer */
    return wf_view_raw(wf_sample_real(s, WF_SHAPE(2, 15)), 3, (int64_t[]){2, 2, 5}, (int64_t[]){15, 5, 1}, 4);
  case 4: return wf_sample_real(s, WF_SHAPE(0, 5));
  case 5: return wf_sample_real(s, WF_SHAPE(70, 3));
  default: return wf_sample_real(s, WF_SHAPE(4, 5));
  }
}

static wf_tensor *sample_weight(wf_sample *s, wf_tensor *x) {
  return wf_sample_range(s, 1, &x->shape[x->ndim - 1], 0.5, 1.5);
}

static wf_status norm_sample(wf_sample *s) {
  norm_attr o = sample_attr(s);
  wf_tensor *x = s->in[0] = sample_rows(s);
  s->n_in = o.kind == L2 ? 1 : 3;
  if (s->n_in == 3) s->in[1] = sample_weight(s, x);
  if (o.kind == WF_NORM_LAYER) s->in[2] = sample_weight(s, x);
  return WF_OK;
}

static wf_status add_norm_sample(wf_sample *s) {
  norm_attr o = sample_attr(s);
  wf_tensor *x = s->in[0] = sample_rows(s);
  s->in[1] = sample_rows(s);
  s->n_in = o.kind == L2 ? 2 : 4;
  if (s->n_in == 4) s->in[2] = sample_weight(s, x);
  if (o.kind == WF_NORM_LAYER) s->in[3] = sample_weight(s, x);
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  static const int32_t outs[] = {GRAD_W, GRAD_R | GRAD_W | GRAD_B, 0,
                                 GRAD_R, GRAD_W | GRAD_B,          GRAD_W | GRAD_B};
  sample_attr(s);
  ((norm_attr *)(void *)s->attr)->outs = outs[s->index];
  s->n_in = 4;
  s->in[0] = sample_rows(s);
  wf_tensor *x = s->in[1] = sample_rows(s);
  if (s->index != 2) s->in[2] = sample_weight(s, x);
  if (s->index % 2) s->in[3] = sample_rows(s);
  return WF_OK;
}

const wf_op wf_op_norm = {
    .name = "norm",
    .min_in = 1,
    .max_in = 3,
    .n_out = 1,
    .attr_size = sizeof(norm_attr),
    .optional = 6,
    .rowmajor = 1,
    .save_in = 3,
    .vjp_adds = 7,
    .infer = norm_infer,
    .vjp = norm_vjp,
    .cpu = &norm_cpu,
    .cuda = WF_CUDA_FN(norm),
    .sample = norm_sample,
    .n_samples = 6,
};

const wf_op wf_op_add_norm = {
    .name = "add_norm",
    .min_in = 2,
    .max_in = 4,
    .n_out = 2,
    .attr_size = sizeof(norm_attr),
    .optional = 12,
    .rowmajor = 3,
    .save_in = 4,
    .save_out = 2,
    .vjp_adds = 15,
    .infer = add_norm_infer,
    .vjp = add_norm_vjp,
    .cpu = &add_norm_cpu,
    .cuda = WF_CUDA_FN(add_norm),
    .sample = add_norm_sample,
    .n_samples = 6,
};

/* (dy, x or h, w, dh) -> dx [, dr] [, dw] [, db] */
const wf_op wf_op_norm_grad = {
    .name = "norm_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = -1,
    .attr_size = sizeof(norm_attr),
    .optional = 12,
    .rowmajor = 11,
    .adds = 15,
    .infer = grad_infer,
    WF_NONDIFF("gradient of norm; first order only"),
    .cpu = &norm_grad_cpu,
    .cuda = WF_CUDA_FN(norm_grad),
    .sample = grad_sample,
    .n_samples = 6,
};

wf_tensor *wf_norm(wf_ctx *c, wf_norm_kind kind, wf_tensor *x, wf_tensor *w, wf_tensor *b, double eps) {
  norm_attr o = {eps, (int32_t)kind, 0};
  return wf_op_apply(c, &wf_op_norm, 3, (wf_tensor *[]){x, w, b}, &o, NULL);
}

wf_tensor *wf_add_norm(wf_ctx *c, wf_norm_kind kind, wf_tensor *x, wf_tensor *r, wf_tensor *w, wf_tensor *b,
                       double eps, wf_tensor **h) {
  norm_attr o = {eps, (int32_t)kind, 0};
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, &wf_op_add_norm, 4, (wf_tensor *[]){x, r, w, b}, &o, out);
  *h = out[1];
  return out[0];
}

wf_tensor *wf_l2norm(wf_ctx *c, wf_tensor *x, double eps) {
  norm_attr o = {eps, L2, 0};
  return wf_op_apply(c, &wf_op_norm, 1, &x, &o, NULL);
}

#endif
