/* Cutting batches, and the two passes over their pieces. */
#include "layers/stream.h"
#include "core/memory.h"

#include <string.h>

/* ---- cutting ---- */

/* The first place of each lane in the batch (wf_free), and the tokens of the longest one. */
static wf_status extent(const wf_tokens *t, int64_t **start, int64_t *longest) {
  WF_ALLOC(*start, "rows", ((size_t)t->n_lanes + 1) * sizeof **start);
  wf_status st = wf_row_extent(t->n_rows, t->row, t->n_lanes, *start, longest);
  if (st != WF_OK) wf_free(*start);
  return st;
}

static wf_status longest_lane(const wf_tokens *t, int64_t *longest) {
  int64_t *start;
  WF_TRY(extent(t, &start, longest));
  wf_free(start);
  return WF_OK;
}

void wf_tokens_free(wf_tokens *t) {
  wf_free((void *)t->row);
  wf_free((void *)t->ids);
  wf_free((void *)t->labels);
  *t = (wf_tokens){0};
}

/* Room for as many rows and tokens, filled by append(). */
static wf_status make_room(int64_t n_rows, int64_t n_tokens, int64_t n_lanes, wf_tokens *out) {
  *out = (wf_tokens){.n_lanes = n_lanes,
                     .row = wf_alloc("rows", ((size_t)n_rows + 1) * sizeof *out->row),
                     .ids = wf_alloc("rows", ((size_t)n_tokens + 1) * sizeof *out->ids),
                     .labels = wf_alloc("rows", ((size_t)n_tokens + 1) * sizeof *out->labels)};
  if (out->row && out->ids && out->labels) return WF_OK;
  wf_tokens_free(out);
  return WF_ENOMEM;
}

/* What lies in [begin, end) of every lane, counted from `start`; its lanes become first_lane and on. */
static void append(const wf_tokens *t, const int64_t *start, int64_t begin, int64_t end, int64_t first_lane,
                   wf_tokens *out) {
  for (int64_t i = 0; i < t->n_rows; i++) {
    wf_row *r = (wf_row *)&out->row[out->n_rows];
    int64_t first = start[t->row[i].lane], from = wf_row_cut(&t->row[i], first + begin, first + end, r);
    if (from < 0) continue;
    size_t bytes = (size_t)r->len * sizeof *t->ids;
    memcpy((int32_t *)out->ids + out->n_tokens, t->ids + r->begin + from, bytes);
    memcpy((int32_t *)out->labels + out->n_tokens, t->labels + r->begin + from, bytes);
    r->begin = out->n_tokens;
    r->lane += first_lane;
    out->n_rows++;
    out->n_tokens += r->len;
  }
}

wf_status wf_tokens_cut(const wf_tokens *t, int64_t begin, int64_t end, wf_tokens *out) {
  int64_t *start, longest;
  *out = (wf_tokens){0};
  WF_TRY(extent(t, &start, &longest));
  int64_t most = t->n_tokens; /* or as many of every lane */
  if (end - begin < most / (t->n_lanes + 1)) most = t->n_lanes * (end > begin ? end - begin : 0);
  wf_status st = make_room(t->n_rows, most, t->n_lanes, out);
  if (st == WF_OK) append(t, start, begin, end, 0, out);
  wf_free(start);
  return st;
}

wf_status wf_tokens_part(const wf_tokens *t, const wf_part *p, wf_tokens *out) {
  int64_t longest, *start, n_rows = p->first[p->n_segments];
  *out = (wf_tokens){0};
  WF_TRY(extent(t, &start, &longest));
  wf_status st = make_room(n_rows, p->n_tokens, p->n_own * p->n_lanes, out);
  for (int k = 0; k < p->n_own && st == WF_OK; k++)
    append(t, start, wf_layout_bound(p->dist->layout, longest, p->own[k]),
           wf_layout_bound(p->dist->layout, longest, p->own[k] + 1), k * p->n_lanes, out);
  wf_free(start);
  return st;
}

