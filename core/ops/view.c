/* view: reshape, transpose, slice, expand. No data moves; gradients are views of the output's gradient
 * wherever that is possible. */
#include "core/ops/ops_impl.h"

#ifndef WF_KERNEL_PASS
#  include <string.h>

typedef struct shape_attr {
  int ndim;
  int64_t shape[WF_MAX_DIMS];
} shape_attr;

/* ---- what gradients share ---- */

wf_tensor *wf_reshape_raw(wf_tensor *x, int ndim, const int64_t *shape) {
  if (wf_is_contiguous(x)) return wf_view_raw(x, ndim, shape, NULL, 0);
  int64_t size[WF_MAX_DIMS], stride[WF_MAX_DIMS], made[WF_MAX_DIMS];
  int n = 0;
  for (int d = 0; d < x->ndim; d++)
    if (x->shape[d] != 1) {
      size[n] = x->shape[d];
      stride[n++] = x->stride[d];
    }
  /* Match groups of old and new dimensions of equal product; a group of old ones must be one run. */
  int i = 0, k = 0;
  while (k < ndim) {
    if (shape[k] == 1) {
      made[k++] = 1;
      continue;
    }
    int j = i, l = k;
    int64_t have = size[i], want = shape[k];
    while (have != want) {
      if (have > want) {
        want *= shape[++l];
        continue;
      }
      j++;
      if (stride[j - 1] != stride[j] * size[j]) return NULL;
      have *= size[j];
    }
    int64_t s = stride[j];
    for (int d = l; d >= k; d--) {
      made[d] = s;
      s *= shape[d];
    }
    i = j + 1;
    k = l + 1;
  }
  return wf_view_raw(x, ndim, shape, made, 0);
}

wf_tensor *wf_expand_raw(wf_tensor *x, int ndim, const int64_t *shape) {
  int64_t stride[WF_MAX_DIMS];
  for (int d = 0; d < ndim; d++) {
    int own = d - (ndim - x->ndim);
    stride[d] = own < 0 || x->shape[own] == 1 ? 0 : x->stride[own];
  }
  return wf_view_raw(x, ndim, shape, stride, 0);
}

wf_status wf_copy_into(wf_ctx *c, wf_tensor *from, wf_tensor *to, bool add) {
  return wf_op_run(c, &wf_op_copy, 1, &from, NULL, 1, &to, add);
}

wf_status wf_zero_raw(wf_ctx *c, wf_tensor *t) {
  if (wf_is_contiguous(t))
    return wf_device_zero(c->dev, wf_data(t), (size_t)wf_numel(t) * wf_dtype_size(t->dtype));
  wf_scope s = wf_scope_open(c);
  wf_tensor *zero = wf_zeros(c, "activation", t->dtype, 0, NULL);
  wf_status st =
      wf_is_poison(zero) ? c->status : wf_copy_into(c, wf_expand_raw(zero, t->ndim, t->shape), t, false);
  wf_scope_close(c, s);
  return st;
}

wf_tensor *wf_as_matrix(wf_ctx *c, wf_tensor *x) {
  int64_t shape[2] = {wf_outer(x), wf_inner(x)};
  wf_tensor *m = wf_is_poison(x) ? x : wf_reshape_raw(x, 2, shape);
  bool apart = m && (m->stride[0] >= shape[1] || shape[0] <= 1); /* rows that do not overlap */
  if (apart && (m->stride[1] == 1 || shape[1] <= 1)) return m;
  m = wf_contiguous_raw(c, x);
  return wf_is_poison(m) ? m : wf_view_raw(m, 2, shape, NULL, 0);
}

/* ---- reshape ---- */

static wf_tensor *reshape_view(const wf_call *call) {
  const shape_attr *a = call->attr;
  wf_tensor *v = wf_reshape_raw(call->in[0], a->ndim, a->shape);
  if (v) return v;
  return wf_poison(call->ctx, WF_FAIL(WF_ESHAPE, "these strides cannot be reshaped without a copy"));
}

static wf_tensor *reshape_alias(const wf_vjp *g, int i) {
  return wf_reshape_raw(g->dout[0], g->in[i]->ndim, g->in[i]->shape);
}

static wf_status reshape_vjp(const wf_vjp *g) {
  wf_tensor *d = wf_reshape_raw(g->din[0], g->dout[0]->ndim, g->dout[0]->shape);
  if (d) return wf_copy_into(g->ctx, g->dout[0], d, g->add);
  wf_tensor *flat = wf_contiguous_raw(g->ctx, g->dout[0]);
  if (wf_is_poison(flat)) return g->ctx->status;
  return wf_copy_into(g->ctx, wf_view_raw(flat, g->din[0]->ndim, g->din[0]->shape, NULL, 0), g->din[0],
                      g->add);
}

