/* op_def: what a file under core/ops/ includes.
 *
 * Such a file is compiled several times from one source: once as the description, and once with
 * WF_KERNEL_PASS for each real type and instruction set, where `real` is float or double. So it has two
 * parts:
 *
 *     #ifdef WF_KERNEL_PASS
 *     WF_KERNEL(square) {                       // wf_status square(const wf_call *call)
 *       const real *x = wf_data(call->in[0]); ...
 *       return WF_OK;
 *     }
 *     #else
 *     WF_CPU(square)                            // declares the passes' functions and the table square_cpu
 *     WF_CUDA_DECLARE(square)
 *     const wf_op wf_op_square = {.name = "square", .cpu = &square_cpu, .cuda = WF_CUDA_FN(square), ...};
 *     #endif
 */
#ifndef WF_CORE_OP_DEF_H
#define WF_CORE_OP_DEF_H

#include "core/op.h"
#include "core/ops.h"

#define WF_PASTE4_(a, b, c, d) a##b##_##c##_##d
#define WF_PASTE4(a, b, c, d)  WF_PASTE4_(a, b, c, d)

#ifdef WF_KERNEL_PASS

#  include <math.h>
#  include "core/vmath.h"
#  include "core/parallel.h"

#  ifdef WF_REAL_F32
typedef float real;
#    define WF_REAL_TAG f32
#    define R(x)        x##f /* a literal of type real: R(0.5) */
#  else
typedef double real;
#    define WF_REAL_TAG f64
#    define R(x)        x
#  endif
#  define WF_KERNEL(name)                                                       \
    wf_status WF_PASTE4(wf_k_, name, WF_REAL_TAG, WF_ISA)(const wf_call *call); \
    wf_status WF_PASTE4(wf_k_, name, WF_REAL_TAG, WF_ISA)(const wf_call *call)

#else

#  ifdef WEFT_ISA_X86
#    define WF_CPU(name)                                                      \
      wf_status wf_k_##name##_f32_v2(const wf_call *);                        \
      wf_status wf_k_##name##_f32_v3(const wf_call *);                        \
      wf_status wf_k_##name##_f32_v4(const wf_call *);                        \
      wf_status wf_k_##name##_f64_v2(const wf_call *);                        \
      wf_status wf_k_##name##_f64_v3(const wf_call *);                        \
      static const wf_cpu_kernel name##_cpu = {                               \
          {wf_k_##name##_f32_v2, wf_k_##name##_f32_v3, wf_k_##name##_f32_v4}, \
          {wf_k_##name##_f64_v2, wf_k_##name##_f64_v3, wf_k_##name##_f64_v3}};
#  else
#    define WF_CPU(name)                                                                  \
      wf_status wf_k_##name##_f32_native(const wf_call *);                                \
      wf_status wf_k_##name##_f64_native(const wf_call *);                                \
      static const wf_cpu_kernel name##_cpu = {                                           \
          {wf_k_##name##_f32_native, wf_k_##name##_f32_native, wf_k_##name##_f32_native}, \
          {wf_k_##name##_f64_native, wf_k_##name##_f64_native, wf_k_##name##_f64_native}};
#  endif

#  ifdef WEFT_CUDA
#    define WF_CUDA_DECLARE(name) wf_status wf_cuda_##name(const wf_call *);
#    define WF_CUDA_FN(name)      wf_cuda_##name
#  else
#    define WF_CUDA_DECLARE(name)
#    define WF_CUDA_FN(name) NULL
#  endif

#endif

/* Helpers for shape rules. */
#define WF_SHAPE_CHECK(cond, ...)                        \
  do {                                                   \
    if (!(cond)) return WF_FAIL(WF_ESHAPE, __VA_ARGS__); \
  } while (0)

static inline void wf_desc_like(wf_desc *d, const wf_tensor *t) {
  d->dtype = t->dtype;
  d->ndim = t->ndim;
  for (int i = 0; i < t->ndim; i++) d->shape[i] = t->shape[i];
}

static inline void wf_desc_set(wf_desc *d, wf_dtype dtype, int ndim, const int64_t *shape) {
  d->dtype = dtype;
  d->ndim = ndim;
  for (int i = 0; i < ndim; i++) d->shape[i] = shape[i];
}

/* Rows of the last dimension: numel / shape[last]; 1 for scalars. */
static inline int64_t wf_outer(const wf_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i + 1 < t->ndim; i++) n *= t->shape[i];
  return n;
}
static inline int64_t wf_inner(const wf_tensor *t) {
  return t->ndim ? t->shape[t->ndim - 1] : 1;
}

#endif
