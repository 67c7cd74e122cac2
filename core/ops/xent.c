/* xent: cross-entropy of each token, with z-loss. One row at a time: the maximum, then the sum of
 * exponentials while the row is in cache; the gradient is one more pass, in the storage of the logits where
 * that is free. */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS

enum { BLOCK = 1024 }; /* exponentials summed in `real` before they enter a double */

/* log sum exp = stat[0] + stat[1]: the maximum and the rest, apart so that neither rounds the other. */
static void log_sum_exp(const real *x, int64_t v, real *stat) {
  real m = x[v - 1], m1 = m, m2 = m, m3 = m;
  int64_t q = v / 4; /* four streams: one maximum would wait for itself */
#  pragma omp simd reduction(max : m, m1, m2, m3)
  for (int64_t j = 0; j < q; j++) {
    m = x[j] > m ? x[j] : m;
    m1 = x[j + q] > m1 ? x[j + q] : m1;
    m2 = x[j + 2 * q] > m2 ? x[j + 2 * q] : m2;
    m3 = x[j + 3 * q] > m3 ? x[j + 3 * q] : m3;
  }
  for (int64_t j = 4 * q; j < v; j++) m = x[j] > m ? x[j] : m;
  m = m > m1 ? m : m1;
  m2 = m2 > m3 ? m2 : m3;
  m = m > m2 ? m : m2;
  stat[0] = m;
  stat[1] = 0;
  if (!(m - m == R(0.0))) return; /* an infinity or a NaN in the row */
  double sum = 0;
  for (int64_t j0 = 0; j0 < v; j0 += BLOCK) {
    int64_t j1 = j0 + BLOCK < v ? j0 + BLOCK : v;
    real s = 0;
#  pragma omp simd reduction(+ : s)
    for (int64_t j = j0; j < j1; j++) s += r_exp(x[j] - m);
    sum += (double)s;
  }
  stat[1] = (real)log(sum);
}

static wf_status check_labels(const int32_t *label, int64_t n, int64_t v) {
  for (int64_t i = 0; i < n; i++)
    if (label[i] >= v)
      return WF_FAIL(WF_EINVAL, "label %d at place %lld; there are %lld classes", label[i], (long long)i,
                     (long long)v);
  return WF_OK;
}

WF_KERNEL(xent) {
  const double z = *(const double *)call->attr;
  const wf_tensor *x = call->in[0];
  const int32_t *label = wf_data(call->in[1]);
  real *loss = wf_data(call->out[0]), *stat = wf_data(call->out[1]);
  const int64_t n = x->shape[0], v = x->shape[1], xn = x->stride[0];
  WF_TRY(check_labels(label, n, v));
  WF_PARALLEL_FOR(t0, t1, n, v * 4) {
    for (int64_t t = t0; t < t1; t++) {
      const real *row = (const real *)wf_data(x) + t * xn;
      stat[2 * t] = stat[2 * t + 1] = loss[t] = 0;
      if (label[t] < 0) continue;
      log_sum_exp(row, v, &stat[2 * t]);
      double m = (double)stat[2 * t], rest = (double)stat[2 * t + 1];
      loss[t] = (real)(m - (double)row[label[t]] + rest + z * (m + rest) * (m + rest));
    }
  }
  return WF_OK;
}

/* d = dloss (softmax (1 + 2 z log-sum-exp) - onehot); may run in place. */
WF_KERNEL(xent_grad) {
  const double z = *(const double *)call->attr;
  const wf_tensor *x = call->in[0], *dx = call->out[0];
  const int32_t *label = wf_data(call->in[1]);
  const real *stat = wf_data(call->in[2]), *dloss = wf_data(call->in[3]);
  const int64_t n = x->shape[0], v = x->shape[1], xn = x->stride[0], dn = dx->stride[0];
  WF_TRY(check_labels(label, n, v));
  WF_PARALLEL_FOR(t0, t1, n, v * 4) {
    for (int64_t t = t0; t < t1; t++) {
      const real *row = (const real *)wf_data(x) + t * xn;
      real *d = (real *)wf_data(dx) + t * dn;
      if (label[t] < 0) {
        for (int64_t j = 0; j < v; j++) d[j] = 0;
        continue;
      }
      real m = stat[2 * t], rest = stat[2 * t + 1];
      real scale = (real)((double)dloss[t] * (1 + 2 * z * ((double)m + (double)rest)));
#  pragma omp simd
      for (int64_t j = 0; j < v; j++) d[j] = scale * r_exp(row[j] - m - rest);
      d[label[t]] -= dloss[t];
    }
  }
  return WF_OK;
}

#else

