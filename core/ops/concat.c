/* concat: tensors one after the other along their first dimension. The gradient of each is a slice of the
 * result's. */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

WF_KERNEL(concat) {
  char *y = wf_data(call->out[0]);
  for (int i = 0; i < call->n_in; i++) {
    size_t bytes = (size_t)wf_numel(call->in[i]) * sizeof(real);
    if (bytes) memcpy(y, wf_data(call->in[i]), bytes);
    y += bytes;
  }
  return WF_OK;
}

#else

WF_CPU(concat)
WF_CUDA_DECLARE(concat)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *first = call->in[0];
  char a[96], b[96];
  WF_SHAPE_CHECK(first->ndim > 0, "a scalar cannot be one of several rows");
  wf_desc_like(&out[0], first);
  for (int i = 1; i < call->n_in; i++) {
    const wf_tensor *t = call->in[i];
    bool same = t->ndim == first->ndim && t->dtype == first->dtype;
    for (int d = 1; same && d < t->ndim; d++) same = t->shape[d] == first->shape[d];
    WF_SHAPE_CHECK(same, "%s does not continue %s", wf_shape_text(t, a), wf_shape_text(first, b));
    out[0].shape[0] += t->shape[0];
  }
  return WF_OK;
}

static wf_tensor *vjp_alias(const wf_vjp *g, int i) {
  wf_tensor *dy = g->dout[0];
  int64_t at = 0;
  for (int k = 0; k < i; k++) at += g->in[k]->shape[0];
  return wf_view_raw(dy, g->in[i]->ndim, g->in[i]->shape, dy->stride, at * dy->stride[0]);
}

static wf_status vjp(const wf_vjp *g) {
  for (int i = 0; i < g->n_in; i++) {
    if (!g->din[i]) continue;
    wf_tensor *part = vjp_alias(g, i);
    WF_TRY(wf_op_run(g->ctx, &wf_op_copy, 1, &part, NULL, 1, &g->din[i], g->add >> i & 1));
  }
  return WF_OK;
}

static wf_status sample(wf_sample *s) {
  s->n_in = 3 - s->index;
  for (int i = 0; i < s->n_in; i++) s->in[i] = wf_sample_real(s, WF_SHAPE(i == 1 ? 0 : 2 + i, 3, 2));
  return WF_OK;
}

const wf_op wf_op_concat = {
    .name = "concat",
    .min_in = 1,
    .max_in = WF_MAX_IN,
    .n_out = 1,
    .vjp_adds = 0xffff,
    .infer = infer,
    .vjp = vjp,
    .vjp_alias = vjp_alias,
    .cpu = &concat_cpu,
    .cuda = WF_CUDA_FN(concat),
    .sample = sample,
    .n_samples = 2,
};

wf_tensor *wf_concat(wf_ctx *c, int n, wf_tensor *const *x) {
  if (n == 1) return x[0];
  if (n <= WF_MAX_IN) return wf_op_apply(c, &wf_op_concat, n, x, NULL, NULL);
  /* A tree, so that each element is copied a few times whatever n is. */
  wf_tensor *part[WF_MAX_IN];
  int at = 0;
  for (int k = 0; k < WF_MAX_IN; k++) {
    int end = (int)((int64_t)n * (k + 1) / WF_MAX_IN);
    part[k] = wf_concat(c, end - at, x + at);
    at = end;
  }
  return wf_op_apply(c, &wf_op_concat, WF_MAX_IN, part, NULL, NULL);
}

#endif
