/* rates: what this machine can do, measured: the ceilings that floors are made of. */
#ifndef WF_EXPERIMENTS_RATES_H
#define WF_EXPERIMENTS_RATES_H

#include "core/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Floating-point operations a second of a product of two n x n f32 matrices on the context's device, the best
 * of a few within about `seconds`. */
wf_status wf_rate_matrix(wf_ctx *c, int64_t n, double seconds, double *flops);

double wf_now(void); /* seconds of a clock that only goes forward */

#ifdef __cplusplus
}
#endif

#endif
