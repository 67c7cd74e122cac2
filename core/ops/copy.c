/* copy: any strides and any real dtype to any other; the one place where layouts and dtypes change. */
#include "core/op_def.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

/* One line of the last dimension. Same dtype: by element size; otherwise through double or float. */
static void copy_line(char *dst, int64_t ds, const char *src, int64_t ss, int64_t n, wf_dtype to,
                      wf_dtype from) {
  if (to == from) {
    size_t size = wf_dtype_size(to);
    if (ds == 1 && ss == 1) {
      memcpy(dst, src, (size_t)n * size);
    } else if (size == 4) {
      uint32_t *d = (uint32_t *)(void *)dst;
      const uint32_t *s = (const uint32_t *)(const void *)src;
      for (int64_t i = 0; i < n; i++) d[i * ds] = s[i * ss];
    } else {
      for (int64_t i = 0; i < n; i++)
        memcpy(dst + (size_t)(i * ds) * size, src + (size_t)(i * ss) * size, size);
    }
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    double x = 0;
    if (from == WF_F32)
      x = (double)((const float *)(const void *)src)[i * ss];
    else if (from == WF_F64)
      x = ((const double *)(const void *)src)[i * ss];
    else
      x = (double)wf_bf16_to_f32(((const uint16_t *)(const void *)src)[i * ss]);
    if (to == WF_F32)
      ((float *)(void *)dst)[i * ds] = (float)x;
    else if (to == WF_F64)
      ((double *)(void *)dst)[i * ds] = x;
    else
      ((uint16_t *)(void *)dst)[i * ds] = wf_f32_to_bf16((float)x);
  }
}

static void add_line(real *dst, int64_t ds, const real *src, int64_t ss, int64_t n) {
  if (ds == 1 && ss == 1)
    for (int64_t i = 0; i < n; i++) dst[i] += src[i];
  else
    for (int64_t i = 0; i < n; i++) dst[i * ds] += src[i * ss];
}

WF_KERNEL(copy) {
  const wf_tensor *x = call->in[0], *y = call->out[0];
  bool add = call->add & 1, whole = wf_is_contiguous(x) && wf_is_contiguous(y);
  size_t xs = wf_dtype_size(x->dtype), ys = wf_dtype_size(y->dtype);
  int last = x->ndim - 1;
  int64_t inner = whole ? wf_numel(x) : last < 0 ? 1 : x->shape[last];
  int64_t outer = whole ? 1 : wf_outer(x), xi = whole || last < 0 ? 1 : x->stride[last],
          yi = whole || last < 0 ? 1 : y->stride[last];
  if (whole && inner >= 1 << 14) { /* one long line: cut it for the threads */
    outer = inner / 4096;
    WF_PARALLEL_FOR(k0, k1, outer, 4096) {
      int64_t from = k0 * 4096, to = k1 == outer ? inner : k1 * 4096;
      if (add)
        add_line((real *)wf_data(y) + from, 1, (const real *)wf_data(x) + from, 1, to - from);
      else
        copy_line((char *)wf_data(y) + (size_t)from * ys, 1, (const char *)wf_data(x) + (size_t)from * xs, 1,
                  to - from, y->dtype, x->dtype);
    }
    return WF_OK;
  }
  WF_PARALLEL_FOR(r0, r1, outer, inner) {
    for (int64_t r = r0; r < r1; r++) {
      int64_t xo = 0, yo = 0, rest = r;
      for (int d = last - 1; d >= 0 && !whole; d--) {
        int64_t at = rest % x->shape[d];
        rest /= x->shape[d];
        xo += at * x->stride[d];
        yo += at * y->stride[d];
      }
      if (add)
        add_line((real *)wf_data(y) + yo, yi, (const real *)wf_data(x) + xo, xi, inner);
      else
        copy_line((char *)wf_data(y) + (size_t)yo * ys, yi, (const char *)wf_data(x) + (size_t)xo * xs, xi,
                  inner, y->dtype, x->dtype);
    }
  }
  return WF_OK;
}

#else

WF_CPU(copy)
WF_CUDA_DECLARE(copy)

/* attr: int32 dtype of the output, or no attr for the input's */
static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  wf_desc_like(&out[0], call->in[0]);
  if (!call->attr) return WF_OK;
  out[0].dtype = (wf_dtype) * (const int32_t *)call->attr;
  bool real_in = call->in[0]->dtype <= WF_F64, real_out = out[0].dtype <= WF_F64;
  WF_SHAPE_CHECK(out[0].dtype == call->in[0]->dtype || (real_in && real_out), "no cast from %s to %s",
                 wf_dtype_name(call->in[0]->dtype), wf_dtype_name(out[0].dtype));
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  if (g->add && g->in[0]->dtype != g->dout[0]->dtype) { /* the kernel adds within one dtype */
    wf_tensor *d = wf_cast(g->ctx, g->dout[0], g->in[0]->dtype);
    return wf_op_run(g->ctx, &wf_op_copy, 1, &d, NULL, 1, &g->din[0], g->add);
  }
  return wf_op_run(g->ctx, &wf_op_copy, 1, &g->dout[0], NULL, 1, &g->din[0], g->add);
}

static wf_tensor *vjp_alias(const wf_vjp *g, int i) {
  return g->in[i]->dtype == g->dout[0]->dtype ? g->dout[0] : NULL;
}

static wf_status sample(wf_sample *s) {
  int64_t shape[] = {3, 4, 5};
  s->n_in = 1;
  s->in[0] = s->index == 2 ? wf_sample_real(s, WF_SHAPE(0, 4)) : wf_sample_real(s, 3, shape);
  if (s->index == 1) s->in[0] = wf_view_raw(s->in[0], 2, (int64_t[]){5, 3}, (int64_t[]){1, 20}, 5);
  *(int32_t *)(void *)s->attr = (int32_t)s->real;
  return WF_OK;
}

const wf_op wf_op_copy = {
    .name = "copy",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(int32_t),
    .strided = 1,
    .adds = 1,
    .vjp_adds = 1,
    .infer = infer,
    .vjp = vjp,
    .vjp_alias = vjp_alias,
    .cpu = &copy_cpu,
    .cuda = WF_CUDA_FN(copy),
    .sample = sample,
    .n_samples = 3,
};

wf_tensor *wf_contiguous(wf_ctx *c, wf_tensor *x) {
  if (wf_is_poison(x) || wf_is_contiguous(x)) return x;
  int32_t dtype = (int32_t)x->dtype;
  return wf_op_apply(c, &wf_op_copy, 1, &x, &dtype, NULL);
}

wf_tensor *wf_cast(wf_ctx *c, wf_tensor *x, wf_dtype dtype) {
  if (wf_is_poison(x) || x->dtype == dtype) return x;
  int32_t to = (int32_t)dtype;
  return wf_op_apply(c, &wf_op_copy, 1, &x, &to, NULL);
}

#endif
