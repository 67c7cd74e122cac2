/* CUDA kernel of sum_to: a block for each number of the output. */
#include "core/cuda_impl.cuh"
#include "core/ops/reduce_impl.h"

/* Offset of the i-th of the dimensions `shape`, in elements at `stride`. */
__device__ static int64_t offset_of(int nd, const int64_t *shape, const int64_t *stride, int64_t i) {
  int64_t o = 0;
  for (int d = nd - 1; d >= 0; d--) {
    o += i % shape[d] * stride[d];
    i /= shape[d];
  }
  return o;
}

WF_CUDA_KERNEL(sum_to) {
  wf_reduction r;
  wf_reduction_split(&r, call->in[0], call->out[0]);
  const int64_t each = r.lines * r.summed[r.nr - 1];
  const double scale = ((const sum_attr *)call->attr)->scale;
  const bool add = call->add & 1;
  const real *x = wf_cuda_in<real>(call, 0);
  real *y = wf_cuda_ptr<real>(call->out[0]);
  return wf_cuda_rows(call, wf_numel(call->out[0]), [=] __device__(int64_t unit) {
    const real *from = x + offset_of(r.nk, r.kept, r.kx, unit);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < each; i += WF_CUDA_BLOCK)
      sum += (double)from[offset_of(r.nr, r.summed, r.rx, i)];
    sum = wf_cuda_total(sum);
    if (threadIdx.x == 0) wf_cuda_put(y + offset_of(r.nk, r.kept, r.ky, unit), add, (real)(sum * scale));
  });
}