int64_t wf_step_lanes(const wf_dist *dist, int64_t n_lanes) {
  if (!dist) return n_lanes;
  int own = 0;
  for (int s = 0; s < dist->layout->n_segments; s++)
    own += dist->layout->owner[s] == wf_comm_rank(dist->comm);
  return own * n_lanes;
}

/* ---- one piece on the device ---- */

typedef struct loaded {
  wf_rows *rows;
  wf_tensor *ids, *labels;
  wf_part *part; /* over ranks, with its tokens and, where the caller has none, a state for them */
  wf_tokens local;
  wf_state *state, *own_state;
} loaded;

/* This rank's part of the k-th piece. Its rows hand state to each other even where the batch is fresh. */
static wf_status load_part(wf_model *m, const wf_step *s, const wf_tokens *t, int64_t k, bool gradient,
                           loaded *l) {
  WF_TRY(wf_part_create(s->dist, t->n_rows, t->row, t->n_lanes, k, s->stream, &l->part));
  WF_TRY(wf_tokens_part(t, l->part, &l->local));
  if (l->state) return WF_OK;
  WF_TRY(wf_state_create(wf_model_ctx(m), wf_model_state_spec(m), wf_model_dtype(m), l->local.n_lanes, 0,
                         gradient, &l->own_state));
  l->state = l->own_state;
  return WF_OK;
}

static wf_status load(wf_model *m, const wf_step *s, const wf_tokens *t, int64_t k, wf_state *state,
                      bool gradient, loaded *l) {
  wf_ctx *c = wf_model_ctx(m);
  *l = (loaded){.state = state};
  if (s->dist) {
    WF_TRY(load_part(m, s, t, k, gradient, l));
    t = &l->local;
  }
  WF_TRY(wf_rows_create(c, t->n_rows, t->row, t->n_lanes, &l->rows));
  if (l->rows->n_tokens != t->n_tokens)
    return WF_FAIL(WF_EINVAL, "rows of %lld tokens for a batch of %lld", (long long)l->rows->n_tokens,
                   (long long)t->n_tokens);
  wf_scope scope = wf_scope_open(c);
  l->ids = wf_keep(wf_from_host(c, "batch", WF_I32, WF_SHAPE(t->n_tokens), t->ids));
  l->labels = wf_keep(wf_from_host(c, "batch", WF_I32, WF_SHAPE(t->n_tokens), t->labels));
  wf_scope_close(c, scope);
  return wf_is_poison(l->ids) || wf_is_poison(l->labels) ? wf_ctx_check(c) : WF_OK;
}

static void unload(loaded *l) {
  wf_rows_free(l->rows);
  wf_drop(l->ids);
  wf_drop(l->labels);
  wf_part_free(l->part);
  wf_tokens_free(&l->local);
  wf_state_free(l->own_state);
}

/* The state goes on. Over ranks a lane's position is where its last row ended, also where the last segment,
 * of whose lanes the next piece takes, has no row of it. */
static wf_status advance(const loaded *l) {
  const wf_part *p = l->part;
  if (!l->state) return WF_OK;
  WF_TRY(wf_state_advance(l->state, l->rows));
  int last = p ? p->n_segments - 1 : 0;
  for (int64_t i = 0; p && wf_part_owner(p, last) == p->rank && i < p->first[p->n_segments]; i++)
    if (p->row[i].flags & WF_ROW_LEAVES)
      l->state->position[wf_part_slot(p, last) * p->n_lanes + p->row[i].lane] =
          p->row[i].place + p->row[i].len;
  return WF_OK;
}

static wf_run run_of(wf_model *m, const wf_step *s, const loaded *l) {
  return (wf_run){.c = wf_model_ctx(m),
                  .rows = l->rows,
                  .state = l->state,
                  .part = l->part,
                  .train = s->train,
                  .step = s->step,
                  .seed = s->seed};
}

