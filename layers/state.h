/* state: what a model carries from one piece of a sequence to the next.
 *
 * A slot belongs to one layer. A fixed slot is a tensor [lanes, ...]: forward reads in[i] and leaves a new
 * tensor in out[i]. A growing slot is an append-only cache [lanes, capacity, ...] that is written in place;
 * when gradients flow through it, its twin of the same layout collects them. Positions count each lane's
 * tokens so far.
 */
#ifndef WF_LAYERS_STATE_H
#define WF_LAYERS_STATE_H

#include "autograd/tape.h"
#include "core/rows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The primitive whose state it is: what ranks that share a sequence exchange (layers/seq.h). */
typedef enum wf_state_kind { WF_STATE_SERIAL, WF_STATE_SCAN, WF_STATE_SHIFT, WF_STATE_ATTEND } wf_state_kind;

const char *wf_state_kind_name(wf_state_kind kind); /* "serial", "scan", "shift", "attend" */

typedef struct wf_state_slot {
  char *name;
  wf_state_kind kind;
  bool grows;
  bool exact; /* float64 whatever the model computes in: sums that run over the whole sequence */
  int ndim;
  int64_t shape[WF_MAX_DIMS]; /* without lanes and capacity */
} wf_state_slot;

/* The slots of a model, filled while its layers are built. */
typedef struct wf_state_spec {
  wf_state_slot *slot;
  int n;
  size_t cap;
} wf_state_spec;

typedef struct wf_state {
  const wf_state_spec *spec;
  wf_ctx *c;
  wf_dtype dtype;
  int64_t lanes, capacity;
  int base;          /* number of the slot that in[0] and out[0] belong to: 0, but for a block seen alone */
  wf_tensor **in;    /* [n] held */
  wf_tensor **out;   /* [n] of the current scope, set by forward; NULL where not; unused for growing slots */
  wf_leaf *twin;     /* [n] growing slots when differentiable: leaf.grad is the twin */
  int64_t *position; /* [lanes] tokens of the lane's sequence so far, up to the last that left state */
} wf_state;

static inline wf_tensor *wf_state_in(const wf_state *s, int slot) {
  return s->in[slot - s->base];
}
static inline wf_tensor **wf_state_out(const wf_state *s, int slot) {
  return &s->out[slot - s->base];
}

static inline wf_dtype wf_state_dtype(const wf_state *s, int i) {
  return s->spec->slot[i].exact ? WF_F64 : s->dtype;
}

void wf_state_spec_free(wf_state_spec *spec);

/* Bytes of one lane's fixed slots, and of one token in its growing ones. */
void wf_state_bytes(const wf_state_spec *spec, wf_dtype dtype, int64_t *fixed, int64_t *per_token);

/* A zero state for `lanes` lanes; growing slots hold `capacity` tokens a lane. */
wf_status wf_state_create(wf_ctx *c, const wf_state_spec *spec, wf_dtype dtype, int64_t lanes,
                          int64_t capacity, bool differentiable, wf_state **out);
void wf_state_free(wf_state *s);

/* Take what forward left: out becomes in, positions move past the rows that leave state. Call inside the
 * scope of the forward. After a failure the state is to be reset or returned to a mark. */
wf_status wf_state_advance(wf_state *s, const wf_rows *rows);
wf_status wf_state_reset(wf_state *s); /* zero, positions 0 */

/* The entering tensors and the positions, to come back to. Growing slots need no copy: replay rewrites the
 * same bytes. */
typedef struct wf_state_mark {
  wf_tensor **in; /* [n] references; NULL: no mark */
  int64_t *position;
} wf_state_mark;

wf_status wf_state_mark_take(const wf_state *s, wf_state_mark *mark);
void wf_state_mark_return(wf_state *s, const wf_state_mark *mark);
void wf_state_mark_drop(const wf_state *s, wf_state_mark *mark);

#ifdef __cplusplus
}
#endif

#endif
