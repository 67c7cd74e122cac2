/* CUDA kernels of sumsq and unit_norm: sums of squares by a fixed number of blocks, then over the blocks. */
#include "core/cuda_impl.cuh"
#include "core/ops_optim.h"

enum { PARTS = 256 };

/* *sum = sum of x^2; part: PARTS numbers of scratch. */
template <class real>
static wf_status sum_of_squares(const wf_call *call, const real *x, int64_t n, double *part, double *sum) {
  WF_TRY(wf_cuda_rows(call, PARTS, [=] __device__(int64_t k) {
    double s = 0;
    for (int64_t i = k * WF_CUDA_BLOCK + threadIdx.x; i < n; i += PARTS * WF_CUDA_BLOCK)
      s += (double)x[i] * (double)x[i];
    s = wf_cuda_total(s);
    if (threadIdx.x == 0) part[k] = s;
  }));
  return wf_cuda_rows(call, 1, [=] __device__(int64_t) {
    double s = 0;
    for (int k = threadIdx.x; k < PARTS; k += WF_CUDA_BLOCK) s += part[k];
    s = wf_cuda_total(s);
    if (threadIdx.x == 0) *sum = s;
  });
}

template <class real> static wf_status sumsq(const wf_call *call) {
  wf_cuda_scratch part;
  WF_TRY(wf_cuda_take(call, PARTS * sizeof(double), &part));
  return sum_of_squares(call, wf_cuda_in<real>(call, 0), wf_numel(call->in[0]), (double *)part.p,
                        wf_cuda_ptr<double>(call->out[0]));
}
extern "C" wf_status wf_cuda_sumsq(const wf_call *call) { /* the sum is f64 for both real types */
  WF_TRY(wf_cuda_use(wf_ctx_device(call->ctx)));
  return call->in[0]->dtype == WF_F64 ? sumsq<double>(call) : sumsq<float>(call);
}

WF_CUDA_KERNEL(unit_norm) {
  wf_cuda_scratch part;
  WF_TRY(wf_cuda_take(call, (PARTS + 1) * sizeof(double), &part));
  double *sum = (double *)part.p + PARTS;
  const double eps = *(const double *)call->attr;
  const real *x = wf_cuda_in<real>(call, 0);
  real *y = wf_cuda_ptr<real>(call->out[0]);
  const int64_t n = wf_numel(call->in[0]);
  WF_TRY(sum_of_squares(call, x, n, (double *)part.p, sum));
  return wf_cuda_each(call, n, [=] __device__(int64_t i) { y[i] = x[i] * (real)(1 / (sqrt(*sum) + eps)); });
}
