/* Cutting batches, and the two passes over their pieces. */
#include "layers/stream.h"
#include "core/memory.h"

#include <string.h>

/* ---- cutting ---- */

/* The first place of each lane in the batch; wf_free. */
static wf_status lane_starts(const wf_tokens *t, int64_t **start) {
  for (int64_t i = 0; i < t->n_rows; i++)
    if (t->row[i].lane < 0 || t->row[i].lane >= t->n_lanes)
      return WF_FAIL(WF_EINVAL, "row %lld: lane %lld of %lld", (long long)i, (long long)t->row[i].lane,
                     (long long)t->n_lanes);
  WF_ALLOC(*start, "rows", ((size_t)t->n_lanes + 1) * sizeof **start);
  for (int64_t i = 0; i < t->n_lanes; i++) (*start)[i] = INT64_MAX;
  for (int64_t i = 0; i < t->n_rows; i++) {
    int64_t *at = &(*start)[t->row[i].lane];
    if (t->row[i].place < *at) *at = t->row[i].place;
  }
  return WF_OK;
}

/* Tokens in the longest lane. */
static wf_status longest_lane(const wf_tokens *t, int64_t *longest) {
  int64_t *start;
  *longest = 0;
  WF_TRY(lane_starts(t, &start));
  for (int64_t i = 0; i < t->n_rows; i++) {
    int64_t end = t->row[i].place + t->row[i].len - start[t->row[i].lane];
    if (end > *longest) *longest = end;
  }
  wf_free(start);
  return WF_OK;
}

void wf_tokens_free(wf_tokens *t) {
  wf_free((void *)t->row);
  wf_free((void *)t->ids);
  wf_free((void *)t->labels);
  *t = (wf_tokens){0};
}

/* Append to `out` what lies in [begin, end), into its arrays `row`, `ids` and `labels`. */
static void cut_rows(const wf_tokens *t, const int64_t *start, int64_t begin, int64_t end, wf_tokens *out,
                     wf_row *row, int32_t *ids, int32_t *labels) {
  for (int64_t i = 0; i < t->n_rows; i++) {
    wf_row r = t->row[i];
    int64_t from = begin + start[r.lane] - r.place, to = end + start[r.lane] - r.place; /* within the row */
    if (from < 0) from = 0;
    if (to > r.len) to = r.len;
    if (from >= to) continue;
    size_t bytes = (size_t)(to - from) * sizeof *ids;
    memcpy(ids + out->n_tokens, t->ids + r.begin + from, bytes);
    memcpy(labels + out->n_tokens, t->labels + r.begin + from, bytes);
    if (from > 0) r.flags |= WF_ROW_TAKES;
    if (to < r.len) r.flags |= WF_ROW_LEAVES;
    r.begin = out->n_tokens;
    r.pos += from;
    r.place += from;
    r.len = to - from;
    row[out->n_rows++] = r;
    out->n_tokens += r.len;
  }
}

wf_status wf_tokens_cut(const wf_tokens *t, int64_t begin, int64_t end, wf_tokens *out) {
  int64_t *start;
  *out = (wf_tokens){0};
  WF_TRY(lane_starts(t, &start));
  int64_t most = t->n_tokens; /* or as many of every lane */
  if (end - begin < most / (t->n_lanes + 1)) most = t->n_lanes * (end > begin ? end - begin : 0);
  wf_row *row = wf_alloc("rows", ((size_t)t->n_rows + 1) * sizeof *row);
  int32_t *ids = wf_alloc("rows", ((size_t)most + 1) * sizeof *ids);
  int32_t *labels = wf_alloc("rows", ((size_t)most + 1) * sizeof *labels);
  *out = (wf_tokens){.n_lanes = t->n_lanes, .row = row, .ids = ids, .labels = labels};
  bool ok = row && ids && labels;
  if (ok)
    cut_rows(t, start, begin, end, out, row, ids, labels);
  else
    wf_tokens_free(out);
  wf_free(start);
  return ok ? WF_OK : WF_ENOMEM;
}

/* ---- one piece on the device ---- */

typedef struct loaded {
  wf_rows *rows;
  wf_tensor *ids, *labels;
} loaded;

static wf_status load(wf_ctx *c, const wf_tokens *t, loaded *l) {
  *l = (loaded){0};
  WF_TRY(wf_rows_create(c, t->n_rows, t->row, t->n_lanes, &l->rows));
  if (l->rows->n_tokens != t->n_tokens)
    return WF_FAIL(WF_EINVAL, "rows of %lld tokens for a batch of %lld", (long long)l->rows->n_tokens,
                   (long long)t->n_tokens);
  wf_scope s = wf_scope_open(c);
  l->ids = wf_keep(wf_from_host(c, "batch", WF_I32, WF_SHAPE(t->n_tokens), t->ids));
  l->labels = wf_keep(wf_from_host(c, "batch", WF_I32, WF_SHAPE(t->n_tokens), t->labels));
  wf_scope_close(c, s);
  return wf_is_poison(l->ids) || wf_is_poison(l->labels) ? wf_ctx_check(c) : WF_OK;
}