/* Forward of the k-th piece without a tape; with `loss`, through the head. */
static wf_status pass(wf_model *m, const wf_step *s, const wf_tokens *t, int64_t k, wf_state *state,
                      double *loss, double *each) {
  wf_ctx *c = wf_model_ctx(m);
  wf_scope scope = wf_scope_open(c);
  loaded l;
  wf_status st = load(m, s, t, k, state, false, &l);
  if (st == WF_OK) {
    wf_run r = run_of(m, s, &l);
    wf_tensor *h = wf_model_trunk(m, &r, l.ids);
    if (wf_is_poison(h)) st = wf_ctx_check(c);
    if (st == WF_OK && loss) st = wf_model_loss(m, &r, h, l.labels, loss, each);
    if (st == WF_OK) st = advance(&l);
  }
  unload(&l);
  wf_scope_close(c, scope);
  return st;
}

/* Forward and backward of the k-th piece. d_state comes in as the gradient of its leaving state and goes out
 * as that of its entering one; NULL where nobody asks. */
static wf_status differentiate(wf_model *m, const wf_step *s, const wf_tokens *t, int64_t k, wf_state *state,
                               wf_tensor **d_state, double scale, bool last, double *loss) {
  wf_ctx *c = wf_model_ctx(m);
  wf_scope scope = wf_scope_open(c);
  loaded l;
  wf_piece p = {0};
  wf_status st = load(m, s, t, k, state, true, &l);
  if (st == WF_OK) {
    wf_run r = run_of(m, s, &l);
    st = wf_piece_forward(m, &r, l.ids, l.labels, &p);
    if (st == WF_OK) st = wf_piece_backward(&p, scale, d_state, last, loss);
    if (st == WF_OK) st = advance(&l);
  }
  for (int i = 0; i < p.n_slots && d_state && st == WF_OK; i++) {
    wf_drop(d_state[i]);
    d_state[i] = wf_keep(p.state_in[i].grad);
  }
  wf_piece_free(&p);
  unload(&l);
  wf_scope_close(c, scope);
  return st;
}

/* ---- batches ---- */

static wf_status zero_twins(wf_state *state) {
  for (int i = 0; i < state->spec->n; i++)
    if (state->twin[i].grad) WF_TRY(wf_tensor_zero(state->twin[i].grad));
  return WF_OK;
}

typedef struct streamed {
  int64_t n;
  wf_state_mark *mark; /* [n] the state entering each piece */
  wf_state_mark end;   /* after the last one, where the next batch goes on */
  wf_tensor **d_state; /* [slots] */
  wf_state *state;
} streamed;

static void free_streamed(streamed *x, bool own_state) {
  for (int64_t k = 0; x->mark && x->state && k < x->n; k++) wf_state_mark_drop(x->state, &x->mark[k]);
  if (x->state) wf_state_mark_drop(x->state, &x->end);
  for (int i = 0; x->state && x->d_state && i < x->state->spec->n; i++) wf_drop(x->d_state[i]);
  if (own_state) wf_state_free(x->state);
  wf_free(x->mark);
  wf_free(x->d_state);
}

static wf_status cut_piece(const wf_step *s, const wf_tokens *t, int64_t k, wf_tokens *out) {
  return wf_tokens_cut(t, k * s->stream, (k + 1) * s->stream, out);
}

static wf_status forward_pieces(wf_model *m, const wf_step *s, const wf_tokens *t, streamed *x) {
  for (int64_t k = 0; k < x->n; k++) {
    WF_TRY(wf_state_mark_take(x->state, &x->mark[k]));
    if (k + 1 == x->n) break;
    wf_tokens piece;
    WF_TRY(cut_piece(s, t, k, &piece));
    const wf_status st = pass(m, s, &piece, k, x->state, NULL, NULL);
    wf_tokens_free(&piece);
    WF_TRY(st);
  }
  return WF_OK;
}

