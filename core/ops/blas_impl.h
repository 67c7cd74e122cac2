/* blas: the matrix product of a kernel pass, float or double. Private to core's kernel passes. */
#ifndef WF_CORE_BLAS_IMPL_H
#define WF_CORE_BLAS_IMPL_H

#include <cblas.h>
#include <limits.h>
#include "core/op_def.h"

/* C [m, n] = op(A) op(B) + (add ? C : 0), row-major; a and b say whether A [k, m] and B [n, k] are stored
 * transposed. */
static inline wf_status wf_gemm(bool at, bool bt, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda,
                                const real *b, int64_t ldb, bool add, real *c, int64_t ldc) {
  if (m == 0 || n == 0) return WF_OK;
  int64_t widest = m > n ? m : n;
  if (k > widest) widest = k;
  if (lda > widest) widest = lda;
  if (ldb > widest) widest = ldb;
  if (ldc > widest) widest = ldc;
  if (widest > INT_MAX)
    return WF_FAIL(WF_EUNSUPPORTED, "a matrix product with a dimension of %lld is beyond what BLAS counts",
                   (long long)widest);
  if (k == 0) {
    for (int64_t i = 0; i < m && !add; i++)
      for (int64_t j = 0; j < n; j++) c[i * ldc + j] = 0;
    return WF_OK;
  }
#ifdef WF_REAL_F32
  cblas_sgemm(
#else
  cblas_dgemm(
#endif
      CblasRowMajor, at ? CblasTrans : CblasNoTrans, bt ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
      1, a, (int)lda, b, (int)ldb, add ? 1 : 0, c, (int)ldc);
  return WF_OK;
}

#endif
