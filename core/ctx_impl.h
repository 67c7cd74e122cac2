/* The context's inside, shared by tensor.c and op.c. Private to core. */
#ifndef WF_CORE_CTX_IMPL_H
#define WF_CORE_CTX_IMPL_H

#include "core/op.h"

#ifdef __cplusplus
extern "C" {
#endif

struct slab;

struct wf_ctx {
  wf_device *dev;
  wf_status status; /* sticky */
  wf_tensor poison;
  wf_recorder recorder;
  struct slab *slabs;
  wf_tensor *free_headers;
  wf_tensor **owned; /* the scopes: one stack of references */
  int64_t n_owned;
  size_t cap_owned;
  int64_t copies;
  const char *label;
  bool profiling;
  wf_op_profile *profile;
  int n_profile;
  size_t cap_profile;
  struct wf_products *products; /* a recording of matrix products, or NULL */
};

/* `t` itself where contiguous, else a contiguous copy in the current scope; never recorded. */
wf_tensor *wf_contiguous_raw(wf_ctx *c, const wf_tensor *t);

#ifdef __cplusplus
}
#endif

#endif
