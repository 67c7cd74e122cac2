/* What a kernel tells a recording of products (core/product.h). Private to core. */
#ifndef WF_CORE_PRODUCT_IMPL_H
#define WF_CORE_PRODUCT_IMPL_H

#include "core/ctx_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* C [m, n] = op(A) op(B) + (add ? C : 0) as BLAS takes it, row-major. */
typedef struct wf_product {
  bool at, bt, add; /* A [k, m], B [n, k] stored transposed */
  int64_t m, n, k, lda, ldb, ldc;
  const float *a, *b;
  float *c;
} wf_product;

/* Called where c->products is set; safe from several threads. */
void wf_product_note(wf_ctx *c, const wf_product *p);

#ifdef __cplusplus
}
#endif

#endif
