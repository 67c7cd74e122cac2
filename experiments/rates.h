/* rates: what this machine can do, measured: the ceilings that floors are made of.
 *
 * Each is the best of at least three trials within about `seconds`, on the context's device with as many
 * threads as OpenMP gives.
 */
#ifndef WF_EXPERIMENTS_RATES_H
#define WF_EXPERIMENTS_RATES_H

#include "core/clock.h"
#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Floating-point operations a second of a product of two n x n f32 matrices. */
wf_status wf_rate_matrix(wf_ctx *c, int64_t n, double seconds, double *flops);

/* The same of one projection: m tokens from width k to width n. */
wf_status wf_rate_product(wf_ctx *c, int64_t m, int64_t n, int64_t k, double seconds, double *flops);

/* Bytes a second. Reading: a sum over memory. Copying: bytes read and bytes written, both counted. Buffers of
 * 256 MiB, far beyond caches. */
wf_status wf_rate_memory(wf_ctx *c, double seconds, double *read, double *copy);

/* Exponentials of f32 a second, in cache. */
wf_status wf_rate_exp(wf_ctx *c, double seconds, double *exps);

#ifdef __cplusplus
}
#endif

#endif
