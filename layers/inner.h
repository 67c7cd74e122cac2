/* inner: the network that a test-time memory learns while it reads, and its gradients as expressions, so that
 * the tape differentiates them once more: private to layer files.
 *
 *   X_0 = x;  Z_i = X_i W_i [+ b_i];  X_{i+1} = gelu(Z_i)       the last Z is the network's value
 *   dZ_{i-1} = (dZ_i W_i^T) . gelu'(Z_{i-1})                    the gradient by W_i is X_i^T dZ_i
 *
 * GELU in its tanh form. All of m rows and H heads at once: x [m, H, L, in], W_i [m, H, in, out].
 */
#ifndef WF_LAYERS_INNER_H
#define WF_LAYERS_INNER_H

#include "core/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_INNER_DEPTH = 4 };

typedef struct wf_inner {
  int depth;
  wf_tensor *w[WF_INNER_DEPTH], *b[WF_INNER_DEPTH]; /* b: [m, H, 1, out] or NULL */
} wf_inner;

/* One run: the inputs and values of its layers, and their gradients. */
typedef struct wf_inner_run {
  wf_tensor *x[WF_INNER_DEPTH], *z[WF_INNER_DEPTH], *dz[WF_INNER_DEPTH];
} wf_inner_run;

/* Fills x and z; -> the last z. */
wf_tensor *wf_inner_forward(wf_ctx *c, const wf_inner *n, wf_tensor *x, wf_inner_run *r);
/* Fills dz from that of the last z. Linear in it: a factor of each token goes through. */
void wf_inner_backward(wf_ctx *c, const wf_inner *n, wf_tensor *dz, wf_inner_run *r);

/* Tokens [m L, heads width] (or [m L, heads, width]) of m rows as [m, heads, L, width], a view; and back. */
wf_tensor *wf_inner_heads(wf_ctx *c, wf_tensor *x, int64_t m, int64_t heads);
wf_tensor *wf_inner_tokens(wf_ctx *c, wf_tensor *x);

#ifdef __cplusplus
}
#endif

#endif
