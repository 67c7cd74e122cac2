/* relayout: the tokens of a part in the contiguous layout and back, for a mixer that a scattered layout holds
 * up.
 *
 * A model has one layout, and recurrences run through its segments in place; with two segments a rank
 * (zigzag) a state makes twice as many hops from rank to rank. Where the state is large and the tokens are
 * few, it costs less to move the tokens: each rank gets as many of them as it has, in one run, and gives its
 * results back.
 *
 * The state between pieces stays where the part's own layout has it: what enters the first segment goes to
 * the owner of the last one in the contiguous layout before, and what leaves comes back from there. So the
 * choice is no one's concern but the mixer's: streaming, carried states and checkpoints are the same.
 */
#ifndef WF_DIST_RELAYOUT_H
#define WF_DIST_RELAYOUT_H

#include "dist/exchange.h"
#include "dist/part.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WF_RELAYOUT_LABEL "relayout" /* of the ops, for profiles and predictions */

typedef struct wf_relayout {
  wf_dist dist;       /* the part's, with the contiguous layout */
  wf_layout *layout;  /* a rank's segment is as long as those that it has in the part */
  wf_part *part;      /* the same piece */
  wf_rows *rows;      /* of this rank's tokens in it */
  wf_exchange tokens; /* from the part's to these */
  wf_exchange state;  /* from [lanes of the rank, ...] to [n_lanes, ...], and back what leaves */
  wf_exchange none;   /* the same where no state enters or leaves: zero */
} wf_relayout;

/* Made in `c` when first asked for; the part's. NULL in *out where the part is contiguous as it is. */
wf_status wf_relayout_of(wf_part *p, wf_ctx *c, const wf_relayout **out);
void wf_relayout_free(wf_part *p);

/* x [tokens of the part, ...] -> [tokens of the contiguous one, ...], and back. */
wf_tensor *wf_relayout_tokens(wf_ctx *c, const wf_relayout *l, wf_tensor *x);
wf_tensor *wf_relayout_tokens_back(wf_ctx *c, const wf_relayout *l, wf_tensor *y);
/* A state that enters, and one that leaves (asked for only where the part `leaves`). */
wf_tensor *wf_relayout_state(wf_ctx *c, const wf_relayout *l, wf_tensor *S);
wf_tensor *wf_relayout_state_back(wf_ctx *c, const wf_relayout *l, wf_tensor *S);

/* ---- does it pay? ---- */

/* One mixer in one piece. */
typedef struct wf_relayout_size {
  double lanes;
  double tokens;                 /* bytes of a rank's tokens, as they enter and leave the mixer */
  double scan;                   /* bytes of a lane's states that scans hand on, */
  double serial;                 /* and of those that only running can tell */
  int n_scan, n_serial, n_state; /* slots: of these, and all */
  bool carried;                  /* states enter and leave the piece */
} wf_relayout_size;

/* Seconds of the exchanges of a step, forward and backward, in place and moved: what is the same in both is
 * left out. */
void wf_relayout_cost(const wf_dist *d, const wf_relayout_size *x, double *in_place, double *moved);

#ifdef __cplusplus
}
#endif

#endif
