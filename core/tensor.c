/* Tensor headers, storages, scopes and the sticky status of a context. Headers come from slabs of the
 * context. */
#include "core/ctx_impl.h"
#include "core/memory.h"

#include <stdio.h>
#include <string.h>

enum { SLAB = 128 };

typedef struct slab {
  struct slab *next;
  wf_tensor tensors[SLAB];
} slab;

/* ---- context ---- */

wf_status wf_ctx_create(wf_device *dev, wf_ctx **out) {
  wf_ctx *c;
  WF_CALLOC(c, "context", 1);
  c->dev = dev;
  c->poison.ctx = c;
  c->poison.var = -1;
  c->poison.refs = 1;
  *out = c;
  return WF_OK;
}

void wf_ctx_free(wf_ctx *c) {
  if (!c) return;
  wf_scope_close(c, 0);
  for (slab *s = c->slabs; s;) {
    slab *next = s->next;
    wf_free(s);
    s = next;
  }
  wf_free(c->owned);
  wf_free(c->profile);
  wf_free(c);
}

wf_device *wf_ctx_device(const wf_ctx *c) {
  return c->dev;
}

wf_status wf_ctx_check(wf_ctx *c) {
  wf_status s = c->status;
  c->status = WF_OK;
  return s;
}

wf_status wf_ctx_failure(wf_ctx *c) {
  wf_status s = wf_ctx_check(c);
  return s != WF_OK ? s : WF_FAIL(WF_EINTERNAL, "a tensor of a failed expression is used");
}

wf_tensor *wf_poison(wf_ctx *c, wf_status s) {
  if (c->status == WF_OK) c->status = s != WF_OK ? s : wf_ctx_failure(c);
  return &c->poison;
}

bool wf_is_poison(const wf_tensor *t) {
  return t == &t->ctx->poison;
}

/* ---- headers and scopes ---- */

static wf_tensor *header(wf_ctx *c) {
  if (!c->free_headers) {
    slab *s = wf_alloc("tensor headers", sizeof *s);
    if (!s) return NULL;
    s->next = c->slabs;
    c->slabs = s;
    for (int i = 0; i < SLAB; i++) {
      s->tensors[i].storage =
          (wf_storage *)(void *)c->free_headers; /* the free list runs through `storage` */
      c->free_headers = &s->tensors[i];
    }
  }
  wf_tensor *t = c->free_headers;
  c->free_headers = (wf_tensor *)(void *)t->storage;
  memset(t, 0, sizeof *t);
  t->ctx = c;
  t->refs = 1;
  t->var = -1;
  return t;
}

static void storage_drop(wf_storage *s) {
  if (!s || --s->refs > 0) return;
  if (s->release)
    s->release(s->owner);
  else
    wf_device_free(s->dev, s->tag, s->data, s->bytes);
  wf_free(s);
}

/* Hand a header with one reference to the current scope. */
static wf_tensor *scoped(wf_tensor *t) {
  wf_ctx *c = t->ctx;
  wf_status s =
      wf_grow("tensor headers", (void **)&c->owned, sizeof *c->owned, (size_t)c->n_owned, &c->cap_owned);
  if (s != WF_OK) {
    wf_drop(t);
    return wf_poison(c, s);
  }
  c->owned[c->n_owned++] = t;
  return t;
}

wf_tensor *wf_keep(wf_tensor *t) {
  if (t && !wf_is_poison(t)) t->refs++;
  return t;
}

void wf_drop(wf_tensor *t) {
  if (!t || wf_is_poison(t) || --t->refs > 0) return;
  storage_drop(t->storage);
  t->storage = (wf_storage *)(void *)t->ctx->free_headers;
  t->ctx->free_headers = t;
}

wf_scope wf_scope_open(wf_ctx *c) {
  return c->n_owned;
}

void wf_scope_close(wf_ctx *c, wf_scope s) {
  while (c->n_owned > s) wf_drop(c->owned[--c->n_owned]);
}

wf_tensor *wf_scope_return(wf_ctx *c, wf_scope s, wf_tensor *t) {
  wf_keep(t);
  wf_scope_close(c, s);
  return wf_adopt(t);
}

wf_tensor *wf_adopt(wf_tensor *t) {
  return !t || wf_is_poison(t) ? t : scoped(t);
}

/* ---- making ---- */

