/* CUDA kernels of the gated activations. */
#include "core/cuda_impl.cuh"
#include "core/ops.h"
#include "core/ops/unary_impl.h"

template <class real> __device__ static real value(int32_t kind, real g) {
  switch (kind) {
  case WF_GLU_SWI: return g * WF_UNARY_SIGMOID(g);
  case WF_GLU_GE: return WF_UNARY_GELU(g);
  default: return WF_UNARY_SIGMOID(g);
  }
}
template <class real> __device__ static real derivative(int32_t kind, real g) {
  switch (kind) {
  case WF_GLU_SWI: return WF_UNARY_SILU_GRAD(g, WF_UNARY_SIGMOID(g));
  case WF_GLU_GE: return WF_UNARY_GELU_GRAD(g);
  default: return WF_UNARY_SIGMOID(g) * (R(1.0) - WF_UNARY_SIGMOID(g));
  }
}

WF_CUDA_KERNEL(glu) {
  const int32_t kind = *(const int32_t *)call->attr;
  const bool add = call->add & 1;
  real *y = wf_cuda_ptr<real>(call->out[0]);
  const real *gate = wf_cuda_in<real>(call, 0), *up = wf_cuda_in<real>(call, 1);
  return wf_cuda_lines(call, {call->out[0], call->in[0], call->in[1]}, [=] __device__(const int64_t *o) {
    wf_cuda_put(y + o[0], add, value(kind, gate[o[1]]) * up[o[2]]);
  });
}

WF_CUDA_KERNEL(glu_grad) {
  const int32_t kind = *(const int32_t *)call->attr;
  const bool add_g = call->add & 1, add_u = call->add >> 1 & 1;
  real *dg = wf_cuda_ptr<real>(call->out[0]), *du = wf_cuda_ptr<real>(call->out[1]);
  const real *dy = wf_cuda_in<real>(call, 0), *gate = wf_cuda_in<real>(call, 1),
             *up = wf_cuda_in<real>(call, 2);
  return wf_cuda_lines(call, {call->out[0], call->out[1], call->in[0], call->in[1], call->in[2]},
                       [=] __device__(const int64_t *o) {
                         const real d = dy[o[2]], g = gate[o[3]], u = up[o[4]];
                         wf_cuda_put(dg + o[0], add_g, d * u * derivative(kind, g));
                         wf_cuda_put(du + o[1], add_u, d * value(kind, g));
                       });
}