static wf_status reshape_sample(wf_sample *s) {
  static const shape_attr to[] = {{3, {2, 3, 10}}, {1, {0}}, {3, {4, 2, 3}}};
  s->n_in = 1;
  s->in[0] = s->index == 1 ? wf_sample_real(s, WF_SHAPE(3, 0)) : wf_sample_real(s, WF_SHAPE(6, 10));
  if (s->index == 2) s->in[0] = wf_view_raw(s->in[0], 2, (int64_t[]){4, 6}, (int64_t[]){10, 1}, 3);
  memcpy(s->attr, &to[s->index], sizeof to[0]);
  return WF_OK;
}

const wf_op wf_op_reshape = {
    .name = "reshape",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(shape_attr),
    .flags = WF_OP_VIEW,
    .strided = 1,
    .vjp_adds = 1,
    .view = reshape_view,
    .vjp = reshape_vjp,
    .vjp_alias = reshape_alias,
    .sample = reshape_sample,
    .n_samples = 3,
};

static wf_status shape_resolve(const wf_tensor *x, int ndim, const int64_t *shape, shape_attr *a) {
  char b[96];
  WF_SHAPE_CHECK(ndim >= 0 && ndim <= WF_MAX_DIMS, "%d dimensions; at most %d", ndim, WF_MAX_DIMS);
  int64_t rest = 1, open = -1;
  *a = (shape_attr){.ndim = ndim};
  for (int d = 0; d < ndim; d++) {
    a->shape[d] = shape[d];
    if (shape[d] == -1 && open < 0)
      open = d;
    else if (shape[d] < 0 || __builtin_mul_overflow(rest, shape[d], &rest))
      return WF_FAIL(WF_ESHAPE, "%s reshaped to a size of %lld", wf_shape_text(x, b), (long long)shape[d]);
  }
  int64_t n = wf_numel(x);
  if (open >= 0 && rest > 0) {
    a->shape[open] = n / rest;
    rest *= n / rest;
  }
  WF_SHAPE_CHECK(rest == n && (open < 0 || a->shape[open] >= 0), "%s reshaped to %lld elements",
                 wf_shape_text(x, b), (long long)rest);
  return WF_OK;
}

wf_tensor *wf_reshape(wf_ctx *c, wf_tensor *x, int ndim, const int64_t *shape) {
  if (wf_is_poison(x)) return x;
  shape_attr a;
  wf_status s = shape_resolve(x, ndim, shape, &a);
  if (s != WF_OK) return wf_poison(c, wf_frame_at("reshape", 0, __func__, s));
  if (a.ndim == x->ndim && memcmp(a.shape, x->shape, (size_t)ndim * sizeof *shape) == 0) return x;
  wf_scope scope = wf_scope_open(c);
  bool fits = wf_reshape_raw(x, a.ndim, a.shape) != NULL;
  wf_scope_close(c, scope);
  if (!fits) x = wf_contiguous(c, x);
  return wf_op_apply(c, &wf_op_reshape, 1, &x, &a, NULL);
}

/* ---- transpose ---- */

