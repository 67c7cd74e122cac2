/* CUDA kernel of rotary: a thread for each pair of features, or for a feature that stays. */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"

WF_CUDA_KERNEL(rotary) {
  const rotary_attr o = *(const rotary_attr *)call->attr;
  const wf_tensor *x = call->in[0], *y = call->out[0];
  const int64_t h = x->shape[1], half = o.dim / 2, each = x->shape[2] - half;
  const int64_t xn = x->stride[0], xh = x->stride[1], yn = y->stride[0], yh = y->stride[1];
  const bool add = call->add & 1;
  const real *px = wf_cuda_in<real>(call, 0);
  const int64_t *pos = wf_cuda_in<int64_t>(call, 1);
  real *py = wf_cuda_ptr<real>(y);
  return wf_cuda_each(call, x->shape[0] * h * each, [=] __device__(int64_t e) {
    const int64_t i = e % each, head = e / each % h, t = e / each / h;
    const real *q = px + t * xn + head * xh;
    real *r = py + t * yn + head * yh;
    if (i >= half) {
      wf_cuda_put(r + i + half, add, q[i + half]);
      return;
    }
    double angle = (double)(o.period ? pos[t] % o.period : pos[t]) *
                   (o.sign * pow(o.base, -2.0 * (double)i / (double)o.dim));
    angle -= rint(angle * (0.5 * M_1_PI)) * (2 * M_PI);
    const int64_t i0 = o.adjacent ? 2 * i : i, i1 = o.adjacent ? 2 * i + 1 : i + half;
    const real cosine = cos((real)angle), sine = sin((real)angle), a = q[i0], b = q[i1];
    wf_cuda_put(r + i0, add, a * cosine - b * sine);
    wf_cuda_put(r + i1, add, b * cosine + a * sine);
  });
}
