/* matmul: how a product's operands lie in memory, and the inputs of linear. For CPU and CUDA kernels alike;
 * private to core. */
#ifndef WF_CORE_MATMUL_IMPL_H
#define WF_CORE_MATMUL_IMPL_H

#include "core/op_def.h"

/* linear: in[0] x, in[1..4] weights, in[5..8] biases. */
enum { MAX_PROJECTIONS = 4, BIAS = 1 + MAX_PROJECTIONS };

typedef struct matrix {
  bool t;     /* stored transposed */
  int64_t ld; /* stride between stored rows */
} matrix;

/* The last two dimensions as BLAS takes them; false where neither has stride 1. */
static inline bool as_blas(const wf_tensor *x, matrix *m) {
  int64_t rows = x->shape[x->ndim - 2], cols = x->shape[x->ndim - 1];
  int64_t rs = x->stride[x->ndim - 2], cs = x->stride[x->ndim - 1];
  if ((cs == 1 || cols <= 1) && (rs >= cols || rows <= 1)) {
    m->t = false;
    m->ld = rows <= 1 || rs < cols ? (cols > 0 ? cols : 1) : rs;
    if (m->ld < 1) m->ld = 1;
    return true;
  }
  if ((rs == 1 || rows <= 1) && (cs >= rows || cols <= 1)) {
    m->t = true;
    m->ld = cols <= 1 || cs < rows ? (rows > 0 ? rows : 1) : cs;
    return true;
  }
  return false;
}

#endif