static wf_status backward_pieces(wf_model *m, const wf_step *s, const wf_tokens *t, streamed *x, double scale,
                                 bool last, double *loss) {
  for (int64_t k = x->n - 1; k >= 0; k--) {
    double part;
    wf_tokens piece;
    wf_state_mark_return(x->state, &x->mark[k]);
    wf_state_mark_drop(x->state, &x->mark[k]);
    WF_TRY(cut_piece(s, t, k, &piece));
    const wf_status st = differentiate(m, s, &piece, k, x->state, x->d_state, scale, last && k == 0, &part);
    wf_tokens_free(&piece);
    WF_TRY(st);
    *loss += part;
    if (k == x->n - 1) WF_TRY(wf_state_mark_take(x->state, &x->end));
  }
  wf_state_mark_return(x->state, &x->end);
  return WF_OK;
}

/* Tokens that a lane of the state sees in a batch that is streamed: all, or those of one segment of each
 * piece. */
static int64_t capacity(const wf_step *s, int64_t longest) {
  if (!s->dist) return longest;
  const wf_layout *l = s->dist->layout;
  int64_t widest = 0;
  for (int i = 0; i < l->n_segments; i++) {
    int64_t share = l->ahead[i + 1] - l->ahead[i];
    if (share > widest) widest = share;
  }
  int64_t most = (int64_t)((__int128)s->stream * widest / l->ahead[l->n_segments]) + 1;
  return (longest + s->stream - 1) / s->stream * most;
}

wf_status wf_step_gradient(wf_model *m, const wf_step *s, const wf_tokens *t, double scale, bool last,
                           double *loss) {
  *loss = 0;
  int64_t longest;
  WF_TRY(longest_lane(t, &longest));
  if (s->state) WF_TRY(zero_twins(s->state));
  if (s->stream <= 0 || s->stream >= longest)
    return differentiate(m, s, t, 0, s->state, NULL, scale, last, loss);
  streamed x = {.n = (longest + s->stream - 1) / s->stream, .state = s->state};
  const wf_state_spec *spec = wf_model_state_spec(m);
  wf_status st = WF_OK;
  if (!x.state)
    st = wf_state_create(wf_model_ctx(m), spec, wf_model_dtype(m), wf_step_lanes(s->dist, t->n_lanes),
                         capacity(s, longest), true, &x.state);
  x.mark = wf_calloc("state", (size_t)x.n, sizeof *x.mark);
  x.d_state = wf_calloc("state", (size_t)spec->n + 1, sizeof(wf_tensor *));
  if (!x.mark || !x.d_state) st = WF_ENOMEM;
  if (st == WF_OK) st = forward_pieces(m, s, t, &x);
  if (st == WF_OK) st = backward_pieces(m, s, t, &x, scale, last, loss);
  free_streamed(&x, !s->state);
  return st;
}

wf_status wf_step_loss(wf_model *m, const wf_step *s, const wf_tokens *t, double *loss, double *each) {
  *loss = 0;
  int64_t longest;
  WF_TRY(longest_lane(t, &longest));
  if (s->stream <= 0 || s->stream >= longest) return pass(m, s, t, 0, s->state, loss, each);
  if (each) return WF_FAIL(WF_EINVAL, "losses of single tokens are given for whole batches only");
  wf_state *state = s->state;
  if (!state)
    WF_TRY(wf_state_create(wf_model_ctx(m), wf_model_state_spec(m), wf_model_dtype(m),
                           wf_step_lanes(s->dist, t->n_lanes), capacity(s, longest), false, &state));
  wf_status st = WF_OK;
  for (int64_t at = 0; at < longest && st == WF_OK; at += s->stream) {
    wf_tokens piece;
    double part = 0;
    st = wf_tokens_cut(t, at, at + s->stream, &piece);
    if (st == WF_OK) st = pass(m, s, &piece, at / s->stream, state, &part, NULL);
    wf_tokens_free(&piece);
    *loss += part;
  }
  if (!s->state) wf_state_free(state);
  return st;
}
