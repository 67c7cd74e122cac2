/* product: the matrix products that a context executes, recorded and run again through BLAS alone.
 *
 * This is the floor of a training step: the same list of products, with the same shapes, layouts, strides and
 * accumulation, in the same order and with operands lying to each other as they did, and nothing between
 * them. Only float32 products of the ops matmul and linear on the CPU are recorded; the small inner products
 * of attention and recurrences are not.
 *
 *     WF_TRY(wf_products_record(ctx, &list));
 *     ... one step ...
 *     WF_TRY(wf_products_stop(list));
 *     wf_products_run(list);                  // as often as wanted
 *     wf_products_free(list);
 */
#ifndef WF_CORE_PRODUCT_H
#define WF_CORE_PRODUCT_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_products wf_products;

/* Begin to record what `c` executes. One recording a context at a time. */
wf_status wf_products_record(wf_ctx *c, wf_products **out);

/* End the recording and give the products operands of their own, as large as the originals ("products" in the
 * memory table). WF_ENOMEM also when a product could not be recorded for want of memory. */
wf_status wf_products_stop(wf_products *p);

void wf_products_run(const wf_products *p); /* all of them, once, in order; after wf_products_stop */
void wf_products_free(wf_products *p);      /* before the context; NULL is allowed */

int64_t wf_products_count(const wf_products *p);
double wf_products_flops(const wf_products *p); /* 2 m n k, summed */

#ifdef __cplusplus
}
#endif

#endif
