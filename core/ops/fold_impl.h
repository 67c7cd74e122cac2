/* fold: the dimensions over which an elementwise kernel runs, adjacent ones folded into one where every
 * tensor allows it. For CPU and CUDA kernels alike; private to core. */
#ifndef WF_CORE_FOLD_IMPL_H
#define WF_CORE_FOLD_IMPL_H

#include "core/op_def.h"

enum { WF_LINES_MAX = 5 };

typedef struct wf_lines {
  int nt, nd;
  int64_t shape[WF_MAX_DIMS];
  int64_t stride[WF_LINES_MAX][WF_MAX_DIMS];
} wf_lines;

/* t[0] gives the shape; the others broadcast to it. */
static inline void wf_lines_fold(wf_lines *l, int nt, const wf_tensor *const *t) {
  l->nt = nt;
  l->nd = 0;
  int ndim = t[0]->ndim;
  for (int d = 0; d < ndim; d++) {
    int64_t size = t[0]->shape[d], s[WF_LINES_MAX];
    if (size == 1) continue;
    bool fold = l->nd > 0;
    for (int k = 0; k < nt; k++) {
      int own = d - (ndim - t[k]->ndim);
      s[k] = own < 0 || t[k]->shape[own] == 1 ? 0 : t[k]->stride[own];
      fold = fold && l->stride[k][l->nd - 1] == s[k] * size;
    }
    int at = fold ? l->nd - 1 : l->nd++;
    l->shape[at] = fold ? l->shape[at] * size : size;
    for (int k = 0; k < nt; k++) l->stride[k][at] = s[k];
  }
  if (l->nd == 0) {
    l->nd = 1;
    l->shape[0] = 1;
    for (int k = 0; k < nt; k++) l->stride[k][0] = 1;
  }
}

#endif
