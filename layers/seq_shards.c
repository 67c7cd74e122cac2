/* shards: a primitive over (head, lane) pairs that the ranks have dealt out (dist/shards.h). Tokens become
 * pairs, each rank runs its own over the whole piece, as if there were no ranks, and pairs become tokens
 * again: four exchanges a step. States come from where the piece before left them, with the last segment, and
 * go back there.
 */
#include "layers/seq_impl.h"
#include "core/memory.h"
#include "dist/relay.h"
#include "dist/shards.h"

#include <string.h>

enum { MOST = WF_SHARD_INPUTS + WF_SHARD_STATES };

typedef struct shards_run {
  wf_run *r;
  const wf_sharded *what;
  const wf_shards *plan;
  wf_tensor *x[WF_SHARD_INPUTS], *S[WF_SHARD_STATES]; /* of all blocks: [pairs, width] */
  wf_tensor *left[WF_SHARD_STATES][WF_SHARD_BLOCKS];  /* [pairs, width] of each */
  wf_tensor *y[WF_SHARD_BLOCKS];
  int64_t shape[WF_MAX_DIMS]; /* of the outputs of one block */
  int ndim;
} shards_run;

/* ---- heads in front ---- */

/* x [n, .., heads, ..] -> [heads n, width]; axis 0: there are no heads. */
static wf_tensor *to_pairs(wf_ctx *c, wf_tensor *x, int axis) {
  if (wf_is_poison(x)) return x;
  int64_t rows = x->shape[0], width = 1;
  for (int d = 1; d < x->ndim; d++) *(d == axis ? &rows : &width) *= x->shape[d];
  for (int d = axis; d > 0; d--) x = wf_transpose(c, x, d, d - 1);
  return wf_reshape(c, x, WF_SHAPE(rows, width));
}

/* x [heads n, width] -> [n, .., heads, ..], the other dimensions as in `like`. */
static wf_tensor *from_pairs(wf_ctx *c, wf_tensor *x, int axis, int ndim, const int64_t *like, int64_t heads,
                             int64_t n) {
  int64_t shape[WF_MAX_DIMS];
  int at = 0;
  if (axis) shape[at++] = heads;
  shape[at++] = n;
  for (int d = 1; d < ndim; d++)
    if (d != axis) shape[at++] = like[d];
  x = wf_reshape(c, x, ndim, shape);
  for (int d = 0; d < axis; d++) x = wf_transpose(c, x, d, d + 1);
  return x;
}

static wf_tensor *rows_of(wf_ctx *c, wf_tensor *x, int64_t begin, int64_t n) {
  return wf_is_poison(x) || n == x->shape[0] ? x : wf_slice(c, x, 0, begin, begin + n);
}

/* ---- exchanges ---- */

/* Back: from results to pools. */
static void exchange(shards_run *q, const wf_exchange *e, bool back, int n, wf_tensor *const *x,
                     wf_tensor **y) {
  wf_ctx *c = q->r->c;
  wf_comm *comm = q->r->part->dist->comm;
  for (int i = 0; i < n; i += WF_EXCHANGE_MOST) {
    int some = n - i < WF_EXCHANGE_MOST ? n - i : WF_EXCHANGE_MOST;
    if (back)
      wf_exchange_back(c, comm, e, 0, NULL, some, x + i, y + i);
    else
      wf_exchange_rows(c, comm, e, 0, some, x + i, y + i);
  }
}

/* Do states go in or out of this piece? Otherwise they stay as they are. */
static bool moves_states(const wf_part *p) {
  return p->enters || p->leaves;
}

static void fetch(shards_run *q, wf_tensor *const *x) {
  const wf_sharded *w = q->what;
  wf_ctx *c = q->r->c;
  wf_tensor *pool[MOST];
  for (int i = 0; i < w->n_x; i++) pool[i] = to_pairs(c, x[i], w->x_axis);
  exchange(q, &q->plan->tokens, false, w->n_x, pool, q->x);
  if (!moves_states(q->r->part)) return;
  for (int i = 0; i < w->n_state; i++)
    pool[i] = to_pairs(c, wf_state_in(q->r->state, w->slot + i), w->state_axis);
  exchange(q, &q->plan->states, false, w->n_state, pool, q->S);
}

/* Every rank takes part in the backward of what has come, whatever its pieces have read of it. */
static wf_tensor *tied(shards_run *q, wf_tensor *y) {
  for (int i = 0; i < q->what->n_x; i += WF_EXCHANGE_MOST) y = wf_tie(q->r->c, y, q->x[i]);
  for (int i = 0; i < q->what->n_state && moves_states(q->r->part); i += WF_EXCHANGE_MOST)
    y = wf_tie(q->r->c, y, q->S[i]);
  return y;
}

/* ---- blocks ---- */

static wf_tensor *state_of(shards_run *q, int i, const wf_shard *b, int64_t row) {
  const wf_sharded *w = q->what;
  wf_ctx *c = q->r->c;
  const wf_tensor *like = wf_state_in(q->r->state, w->slot + i);
  if (moves_states(q->r->part))
    return from_pairs(c, rows_of(c, q->S[i], row, b->heads * b->lanes), w->state_axis, like->ndim,
                      like->shape, b->heads, b->lanes);
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, like->shape, sizeof shape);
  shape[w->state_axis] = b->heads;
  shape[0] = b->lanes;
  return wf_zeros(c, "state", like->dtype, like->ndim, shape);
}

