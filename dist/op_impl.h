/* op_impl: ops whose kernel is messages and other ops, the same for every device and real type. */
#ifndef WF_DIST_OP_IMPL_H
#define WF_DIST_OP_IMPL_H

#include "core/op_def.h"
#include "core/ops.h"

#ifdef WEFT_CUDA
#  define WF_DIST_CUDA(f) .cuda = f,
#else
#  define WF_DIST_CUDA(f)
#endif
/* Declares the table of kernels of `name`_kernel, and names it in the description. */
#define WF_DIST_KERNEL(name)                                \
  static const wf_cpu_kernel name##_cpu = {                 \
      .f32 = {name##_kernel, name##_kernel, name##_kernel}, \
      .f64 = {name##_kernel, name##_kernel, name##_kernel}, \
  };
#define WF_DIST_CPU(name) WF_DIST_CUDA(name##_kernel).cpu = &name##_cpu, .composed = true

static inline wf_status wf_dist_copy(wf_ctx *c, wf_tensor *from, wf_tensor *to, bool add) {
  if (wf_is_poison(from) || wf_is_poison(to)) return wf_ctx_failure(c);
  return wf_op_run(c, &wf_op_copy, 1, &from, NULL, 1, &to, add);
}
/* x, or a contiguous copy of it, as a message needs it. */
static inline wf_tensor *wf_dist_packed(wf_ctx *c, wf_tensor *x) {
  if (wf_is_poison(x) || wf_is_contiguous(x)) return x;
  wf_tensor *y = wf_empty_like(c, "dist", x);
  wf_status st = wf_is_poison(y) ? WF_OK : wf_dist_copy(c, x, y, false);
  return st == WF_OK ? y : wf_poison(c, st);
}

#endif
