/* hedgehog, taylor: feature maps phi of linear attention, whose products stand for a softmax's e^{<q, k>}.
 *     hedgehog  x [K] -> p = softmax([2 x, -2 x]), [2 K];          dz = p (dp - <dp, p>), dx = 2 (dz_+ -
 * dz_-) taylor    x [K] -> [1, x / K^{1/4}, x x^T / sqrt(2 K)];      dx_i = d1_i / K^{1/4} + sum_j (D_ij +
 * D_ji) x_j / sqrt(2 K)
 */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

static void hedgehog_row(int64_t K, const real *x, real *p) {
  real most = 0, sum = 0;
  for (int64_t i = 0; i < K; i++) most = r_max(most, r_abs(x[i]));
  for (int64_t i = 0; i < K; i++) {
    p[i] = r_exp(2 * (x[i] - most));
    p[K + i] = r_exp(2 * (-x[i] - most));
  }
  for (int64_t i = 0; i < 2 * K; i++) sum += p[i];
  for (int64_t i = 0; i < 2 * K; i++) p[i] /= sum;
}

static void hedgehog_back(int64_t K, const real *dp, const real *p, real *dx) {
  real sum = 0;
  for (int64_t i = 0; i < 2 * K; i++) sum += dp[i] * p[i];
  for (int64_t i = 0; i < K; i++) dx[i] = 2 * (p[i] * (dp[i] - sum) - p[K + i] * (dp[K + i] - sum));
}

static void taylor_row(int64_t K, const real *x, real *y) {
  real one = (real)pow((double)K, -0.25), two = (real)(1 / sqrt(2.0 * (double)K));
  y[0] = 1;
  for (int64_t i = 0; i < K; i++) y[1 + i] = one * x[i];
  for (int64_t i = 0; i < K; i++)
    for (int64_t j = 0; j < K; j++) y[1 + K + i * K + j] = two * x[i] * x[j];
}

static void taylor_back(int64_t K, const real *d, const real *x, real *dx) {
  real one = (real)pow((double)K, -0.25), two = (real)(1 / sqrt(2.0 * (double)K));
  const real *second = d + 1 + K;
  for (int64_t i = 0; i < K; i++) {
    real sum = 0;
    for (int64_t j = 0; j < K; j++) sum += (second[i * K + j] + second[j * K + i]) * x[j];
    dx[i] = one * d[1 + i] + two * sum;
  }
}

WF_KERNEL(hedgehog) {
  const wf_tensor *x = call->in[0];
  const real *from = wf_data(x);
  real *y = wf_data(call->out[0]);
  int64_t K = wf_inner(x);
  WF_PARALLEL_FOR(r0, r1, wf_outer(x), 16 * K) {
    for (int64_t r = r0; r < r1; r++) hedgehog_row(K, from + wf_row_at(x, r), y + r * 2 * K);
  }
  return WF_OK;
}

WF_KERNEL(hedgehog_grad) {
  const real *dp = wf_data(call->in[0]), *p = wf_data(call->in[1]);
  real *dx = wf_data(call->out[0]);
  int64_t K = wf_inner(call->out[0]);
  WF_PARALLEL_FOR(r0, r1, wf_outer(call->out[0]), 8 * K) {
    for (int64_t r = r0; r < r1; r++) hedgehog_back(K, dp + r * 2 * K, p + r * 2 * K, dx + r * K);
  }
  return WF_OK;
}

WF_KERNEL(taylor) {
  const wf_tensor *x = call->in[0];
  const real *from = wf_data(x);
  real *y = wf_data(call->out[0]);
  int64_t K = wf_inner(x), wide = 1 + K + K * K;
  WF_PARALLEL_FOR(r0, r1, wf_outer(x), wide) {
    for (int64_t r = r0; r < r1; r++) taylor_row(K, from + wf_row_at(x, r), y + r * wide);
  }
  return WF_OK;
}

WF_KERNEL(taylor_grad) {
  const wf_tensor *x = call->in[1];
  const real *d = wf_data(call->in[0]), *from = wf_data(x);
  real *dx = wf_data(call->out[0]);
  int64_t K = wf_inner(x), wide = 1 + K + K * K;
  WF_PARALLEL_FOR(r0, r1, wf_outer(x), 2 * wide) {
    for (int64_t r = r0; r < r1; r++) taylor_back(K, d + r * wide, from + wf_row_at(x, r), dx + r * K);
  }
  return WF_OK;
}

#else

