/* tensor: a strided view of a reference-counted storage on a device, and the context in which expressions
 * run.
 *
 * Ownership. Every function here and every op returns a tensor that belongs to the innermost open scope of
 * its context; closing the scope drops it. wf_keep() gives the caller a reference of its own, wf_drop()
 * returns it. A tape (autograd) holds what its backward needs by itself.
 *
 * Errors are sticky. A failed call returns the context's poison, a tensor whose use yields poison again; the
 * failure stays in the context until wf_ctx_check(), so that layer code reads as mathematics and checks once
 * at its end.
 *
 *     wf_scope s = wf_scope_open(c);
 *     wf_tensor *y = wf_add(c, x, wf_linear(c, wf_rmsnorm(c, x, w, 1e-6), proj, NULL));
 *     y = wf_scope_return(c, s, y);          // y moves to the outer scope, the rest is dropped
 *     WF_TRY(wf_ctx_check(c));
 */
#ifndef WF_CORE_TENSOR_H
#define WF_CORE_TENSOR_H

#include <stdbool.h>
#include "core/device.h"
#include "core/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WF_MAX_DIMS 6

typedef struct wf_ctx wf_ctx;
typedef struct wf_tensor wf_tensor;

typedef struct wf_storage {
  int refs;
  wf_device *dev;
  const char *tag;
  void *data;
  size_t bytes;
  void (*release)(void *owner); /* NULL: the device's own memory; else called instead of freeing it */
  void *owner;
} wf_storage;

struct wf_tensor {
  wf_dtype dtype;
  int ndim;
  int64_t shape[WF_MAX_DIMS];
  int64_t stride[WF_MAX_DIMS]; /* in elements; 0 where broadcast */
  int64_t offset;              /* in elements from the storage's start */
  wf_storage *storage;
  wf_ctx *ctx;
  int refs;
  int32_t var; /* autograd: index of its variable on the tape `tape`, else -1 */
  uint64_t tape;
};

/* ---- context ---- */

/* One thread of computation on one device: scopes, sticky status, the recorder of a tape, random numbers. */
wf_status wf_ctx_create(wf_device *dev, wf_ctx **out);
void wf_ctx_free(wf_ctx *c); /* drops what is left in its scopes */
wf_device *wf_ctx_device(const wf_ctx *c);

/* The failure since the last check, cleared by the call; WF_OK when none. */
wf_status wf_ctx_check(wf_ctx *c);
/* The same where a poisoned tensor says that there is a failure: never WF_OK. */
wf_status wf_ctx_failure(wf_ctx *c);
/* Make `s` the context's sticky failure (the first one stays; WF_OK passes it on) and return poison. */
wf_tensor *wf_poison(wf_ctx *c, wf_status s);
bool wf_is_poison(const wf_tensor *t);

typedef int64_t wf_scope;
wf_scope wf_scope_open(wf_ctx *c);
void wf_scope_close(wf_ctx *c, wf_scope s);
/* Close `s` but move `t` (may be NULL or poison) to the scope outside. */
wf_tensor *wf_scope_return(wf_ctx *c, wf_scope s, wf_tensor *t);
/* Hand one reference of the caller's to the current scope; returns `t`. */
wf_tensor *wf_adopt(wf_tensor *t);
wf_tensor *wf_keep(wf_tensor *t);
void wf_drop(wf_tensor *t); /* NULL and poison are allowed */

/* ---- making ---- */

wf_tensor *wf_empty(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape);
wf_tensor *wf_zeros(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape);
wf_tensor *wf_empty_like(wf_ctx *c, const char *tag, const wf_tensor *t); /* contiguous */
/* Copies `data` (host, contiguous, of `dtype`) to the device. */
wf_tensor *wf_from_host(wf_ctx *c, const char *tag, wf_dtype dtype, int ndim, const int64_t *shape,
                        const void *data);
/* A tensor over host memory that outlives it; CPU contexts only. */
wf_tensor *wf_borrow(wf_ctx *c, wf_dtype dtype, int ndim, const int64_t *shape, void *data);
/* A strided view of a tensor's storage, not recorded by a tape: shape, strides and offset in elements
 * relative to `t`. For op and layout code; expressions use the view ops of core/ops.h. */
wf_tensor *wf_view_raw(wf_tensor *t, int ndim, const int64_t *shape, const int64_t *stride, int64_t offset);

/* Shape and dtype of `t` without storage (what a tape keeps of a tensor that its backward does not read). */
wf_tensor *wf_tensor_meta(wf_ctx *c, const wf_tensor *t);

#define WF_SHAPE(...)                                                                    \
  ((int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))), (const int64_t[]) { \
    __VA_ARGS__                                                                          \
  }

/* ---- looking ---- */

int64_t wf_numel(const wf_tensor *t);
bool wf_is_contiguous(const wf_tensor *t);
bool wf_same_shape(const wf_tensor *a, const wf_tensor *b);
const char *wf_dims_text(int ndim, const int64_t *shape, char buf[96]); /* "[768, 128]" */
const char *wf_shape_text(const wf_tensor *t, char buf[96]);            /* "[768, 128] f32" */

/* Copy to host memory, contiguous, same dtype (synchronises). */
wf_status wf_to_host(const wf_tensor *t, void *out);
/* Overwrite all of t, contiguous, from host memory of the same dtype. */
wf_status wf_tensor_write(wf_tensor *t, const void *data);
wf_status wf_tensor_zero(wf_tensor *t); /* any strides */
/* One element, of any dtype, as a double. */
wf_status wf_item(const wf_tensor *t, double *out);

/* The address of element 0. For kernels, core and messages (dist/comm.c): nothing else calls it. */
static inline void *wf_data(const wf_tensor *t) {
  return (char *)t->storage->data + (size_t)t->offset * wf_dtype_size(t->dtype);
}

#ifdef __cplusplus
}
#endif

#endif
