/* shards: what each rank updates of the model and keeps of the optimiser's state.
 *
 * Over several ranks the gradients are summed bucket by bucket (dist/buckets.h) as the parameters' leaves
 * become final. With `divide` (ZeRO-1) a rank's optimiser and average then see the shares of this rank alone,
 * one group for each bucket, and the values are gathered after each update. Otherwise, and for one rank, they
 * see the model's groups.
 */
#ifndef WF_EXPERIMENTS_SHARDS_H
#define WF_EXPERIMENTS_SHARDS_H

#include "dist/buckets.h"
#include "experiments/assemble.h"
#include "optim/clip.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_shards {
  wf_comm *comm;
  wf_params *params;
  wf_buckets *buckets; /* NULL for one rank */
  bool divided;
  wf_groups all, own; /* the model's groups; what this rank updates (the same unless divided) */
  int *group;         /* divided: [buckets] the group in `own` of each */
  struct wf_shard_hook *hook;
} wf_shards;

/* Of all ranks of `comm`, which must outlive the result, as must the model. Sums start from the parameters'
 * leaves from now on: every step ends with wf_shards_sum. */
wf_status wf_shards_open(wf_comm *comm, wf_model *m, bool divide, int64_t bucket_bytes, wf_shards *out);
void wf_shards_close(wf_shards *s);

/* Bytes of gradients that this rank holds: the model's and, divided, the sums of its shares. As many are what
 * a step gives to the calls of the communicator, the gradients and the values of its shares. */
int64_t wf_shards_bytes(const wf_shards *s);
/* "; gradients in 12 buckets, 93.1 MiB a step"; nothing for one rank. */
void wf_shards_describe(const wf_shards *s, char out[100]);

/* Wait for the sums of gradients of the step. */
wf_status wf_shards_sum(wf_shards *s);
/* The norm of the sums; the same bits on every rank. */
wf_status wf_shards_measure(wf_ctx *c, const wf_shards *s, double scale, double max_norm, wf_grad_norm *out);
/* The first parameter with a gradient that is not finite, on any rank; NULL: none. Of all ranks. */
wf_status wf_shards_find_bad(const wf_shards *s, const char **name);
/* After this rank has changed values of its own: all ranks' to all. */
wf_status wf_shards_spread(wf_shards *s);

/* Ends with an error on all ranks where they have not all the same `loss`, `norm` and, of the weights, the
 * part that this step looks at; one step after the other looks at all of them. */
wf_status wf_shards_agree(const wf_shards *s, int64_t step, double loss, double norm);

/* Where parameter i is in `own`: its group, and the elements [*first, *first + n) of the parameter that this
 * rank has, at *at of the group's buffers. count [ranks] (may be NULL): the elements that each has. */
int wf_shards_find(const wf_shards *s, int i, int64_t *first, int64_t *n, int64_t *at, int64_t *count);

#ifdef __cplusplus
}
#endif

#endif