/* Width of the features of x [..., K]. */
static int64_t hedgehog_width(int64_t K) {
  return 2 * K;
}
static int64_t taylor_width(int64_t K) {
  return 1 + K + K * K;
}

static wf_status map_infer(const wf_call *call, int64_t (*width)(int64_t), wf_desc *out) {
  WF_TRY(wf_want_real(call, 1));
  const wf_tensor *x = call->in[0];
  char t[96];
  WF_SHAPE_CHECK(x->ndim >= 1 && wf_inner(x) >= 1, "%s: x is %s", call->op->name, wf_shape_text(x, t));
  wf_desc_like(out, x);
  out->shape[x->ndim - 1] = width(wf_inner(x));
  return WF_OK;
}

/* Contiguous, empty, columns of a wider buffer. */
static wf_status sample(wf_sample *s) {
  s->n_in = 1;
  s->in[0] = wf_sample_real(s, WF_SHAPE(s->index == 1 ? 0 : 3, 2, 4));
  if (s->index == 2)
    s->in[0] =
        wf_view_raw(wf_sample_real(s, WF_SHAPE(3, 9)), 3, (int64_t[]){3, 2, 4}, (int64_t[]){9, 4, 1}, 1);
  return WF_OK;
}

/* The op `name` and its gradient from dy and the saved number: the input (SAVED 0) or the output (1). */
#  define FEATURE(op, saved)                                                                                \
    WF_CPU(op)                                                                                              \
    WF_CPU(op##_grad)                                                                                       \
    static wf_status op##_infer(const wf_call *call, wf_desc *out, int *n) {                                \
      (void)n;                                                                                              \
      return map_infer(call, op##_width, out);                                                              \
    }                                                                                                       \
    static wf_status op##_grad_infer(const wf_call *call, wf_desc *out, int *n) {                           \
      (void)n;                                                                                              \
      WF_TRY(wf_want_real(call, 3));                                                                        \
      wf_desc_like(out, call->in[1]);                                                                       \
      if (saved) out->shape[out->ndim - 1] /= 2;                                                            \
      return WF_OK;                                                                                         \
    }                                                                                                       \
    static wf_status op##_vjp(const wf_vjp *g) {                                                            \
      wf_tensor *in[] = {g->dout[0], saved ? g->out[0] : g->in[0]};                                         \
      return wf_op_run(g->ctx, &wf_op_##op##_grad, 2, in, NULL, 1, &g->din[0], 0);                          \
    }                                                                                                       \
    static wf_status op##_grad_sample(wf_sample *s) {                                                       \
      WF_TRY(sample(s));                                                                                    \
      const wf_tensor *x = s->in[0];                                                                        \
      s->in[1] = saved ? wf_sample_range(s, WF_SHAPE(x->shape[0], 2, op##_width(4)), 0.05, 0.2) : s->in[0]; \
      s->in[0] = wf_sample_real(s, WF_SHAPE(x->shape[0], 2, op##_width(4)));                                \
      s->n_in = 2;                                                                                          \
      return WF_OK;                                                                                         \
    }                                                                                                       \
    const wf_op wf_op_##op = {                                                                              \
        .name = #op,                                                                                        \
        .min_in = 1,                                                                                        \
        .max_in = 1,                                                                                        \
        .n_out = 1,                                                                                         \
        .rowmajor = 1,                                                                                      \
        .save_in = !(saved),                                                                                \
        .save_out = saved,                                                                                  \
        .infer = op##_infer,                                                                                \
        .vjp = op##_vjp,                                                                                    \
        .cpu = &op##_cpu,                                                                                   \
        .sample = sample,                                                                                   \
        .n_samples = 3,                                                                                     \
    };                                                                                                      \
    const wf_op wf_op_##op##_grad = {                                                                       \
        .name = #op "_grad",                                                                                \
        .min_in = 2,                                                                                        \
        .max_in = 2,                                                                                        \
        .n_out = 1,                                                                                         \
        .rowmajor = saved ? 0 : 2,                                                                          \
        .infer = op##_grad_infer,                                                                           \
        WF_NONDIFF("gradient of " #op "; first order only"),                                                \
        .cpu = &op##_grad_cpu,                                                                              \
        .sample = op##_grad_sample,                                                                         \
        .n_samples = 3,                                                                                     \
    };                                                                                                      \
    wf_tensor *wf_##op(wf_ctx *c, wf_tensor *x) {                                                           \
      return wf_op_apply(c, &wf_op_##op, 1, &x, NULL, NULL);                                                \
    }

FEATURE(hedgehog, 1)
FEATURE(taylor, 0)

#endif