static void unload(loaded *l) {
  wf_rows_free(l->rows);
  wf_drop(l->ids);
  wf_drop(l->labels);
}

static wf_run run_of(wf_model *m, const wf_step *s, const wf_rows *rows, wf_state *state) {
  return (wf_run){.c = wf_model_ctx(m),
                  .rows = rows,
                  .state = state,
                  .train = s->train,
                  .step = s->step,
                  .seed = s->seed};
}

/* Forward without a tape; with `loss`, through the head. */
static wf_status pass(wf_model *m, const wf_step *s, const wf_tokens *t, wf_state *state, double *loss,
                      double *each) {
  wf_ctx *c = wf_model_ctx(m);
  wf_scope scope = wf_scope_open(c);
  loaded l;
  wf_status st = load(c, t, &l);
  if (st == WF_OK) {
    wf_run r = run_of(m, s, l.rows, state);
    wf_tensor *h = wf_model_trunk(m, &r, l.ids);
    if (wf_is_poison(h)) st = wf_ctx_check(c);
    if (st == WF_OK && loss) st = wf_model_loss(m, &r, h, l.labels, loss, each);
    if (st == WF_OK && state) st = wf_state_advance(state, l.rows);
  }
  unload(&l);
  wf_scope_close(c, scope);
  return st;
}

/* Forward and backward of one piece. d_state comes in as the gradient of its leaving state and goes out as
 * that of its entering one; NULL where nobody asks. */
static wf_status differentiate(wf_model *m, const wf_step *s, const wf_tokens *t, wf_state *state,
                               wf_tensor **d_state, double scale, bool last, double *loss) {
  wf_ctx *c = wf_model_ctx(m);
  wf_scope scope = wf_scope_open(c);
  loaded l;
  wf_piece p = {0};
  wf_status st = load(c, t, &l);
  if (st == WF_OK) {
    wf_run r = run_of(m, s, l.rows, state);
    st = wf_piece_forward(m, &r, l.ids, l.labels, &p);
    if (st == WF_OK) st = wf_piece_backward(&p, scale, d_state, last, loss);
    if (st == WF_OK && state) st = wf_state_advance(state, l.rows);
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
    const wf_status st = pass(m, s, &piece, x->state, NULL, NULL);
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
    const wf_status st = differentiate(m, s, &piece, x->state, x->d_state, scale, last && k == 0, &part);
    wf_tokens_free(&piece);
    WF_TRY(st);
    *loss += part;
    if (k == x->n - 1) WF_TRY(wf_state_mark_take(x->state, &x->end));
  }
  wf_state_mark_return(x->state, &x->end);
  return WF_OK;
}

wf_status wf_step_gradient(wf_model *m, const wf_step *s, const wf_tokens *t, double scale, bool last,
                           double *loss) {
  *loss = 0;
  int64_t longest;
  WF_TRY(longest_lane(t, &longest));
  if (s->state) WF_TRY(zero_twins(s->state));
  if (s->stream <= 0 || s->stream >= longest)
    return differentiate(m, s, t, s->state, NULL, scale, last, loss);
  streamed x = {.n = (longest + s->stream - 1) / s->stream, .state = s->state};
  const wf_state_spec *spec = wf_model_state_spec(m);
  wf_status st = WF_OK;
  if (!x.state)
    st = wf_state_create(wf_model_ctx(m), spec, wf_model_dtype(m), t->n_lanes, longest, true, &x.state);
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
  if (s->stream <= 0 || s->stream >= longest) return pass(m, s, t, s->state, loss, each);
  if (each) return WF_FAIL(WF_EINVAL, "losses of single tokens are given for whole batches only");
  wf_state *state = s->state;
  if (!state)
    WF_TRY(wf_state_create(wf_model_ctx(m), wf_model_state_spec(m), wf_model_dtype(m), t->n_lanes, longest,
                           false, &state));
  wf_status st = WF_OK;
  for (int64_t at = 0; at < longest && st == WF_OK; at += s->stream) {
    wf_tokens piece;
    double part = 0;
    st = wf_tokens_cut(t, at, at + s->stream, &piece);
    if (st == WF_OK) st = pass(m, s, &piece, state, &part, NULL);
    wf_tokens_free(&piece);
    *loss += part;
  }
  if (!s->state) wf_state_free(state);
  return st;
}
