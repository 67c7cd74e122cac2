/* serial: a function of one segment at a time, on a grid of `segment` tokens counted from the document's
 * start.
 *
 * A row is cut where it meets the grid. In each round every row that is left runs its next piece; pieces that
 * agree in length and in their offset inside the segment are one call, a batch of its own: its rows are its
 * lanes, and their positions count from the segment's start. So the function meets the end of a segment at a
 * piece's end only, and a piece that a cut of the sequence left begins or ends inside one.
 *
 * Everything is gathers, slices and concatenations, so the tape differentiates it.
 */
#include "layers/seq_impl.h"
#include "core/memory.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_STATE = WF_SHARD_STATES, MAX_X = WF_SHARD_INPUTS };

/* A piece of one row. */
typedef struct cut {
  int64_t row, begin, len; /* its tokens among those of the call */
  int64_t offset;          /* of its first in the segment */
  int64_t left;            /* tokens of the row from there on */
  int64_t round;
} cut;

typedef struct serial {
  wf_run *r;
  const wf_seq_serial_in *in;
  int64_t head, heads; /* of in->heads */
  cut *cut;            /* [n_cuts] in the order of the calls */
  int64_t n_cuts;
  int64_t *where;        /* [rows] the place of each row's state among those of its last round */
  int32_t *index;        /* work space of gathers */
  int32_t *ended;        /* [rows] rows in the order in which they ended */
  int64_t n_ended;       /* so far */
  bool in_order;         /* the calls visit the tokens in their order */
  wf_tensor **y, **ends; /* [n_cuts] outputs, [MAX_STATE][n_cuts] final states of rows */
  int64_t n_y, n_ends;   /* so far */
  wf_tensor *x[MAX_X];   /* in the order of the calls */
  wf_tensor *state[MAX_STATE], *lanes[MAX_STATE];
  wf_rows *rows; /* of the last call, for the next one of the same shape */
  wf_seq_span span;
} serial;

/* ---- the plan ---- */

/* Pieces that run together, then those of rows that go on, the longest first: who ends is a suffix. */
static int calls_first(const void *a, const void *b) {
  const cut *x = a, *y = b;
  if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
  if (x->len != y->len) return x->len < y->len ? 1 : -1;
  if (x->left != y->left) return x->left < y->left ? 1 : -1;
  return x->row < y->row ? -1 : x->row > y->row;
}

static int64_t cuts_of(const wf_row *row, int64_t segment) {
  int64_t last = row->pos + row->len - 1;
  return last / segment - row->pos / segment + 1;
}

static cut cut_at(int64_t row, int64_t begin, int64_t offset, int64_t left, int64_t round, int64_t segment) {
  int64_t len = left < segment - offset ? left : segment - offset;
  return (cut){row, begin, len, offset, left, round};
}

static wf_status plan(serial *s) {
  const wf_rows *rows = s->r->rows;
  for (int64_t i = 0; i < rows->n; i++) s->n_cuts += cuts_of(&rows->row[i], s->in->segment);
  int64_t calls = s->n_cuts ? s->n_cuts : 1, n_index = rows->n_tokens + rows->n_lanes + rows->n;
  WF_CALLOC(s->cut, "rows", calls);
  WF_CALLOC(s->where, "rows", rows->n + 1);
  WF_CALLOC(s->index, "rows", n_index + rows->n + 1);
  s->ended = s->index + n_index;
  WF_CALLOC(s->y, "rows", calls * (1 + s->in->n_state));
  s->ends = s->y + calls;
  cut *round = s->cut;
  for (int64_t i = 0; i < rows->n; i++) {
    const wf_row *row = &rows->row[i];
    round[i] = cut_at(i, row->begin, row->pos % s->in->segment, row->len, 0, s->in->segment);
    s->where[i] = i;
  }
  int64_t n = rows->n, token = 0;
  s->in_order = true;
  while (n) {
    qsort(round, (size_t)n, sizeof *round, calls_first);
    cut *next = round + n;
    int64_t m = 0;
    for (int64_t i = 0; i < n; i++) {
      const cut *k = &round[i];
      s->in_order &= k->begin == token;
      token += k->len;
      if (k->left > k->len)
        next[m++] = cut_at(k->row, k->begin + k->len, 0, k->left - k->len, k->round + 1, s->in->segment);
    }
    round = next;
    n = m;
  }
  return WF_OK;
}

