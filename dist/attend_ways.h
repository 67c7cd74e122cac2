/* attend_ways: what the ways of attention over ranks send, and which sends least.
 *
 * With c = L/P keys a rank, H query and Hk key heads of d, n bytes a number, one document over all ranks and
 * equal segments, a rank sends at most (forward, backward):
 *
 *   ring        2 (P-1) c Hk d n,  twice that: keys and values again, and their gradients. What stays at home
 * is not sent, so gradients make P - 1 hops; causal contiguous segments need half as much over all. gather as
 * the ring forward, and once again for the gradients all to all  (P-1)/P c (2 H + 2 max(Hk, P)) d n, and once
 * again
 */
#ifndef WF_DIST_ATTEND_WAYS_H
#define WF_DIST_ATTEND_WAYS_H

#include "dist/keys.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_attend_size {
  int64_t heads, kv_heads, K, V;
  int64_t number;   /* bytes of one */
  bool gates, bias; /* float64 terms of the scores: with gradients; made of positions */
  bool lse;         /* the log-sum-exp is asked for */
} wf_attend_size;

typedef struct wf_attend_choice {
  wf_dist_attention way;
  int team; /* ranks that divide the heads; 1 for ring and gather */
} wf_attend_choice;

/* Bytes of messages that this rank sends. What a window leaves after the piece is not counted. */
wf_status wf_attend_bytes(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_attend_choice how,
                          int64_t *forward, int64_t *backward);

/* The way of the part's dist; for auto that of the fewest bytes over all ranks, and gather only where the
 * ring would carry keys twice as far: it holds them all at once. WF_EINVAL with a hint where the way is
 * impossible. */
wf_status wf_attend_way(wf_part *p, const wf_keys *k, const wf_attend_size *z, wf_attend_choice *how);

/* Times each key head is repeated so that P ranks divide them, or they the ranks; P divides the query heads.
 */
int64_t wf_attend_repeats(int64_t kv_heads, int P);

#ifdef __cplusplus
}
#endif

#endif
