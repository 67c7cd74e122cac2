/* CUDA kernels of the elementwise functions, from the formulas in unary_impl.h. */
#include "core/cuda_impl.cuh"
#include "core/ops/unary_impl.h"

WF_CUDA_KERNEL(affine) {
  const double *a = (const double *)call->attr;
  const real mul = (real)a[0], plus = (real)a[1];
  const bool add = call->add & 1;
  real *y = wf_cuda_ptr<real>(call->out[0]);
  const real *x = wf_cuda_in<real>(call, 0);
  return wf_cuda_lines(call, {call->out[0], call->in[0]}, [=] __device__(const int64_t *o) {
    wf_cuda_put(y + o[0], add, mul * x[o[1]] + plus);
  });
}

#define UNARY(name, saved, order, value, gradient, lo, hi)                                                  \
  WF_CUDA_KERNEL(name) {                                                                                    \
    const bool add = call->add & 1;                                                                         \
    real *to = wf_cuda_ptr<real>(call->out[0]);                                                             \
    const real *from = wf_cuda_in<real>(call, 0);                                                           \
    return wf_cuda_lines(call, {call->out[0], call->in[0]}, [=] __device__(const int64_t *o) {              \
      const real x = from[o[1]];                                                                            \
      wf_cuda_put(to + o[0], add, (real)(value));                                                           \
    });                                                                                                     \
  }                                                                                                         \
  WF_CUDA_KERNEL(name##_grad) {                                                                             \
    const bool add = call->add & 1;                                                                         \
    real *to = wf_cuda_ptr<real>(call->out[0]);                                                             \
    const real *from = wf_cuda_in<real>(call, 0), *kept = wf_cuda_in<real>(call, 1);                        \
    return wf_cuda_lines(call, {call->out[0], call->in[0], call->in[1]}, [=] __device__(const int64_t *o) { \
      const real dy = from[o[1]], s = kept[o[2]];                                                           \
      wf_cuda_put(to + o[0], add, (real)(gradient));                                                        \
    });                                                                                                     \
  }

WF_UNARY_OPS(UNARY)

#define CURVE(name, curvature)                                                        \
  WF_CUDA_KERNEL(name##_curve) {                                                      \
    const bool add = call->add & 1;                                                   \
    real *to = wf_cuda_ptr<real>(call->out[0]);                                       \
    const real *pu = wf_cuda_in<real>(call, 0), *pdy = wf_cuda_in<real>(call, 1),     \
               *kept = wf_cuda_in<real>(call, 2);                                     \
    return wf_cuda_lines(call, {call->out[0], call->in[0], call->in[1], call->in[2]}, \
                         [=] __device__(const int64_t *o) {                           \
                           const real u = pu[o[1]], dy = pdy[o[2]], s = kept[o[3]];   \
                           wf_cuda_put(to + o[0], add, (real)(curvature));            \
                         });                                                          \
  }

WF_UNARY_TWICE_OPS(CURVE)
