/* ops_optim: the ops of optimisers, over flat buffers; descriptions and kernels in core/ops/optim.c and
 * core/ops/sumsq.c.
 *
 * Every op here is a function of its inputs, and its outputs may be the inputs' own buffers: an optimiser
 * runs it with wf_op_run(), out = in, and it is a step in place that reads and writes each buffer once. All
 * buffers of a call have one size and one dtype, f32 or f64. What changes from step to step is no attribute
 * but a small tensor `ctl` [WF_CTL_N] of the same dtype, so that a captured CUDA graph can read it on the
 * device. None of them has a gradient.
 */
#ifndef WF_CORE_OPS_OPTIM_H
#define WF_CORE_OPS_OPTIM_H

#include "core/op.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  WF_CTL_GO,    /* 0: leave everything as it is (a step with a non-finite gradient) */
  WF_CTL_GRAD,  /* factor of the gradient: 1 / count, times the clip factor */
  WF_CTL_LR,    /* learning rate */
  WF_CTL_BIAS1, /* Adam: 1 / (1 - beta1^t) */
  WF_CTL_BIAS2, /* Adam: 1 / sqrt(1 - beta2^t) */
  WF_CTL_MIX,   /* average: weight of the new value */
  WF_CTL_N = 8
};

/* adamw: ctl, p, g, m, v -> p, m, v.  28 bytes a parameter in f32 (Loshchilov & Hutter 2019):
 *   g = GRAD g;  m += (1-b1) (g - m);  v = b2 v + (1-b2) g^2
 *   p = p (1 - LR decay) - LR BIAS1 m / (BIAS2 sqrt(v) + eps) */
typedef struct wf_adamw_attr {
  double beta1, beta2, eps, decay;
} wf_adamw_attr;

/* sgd: ctl, p, g, m (may be absent) -> p, m.  As torch.optim.SGD, with the decay in the gradient:
 *   g = GRAD g + decay p;  m = momentum m + g;  p -= LR (nesterov ? g + momentum m : m) */
typedef struct wf_sgd_attr {
  double momentum, decay;
  int32_t nesterov;
} wf_sgd_attr;

/* lion: ctl, p, g, m -> p, m.  20 bytes a parameter in f32 (Chen et al. 2023, algorithm 2):
 *   g = GRAD g;  p -= LR (sign(b1 m + (1-b1) g) + decay p);  m = b2 m + (1-b2) g */
typedef struct wf_lion_attr {
  double beta1, beta2, decay;
} wf_lion_attr;

/* muon_momentum: ctl, g, m -> u, m.  A moving average, looked ahead where nesterov:
 *   g = GRAD g;  m = mu m + (1-mu) g;  u = nesterov ? mu m + (1-mu) g : m */
typedef struct wf_muon_attr {
  double momentum;
  int32_t nesterov;
} wf_muon_attr;

/* muon_poly: s, ss [n, n] -> a I + b s + c ss, the factor of one Newton-Schulz iteration (ss = s s). */
typedef struct wf_muon_poly_attr {
  double a, b, c;
} wf_muon_poly_attr;

/* muon_apply: ctl, p, u -> p (1 - LR decay) - LR scale u. */
typedef struct wf_muon_apply_attr {
  double decay, scale;
} wf_muon_apply_attr;

/* ema: ctl, a, p -> a + MIX (p - a).
 * swap: a, b -> b, a.
 * sumsq: x -> [] f64, sum of x^2 in double. Formed in fixed parts, so it is the same for any number of
 *   threads; not finite exactly when an element is not (or a square leaves the range of double).
 * unit_norm: x -> x / (|x| + eps), |x| the root of the sum of all squares. Its attr is a double, eps. */

#ifdef __cplusplus
}
#endif

#endif
