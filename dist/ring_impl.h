/* The plan of a ring: which keys travel how far, and what this rank does with them. Private to dist. */
#ifndef WF_DIST_RING_IMPL_H
#define WF_DIST_RING_IMPL_H

#include "dist/ring.h"

/* The keys of a document in one segment: `past` from earlier pieces, then `now` of this one. */
typedef struct wf_ring_run {
  int owner, segment;
  int last;              /* the hop on which the last rank that sees any of them meets them; 0: none does */
  int64_t row;           /* in the pool of the owner */
  int64_t past, now, n;  /* n of them travel: all, or only the past */
  int64_t at;            /* where, in the owner's block */
  int64_t first, behind; /* the document's rows, in the order of the map */
} wf_ring_run;

/* One call of attention: on hop `hop`, spans [first, end), in the order of their queries. */
typedef struct wf_ring_call {
  int hop;
  bool own; /* each query meets the keys of its own row: the first of the parts of all */
  int64_t first, end;
} wf_ring_call;

struct wf_ring_plan {
  int team, n_ranks; /* ranks below are teams: neighbours that divide the heads and have one pool */
  wf_ring_run *run;  /* those that travel, by owner, the farthest first */
  int64_t *first;    /* [n_ranks + 1] each owner's */
  wf_ring_call *call;
  int n_calls;
  int64_t n_spans;
  wf_attend_span *span; /* keys in the pool (hop 0) or in the block */
  int64_t total;        /* keys sent, over all ranks and hops */
};

/* Keys of the block of rank `owner` that go on hop t, its first ones; t >= 1. */
int64_t wf_ring_rows(const wf_ring_plan *p, int owner, int t);
void wf_ring_plan_free(wf_ring_plan *p);

#endif
