/* halo: the tokens before each segment that a window reaches back to, from the ranks that have them.
 *
 * A segment that is at least as long as the window's reach tells the next one its last tokens without waiting
 * for those before it: all ranks exchange at once, and backward they return the gradients at once.
 */
#ifndef WF_DIST_HALO_H
#define WF_DIST_HALO_H

#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Can every segment of the part tell its last `reach` tokens without knowing what entered it? The same on all
 * ranks; where not (a segment shorter than the reach in the middle of a document), the relay it must be. */
bool wf_halo_fits(const wf_part *p, int64_t reach);

/* x [n, d], of the rank's tokens; carry [lanes of the rank, reach, d], the state of the shift (core/ops.h:
 * wf_conv)
 * -> what enters each segment of the rank, and *leaves, what each leaves, both of carry's shape. */
wf_tensor *wf_dist_halo(wf_ctx *c, const wf_part *p, wf_tensor *x, wf_tensor *carry, wf_tensor **leaves);

/* Bytes that this rank sends forward, and as many backward, for rows of `token_bytes`. */
int64_t wf_halo_bytes(const wf_part *p, int64_t reach, int64_t token_bytes);

#ifdef __cplusplus
}
#endif

#endif
