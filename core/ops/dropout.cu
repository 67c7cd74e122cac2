/* CUDA kernel of dropout: a thread draws the four words of a block of Philox, the same as on the CPU. */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"

#include <Random123/philox.h>

WF_CUDA_KERNEL(dropout) {
  const dropout_attr o = *(const dropout_attr *)call->attr;
  const wf_tensor *x = call->in[0], *y = call->out[0];
  const int64_t d = x->shape[1], xn = x->stride[0], yn = y->stride[0], blocks = (d + 3) / 4;
  const bool add = call->add & 1;
  const uint32_t limit = (uint32_t)(o.p * 0x1p32);
  const real scale = (real)(1 / (1 - o.p));
  const real *px = wf_cuda_in<real>(call, 0);
  const int64_t *key = wf_cuda_in<int64_t>(call, 1);
  real *py = wf_cuda_ptr<real>(y);
  return wf_cuda_each(call, x->shape[0] * blocks, [=] __device__(int64_t i) {
    const int64_t t = i / blocks, j = i % blocks * 4;
    const philox4x32_ctr_t at = {
        {(uint32_t)(j / 4), (uint32_t)key[2 * t + 1], (uint32_t)key[2 * t], (uint32_t)o.step}};
    const philox4x32_key_t k = {{o.key.k[0], o.key.k[1]}};
    const philox4x32_ctr_t word = philox4x32(at, k);
    for (int w = 0; w < 4 && j + w < d; w++)
      wf_cuda_put(py + t * yn + j + w, add, px[t * xn + j + w] * (word.v[w] >= limit ? scale : (real)0));
  });
}
