/* reduce: the argument of sum_to and how it cuts a tensor's dimensions. For CPU and CUDA kernels alike;
 * private to core. */
#ifndef WF_CORE_REDUCE_IMPL_H
#define WF_CORE_REDUCE_IMPL_H

#include <string.h>
#include "core/op_def.h"

typedef struct sum_attr {
  double scale;
  int64_t ndim, shape[WF_MAX_DIMS];
} sum_attr;

/* The input's dimensions, folded, split into kept ones (with the output's stride) and summed ones. */
typedef struct wf_reduction {
  int nk, nr;
  int64_t kept[WF_MAX_DIMS], kx[WF_MAX_DIMS], ky[WF_MAX_DIMS];
  int64_t summed[WF_MAX_DIMS], rx[WF_MAX_DIMS];
  int64_t lines; /* product of summed, but its last */
} wf_reduction;

static inline void wf_reduction_split(wf_reduction *r, const wf_tensor *x, const wf_tensor *y) {
  memset(r, 0, sizeof *r);
  r->lines = 1;
  int shift = x->ndim - y->ndim, before = -1; /* class of the dimension before: 0 kept, 1 summed */
  for (int d = 0; d < x->ndim; d++) {
    if (x->shape[d] == 1) continue;
    int64_t size = x->shape[d], xs = x->stride[d];
    bool sum = d < shift || y->shape[d - shift] == 1;
    if (sum) {
      if (before == 1 && r->rx[r->nr - 1] == xs * size)
        r->summed[r->nr - 1] *= size;
      else
        r->summed[r->nr++] = size;
      r->rx[r->nr - 1] = xs;
    } else {
      int64_t ys = y->stride[d - shift];
      if (before == 0 && r->kx[r->nk - 1] == xs * size && r->ky[r->nk - 1] == ys * size)
        r->kept[r->nk - 1] *= size;
      else
        r->kept[r->nk++] = size;
      r->kx[r->nk - 1] = xs;
      r->ky[r->nk - 1] = ys;
    }
    before = sum;
  }
  if (r->nr == 0) r->summed[0] = 1, r->rx[0] = 0, r->nr = 1;
  if (r->nk == 0) r->kept[0] = 1, r->kx[0] = 0, r->ky[0] = 0, r->nk = 1;
  for (int d = 0; d + 1 < r->nr; d++) r->lines *= r->summed[d];
}

#endif
