/* ring: attention whose queries stay and whose keys and values go round the ranks.
 *
 * On hop t rank r meets the keys of rank r - t. Each block gives (o_b, l_b), the output and the log-sum-exp
 * over its keys, merged as it comes (core/ops: merge_pair):
 *     o <- o - sigmoid(l_b - l) (o - o_b);  l <- l - logsigmoid(l - l_b)
 * so no rank holds more than two blocks besides its own. Backward: with o and l of all keys the gradient of
 * attention over one block is that block's share (Liu et al. 2023); the keys go round again, their gradients
 * go with them one hop behind and, where nobody further on saw them, home.
 *
 * With keys of teams (dist/keys.h) each rank is one of several that have the same tokens and other heads, and
 * the rings go from team to team.
 *
 * Messages of the next hop are under way while one computes. Keys that no rank further on sees are not sent
 * on: only documents that go on in later segments travel, and of a contiguous causal sequence a rank's keys
 * visit the ranks behind it. What travels is the keys' heads, values and float64 terms.
 */
#ifndef WF_DIST_RING_H
#define WF_DIST_RING_H

#include "core/ops.h"
#include "dist/keys.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_ring_plan wf_ring_plan;

/* `k`: WF_KEYS_TOKENS or WF_KEYS_CACHE; reach 0. */
wf_status wf_ring_make(wf_part *p, const wf_keys *k, const wf_ring_plan **out);

/* core/ops.h: wf_attend_lse over the keys of all ranks: q [n, H, K] of this rank's (or team's) tokens, k and
 * v its pool, a [n, H] and b [pool, H] float64 or NULL; b is constant unless `terms_vary`, on all ranks
 * alike. Without a window and stride. */
wf_tensor *wf_ring_attend(wf_ctx *c, wf_comm *comm, const wf_ring_plan *ring, wf_tensor *q, wf_tensor *k,
                          wf_tensor *v, wf_tensor *a, wf_tensor *b, bool terms_vary, wf_tensor *sink,
                          const wf_attend_options *o, wf_tensor **lse);

/* Keys that a rank of team r sends forward; and back, each once again with its gradient. */
void wf_ring_sends(const wf_ring_plan *ring, int r, int64_t *keys, int64_t *gradients);
int64_t wf_ring_total(const wf_ring_plan *ring); /* forward, over all teams */

#ifdef __cplusplus
}
#endif

#endif
