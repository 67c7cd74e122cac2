/* clip: the global norm of the gradients, the clip factor, and the name of what went bad.
 *
 * One pass reads the gradients; nothing writes them: the factor goes into the optimiser's step.
 */
#ifndef WF_OPTIM_CLIP_H
#define WF_OPTIM_CLIP_H

#include "optim/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_grad_norm {
  double norm;  /* of `scale` x gradients, before clipping; not finite when any gradient is not */
  double scale; /* for wf_optimizer_step(): scale x min(1, max_norm / (norm + 1e-6)); NAN when not finite */
  bool clipped; /* the factor was below 1 */
} wf_grad_norm;

/* The sum of squares of all gradients, in double and in an order that depends on sizes only. Where groups are
 * sharded over ranks, add the ranks' sums before wf_grad_clip(). */
wf_status wf_grad_sumsq(wf_ctx *c, int n_groups, const wf_opt_group *groups, double *sumsq);

/* From a sum of squares; max_norm 0 never clips. As torch.nn.utils.clip_grad_norm_ (Pascanu et al. 2013). */
wf_grad_norm wf_grad_clip(double sumsq, double scale, double max_norm);

/* Both. */
wf_status wf_grad_measure(wf_ctx *c, int n_groups, const wf_opt_group *groups, double scale, double max_norm,
                          wf_grad_norm *out);

typedef struct wf_grad_bad {
  const wf_opt_range *range; /* NULL when all gradients are finite, or the bad one is padding */
  int64_t index;             /* inside the parameter */
  double value;
  int64_t count; /* parameters with a bad element */
} wf_grad_bad;

/* The first parameter, in the order of groups and ranges, with a gradient that is not finite. Reads
 * everything through host memory: for the message of a bad step. */
wf_status wf_grad_find_bad(int n_groups, const wf_opt_group *groups, wf_grad_bad *out);

#ifdef __cplusplus
}
#endif

#endif
