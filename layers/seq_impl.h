/* What the primitives share when a sequence is cut over ranks. Private to layers/seq_*.c. */
#ifndef WF_LAYERS_SEQ_IMPL_H
#define WF_LAYERS_SEQ_IMPL_H

#include "layers/seq.h"

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

#endif
