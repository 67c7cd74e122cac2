/* What the primitives share when a sequence is cut over ranks. Private to layers/seq_*.c. */
#ifndef WF_LAYERS_SEQ_IMPL_H
#define WF_LAYERS_SEQ_IMPL_H

#include "dist/segments.h"
#include "layers/seq.h"

/* The rows of `r` for an op with a state: over ranks, with a carrier for its states. */
typedef struct wf_seq_rows {
  wf_rows rows;
  wf_segments by;
} wf_seq_rows;
static inline const wf_rows *wf_seq_carried(const wf_run *r, wf_seq_rows *to) {
  if (!r->part) return r->rows;
  to->by = wf_segments_of(r->part);
  to->rows = *r->rows;
  to->rows.carrier = &to->by.carrier;
  return &to->rows;
}
/* Are the segments to run one after the other, by wf_seq_relay? */
static inline bool wf_seq_serial_segments(const wf_run *r) {
  return r->part && !wf_segments_serve(r->part);
}

enum { WF_RELAY_MAX = 32 };

/* wf_build_state for a primitive's own slot. */
static inline wf_status wf_seq_state(wf_build *b, wf_state_kind kind, const char *name, bool grows, int ndim,
                                     const int64_t *shape, int *slot) {
  WF_TRY(wf_build_state(b, name, grows, ndim, shape, slot));
  b->state->slot[*slot].kind = kind;
  return WF_OK;
}

/* A primitive over the rows of `r`, whose part is NULL: x[n_x] -> y[n_y]; reads and leaves its slots. */
typedef void (*wf_relay_body)(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y);

typedef struct wf_relay {
  int slot, n_state; /* its slots of r->state, declared one after the other */
  bool no_gradient;  /* of the states */
  bool loose;        /* the outputs may not depend on every state: the body is no op of its own */
  int n_x, n_y;      /* x[0] is there; others may be NULL */
  wf_relay_body body;
  const void *arg;
} wf_relay;

/* Runs the primitive on this rank's segments one after the other, each with the state that the segment before
 * has left, wherever that was: the transport that holds for everything. x and y are [tokens of the rank,
 * ...]; y poison on failure. */
void wf_seq_relay(wf_run *r, const wf_relay *relay, wf_tensor *const *x, wf_tensor **y);

/* ---- shards: seq_shards.c ---- */

enum { WF_SHARD_INPUTS = 8, WF_SHARD_STATES = 24 };
#define WF_SHARDS_LABEL "shards" /* of the ops, for profiles and predictions */

/* A primitive over some heads of some lanes, as if there were no ranks: reads and leaves its slots -> y. */
typedef wf_tensor *(*wf_shard_body)(wf_run *r, const void *arg, int64_t head, int64_t heads,
                                    wf_tensor *const *x);

typedef struct wf_sharded {
  int slot, n_state, n_x;
  int64_t heads;                  /* that see nothing of each other */
  int x_axis, y_axis, state_axis; /* their dimension; 0, and one head: there is none */
  wf_shard_body body;
  const void *arg;
} wf_sharded;

/* Runs the primitive on this rank's share of (head, lane) pairs. */
wf_tensor *wf_seq_shards(wf_run *r, const wf_sharded *what, wf_tensor *const *x);
/* Is that the way, where taking turns uses such a part of the ranks' time? */
bool wf_seq_divides(const wf_run *r, int64_t heads, double turns);

/* ---- attend over ranks: seq_attend_ranks.c ---- */

/* wf_seq_attend, with a part. */
wf_tensor *wf_seq_attend_ranks(wf_run *r, const wf_seq_attend_slots *slots, const wf_seq_attend_in *in,
                               const wf_attend_options *o, wf_tensor **lse);
/* The keys that this rank's queries see, themselves and the reach - 1 before them (0: all), as pools y[n] of
 * x[n], whose slots are those of attention with that window; leaves state. -> the spans of the rows, NULL and
 * poison on failure. n <= 3. */
const wf_attend_span *wf_seq_fetch(wf_run *r, int64_t window, int64_t reach, int n, const int *slot,
                                   wf_tensor *const *x, wf_tensor **y);
/* Adds ALiBi to the terms a [n, H], b [pool, H] of the scores (NULL: none yet) of q [n, H, ..]: the i-th of
 * the spans has its first query at pos[i] (NULL: spans share no key). Nothing where slope is NULL. */
void wf_seq_alibi(wf_ctx *c, int64_t n_spans, const wf_attend_span *span, const int64_t *pos,
                  const double *slope, const int64_t *q, int64_t pool, wf_tensor **a, wf_tensor **b);

#endif
