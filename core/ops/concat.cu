/* CUDA kernel of concat: one copy for each input. */
#include "core/cuda_impl.cuh"

WF_CUDA_KERNEL(concat) {
  real *y = wf_cuda_ptr<real>(call->out[0]);
  for (int i = 0; i < call->n_in; i++) {
    const real *x = wf_cuda_in<real>(call, i);
    const int64_t n = wf_numel(call->in[i]);
    WF_TRY(wf_cuda_each(call, n, [=] __device__(int64_t e) { y[e] = x[e]; }));
    y += n;
  }
  return WF_OK;
}
