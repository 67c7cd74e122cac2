/* CUDA kernels of add, sub, mul, div with broadcasting. */
#include "core/cuda_impl.cuh"

#define BINARY(name, OP)                                                                                    \
  WF_CUDA_KERNEL(name) {                                                                                    \
    const bool add = call->add & 1;                                                                         \
    real *y = wf_cuda_ptr<real>(call->out[0]);                                                              \
    const real *a = wf_cuda_in<real>(call, 0), *b = wf_cuda_in<real>(call, 1);                              \
    return wf_cuda_lines(call, {call->out[0], call->in[0], call->in[1]}, [=] __device__(const int64_t *o) { \
      wf_cuda_put(y + o[0], add, a[o[1]] OP b[o[2]]);                                                       \
    });                                                                                                     \
  }

BINARY(add, +)
BINARY(sub, -)
BINARY(mul, *)
BINARY(div, /)
