/* CUDA kernel of copy: any strides, any real dtype to any other. */
#include "core/cuda_impl.cuh"

struct bf16 { /* as its bits */
  uint16_t bits;
};
__device__ static inline double widened(float x) {
  return (double)x;
}
__device__ static inline double widened(double x) {
  return x;
}
__device__ static inline double widened(bf16 x) {
  return (double)wf_bf16_to_f32(x.bits);
}
__device__ static inline void narrow(double x, float *y) {
  *y = (float)x;
}
__device__ static inline void narrow(double x, double *y) {
  *y = x;
}
__device__ static inline void narrow(double x, bf16 *y) {
  y->bits = wf_f32_to_bf16((float)x);
}

template <class T> static wf_status move(const wf_call *call, bool add) {
  T *y = wf_cuda_ptr<T>(call->out[0]);
  const T *x = wf_cuda_in<T>(call, 0);
  return wf_cuda_lines(call, {call->out[0], call->in[0]},
                       [=] __device__(const int64_t *o) { wf_cuda_put(y + o[0], add, x[o[1]]); });
}

template <class To, class From> static wf_status cast(const wf_call *call) {
  To *y = wf_cuda_ptr<To>(call->out[0]);
  const From *x = wf_cuda_in<From>(call, 0);
  return wf_cuda_lines(call, {call->out[0], call->in[0]},
                       [=] __device__(const int64_t *o) { narrow(widened(x[o[1]]), y + o[0]); });
}
template <class To> static wf_status cast_to(const wf_call *call) {
  switch (call->in[0]->dtype) {
  case WF_F32: return cast<To, float>(call);
  case WF_F64: return cast<To, double>(call);
  default: return cast<To, bf16>(call);
  }
}

extern "C" wf_status wf_cuda_copy(const wf_call *call) {
  WF_TRY(wf_cuda_use(wf_ctx_device(call->ctx)));
  const wf_dtype to = call->out[0]->dtype;
  if (call->add & 1) return to == WF_F64 ? move<double>(call, true) : move<float>(call, true);
  if (to != call->in[0]->dtype)
    return to == WF_F32 ? cast_to<float>(call) : to == WF_F64 ? cast_to<double>(call) : cast_to<bf16>(call);
  switch (wf_dtype_size(to)) {
  case 1: return move<uint8_t>(call, false);
  case 2: return move<uint16_t>(call, false);
  case 4: return move<uint32_t>(call, false);
  default: return move<uint64_t>(call, false);
  }
}
