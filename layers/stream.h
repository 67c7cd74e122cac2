/* stream: the gradient of a batch, whole or in pieces.
 *
 * Streamed exact training runs the pieces forward without a tape, keeping only the state at their boundaries,
 * then goes from the last piece to the first: run it again on a tape, differentiate, hand the gradient of its
 * entering state to the piece before. The gradients are those of the whole sequence in the memory of one
 * piece. Truncated back-propagation is a state handed from one batch to the next with the gradient cut there.
 */
#ifndef WF_LAYERS_STREAM_H
#define WF_LAYERS_STREAM_H

#include "layers/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A batch on the host: rows tile the tokens (core/rows.h); labels < 0 have no loss. */
typedef struct wf_tokens {
  int64_t n_rows, n_lanes, n_tokens;
  const wf_row *row;
  const int32_t *ids, *labels;
} wf_tokens;

/* The part of `t` whose places lie in [begin, end), counted from each lane's first token in `t`. Rows that
 * are cut hand their state over; so do the ends of rows that did before. Owned by the caller: wf_tokens_free.
 */
wf_status wf_tokens_cut(const wf_tokens *t, int64_t begin, int64_t end, wf_tokens *out);
void wf_tokens_free(wf_tokens *t);

/* What one rank has of a batch, in the local lanes of its part. */
wf_status wf_tokens_part(const wf_tokens *t, const wf_part *part, wf_tokens *out);

typedef struct wf_step {
  int64_t stream; /* tokens of each lane in a piece; 0: the whole batch at once */
  bool train;     /* dropout */
  uint64_t seed;
  int64_t step;
  wf_state *state;     /* entering state, advanced by the call; NULL: fresh. Its gradient is cut. */
  const wf_dist *dist; /* the ranks that share each sequence; NULL: this process has all of it. Every rank
                          calls with the same batch and gets what its own tokens add to losses and gradients;
                          `state` has wf_step_lanes lanes. */
} wf_step;

/* Lanes of the state of a step over `n_lanes` sequences. */
int64_t wf_step_lanes(const wf_dist *dist, int64_t n_lanes);

/* Adds the gradient of scale * (sum of losses) to the parameters' leaves; *loss is the sum of losses. The
 * caller has called wf_params_reset and wf_params_hold at the step's start; `last` releases (see
 * wf_piece_backward). After a failure the state is to be reset. */
wf_status wf_step_gradient(wf_model *m, const wf_step *s, const wf_tokens *t, double scale, bool last,
                           double *loss);

/* Sum of losses without gradient, in pieces of `stream` tokens a lane; dropout off unless s->train. `each`
 * (may be NULL) receives the loss of every token of `t`. */
wf_status wf_step_loss(wf_model *m, const wf_step *s, const wf_tokens *t, double *loss, double *each);

#ifdef __cplusplus
}
#endif

#endif
