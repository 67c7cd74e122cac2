/* ema: an exponential moving average of the weights, to evaluate with and to save.
 *
 *     wf_ema_update(ema);              // after each step that was not skipped
 *     wf_ema_swap(ema); evaluate(); wf_ema_swap(ema);
 */
#ifndef WF_OPTIM_EMA_H
#define WF_OPTIM_EMA_H

#include "optim/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_ema_options {
  double decay; /* 0 to below 1 */
  bool warmup;  /* shorter averages at the start, see wf_ema_update() */
} wf_ema_options;

typedef struct wf_ema wf_ema;

/* Starts as a copy of the values: flat buffers in their dtype, tag "ema". Groups as for
 * wf_optimizer_create(). Free with wf_ema_free(). */
wf_status wf_ema_create(wf_ctx *c, const wf_ema_options *options, int n_groups, const wf_opt_group *groups,
                        wf_ema **out);
void wf_ema_free(wf_ema *ema); /* NULL is allowed */

/* average += (1 - d) (value - average); d = decay, or with warmup min(decay, (1 + t) / (10 + t)) for the t-th
 * update, t from 1, so that the start is forgotten. WF_EINVAL while swapped. */
wf_status wf_ema_update(wf_ema *ema);

/* Exchange averages and values in place; a second call puts them back. */
wf_status wf_ema_swap(wf_ema *ema);
bool wf_ema_swapped(const wf_ema *ema);
int64_t wf_ema_bytes(const wf_ema *ema);

/* For checkpoints: the flat buffer beside a group's values (the average, unless swapped), and the updates. */
wf_tensor *wf_ema_average(const wf_ema *ema, int group);
int64_t wf_ema_updates(const wf_ema *ema);
void wf_ema_set_updates(wf_ema *ema, int64_t updates);

#ifdef __cplusplus
}
#endif

#endif