static wf_tensor *swapped(wf_tensor *x, const int *dims) {
  int64_t shape[WF_MAX_DIMS], stride[WF_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  memcpy(stride, x->stride, sizeof stride);
  int a = dims[0], b = dims[1];
  shape[a] = x->shape[b], shape[b] = x->shape[a];
  stride[a] = x->stride[b], stride[b] = x->stride[a];
  return wf_view_raw(x, x->ndim, shape, stride, 0);
}

static wf_tensor *transpose_view(const wf_call *call) {
  return swapped(call->in[0], call->attr);
}
static wf_tensor *transpose_alias(const wf_vjp *g, int i) {
  (void)i;
  return swapped(g->dout[0], g->attr);
}
static wf_status transpose_vjp(const wf_vjp *g) {
  return wf_copy_into(g->ctx, swapped(g->dout[0], g->attr), g->din[0], g->add);
}

static wf_status transpose_sample(wf_sample *s) {
  s->n_in = 1;
  s->in[0] = wf_sample_real(s, WF_SHAPE(s->index == 1 ? 0 : 3, 4, 2));
  memcpy(s->attr, s->index == 2 ? (int[]){2, 0} : (int[]){0, 1}, 2 * sizeof(int));
  return WF_OK;
}

const wf_op wf_op_transpose = {
    .name = "transpose",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = 2 * sizeof(int),
    .flags = WF_OP_VIEW,
    .strided = 1,
    .vjp_adds = 1,
    .view = transpose_view,
    .vjp = transpose_vjp,
    .vjp_alias = transpose_alias,
    .sample = transpose_sample,
    .n_samples = 3,
};

wf_tensor *wf_transpose(wf_ctx *c, wf_tensor *x, int a, int b) {
  if (wf_is_poison(x)) return x;
  int dims[2] = {a < 0 ? a + x->ndim : a, b < 0 ? b + x->ndim : b};
  char text[96];
  for (int i = 0; i < 2; i++)
    if (dims[i] < 0 || dims[i] >= x->ndim)
      return wf_poison(c, WF_FAIL(WF_ESHAPE, "dimensions %d and %d of %s cannot be exchanged", a, b,
                                  wf_shape_text(x, text)));
  if (dims[0] == dims[1]) return x;
  return wf_op_apply(c, &wf_op_transpose, 1, &x, dims, NULL);
}

/* ---- slice ---- */

typedef struct slice_attr {
  int64_t dim, begin, end;
} slice_attr;

static wf_tensor *sliced(wf_tensor *x, const slice_attr *a) {
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  shape[a->dim] = a->end - a->begin;
  return wf_view_raw(x, x->ndim, shape, x->stride, a->begin * x->stride[a->dim]);
}

static wf_tensor *slice_view(const wf_call *call) {
  return sliced(call->in[0], call->attr);
}

static wf_status slice_vjp(const wf_vjp *g) {
  if (!g->add) WF_TRY(wf_zero_raw(g->ctx, g->din[0]));
  return wf_copy_into(g->ctx, g->dout[0], sliced(g->din[0], g->attr), g->add);
}

static wf_status slice_sample(wf_sample *s) {
  static const slice_attr cut[] = {{0, 1, 3}, {1, 2, 2}, {1, 0, 3}};
  s->n_in = 1;
  s->in[0] = wf_sample_real(s, WF_SHAPE(4, 5, 2));
  memcpy(s->attr, &cut[s->index], sizeof cut[0]);
  return WF_OK;
}

const wf_op wf_op_slice = {
    .name = "slice",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(slice_attr),
    .flags = WF_OP_VIEW,
    .strided = 1,
    .vjp_adds = 1,
    .view = slice_view,
    .vjp = slice_vjp,
    .sample = slice_sample,
    .n_samples = 3,
};

wf_tensor *wf_slice(wf_ctx *c, wf_tensor *x, int dim, int64_t begin, int64_t end) {
  if (wf_is_poison(x)) return x;
  int d = dim < 0 ? dim + x->ndim : dim;
  char b[96];
  if (d < 0 || d >= x->ndim || begin < 0 || end < begin || end > x->shape[d])
    return wf_poison(c, WF_FAIL(WF_ESHAPE, "no slice %lld to %lld in dimension %d of %s", (long long)begin,
                                (long long)end, dim, wf_shape_text(x, b)));
  if (begin == 0 && end == x->shape[d]) return x;
  return wf_op_apply(c, &wf_op_slice, 1, &x, &(slice_attr){d, begin, end}, NULL);
}

/* ---- expand ---- */

static wf_tensor *expand_view(const wf_call *call) {
  const shape_attr *a = call->attr;
  return wf_expand_raw(call->in[0], a->ndim, a->shape);
}
static wf_tensor *expand_alias(const wf_vjp *g, int i) {
  (void)i;
  return g->dout[0];
}
static wf_status expand_vjp(const wf_vjp *g) {
  return wf_copy_into(g->ctx, g->dout[0], g->din[0], g->add);
}

static wf_status expand_sample(wf_sample *s) {
  static const shape_attr to[] = {{3, {2, 3, 4}}, {2, {0, 4}}, {3, {3, 2, 4}}};
  s->n_in = 1;
  s->in[0] = s->index == 2 ? wf_sample_real(s, WF_SHAPE(3, 1, 4)) : wf_sample_real(s, WF_SHAPE(1, 4));
  memcpy(s->attr, &to[s->index], sizeof to[0]);
  return WF_OK;
}

const wf_op wf_op_expand = {
    .name = "expand",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(shape_attr),
    .flags = WF_OP_VIEW | WF_OP_BROADCAST,
    .strided = 1,
    .vjp_adds = 1,
    .view = expand_view,
    .vjp = expand_vjp,
    .vjp_alias = expand_alias,
    .sample = expand_sample,
    .n_samples = 3,
};

wf_tensor *wf_expand(wf_ctx *c, wf_tensor *x, int ndim, const int64_t *shape) {
  if (wf_is_poison(x)) return x;
  char b[96];
  shape_attr a = {.ndim = ndim};
  bool fits = ndim >= x->ndim && ndim <= WF_MAX_DIMS;
  for (int d = 0; fits && d < ndim; d++) {
    int own = d - (ndim - x->ndim);
    a.shape[d] = shape[d];
    fits = shape[d] >= 0 && (own < 0 || x->shape[own] == 1 || x->shape[own] == shape[d]);
  }
  if (!fits)
    return wf_poison(c, WF_FAIL(WF_ESHAPE, "%s does not broadcast to the shape asked", wf_shape_text(x, b)));
  if (ndim == x->ndim && memcmp(shape, x->shape, (size_t)ndim * sizeof *shape) == 0) return x;
  return wf_op_apply(c, &wf_op_expand, 1, &x, &a, NULL);
}

#endif
