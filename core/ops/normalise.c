/* append_one, normalise: the normalised read of a recurrence. With a column of ones beside the values, the
 * last column of q S is q n, n the sum of the keys in the state; the read divides by it, y = num /
 * (max(|den|, floor) + eps),   [num, den] = o. Backward, r = 1 / (max(|den|, floor) + eps): dnum = r dy, dden
 * = -r <dy, y> sign(den) where |den| > floor, else 0.   (mixers 7)
 */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

WF_KERNEL(append_one) {
  const wf_tensor *x = call->in[0];
  const real *from = wf_data(x);
  real *to = wf_data(call->out[0]);
  int64_t V = wf_inner(x), add = call->add & 1;
  WF_PARALLEL_FOR(r0, r1, wf_outer(x), V) {
    for (int64_t r = r0; r < r1; r++) {
      const real *a = from + wf_row_at(x, r);
      real *y = to + r * (V + 1);
      WF_EACH(V, add, y, 1, a[i]);
      y[V] = add ? y[V] + 1 : 1;
    }
  }
  return WF_OK;
}

static inline real factor(real den, const real *low, int64_t r, double eps) {
  real d = r_abs(den), least = low ? low[r] : 0;
  return 1 / ((d > least ? d : least) + (real)eps);
}

WF_KERNEL(normalise) {
  const wf_tensor *t = call->in[0];
  const real *o = wf_data(t), *low = call->in[1] ? wf_data(call->in[1]) : NULL;
  real *y = wf_data(call->out[0]);
  int64_t V = wf_inner(t) - 1;
  double eps = *(const double *)call->attr;
  WF_PARALLEL_FOR(r0, r1, wf_outer(t), V) {
    for (int64_t r = r0; r < r1; r++) {
      const real *num = o + r * (V + 1);
      real f = factor(num[V], low, r, eps), *out = y + r * V;
      for (int64_t i = 0; i < V; i++) out[i] = f * num[i];
    }
  }
  return WF_OK;
}

WF_KERNEL(normalise_grad) {
  const wf_tensor *t = call->in[1];
  const real *dy = wf_data(call->in[0]), *o = wf_data(t), *low = call->in[2] ? wf_data(call->in[2]) : NULL;
  real *d = wf_data(call->out[0]);
  int64_t V = wf_inner(t) - 1;
  double eps = *(const double *)call->attr;
  WF_PARALLEL_FOR(r0, r1, wf_outer(t), 2 * V) {
    for (int64_t r = r0; r < r1; r++) {
      const real *num = o + r * (V + 1), *g = dy + r * V;
      real den = num[V], f = factor(den, low, r, eps), *out = d + r * (V + 1), sum = 0;
      for (int64_t i = 0; i < V; i++) {
        sum += g[i] * num[i];
        out[i] = f * g[i];
      }
      bool moves = r_abs(den) > (low ? low[r] : 0);
      out[V] = !moves ? 0 : den > 0 ? -f * f * sum : f * f * sum;
    }
  }
  return WF_OK;
}

#else

/* ---- append_one ---- */

WF_CPU(append_one)

static wf_status append_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(call->in[0]->ndim >= 1, "append_one: a scalar");
  wf_desc_like(&out[0], call->in[0]);
  out[0].shape[out[0].ndim - 1]++;
  return WF_OK;
}

static wf_tensor *append_alias(const wf_vjp *g, int i) {
  (void)i;
  const wf_tensor *x = g->in[0];
  return wf_view_raw(g->dout[0], x->ndim, x->shape, g->dout[0]->stride, 0);
}
static wf_status append_vjp(const wf_vjp *g) {
  wf_scope s = wf_scope_open(g->ctx);
  wf_status st = wf_copy_into(g->ctx, append_alias(g, 0), g->din[0], g->add & 1);
  wf_scope_close(g->ctx, s);
  return st;
}