/* ---- gathers ---- */

/* Rows of x [m, ...] by host indices; repeated ones are allowed. */
static wf_tensor *pick(wf_ctx *c, wf_tensor *x, int64_t n, const int32_t *index) {
  if (wf_is_poison(x)) return x;
  int64_t i = 0;
  while (i < n && index[i] == index[0] + i) i++;
  if (i == n && n) return wf_slice(c, x, 0, index[0], index[0] + n);
  int64_t shape[WF_MAX_DIMS] = {n};
  for (int d = 1; d < x->ndim; d++) shape[d] = x->shape[d];
  int64_t wide = 1;
  for (int d = 1; d < x->ndim; d++) wide *= x->shape[d];
  wf_tensor *flat = wf_reshape(c, x, WF_SHAPE(x->shape[0], wide));
  return wf_reshape(c, wf_embedding(c, flat, wf_from_host(c, "rows", WF_I32, WF_SHAPE(n), index)), x->ndim,
                    shape);
}

/* The lanes' states, and from them the first one of each row: its lane's, or the initial one. */
static void enter(serial *s, int k, wf_tensor *init) {
  wf_ctx *c = s->r->c;
  const wf_rows *rows = s->r->rows;
  if (wf_is_poison(init)) {
    s->state[k] = init;
    return;
  }
  int64_t shape[WF_MAX_DIMS] = {rows->n};
  for (int d = 0; d < init->ndim; d++) shape[d + 1] = init->shape[d];
  if (!s->r->state) {
    s->state[k] = wf_expand(c, init, init->ndim + 1, shape);
    return;
  }
  s->lanes[k] = wf_state_in(s->r->state, s->in->slot + k);
  shape[0] = 1;
  wf_tensor *both[] = {s->lanes[k], wf_reshape(c, init, init->ndim + 1, shape)};
  for (int64_t i = 0; i < rows->n; i++)
    s->index[i] = (int32_t)(rows->row[i].flags & WF_ROW_TAKES ? rows->row[i].lane : rows->n_lanes);
  s->state[k] = pick(c, wf_concat(c, 2, both), rows->n, s->index);
}

/* The lanes' states afterwards: those of rows that leave one, else as they were. */
static void leave(serial *s, int k) {
  const wf_rows *rows = s->r->rows;
  wf_ctx *c = s->r->c;
  wf_tensor **part = s->ends + k * s->n_cuts, *lanes = s->lanes[k];
  wf_tensor *both[] = {lanes, s->n_ends ? wf_concat(c, (int)s->n_ends, part) : s->state[k]};
  for (int64_t l = 0; l < rows->n_lanes; l++) s->index[l] = (int32_t)l;
  for (int64_t i = 0; i < s->n_ended; i++) {
    const wf_row *row = &rows->row[s->ended[i]];
    if (row->flags & WF_ROW_LEAVES) s->index[row->lane] = (int32_t)(rows->n_lanes + i);
  }
  *wf_state_out(s->r->state, s->in->slot + k) = pick(c, wf_concat(c, 2, both), rows->n_lanes, s->index);
}

/* x in the order of the calls, or back. */
static wf_tensor *reordered(serial *s, wf_tensor *x, bool back) {
  if (s->in_order || wf_is_poison(x)) return x;
  int32_t at = 0;
  for (int64_t i = 0; i < s->n_cuts; i++)
    for (int64_t t = 0; t < s->cut[i].len; t++, at++) {
      int64_t token = s->cut[i].begin + t;
      s->index[back ? token : at] = back ? at : (int32_t)token;
    }
  return pick(s->r->c, x, s->r->rows->n_tokens, s->index);
}

/* ---- the calls ---- */

static wf_status rows_of_call(serial *s, const wf_seq_span *span) {
  if (s->rows && memcmp(span, &s->span, sizeof *span) == 0) return WF_OK;
  wf_row *row;
  WF_CALLOC(row, "rows", span->m + 1);
  for (int64_t i = 0; i < span->m; i++)
    row[i] = (wf_row){.begin = i * span->len,
                      .len = span->len,
                      .pos = span->offset,
                      .lane = i,
                      .place = span->offset,
                      .flags = WF_ROW_TAKES | WF_ROW_LEAVES};
  wf_rows_free(s->rows);
  s->rows = NULL;
  wf_status st = wf_rows_create(s->r->c, span->m, row, span->m, &s->rows);
  wf_free(row);
  s->span = *span;
  return st;
}

