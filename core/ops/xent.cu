/* CUDA kernels of cross-entropy and its gradient: a block for each row of logits. */
#include "core/cuda_impl.cuh"

static wf_status check_labels(const wf_call *call, const int32_t *label, int64_t n, int64_t v) {
  int64_t at;
  int32_t bad;
  WF_TRY(wf_cuda_first(
      call, n, [=] __device__(int64_t i) { return label[i] >= v; }, &at));
  if (at < 0) return WF_OK;
  WF_TRY(wf_device_read(wf_ctx_device(call->ctx), &bad, label + at, sizeof bad));
  return WF_FAIL(WF_EINVAL, "label %d at place %lld; there are %lld classes", bad, (long long)at,
                 (long long)v);
}

WF_CUDA_KERNEL(xent) {
  const double z = *(const double *)call->attr;
  const wf_tensor *x = call->in[0];
  const real *logits = wf_cuda_in<real>(call, 0);
  const int32_t *label = wf_cuda_in<int32_t>(call, 1);
  real *loss = wf_cuda_ptr<real>(call->out[0]), *stat = wf_cuda_ptr<real>(call->out[1]);
  const int64_t n = x->shape[0], v = x->shape[1], xn = x->stride[0];
  WF_TRY(check_labels(call, label, n, v));
  return wf_cuda_rows(call, n, [=] __device__(int64_t t) {
    const real *row = logits + t * xn;
    if (label[t] < 0) {
      if (threadIdx.x == 0) stat[2 * t] = stat[2 * t + 1] = loss[t] = 0;
      return;
    }
    double m = -INFINITY, sum = 0;
    for (int64_t j = threadIdx.x; j < v; j += WF_CUDA_BLOCK) m = wf_cuda_max()(m, (double)row[j]);
    m = wf_cuda_largest(m);
    for (int64_t j = threadIdx.x; j < v; j += WF_CUDA_BLOCK) sum += (double)exp(row[j] - (real)m);
    sum = wf_cuda_total(sum);
    if (threadIdx.x > 0) return;
    const double rest = isfinite(m) ? (double)(real)log(sum) : 0; /* what the gradient will see */
    stat[2 * t] = (real)m;
    stat[2 * t + 1] = (real)rest;
    loss[t] = (real)(m - (double)row[label[t]] + rest + z * (m + rest) * (m + rest));
  });
}

/* d = dloss (softmax (1 + 2 z log-sum-exp) - onehot); may run in place. */
WF_CUDA_KERNEL(xent_grad) {
  const double z = *(const double *)call->attr;
  const wf_tensor *x = call->in[0], *dx = call->out[0];
  const real *logits = wf_cuda_in<real>(call, 0), *stat = wf_cuda_in<real>(call, 2),
             *dloss = wf_cuda_in<real>(call, 3);
  const int32_t *label = wf_cuda_in<int32_t>(call, 1);
  real *to = wf_cuda_ptr<real>(dx);
  const int64_t n = x->shape[0], v = x->shape[1], xn = x->stride[0], dn = dx->stride[0];
  WF_TRY(check_labels(call, label, n, v));
  return wf_cuda_each(call, n * v, [=] __device__(int64_t i) {
    const int64_t t = i / v, j = i % v;
    const real m = stat[2 * t], rest = stat[2 * t + 1];
    const real scale = (real)((double)dloss[t] * (1 + 2 * z * ((double)m + (double)rest)));
    real d = 0;
    if (label[t] >= 0) d = scale * exp(logits[t * xn + j] - m - rest) - (j == label[t] ? dloss[t] : (real)0);
    to[t * dn + j] = d;
  });
}
