/* serial: one token of every row at a time, the longest rows first, so that those still alive are a prefix.
 *
 * Everything is gathers, slices and one concatenation of the outputs, so the tape differentiates it. This is
 * the primitive for whatever is neither window, scan nor attention; its cost is one step function for each
 * token of the longest row.
 */
#include "layers/seq.h"
#include "core/memory.h"

#include <stdlib.h>

enum { MAX_STATE = 8 };

typedef struct serial {
  wf_run *r;
  int64_t n, steps; /* steps: tokens of the longest row; without rows one, of no token, which shapes y */
  int64_t *order;   /* [n] rows, the longest first */
  int64_t *alive;   /* [steps] rows that have a token t */
} serial;

typedef struct sized {
  int64_t row, len;
} sized;

static int longer_first(const void *a, const void *b) {
  const sized *x = a, *y = b;
  if (x->len != y->len) return x->len < y->len ? 1 : -1;
  return x->row < y->row ? -1 : x->row > y->row;
}

static wf_status plan(serial *s) {
  const wf_rows *rows = s->r->rows;
  s->n = rows->n;
  sized *by;
  WF_CALLOC(by, "rows", s->n + 1);
  for (int64_t i = 0; i < s->n; i++) by[i] = (sized){i, rows->row[i].len};
  qsort(by, (size_t)s->n, sizeof *by, longer_first);
  s->steps = s->n ? by[0].len : 1;
  s->order = wf_calloc("rows", (size_t)(s->n + s->steps), sizeof *s->order);
  if (!s->order) {
    wf_free(by);
    return WF_ENOMEM;
  }
  s->alive = s->order + s->n;
  for (int64_t i = 0; i < s->n; i++) {
    s->order[i] = by[i].row;
    for (int64_t t = 0; t < by[i].len; t++) s->alive[t]++;
  }
  wf_free(by);
  return WF_OK;
}

/* Rows of x [m, ...] by host indices; repeated ones are allowed. */
static wf_tensor *pick(wf_ctx *c, wf_tensor *x, int64_t n, const int32_t *index) {
  if (wf_is_poison(x)) return x;
  int64_t shape[WF_MAX_DIMS] = {n};
  for (int d = 1; d < x->ndim; d++) shape[d] = x->shape[d];
  int64_t wide = x->shape[0] ? wf_numel(x) / x->shape[0] : 0;
  wf_tensor *flat = wf_reshape(c, x, WF_SHAPE(x->shape[0], wide));
  return wf_reshape(c, wf_embedding(c, flat, wf_from_host(c, "rows", WF_I32, WF_SHAPE(n), index)), x->ndim,
                    shape);
}

/* [lanes, ...] of zeros where the call has no state. */
static wf_tensor *entering(const serial *s, int slot, const int64_t *shape, int ndim, wf_dtype dtype) {
  if (s->r->state) return wf_state_in(s->r->state, slot);
  return wf_zeros(s->r->c, "state", dtype, ndim, shape);
}

/* The first state of each row, in `order`: its lane's, or the initial one. */
static wf_tensor *first_state(const serial *s, wf_tensor *lanes, wf_tensor *init, int32_t *index) {
  wf_ctx *c = s->r->c;
  if (wf_is_poison(lanes)) return lanes;
  int64_t shape[WF_MAX_DIMS] = {1};
  for (int d = 1; d < lanes->ndim; d++) shape[d] = lanes->shape[d];
  wf_tensor *both[] = {lanes, wf_reshape(c, init, lanes->ndim, shape)};
  for (int64_t i = 0; i < s->n; i++) {
    const wf_row *row = &s->r->rows->row[s->order[i]];
    index[i] = (int32_t)(row->flags & WF_ROW_TAKES ? row->lane : lanes->shape[0]);
  }
  return pick(c, wf_concat(c, 2, both), s->n, index);
}

/* The lanes' states afterwards: `last` [n, ...] in `order` for those that rows leave. */
static wf_tensor *leaving(const serial *s, wf_tensor *lanes, wf_tensor *last, int32_t *index) {
  if (wf_is_poison(lanes)) return lanes;
  for (int64_t l = 0; l < lanes->shape[0]; l++) index[l] = (int32_t)l;
  for (int64_t i = 0; i < s->n; i++) {
    const wf_row *row = &s->r->rows->row[s->order[i]];
    if (row->flags & WF_ROW_LEAVES) index[row->lane] = (int32_t)(lanes->shape[0] + i);
  }
  wf_tensor *both[] = {lanes, last};
  return pick(s->r->c, wf_concat(s->r->c, 2, both), lanes->shape[0], index);
}