/* The k-th block, whose first rows of tokens and states are these. */
static wf_status run_block(shards_run *q, int k, wf_tensor *const *x, int64_t token, int64_t lane) {
  const wf_sharded *w = q->what;
  const wf_shard *b = &q->plan->block[k];
  wf_ctx *c = q->r->c;
  wf_tensor *in[WF_SHARD_INPUTS], *S[WF_SHARD_STATES], *out[WF_SHARD_STATES] = {NULL};
  for (int i = 0; i < w->n_x; i++)
    in[i] = from_pairs(c, rows_of(c, q->x[i], token, b->heads * b->tokens), w->x_axis, x[i]->ndim,
                       x[i]->shape, b->heads, b->tokens);
  for (int i = 0; i < w->n_state; i++) S[i] = state_of(q, i, b, lane);
  wf_state state = {
      .c = c, .dtype = q->r->state->dtype, .lanes = b->lanes, .base = w->slot, .in = S, .out = out};
  wf_run run = *q->r;
  run.rows = b->rows;
  run.part = NULL;
  run.state = &state;
  wf_tensor *y = w->body(&run, w->arg, b->head, b->heads, in);
  if (wf_is_poison(y)) return wf_ctx_failure(c);
  q->ndim = y->ndim;
  memcpy(q->shape, y->shape, sizeof q->shape);
  q->y[k] = to_pairs(c, y, w->y_axis);
  for (int i = 0; i < w->n_state; i++) {
    if (!out[i]) return WF_FAIL(WF_EINTERNAL, "a primitive leaves nothing in its state %d", i);
    q->left[i][k] = to_pairs(c, out[i], w->state_axis);
  }
  return WF_OK;
}

static void leave(shards_run *q) {
  const wf_sharded *w = q->what;
  wf_ctx *c = q->r->c;
  wf_tensor *all[WF_SHARD_STATES], *pool[WF_SHARD_STATES];
  if (!moves_states(q->r->part)) return;
  for (int i = 0; i < w->n_state; i++) all[i] = wf_concat(c, q->plan->n, q->left[i]);
  exchange(q, &q->plan->states, true, w->n_state, all, pool);
  for (int i = 0; i < w->n_state; i++) {
    const wf_tensor *like = wf_state_in(q->r->state, w->slot + i);
    *wf_state_out(q->r->state, w->slot + i) =
        from_pairs(c, pool[i], w->state_axis, like->ndim, like->shape, w->heads, like->shape[0]);
  }
}

static wf_status run_shards(shards_run *q, wf_tensor *const *x, wf_tensor **y) {
  const wf_sharded *w = q->what;
  wf_ctx *c = q->r->c;
  wf_tensor *pool;
  int64_t token = 0, lane = 0;
  WF_TRY(wf_shards_get(q->r->part, c, w->heads, &q->plan));
  fetch(q, x);
  for (int k = 0; k < q->plan->n; k++) {
    const wf_shard *b = &q->plan->block[k];
    WF_TRY(run_block(q, k, x, token, lane));
    token += b->heads * b->tokens;
    lane += b->heads * b->lanes;
  }
  wf_tensor *all = tied(q, wf_concat(c, q->plan->n, q->y));
  exchange(q, &q->plan->tokens, true, 1, &all, &pool);
  *y = from_pairs(c, pool, w->y_axis, q->ndim, q->shape, w->heads, q->r->rows->n_tokens);
  leave(q);
  return WF_OK;
}

wf_tensor *wf_seq_shards(wf_run *r, const wf_sharded *w, wf_tensor *const *x) {
  shards_run q = {.r = r, .what = w};
  wf_tensor *y = NULL;
  for (int i = 0; i < w->n_x; i++)
    if (wf_is_poison(x[i])) return x[i];
  if (w->n_x > WF_SHARD_INPUTS || w->n_state > WF_SHARD_STATES)
    return wf_poison(r->c, WF_FAIL(WF_EINVAL, "shards: %d inputs, %d states", w->n_x, w->n_state));
  const char *label = wf_ctx_set_label(r->c, WF_SHARDS_LABEL);
  wf_status st = run_shards(&q, x, &y);
  wf_ctx_set_label(r->c, label);
  return st == WF_OK ? y : wf_poison(r->c, st);
}

/* ---- whether ---- */

/* Twice as much must be promised: a rank that has had its turn goes on with the layers after, so that turns
 * lose less than they seem to, and a call with fewer heads costs nearly as much. */
bool wf_seq_divides(const wf_run *r, int64_t heads, double turns) {
  const wf_part *p = r->part;
  const wf_dist *d = p->dist;
  double shards = wf_shards_efficiency(p, heads);
  bool yes = d->serial == WF_SERIAL_ALL_TO_ALL ||
             (d->serial == WF_SERIAL_AUTO && d->transport != WF_TRANSPORT_SERIAL && shards > 2 * turns);
  if (d->cost) wf_cost_serial(d->cost, yes ? heads * p->n_lanes : 0, yes ? shards : turns);
  return yes;
}
