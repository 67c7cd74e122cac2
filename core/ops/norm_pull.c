/* norm_pull: a gradient pulled back through a norm without weights, p = J(x)^T g. It is the kernel of norm's
 * own gradient, as an expression that is differentiated again.
 *
 * With c = x - mean (or x), s = 1 / sqrt(share sum c^2 + eps), t = c s and share = 1/d (1 for L2):
 *     p = s (g_c - share e t),  e = <g_c, t>        J is symmetric, so dg is the cotangent u pulled back;
 *     dx = -share s^2 (e u_c + b g_c + (a - 3 share b e) t),  a = <u_c, g_c>, b = <u_c, t>
 * where _c takes the mean away from what a layer norm centres.
 */
#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

static void second_row(const norm_attr *o, int64_t d, const real *u, const real *g, const real *x, real *dx,
                       bool add) {
  real share = o->kind == L2 ? R(1.0) : R(1.0) / (real)(d > 0 ? d : 1);
  real mu = 0, mg = 0, mx = 0, a = 0, b = 0, e = 0, sum2 = 0;
  if (o->kind == WF_NORM_LAYER) {
#  pragma omp simd reduction(+ : mu, mg, mx)
    for (int64_t j = 0; j < d; j++) mu += u[j], mg += g[j], mx += x[j];
    mu *= share, mg *= share, mx *= share;
  }
#  pragma omp simd reduction(+ : a, b, e, sum2)
  for (int64_t j = 0; j < d; j++) {
    real cu = u[j] - mu, cg = g[j] - mg, cx = x[j] - mx;
    a += cu * cg;
    b += cu * cx;
    e += cg * cx;
    sum2 += cx * cx;
  }
  real s = R(1.0) / r_sqrt(sum2 * share + (real)o->eps), k = -share * s * s;
  b *= s, e *= s;
  real ku = k * e, kg = k * b, kx = k * (a - 3 * share * b * e) * s;
#  pragma omp simd
  for (int64_t j = 0; j < d; j++) {
    real v = ku * (u[j] - mu) + kg * (g[j] - mg) + kx * (x[j] - mx);
    dx[j] = add ? dx[j] + v : v;
  }
}

WF_KERNEL(norm_pull_grad) {
  const wf_tensor *u = call->in[0], *g = call->in[1], *x = call->in[2], *dx = call->out[0];
  int64_t n = wf_outer(x), d = wf_inner(x);
  WF_PARALLEL_FOR(t0, t1, n, d * 12) {
    for (int64_t t = t0; t < t1; t++)
      second_row(call->attr, d, (const real *)wf_data(u) + wf_row_at(u, t),
                 (const real *)wf_data(g) + wf_row_at(g, t), (const real *)wf_data(x) + wf_row_at(x, t),
                 (real *)wf_data(dx) + wf_row_at(dx, t), call->add & 1);
  }
  return WF_OK;
}

#else

WF_CPU(norm_grad) /* norm.c */
WF_CUDA_DECLARE(norm_grad)
WF_CPU(norm_pull_grad)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *x = call->in[call->n_in - 1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 7));
  WF_SHAPE_CHECK(x->ndim >= 1, "a norm of a scalar");
  for (int i = 0; i + 1 < call->n_in; i++)
    WF_SHAPE_CHECK(wf_same_shape(x, call->in[i]), "%s and %s differ", wf_shape_text(x, a),
                   wf_shape_text(call->in[i], b));
  wf_desc_like(&out[0], x);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  wf_tensor *in[] = {g->dout[0], g->in[0], g->in[1]};
  if (g->din[0])
    WF_TRY(wf_op_run(g->ctx, &wf_op_norm_pull, 2, (wf_tensor *[]){in[0], in[2]}, g->attr, 1, &g->din[0],
                     g->add & 1));
  if (!g->din[1]) return WF_OK;
  return wf_op_run(g->ctx, &wf_op_norm_pull_grad, 3, in, g->attr, 1, &g->din[1], g->add >> 1 & 1);
}

/* Each kind; heads in the columns of a wider buffer; empty. */
static wf_status sample(wf_sample *s, int n_in) {
  static const norm_attr o[] = {{1e-6, WF_NORM_RMS, 0},
                                {1e-5, WF_NORM_LAYER, 0},
                                {1e-3, L2, 0},
                                {1e-6, WF_NORM_LAYER, 0},
                                {1e-6, WF_NORM_LAYER, 0}};
  *(norm_attr *)(void *)s->attr = o[s->index];
  s->n_in = n_in;
  for (int i = 0; i < n_in; i++)
    s->in[i] = s->index == 3 ? wf_view_raw(wf_sample_real(s, WF_SHAPE(2, 15)), 3, (int64_t[]){2, 2, 5},
                                           (int64_t[]){15, 5, 1}, 4)
                             : wf_sample_real(s, WF_SHAPE(s->index == 4 ? 0 : 4, 5));
  return WF_OK;
}
static wf_status pull_sample(wf_sample *s) {
  return sample(s, 2);
}
static wf_status grad_sample(wf_sample *s) {
  return sample(s, 3);
}

const wf_op wf_op_norm_pull = {
    .name = "norm_pull",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(norm_attr),
    .rowmajor = 3,
    .adds = 1,
    .save_in = 3,
    .vjp_adds = 3,
    .infer = infer,
    .vjp = vjp,
    .cpu = &norm_grad_cpu,
    .cuda = WF_CUDA_FN(norm_grad),
    .sample = pull_sample,
    .n_samples = 5,
};

const wf_op wf_op_norm_pull_grad = {
    .name = "norm_pull_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_size = sizeof(norm_attr),
    .rowmajor = 7,
    .adds = 1,
    .infer = infer,
    WF_NONDIFF("gradient of norm_pull; second order only"),
    .cpu = &norm_pull_grad_cpu,
    .sample = grad_sample,
    .n_samples = 5,
};

wf_tensor *wf_norm_pull(wf_ctx *c, wf_norm_kind kind, wf_tensor *dy, wf_tensor *x, double eps) {
  norm_attr o = {eps, (int32_t)kind, 0};
  return wf_op_apply(c, &wf_op_norm_pull, 2, (wf_tensor *[]){dy, x}, &o, NULL);
}

#endif
