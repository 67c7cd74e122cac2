/* lines: the driver of elementwise kernels.
 *
 * A line is a run of elements along which each tensor has one stride. Adjacent dimensions are folded where
 * every tensor allows it, so contiguous tensors are one line, which is cut for the threads. Private to core's
 * kernel passes.
 */
#ifndef WF_CORE_LINES_IMPL_H
#define WF_CORE_LINES_IMPL_H

#include "core/ops/fold_impl.h"

/* Works on n elements of every tensor: element i of tensor t is p[t][i * s[t]]. */
typedef void (*wf_line_fn)(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr);

/* Calls `f` over all elements. `cost`: element operations of f for one element. */
static inline void wf_lines_run(int nt, const wf_tensor *const *t, wf_line_fn f, int64_t cost, uint32_t add,
                                const void *attr) {
  if (wf_numel(t[0]) == 0) return;
  wf_lines l;
  wf_lines_fold(&l, nt, t);
  int last = l.nd - 1;
  int64_t inner = l.shape[last], outer = 1, s[WF_LINES_MAX];
  real *base[WF_LINES_MAX];
  for (int d = 0; d < last; d++) outer *= l.shape[d];
  for (int k = 0; k < nt; k++) {
    base[k] = wf_data(t[k]);
    s[k] = l.stride[k][last];
  }
  if (last == 0) {
    WF_PARALLEL_FOR(i0, i1, inner, cost) {
      real *p[WF_LINES_MAX];
      for (int k = 0; k < nt; k++) p[k] = base[k] + i0 * s[k];
      if (i1 > i0) f(i1 - i0, p, s, add, attr);
    }
    return;
  }
  WF_PARALLEL_FOR(r0, r1, outer, inner * cost) {
    int64_t at[WF_MAX_DIMS], rest = r0;
    real *p[WF_LINES_MAX];
    for (int k = 0; k < nt; k++) p[k] = base[k];
    for (int d = last - 1; d >= 0; d--) {
      at[d] = rest % l.shape[d];
      rest /= l.shape[d];
      for (int k = 0; k < nt; k++) p[k] += at[d] * l.stride[k][d];
    }
    for (int64_t r = r0; r < r1; r++) {
      f(inner, p, s, add, attr);
      for (int d = last - 1; d >= 0; d--) { /* the next line */
        for (int k = 0; k < nt; k++) p[k] += l.stride[k][d];
        if (++at[d] < l.shape[d]) break;
        for (int k = 0; k < nt; k++) p[k] -= at[d] * l.stride[k][d];
        at[d] = 0;
      }
    }
  }
}

/* y[i ys] = value, or += value; `value` speaks of i. Vectorised where the strides in it are constants. */
#define WF_EACH(n, add, y, ys, value)                                                \
  do {                                                                               \
    if (add) {                                                                       \
      _Pragma("omp simd") for (int64_t i = 0; i < (n); i++)(y)[i * (ys)] += (value); \
    } else {                                                                         \
      _Pragma("omp simd") for (int64_t i = 0; i < (n); i++)(y)[i * (ys)] = (value);  \
    }                                                                                \
  } while (0)

/* The offset of row r of the leading dimensions, for tensors whose last dimension has stride 1. */
static inline int64_t wf_row_at(const wf_tensor *t, int64_t r) {
  if (t->ndim == 2) return r * t->stride[0];
  int64_t offset = 0;
  if (t->ndim == 3 && t->stride[0] == t->shape[1] * t->stride[1]) return r * t->stride[1];
  for (int d = t->ndim - 2; d >= 0; d--) {
    offset += r % t->shape[d] * t->stride[d];
    r /= t->shape[d];
  }
  return offset;
}

#endif
