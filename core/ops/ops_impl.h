/* What the descriptions of core's ops share: checks, zeroing, views for gradients. Private to core. */
#ifndef WF_CORE_OPS_IMPL_H
#define WF_CORE_OPS_IMPL_H

#include "core/ctx_impl.h"
#include "core/op_def.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Inputs in `mask` that are present are f32 or f64, all alike. */
static inline wf_status wf_want_real(const wf_call *call, uint32_t mask) {
  const wf_tensor *first = NULL;
  for (int i = 0; i < call->n_in; i++) {
    const wf_tensor *t = call->in[i];
    if (!t || !(mask >> i & 1)) continue;
    WF_SHAPE_CHECK(t->dtype == WF_F32 || t->dtype == WF_F64, "input %d of '%s' is %s; f32 or f64 expected", i,
                   call->op->name, wf_dtype_name(t->dtype));
    if (!first) first = t;
    WF_SHAPE_CHECK(t->dtype == first->dtype, "inputs of '%s' are both %s and %s", call->op->name,
                   wf_dtype_name(first->dtype), wf_dtype_name(t->dtype));
  }
  return WF_OK;
}

/* The i-th input, NULL when absent or beyond those given. */
static inline wf_tensor *wf_in(const wf_call *call, int i) {
  return i < call->n_in ? call->in[i] : NULL;
}

/* A gradient by an op whose outputs are those of the first `wants` inputs' gradients that are wanted, in
 * order: `want`, a field of `attr`, receives their bits. */
static inline wf_status wf_vjp_wanted(const wf_vjp *g, const wf_op *op, int n_in, wf_tensor *const *in,
                                      const void *attr, int32_t *want, int wants) {
  wf_tensor *out[WF_MAX_OUT];
  uint32_t add = 0;
  int n = 0;
  *want = 0;
  for (int i = 0; i < wants; i++) {
    if (!g->din[i]) continue;
    *want |= 1 << i;
    add |= (g->add >> i & 1) << n;
    out[n++] = g->din[i];
  }
  return n ? wf_op_run(g->ctx, op, n_in, in, attr, n, out, add) : WF_OK;
}
/* The shape rule of such an op. */
static inline wf_status wf_infer_wanted(const wf_call *call, int32_t want, int wants, wf_desc *out,
                                        int *n_out) {
  *n_out = 0;
  for (int i = 0; i < wants; i++)
    if (want >> i & 1) {
      WF_SHAPE_CHECK(call->in[i], "%s: no input for output %d", call->op->name, i);
      wf_desc_like(&out[(*n_out)++], call->in[i]);
    }
  return WF_OK;
}

/* view.c: x under another shape of as many elements, without a copy; NULL where the strides do not allow it.
 */
wf_tensor *wf_reshape_raw(wf_tensor *x, int ndim, const int64_t *shape);
/* view.c: x broadcast to a shape, with strides of 0. */
wf_tensor *wf_expand_raw(wf_tensor *x, int ndim, const int64_t *shape);
/* view.c: `to` = `from` (or += where add), any strides; both of one shape. */
wf_status wf_copy_into(wf_ctx *c, wf_tensor *from, wf_tensor *to, bool add);
/* view.c: every element 0, any strides. */
wf_status wf_zero_raw(wf_ctx *c, wf_tensor *t);
/* view.c: x [..., d] as [rows, d] where its leading dimensions have one stride of at least d, else a copy. */
wf_tensor *wf_as_matrix(wf_ctx *c, wf_tensor *x);

#ifdef __cplusplus
}
#endif

#endif
