/* The inner network of a test-time memory; see inner.h. */
#include "layers/inner.h"

wf_tensor *wf_inner_forward(wf_ctx *c, const wf_inner *n, wf_tensor *x, wf_inner_run *r) {
  for (int i = 0; i < n->depth; i++) {
    r->x[i] = i ? wf_gelu_tanh(c, r->z[i - 1]) : x;
    r->z[i] = wf_matmul(c, r->x[i], n->w[i]);
    if (n->b[i]) r->z[i] = wf_add(c, r->z[i], n->b[i]);
  }
  return r->z[n->depth - 1];
}

void wf_inner_backward(wf_ctx *c, const wf_inner *n, wf_tensor *dz, wf_inner_run *r) {
  r->dz[n->depth - 1] = dz;
  for (int i = n->depth - 1; i > 0; i--)
    r->dz[i - 1] = wf_gelu_tanh_grad(c, wf_matmul(c, r->dz[i], wf_transpose(c, n->w[i], 2, 3)), r->z[i - 1]);
}

wf_tensor *wf_inner_heads(wf_ctx *c, wf_tensor *x, int64_t m, int64_t heads) {
  if (wf_is_poison(x)) return x;
  int64_t width = 1, len = m ? x->shape[0] / m : 1;
  for (int d = 1; d < x->ndim; d++) width *= x->shape[d];
  return wf_transpose(c, wf_reshape(c, x, WF_SHAPE(m, len, heads, width / heads)), 1, 2);
}

wf_tensor *wf_inner_tokens(wf_ctx *c, wf_tensor *x) {
  if (wf_is_poison(x)) return x;
  int64_t n = x->shape[0] * x->shape[2];
  return wf_reshape(c, wf_transpose(c, x, 1, 2), WF_SHAPE(n, x->shape[1], x->shape[3]));
}
