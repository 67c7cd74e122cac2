/* layout: which rank has which part of a sequence.
 *
 * A piece of a sequence is cut into segments, the same cuts in every lane, and each segment belongs to a
 * rank.
 *
 *   contiguous   one segment a rank, in the order of the ranks
 *   zigzag       two a rank: rank r of P has segments r and 2P-1-r, so that causal attention costs every rank
 *                the same; recurrences run through them in place
 *
 * Segments need not be equal: a length that their number does not divide makes some longer by a token, and
 * shares may be given.
 */
#ifndef WF_DIST_LAYOUT_H
#define WF_DIST_LAYOUT_H

#include "core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_layout_kind { WF_LAYOUT_CONTIGUOUS, WF_LAYOUT_ZIGZAG } wf_layout_kind;

typedef struct wf_layout {
  int n_ranks, n_segments;
  int *owner;     /* [n_segments] its rank */
  int *slot;      /* [n_segments] its place among those of its owner */
  int64_t *ahead; /* [n_segments + 1] shares of the segments before it; the last is their sum */
} wf_layout;

/* share [segments] or NULL (equal ones); 0 makes a segment without tokens. The caller frees. */
wf_status wf_layout_create(wf_layout_kind kind, int n_ranks, const int64_t *share, wf_layout **out);
/* Segments of any number and owners in any order: virtual segments, and tests. */
wf_status wf_layout_custom(int n_ranks, int n_segments, const int *owner, const int64_t *share,
                           wf_layout **out);
void wf_layout_free(wf_layout *l);
/* The first place of segment s in a piece of `length` places; s = n_segments: length. */
int64_t wf_layout_bound(const wf_layout *l, int64_t length, int s);
int wf_layout_most(const wf_layout *l); /* segments of the rank that has most */

#ifdef __cplusplus
}
#endif

#endif