static wf_tensor *shaped(wf_ctx *c, wf_dtype dtype, int ndim, const int64_t *shape, size_t *bytes) {
  if (ndim < 0 || ndim > WF_MAX_DIMS)
    return wf_poison(c, WF_FAIL(WF_ESHAPE, "%d dimensions; at most %d", ndim, WF_MAX_DIMS));
  size_t n = wf_dtype_size(dtype);
  for (int i = 0; i < ndim; i++)
    if (shape[i] < 0 || __builtin_mul_overflow(n, (size_t)shape[i], &n) || n > (size_t)1 << 46)
      return wf_poison(c,
                       WF_FAIL(WF_ESHAPE, "dimension %d of size %lld is impossible", i, (long long)shape[i]));
  wf_tensor *t = header(c);
  if (!t) return wf_poison(c, WF_ENOMEM);
  t->dtype = dtype;
  t->ndim = ndim;
  int64_t stride = 1;
  for (int i = ndim - 1; i >= 0; i--) {
    t->shape[i] = shape[i];
    t->stride[i] = stride;
    stride *= shape[i];
  }
  if (bytes) *bytes = n;
  return t;
}

static wf_tensor *with_storage(wf_ctx *c, wf_tensor *t, const char *tag, void *data, size_t bytes) {
  if (wf_is_poison(t)) return t;
  wf_storage *s = wf_calloc("tensor headers", 1, sizeof *s);
  if (!s) {
    wf_drop(t);
    return wf_poison(c, WF_ENOMEM);
  }
  *s = (wf_storage){.refs = 1, .dev = c->dev, .tag = tag, .data = data, .bytes = bytes};
  if (!data) {
    wf_status st = wf_device_alloc(c->dev, tag, bytes, &s->data);
    if (st != WF_OK) {
      wf_free(s);
      wf_drop(t);
      return wf_poison(c, st);
    }
  }
  t->storage = s;
  return scoped(t);
}

wf_tensor *wf_empty(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape) {
  size_t bytes = 0;
  wf_tensor *t = shaped(c, dtype, ndim, shape, &bytes);
  return with_storage(c, t, tag, NULL, bytes);
}

wf_tensor *wf_empty_like(wf_ctx *c, const char *tag, const wf_tensor *t) {
  if (wf_is_poison(t)) return wf_poison(c, WF_OK);
  return wf_empty(c, tag, t->dtype, t->ndim, t->shape);
}

wf_tensor *wf_zeros(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape) {
  wf_tensor *t = wf_empty(c, tag, dtype, ndim, shape);
  if (wf_is_poison(t)) return t;
  wf_status s = wf_device_zero(c->dev, t->storage->data, t->storage->bytes);
  return s == WF_OK ? t : wf_poison(c, s);
}

wf_tensor *wf_from_host(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape,
                        const void *data) {
  wf_tensor *t = wf_empty(c, tag, dtype, ndim, shape);
  if (wf_is_poison(t)) return t;
  wf_status s = wf_device_write(c->dev, t->storage->data, data, t->storage->bytes);
  return s == WF_OK ? t : wf_poison(c, s);
}

static void release_nothing(void *owner) {
  (void)owner;
}

wf_tensor *wf_borrow(wf_ctx *c, wf_dtype dtype, int ndim, const int64_t *shape, void *data) {
  if (wf_device_kind(c->dev) != WF_CPU)
    return wf_poison(c, WF_FAIL(WF_EUNSUPPORTED, "host memory can be borrowed on the CPU only"));
  size_t bytes = 0;
  wf_tensor *t = shaped(c, dtype, ndim, shape, &bytes);
  t = with_storage(c, t, "borrowed", data, bytes);
  if (!wf_is_poison(t)) t->storage->release = release_nothing;
  return t;
}

wf_tensor *wf_view_raw(wf_tensor *t, int ndim, const int64_t *shape, const int64_t *stride, int64_t offset) {
  wf_ctx *c = t->ctx;
  if (wf_is_poison(t)) return t;
  wf_tensor *v = shaped(c, t->dtype, ndim, shape, NULL);
  if (wf_is_poison(v)) return v;
  if (stride) memcpy(v->stride, stride, (size_t)ndim * sizeof *stride);
  v->offset = t->offset + offset;
  v->storage = t->storage;
  if (v->storage) v->storage->refs++;
  return scoped(v);
}