WF_CPU(xent)
WF_CUDA_DECLARE(xent)
WF_CPU(xent_grad)
WF_CUDA_DECLARE(xent_grad)

static wf_status want(const wf_call *call) {
  const wf_tensor *x = call->in[0], *label = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(x->ndim == 2 && x->shape[1] > 0 && label->ndim == 1 && label->dtype == WF_I32 &&
                     label->shape[0] == x->shape[0],
                 "loss of logits %s for labels %s; [n, classes] and [n] i32 expected", wf_shape_text(x, a),
                 wf_shape_text(label, b));
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want(call));
  int64_t n = call->in[0]->shape[0];
  wf_desc_set(&out[0], call->in[0]->dtype, 1, &n);
  wf_desc_set(&out[1], call->in[0]->dtype, WF_SHAPE(n, 2));
  return WF_OK;
}

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want(call));
  WF_TRY(wf_want_real(call, 13));
  const wf_tensor *stat = call->in[2], *dloss = call->in[3];
  int64_t n = call->in[0]->shape[0];
  WF_SHAPE_CHECK(stat->ndim == 2 && stat->shape[0] == n && stat->shape[1] == 2 && dloss->ndim == 1 &&
                     dloss->shape[0] == n,
                 "statistics and gradients of %lld tokens expected", (long long)n);
  wf_desc_like(&out[0], call->in[0]);
  return WF_OK;
}

static wf_status gradient(const wf_vjp *g, wf_tensor *to) {
  wf_tensor *in[4] = {g->in[0], g->in[1], g->out[1], g->dout[0]};
  return wf_op_run(g->ctx, &wf_op_xent_grad, 4, in, g->attr, 1, &to, 0);
}

static wf_status vjp(const wf_vjp *g) {
  return gradient(g, g->din[0]);
}

/* In place of the logits, when this node's own saved header is the only one on their storage (the expression
 * that made them has closed its scope, no other node saved them) and the storage is Weft's own: nobody can
 * read them any more. */
static wf_tensor *vjp_alias(const wf_vjp *g, int i) {
  const wf_storage *s = g->in[0]->storage;
  if (i != 0 || !s || s->refs != 1 || s->release || !wf_is_contiguous(g->in[0])) return NULL;
  wf_status st = gradient(g, g->in[0]);
  return st == WF_OK ? g->in[0] : wf_poison(g->ctx, st);
}

static const double z_loss[] = {0, 0.01, 0.1, 0};

static wf_status sample(wf_sample *s) {
  static const int64_t shape[][2] = {{5, 7}, {4, 9}, {3, 5}, {0, 6}};
  static const int32_t label[] = {3, 0, 4, -1, 2};
  int64_t n = shape[s->index][0];
  *(double *)(void *)s->attr = z_loss[s->index];
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, 2, shape[s->index]);
  if (s->index == 2)
    s->in[0] = wf_view_raw(wf_sample_real(s, WF_SHAPE(3, 8)), 2, shape[2], (int64_t[]){8, 1}, 1);
  s->in[1] = wf_from_host(s->ctx, "sample", WF_I32, 1, &n, label);
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  static const int64_t last = 3;
  if (sample(s) != WF_OK) return WF_EINTERNAL;
  int64_t n = s->index == last ? 0 : s->in[0]->shape[0];
  s->n_in = 4;
  s->in[2] = wf_sample_range(s, WF_SHAPE(n, 2), 1, 1.5);
  s->in[3] = wf_sample_real(s, 1, &n);
  return WF_OK;
}

const wf_op wf_op_xent = {
    .name = "xent",
    .min_in = 2,
    .max_in = 2,
    .n_out = 2,
    .attr_size = sizeof(double),
    .rowmajor = 1,
    .save_in = 3,
    .save_out = 2,
    .nograd_in = 2,
    .nograd_out = 2,
    .infer = infer,
    .vjp = vjp,
    .vjp_alias = vjp_alias,
    .cpu = &xent_cpu,
    .cuda = WF_CUDA_FN(xent),
    .sample = sample,
    .n_samples = 4,
};

const wf_op wf_op_xent_grad = {
    .name = "xent_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .attr_size = sizeof(double),
    .rowmajor = 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of xent; first order only"),
    .cpu = &xent_grad_cpu,
    .cuda = WF_CUDA_FN(xent_grad),
    .sample = grad_sample,
    .n_samples = 4,
};

wf_tensor *wf_xent(wf_ctx *c, wf_tensor *logits, wf_tensor *labels, double z) {
  return wf_op_apply(c, &wf_op_xent, 2, (wf_tensor *[]){logits, labels}, &z, (wf_tensor *[WF_MAX_OUT]){0});
}

#endif
