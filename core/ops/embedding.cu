/* CUDA kernels of embedding and its gradient, which gives each column to one thread, so that every sum runs
 * in the order of the tokens. */
#include "core/cuda_impl.cuh"

static wf_status check_ids(const wf_call *call, const int32_t *id, int64_t n, int64_t below) {
  int64_t at;
  int32_t bad;
  WF_TRY(wf_cuda_first(
      call, n, [=] __device__(int64_t i) { return id[i] < 0 || id[i] >= below; }, &at));
  if (at < 0) return WF_OK;
  WF_TRY(wf_device_read(wf_ctx_device(call->ctx), &bad, id + at, sizeof bad));
  return WF_FAIL(WF_EINVAL, "id %d at place %lld; there are rows 0 to %lld", bad, (long long)at,
                 (long long)below - 1);
}

WF_CUDA_KERNEL(embedding) {
  const wf_tensor *table = call->in[0], *ids = call->in[1];
  const real *t = wf_cuda_in<real>(call, 0);
  const int32_t *id = wf_cuda_in<int32_t>(call, 1);
  real *y = wf_cuda_ptr<real>(call->out[0]);
  const int64_t n = wf_numel(ids), d = table->shape[1], ld = table->stride[0];
  WF_TRY(check_ids(call, id, n, table->shape[0]));
  return wf_cuda_each(call, n * d, [=] __device__(int64_t i) { y[i] = t[id[i / d] * ld + i % d]; });
}

WF_CUDA_KERNEL(embedding_grad) {
  const wf_tensor *dy = call->in[0], *out = call->out[0];
  const real *g = wf_cuda_in<real>(call, 0);
  const int32_t *id = wf_cuda_in<int32_t>(call, 1);
  real *dt = wf_cuda_ptr<real>(out);
  const int64_t n = wf_numel(call->in[1]), v = out->shape[0], d = out->shape[1],
                ld = v > 1 ? out->stride[0] : d, ldg = dy->stride[0];
  WF_TRY(check_ids(call, id, n, v));
  if (!(call->add & 1))
    WF_TRY(wf_cuda_each(call, v * d, [=] __device__(int64_t i) { dt[i / d * ld + i % d] = 0; }));
  return wf_cuda_each(call, d, [=] __device__(int64_t j) {
    for (int64_t i = 0; i < n; i++) dt[id[i] * ld + j] += g[i * ldg + j];
  });
}