wf_tensor *wf_tensor_meta(wf_ctx *c, const wf_tensor *t) {
  wf_tensor *m = header(c);
  if (!m) return wf_poison(c, WF_ENOMEM);
  m->dtype = t->dtype;
  m->ndim = t->ndim;
  memcpy(m->shape, t->shape, sizeof m->shape);
  memcpy(m->stride, t->stride, sizeof m->stride);
  return scoped(m);
}

/* ---- looking ---- */

int64_t wf_numel(const wf_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}

bool wf_is_contiguous(const wf_tensor *t) {
  int64_t stride = 1;
  for (int i = t->ndim - 1; i >= 0; i--) {
    if (t->shape[i] == 0) return true;
    if (t->shape[i] != 1 && t->stride[i] != stride) return false;
    stride *= t->shape[i];
  }
  return true;
}

bool wf_same_shape(const wf_tensor *a, const wf_tensor *b) {
  return a->ndim == b->ndim && memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof *a->shape) == 0;
}

const char *wf_dims_text(int ndim, const int64_t *shape, char buf[96]) {
  int n = snprintf(buf, 96, "[");
  for (int i = 0; i < ndim && n < 96; i++)
    n += snprintf(buf + n, (size_t)(96 - n), i ? ", %lld" : "%lld", (long long)shape[i]);
  if (n < 96) snprintf(buf + n, (size_t)(96 - n), "]");
  return buf;
}

const char *wf_shape_text(const wf_tensor *t, char buf[96]) {
  size_t n = strlen(wf_dims_text(t->ndim, t->shape, buf));
  snprintf(buf + n, 96 - n, " %s", wf_dtype_name(t->dtype));
  return buf;
}

wf_status wf_to_host(const wf_tensor *t, void *out) {
  if (wf_is_poison(t)) return wf_ctx_failure(t->ctx);
  wf_ctx *c = t->ctx;
  wf_scope s = wf_scope_open(c);
  wf_tensor *flat = wf_contiguous_raw(c, t);
  wf_status st;
  if (wf_is_poison(flat))
    st = wf_ctx_check(c);
  else
    st = wf_device_read(c->dev, out, wf_data(flat), (size_t)wf_numel(t) * wf_dtype_size(t->dtype));
  wf_scope_close(c, s);
  return st;
}

wf_status wf_tensor_write(wf_tensor *t, const void *data) {
  if (wf_is_poison(t)) return wf_ctx_failure(t->ctx);
  if (!wf_is_contiguous(t)) return WF_FAIL(WF_EINVAL, "writing needs a contiguous tensor");
  return wf_device_write(t->ctx->dev, wf_data(t), data, (size_t)wf_numel(t) * wf_dtype_size(t->dtype));
}

wf_status wf_tensor_zero(wf_tensor *t) {
  if (wf_is_poison(t)) return wf_ctx_failure(t->ctx);
  wf_ctx *c = t->ctx;
  if (wf_is_contiguous(t))
    return wf_device_zero(c->dev, wf_data(t), (size_t)wf_numel(t) * wf_dtype_size(t->dtype));
  wf_scope s = wf_scope_open(c);
  wf_tensor *zero = wf_zeros(c, "activation", t->dtype, t->ndim, t->shape);
  wf_status st = wf_is_poison(zero) ? wf_ctx_check(c) : wf_op_run(c, &wf_op_copy, 1, &zero, NULL, 1, &t, 0);
  wf_scope_close(c, s);
  return st;
}

wf_status wf_item(const wf_tensor *t, double *out) {
  if (!wf_is_poison(t) && wf_numel(t) != 1) {
    char b[96];
    return WF_FAIL(WF_ESHAPE, "one element expected, not %s", wf_shape_text(t, b));
  }
  union {
    float f32;
    double f64;
    int32_t i32;
    int64_t i64;
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
  } v;
  WF_TRY(wf_to_host(t, &v));
  switch (t->dtype) {
  case WF_F32: *out = (double)v.f32; break;
  case WF_F64: *out = v.f64; break;
  case WF_I32: *out = v.i32; break;
  case WF_I64: *out = (double)v.i64; break;
  case WF_U8: *out = v.u8; break;
  case WF_U16: *out = v.u16; break;
  case WF_U32: *out = v.u32; break;
  default: return WF_FAIL(WF_EUNSUPPORTED, "reading one %s", wf_dtype_name(t->dtype));
  }
  return WF_OK;
}
