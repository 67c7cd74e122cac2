/* matmul and linear on a GPU, through cuBLASLt (core/cuda_blas.cu). */
#include "core/cuda_impl.cuh"
#include "core/ops/matmul_impl.h"
#include "core/ops/ops_impl.h"

/* in[i] as an operand: where neither of its last dimensions has stride 1, a copy. */
static wf_status operand(const wf_call *call, int i, wf_tensor **x, wf_cuda_matrix *m) {
  matrix stored = {false, 0};
  *x = call->in[i];
  if (!as_blas(*x, &stored)) {
    *x = wf_contiguous_raw(call->ctx, *x);
    if (wf_is_poison(*x)) return call->ctx->status;
    as_blas(*x, &stored);
  }
  m->p = wf_data(*x);
  m->t = stored.t;
  m->ld = stored.ld;
  return WF_OK;
}

/* y = 0, any strides. */
template <class real> static wf_status clear(const wf_call *call, const wf_tensor *t) {
  real *y = wf_cuda_ptr<real>(t);
  return wf_cuda_lines(call, {t}, [=] __device__(const int64_t *o) { y[o[0]] = 0; });
}

WF_CUDA_KERNEL(matmul) {
  wf_device *dev = wf_ctx_device(call->ctx);
  wf_tensor *a, *b, *y = call->out[0];
  wf_cuda_matrix ma, mb, my;
  matrix stored;
  WF_TRY(operand(call, 0, &a, &ma));
  WF_TRY(operand(call, 1, &b, &mb));
  if (!as_blas(y, &stored))
    return WF_FAIL(WF_EINTERNAL, "the product's destination has no dimension of stride 1");
  const int last = y->ndim - 1;
  const int64_t m = y->shape[last - 1], n = y->shape[last], k = a->shape[last];
  if (k == 0) return call->add & 1 ? WF_OK : clear<real>(call, y);
  /* The last batch dimension is one call, the others are counted here. */
  const int inner = last - 2;
  const int64_t count = inner < 0 ? 1 : y->shape[inner];
  ma.batch = inner < 0 ? 0 : a->stride[inner];
  mb.batch = inner < 0 ? 0 : b->stride[inner];
  my.batch = inner < 0 ? 0 : y->stride[inner];
  my.ld = stored.ld;
  my.t = false;
  int64_t outer = 1;
  for (int d = 0; d < inner; d++) outer *= y->shape[d];
  for (int64_t i = 0; i < outer; i++) {
    int64_t rest = i, ao = 0, bo = 0, yo = 0;
    for (int d = inner - 1; d >= 0; d--) {
      int64_t at = rest % y->shape[d];
      rest /= y->shape[d];
      ao += at * a->stride[d];
      bo += at * b->stride[d];
      yo += at * y->stride[d];
    }
    ma.p = wf_cuda_ptr<real>(a) + ao;
    mb.p = wf_cuda_ptr<real>(b) + bo;
    my.p = wf_cuda_ptr<real>(y) + yo;
    if (!stored.t) {
      WF_TRY(wf_cuda_gemm(dev, y->dtype, count, m, n, k, &ma, &mb, call->add & 1, &my));
      continue;
    }
    wf_cuda_matrix at = ma, bt = mb; /* a transposed destination: y^T = b^T a^T */
    at.t = !ma.t;
    bt.t = !mb.t;
    WF_TRY(wf_cuda_gemm(dev, y->dtype, count, n, m, k, &bt, &at, call->add & 1, &my));
  }
  return WF_OK;
}

static int64_t row_stride(const wf_tensor *m) {
  return m->shape[0] > 1 ? m->stride[0] : m->shape[1] > 0 ? m->shape[1] : 1;
}

WF_CUDA_KERNEL(linear) {
  wf_tensor *x = wf_as_matrix(call->ctx, call->in[0]);
  if (wf_is_poison(x)) return call->ctx->status;
  const int64_t rows = x->shape[0], d = x->shape[1];
  const wf_cuda_matrix mx = {wf_data(x), false, row_stride(x), 0};
  for (int i = 0; i < call->n_out; i++) {
    wf_tensor *w = wf_as_matrix(call->ctx, call->in[1 + i]); /* overlapping rows are copied */
    if (wf_is_poison(w)) return call->ctx->status;
    const int64_t shape[2] = {rows, w->shape[0]};
    wf_tensor *y = wf_reshape_raw(call->out[i], 2, shape);
    if (!y) return WF_FAIL(WF_EINTERNAL, "a projection's destination is not a matrix");
    if (wf_is_poison(y)) return call->ctx->status;
    const real *b = wf_cuda_in<real>(call, BIAS + i);
    real *to = wf_cuda_ptr<real>(y);
    const int64_t width = shape[1], ld = row_stride(y);
    if (b || d == 0) /* the product adds to the bias */
      WF_TRY(wf_cuda_each(call, rows * width, [=] __device__(int64_t e) {
        to[e / width * ld + e % width] = b ? b[e % width] : (real)0;
      }));
    if (d == 0) continue;
    const wf_cuda_matrix mw = {wf_data(w), true, row_stride(w), 0}, my = {to, false, ld, 0};
    WF_TRY(wf_cuda_gemm(wf_ctx_device(call->ctx), x->dtype, 1, rows, width, d, &mx, &mw, b != NULL, &my));
  }
  return WF_OK;
}
