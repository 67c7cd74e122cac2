/* CUDA kernel of sum_to: a block for each number of the output. */
#include "core/cuda_impl.cuh"
#include "core/ops/reduce_impl.h"

WF_CUDA_KERNEL(sum_to) {
  wf_reduction r;
  wf_reduction_split(&r, call->in[0], call->out[0]);
  const wf_cuda_dims from = wf_cuda_dims_make(r.nk, r.kept, r.kx), to = wf_cuda_dims_make(r.nk, r.kept, r.ky),
                     over = wf_cuda_dims_make(r.nr, r.summed, r.rx);
  const int64_t each = r.lines * r.summed[r.nr - 1];
  const double scale = ((const sum_attr *)call->attr)->scale;
  const bool add = call->add & 1;
  const real *x = wf_cuda_in<real>(call, 0);
  real *y = wf_cuda_ptr<real>(call->out[0]);
  return wf_cuda_rows(call, wf_numel(call->out[0]), [=] __device__(int64_t unit) {
    const real *p = x + from(unit);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < each; i += WF_CUDA_BLOCK) sum += (double)p[over(i)];
    sum = wf_cuda_total(sum);
    if (threadIdx.x == 0) wf_cuda_put(y + to(unit), add, (real)(sum * scale));
  });
}
