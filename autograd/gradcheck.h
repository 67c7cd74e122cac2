/* gradcheck: compares reverse-mode gradients with central differences in float64.
 *
 * For users who add ops or layers. Use at most about 8 tokens and 3 channels: the cost is two evaluations for
 * each element of each input; long sequences are covered by equivalences instead.
 */
#ifndef WF_AUTOGRAD_GRADCHECK_H
#define WF_AUTOGRAD_GRADCHECK_H

#include "autograd/tape.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_gradcheck_options {
  double step;      /* of the differences, relative to max(1, |x|); 0: 1e-5 */
  double tolerance; /* on err2 of each input's gradient, and on errmax at 10 times that; 0: 1e-7 */
  double floor;     /* gradients smaller than this (root mean square) are compared absolutely; 0: 1e-6 */
  uint32_t wrt;     /* bit i: check input i; 0: every f64 input */
} wf_gradcheck_options;

/* Differentiates sum_k <out[k], r_k> for fixed random r_k. `fn` is run once on a tape and then without one;
 * in[] are f64, contiguous, and are restored. out[k] that are not f64 take no part. Errors: WF_ENUMERIC
 * naming the input, element and both values at the worst place. */
wf_status wf_gradcheck(wf_ctx *c, wf_fn fn, const void *arg, int n_in, wf_tensor *const *in, int n_out,
                       const wf_gradcheck_options *o);

/* Every sample of an op; passes for ops without gradient. The message names op, sample and input. */
wf_status wf_gradcheck_op(wf_ctx *c, const wf_op *op);

/* The measures of all comparisons in Weft: err2 = |a-b|_2 / |b|_2, errmax = max |a-b| / rms(b). Not finite:
 * inf. */
typedef struct wf_error {
  double err2, errmax;
  int64_t worst; /* where max |a-b| is */
} wf_error;
wf_error wf_compare(int64_t n, const double *a, const double *b);

#ifdef __cplusplus
}
#endif

#endif