/* One call: states first .. first+m-1 of the round's, tokens from `token` on. */
static wf_status call(serial *s, const wf_seq_span *span, int64_t first, int64_t token, wf_tensor **next) {
  wf_ctx *c = s->r->c;
  WF_TRY(rows_of_call(s, span));
  wf_scope scope = wf_scope_open(c);
  wf_tensor *in[MAX_STATE], *x[MAX_X];
  for (int k = 0; k < s->in->n_state; k++) {
    in[k] = wf_slice(c, s->state[k], 0, first, first + span->m);
    next[k] = NULL;
  }
  for (int k = 0; k < s->in->n_x; k++) x[k] = wf_slice(c, s->x[k], 0, token, token + span->m * span->len);
  wf_state state = {.c = c, .lanes = span->m, .base = s->in->slot, .in = in, .out = next};
  if (s->in->n_x) state.dtype = x[0]->dtype;
  wf_run run = *s->r;
  run.rows = s->rows;
  run.state = &state;
  wf_tensor *y = wf_keep(s->in->piece(&run, s->in->self, span, x));
  for (int k = 0; k < s->in->n_state; k++) wf_keep(next[k]);
  wf_scope_close(c, scope);
  s->y[s->n_y++] = wf_adopt(y);
  for (int k = 0; k < s->in->n_state; k++) next[k] = wf_adopt(next[k]);
  if (wf_is_poison(y)) return wf_ctx_failure(c);
  for (int k = 0; k < s->in->n_state; k++)
    if (!next[k]) return WF_FAIL(WF_EINTERNAL, "a piece leaves nothing in its state %d", k);
  return WF_OK;
}

/* The states of a round's rows in its order, its calls, and the states of rows that end there. */
static wf_status one_round(serial *s, const cut *k, int64_t n, int64_t *token) {
  wf_ctx *c = s->r->c;
  wf_tensor **made;
  WF_CALLOC(made, "rows", (n ? n : 1) * s->in->n_state + 1);
  for (int64_t i = 0; i < n; i++) s->index[i] = (int32_t)s->where[k[i].row];
  for (int j = 0; j < s->in->n_state; j++) s->state[j] = n ? pick(c, s->state[j], n, s->index) : s->state[j];
  wf_status st = WF_OK;
  int calls = 0;
  int64_t i = 0;
  do { /* once even for no row: the function gives y its shape */
    wf_seq_span span = {.m = 0, .len = 1, .offset = 0, .head = s->head, .heads = s->heads};
    if (n) span.m = 1, span.len = k[i].len, span.offset = k[i].offset;
    while (i + span.m < n && k[i + span.m].len == span.len && k[i + span.m].offset == span.offset) span.m++;
    span.ends = span.offset + span.len == s->in->segment;
    wf_tensor *next[MAX_STATE];
    st = call(s, &span, i, *token, next);
    for (int j = 0; j < s->in->n_state; j++) made[j * (n ? n : 1) + calls] = next[j];
    calls++;
    i += span.m;
    *token += span.m * span.len;
  } while (i < n && st == WF_OK);
  for (int j = 0; j < s->in->n_state && st == WF_OK; j++)
    s->state[j] = wf_concat(c, calls, made + j * (n ? n : 1));
  wf_free(made);
  WF_TRY(st);
  int64_t ended = 0;
  for (i = 0; i < n; i++) {
    s->where[k[i].row] = i;
    if (k[i].left > k[i].len) continue;
    s->ended[s->n_ended++] = (int32_t)k[i].row;
    s->index[ended++] = (int32_t)i;
  }
  if (!ended || !s->r->state) return WF_OK;
  for (int j = 0; j < s->in->n_state; j++)
    s->ends[j * s->n_cuts + s->n_ends] = pick(c, s->state[j], ended, s->index);
  s->n_ends++;
  return WF_OK;
}