/* Step through the tokens: y[t] [alive, d]; ends[i] collects, from the back, the final states in `order`. */
static wf_status steps(const serial *s, wf_tensor *x, int n_state, wf_tensor **state, wf_seq_step step,
                       const void *self, int32_t *index, wf_tensor **y, wf_tensor **ends, int *n_ends) {
  wf_ctx *c = s->r->c;
  *n_ends = 0;
  for (int64_t t = 0; t < s->steps; t++) {
    int64_t m = s->alive[t], next_m = t + 1 < s->steps ? s->alive[t + 1] : 0;
    for (int64_t i = 0; i < m; i++) index[i] = (int32_t)(s->r->rows->row[s->order[i]].begin + t);
    wf_tensor *next[MAX_STATE];
    WF_TRY(step(c, self, pick(c, x, m, index), n_state, state, &y[t], next));
    for (int k = 0; k < n_state; k++) {
      if (next_m < m) ends[*n_ends + k] = wf_slice(c, next[k], 0, next_m, m);
      state[k] = next_m < m && next_m > 0 ? wf_slice(c, next[k], 0, 0, next_m) : next[k];
    }
    if (next_m < m) *n_ends += n_state;
  }
  return WF_OK;
}

/* From outputs by step to the order of the tokens. */
static wf_tensor *in_order(const serial *s, wf_tensor **y, int32_t *index) {
  int32_t at = 0;
  for (int64_t t = 0; t < s->steps; t++)
    for (int64_t i = 0; i < s->alive[t]; i++) index[s->r->rows->row[s->order[i]].begin + t] = at++;
  return pick(s->r->c, wf_concat(s->r->c, (int)s->steps, y), s->r->rows->n_tokens, index);
}

static wf_status run_serial(serial *s, const int *slots, int n_state, wf_tensor *const *init, wf_tensor *x,
                            wf_seq_step step, const void *self, wf_tensor **out) {
  wf_ctx *c = s->r->c;
  const wf_rows *rows = s->r->rows;
  WF_TRY(plan(s));
  int64_t most = rows->n_tokens + rows->n_lanes + s->n;
  int32_t *index = wf_alloc("rows", (size_t)most * sizeof *index);
  wf_tensor **y = wf_alloc("rows", (size_t)(s->steps + s->n * n_state) * sizeof *y), **ends = y + s->steps;
  wf_tensor *lanes[MAX_STATE], *state[MAX_STATE];
  int n_ends = 0;
  wf_status st = index && y ? WF_OK : WF_ENOMEM;
  for (int k = 0; k < n_state && st == WF_OK; k++) {
    int64_t shape[WF_MAX_DIMS] = {rows->n_lanes};
    const wf_tensor *like = init[k];
    for (int d = 0; d < like->ndim; d++) shape[d + 1] = like->shape[d];
    lanes[k] = entering(s, slots[k], shape, like->ndim + 1, x->dtype);
    state[k] = first_state(s, lanes[k], init[k], index);
  }
  if (st == WF_OK) st = steps(s, x, n_state, state, step, self, index, y, ends, &n_ends);
  if (st == WF_OK) *out = in_order(s, y, index);
  for (int k = 0; k < n_state && s->r->state && st == WF_OK; k++) {
    wf_tensor **part =
        y; /* the outputs are in place: their array serves for the final states, shortest rows last */
    int n = 0;
    for (int e = n_ends - n_state; e >= 0; e -= n_state) part[n++] = ends[e + k];
    wf_tensor *last = n ? wf_concat(c, n, part) : state[k]; /* no rows: of no row */
    *wf_state_out(s->r->state, slots[k]) = leaving(s, lanes[k], last, index);
  }
  wf_free(y);
  wf_free(index);
  return st;
}

wf_tensor *wf_seq_serial(wf_run *r, const int *slots, int n_state, wf_tensor *const *init, wf_tensor *x,
                         wf_seq_step step, const void *self) {
  if (wf_is_poison(x)) return x;
  if (n_state > MAX_STATE)
    return wf_poison(r->c, WF_FAIL(WF_EINVAL, "%d state tensors; at most %d", n_state, MAX_STATE));
  serial s = {.r = r};
  wf_tensor *y = NULL;
  wf_status st = run_serial(&s, slots, n_state, init, x, step, self, &y);
  wf_free(s.order);
  return st == WF_OK ? y : wf_poison(r->c, st);
}