static wf_status append_sample(wf_sample *s) {
  s->n_in = 1;
  s->in[0] = wf_sample_real(s, WF_SHAPE(s->index == 1 ? 0 : 4, 2, 3));
  if (s->index == 2) /* heads that lie in the columns of a wider buffer */
    s->in[0] =
        wf_view_raw(wf_sample_real(s, WF_SHAPE(4, 9)), 3, (int64_t[]){4, 2, 3}, (int64_t[]){9, 3, 1}, 2);
  return WF_OK;
}

const wf_op wf_op_append_one = {
    .name = "append_one",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .rowmajor = 1,
    .adds = 1,
    .vjp_adds = 1,
    .infer = append_infer,
    .vjp = append_vjp,
    .vjp_alias = append_alias,
    .cpu = &append_one_cpu,
    .sample = append_sample,
    .n_samples = 3,
};

wf_tensor *wf_append_one(wf_ctx *c, wf_tensor *x) {
  return wf_op_apply(c, &wf_op_append_one, 1, &x, NULL, NULL);
}

/* ---- normalise: attr eps ---- */

WF_CPU(normalise)
WF_CPU(normalise_grad)

static wf_status fits(const wf_call *call, const wf_tensor *o, const wf_tensor *low) {
  char a[96], b[96];
  WF_SHAPE_CHECK(o->ndim == 3 && o->shape[2] >= 1, "%s: o is %s", call->op->name, wf_shape_text(o, a));
  WF_SHAPE_CHECK(!low || (low->ndim == 2 && low->shape[0] == o->shape[0] && low->shape[1] == o->shape[1]),
                 "%s: floor %s for o %s", call->op->name, wf_shape_text(low, a), wf_shape_text(o, b));
  return WF_OK;
}

static wf_status normalise_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 3));
  WF_TRY(fits(call, call->in[0], call->in[1]));
  wf_desc_like(&out[0], call->in[0]);
  out[0].shape[2]--;
  return WF_OK;
}
static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 7));
  WF_TRY(fits(call, call->in[1], call->in[2]));
  wf_desc_like(&out[0], call->in[1]);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  return wf_op_run(g->ctx, &wf_op_normalise_grad, 3, (wf_tensor *[]){g->dout[0], g->in[0], g->in[1]}, g->attr,
                   1, &g->din[0], 0);
}

/* Denominators beyond and below the floor, of both signs; without a floor; empty. */
static wf_status sample(wf_sample *s) {
  int64_t n = s->index == 2 ? 0 : 4;
  *(double *)(void *)s->attr = s->index ? 1e-6 : 0.1;
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(n, 2, 4));
  s->in[1] = s->index == 1 ? NULL : wf_sample_range(s, WF_SHAPE(n, 2), 0.2, 1.2);
  return WF_OK;
}
static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  s->in[2] = s->in[1];
  s->in[1] = s->in[0];
  s->in[0] = wf_sample_real(s, WF_SHAPE(s->in[1]->shape[0], 2, 3));
  s->n_in = 3;
  return WF_OK;
}

const wf_op wf_op_normalise = {
    .name = "normalise",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(double),
    .optional = 2,
    .save_in = 3,
    .nograd_in = 2,
    .infer = normalise_infer,
    .vjp = vjp,
    .cpu = &normalise_cpu,
    .sample = sample,
    .n_samples = 3,
};

const wf_op wf_op_normalise_grad = {
    .name = "normalise_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_size = sizeof(double),
    .optional = 4,
    .infer = grad_infer,
    WF_NONDIFF("gradient of normalise; first order only"),
    .cpu = &normalise_grad_cpu,
    .sample = grad_sample,
    .n_samples = 3,
};

wf_tensor *wf_normalise(wf_ctx *c, wf_tensor *o, wf_tensor *floor, double eps) {
  return wf_op_apply(c, &wf_op_normalise, 2, (wf_tensor *[]){o, floor}, &eps, NULL);
}

#endif