static wf_status run_serial(serial *s, wf_tensor *const *init, wf_tensor *const *x, wf_tensor **y) {
  WF_TRY(plan(s));
  for (int k = 0; k < s->in->n_x; k++) s->x[k] = reordered(s, x[k], false);
  for (int k = 0; k < s->in->n_state; k++) enter(s, k, init[k]);
  int64_t token = 0, i = 0;
  do {
    int64_t n = 0;
    while (i + n < s->n_cuts && s->cut[i + n].round == s->cut[i].round) n++;
    WF_TRY(one_round(s, s->cut + i, n, &token));
    i += n;
  } while (i < s->n_cuts);
  *y = reordered(s, wf_concat(s->r->c, (int)s->n_y, s->y), true);
  for (int k = 0; k < s->in->n_state && s->r->state; k++) leave(s, k);
  return WF_OK;
}

/* ---- heads ---- */

/* Heads [begin, begin + n) of w, which are its first dimension; all of them are w itself. */
static wf_tensor *some_heads(wf_ctx *c, wf_tensor *w, int64_t begin, int64_t n) {
  return wf_is_poison(w) || !n || n == w->shape[0] ? w : wf_slice(c, w, 0, begin, begin + n);
}

wf_tensor *wf_seq_span_heads(wf_ctx *c, const wf_seq_span *span, wf_tensor *w) {
  return some_heads(c, w, span->head, span->heads);
}

/* With x and states of these heads alone. */
static wf_tensor *over_rows(wf_run *r, const wf_seq_serial_in *in, int64_t head, int64_t heads,
                            wf_tensor *const *x) {
  serial s = {.r = r, .in = in, .head = head, .heads = heads};
  wf_tensor *y = NULL, *init[MAX_STATE];
  for (int k = 0; k < in->n_state; k++) init[k] = some_heads(r->c, in->init[k], head, heads);
  wf_status st = run_serial(&s, init, x, &y);
  wf_rows_free(s.rows);
  wf_free(s.cut);
  wf_free(s.where);
  wf_free(s.index);
  wf_free(s.y);
  return st == WF_OK ? y : wf_poison(r->c, st);
}

/* ---- over ranks ---- */

static void relay_body(wf_run *r, const void *arg, wf_tensor *const *x, wf_tensor **y) {
  const wf_seq_serial_in *in = arg;
  y[0] = over_rows(r, in, 0, in->heads, x);
}

static wf_tensor *shard_body(wf_run *r, const void *arg, int64_t head, int64_t heads, wf_tensor *const *x) {
  const wf_seq_serial_in *in = arg;
  return over_rows(r, in, head, in->heads ? heads : 0, x);
}

static wf_tensor *over_ranks(wf_run *r, const wf_seq_serial_in *in) {
  int64_t heads = in->heads ? in->heads : 1;
  int axis = in->heads ? 1 : 0;
  if (wf_seq_divides(r, heads, wf_part_efficiency(r->part)))
    return wf_seq_shards(r,
                         &(wf_sharded){.slot = in->slot,
                                       .n_state = in->n_state,
                                       .n_x = in->n_x,
                                       .heads = heads,
                                       .x_axis = axis,
                                       .y_axis = axis,
                                       .state_axis = axis,
                                       .body = shard_body,
                                       .arg = in},
                         in->x);
  wf_relay relay = {.loose = true,
                    .slot = in->slot,
                    .n_state = in->n_state,
                    .n_x = in->n_x,
                    .n_y = 1,
                    .body = relay_body,
                    .arg = in};
  wf_tensor *y;
  wf_seq_relay(r, &relay, in->x, &y);
  return y;
}

wf_tensor *wf_seq_serial(wf_run *r, const wf_seq_serial_in *in) {
  for (int k = 0; k < in->n_x; k++)
    if (wf_is_poison(in->x[k])) return in->x[k];
  if (in->n_state > MAX_STATE || in->n_x < 1 || in->n_x > MAX_X || in->segment < 1)
    return wf_poison(r->c, WF_FAIL(WF_EINVAL, "serial: %d states, %d inputs, segments of %lld tokens",
                                   in->n_state, in->n_x, (long long)in->segment));
  return r->part ? over_ranks(r, in) : over_rows(r, in, 0, in->heads, in->x);
}
