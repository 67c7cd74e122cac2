/* op_impl: ops whose kernel is messages and other ops, the same for every device and real type. */
#ifndef WF_DIST_OP_IMPL_H
#define WF_DIST_OP_IMPL_H

#include "core/op_def.h"

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

#endif
