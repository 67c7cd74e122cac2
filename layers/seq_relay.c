/* relay: a primitive over the segments of several ranks, one after the other. Each segment runs it alone, as
 * if there were no ranks, with the state that the segment before left. It is the reference of the faster
 * transports. Ranks wait for each other, but for groups of lanes (dist/part.h): while one has a group, the
 * one before it has the next. */
#include "layers/seq_impl.h"
#include "core/memory.h"
#include "dist/relay.h"

#include <string.h>

typedef struct relay_run {
  wf_run *r;
  const wf_relay *what;
  const wf_part *p;
  int n_calls;                /* segments of the rank x groups of lanes */
  wf_tensor **y, **left;      /* [n_y][n_calls], [n_state][n_calls] */
  wf_tensor **first;          /* [n_state][n_groups] what enters segment 0, on its rank */
  wf_tensor *S[WF_RELAY_MAX]; /* what enters and leaves the call under way */
  wf_tensor *out[WF_RELAY_MAX];
  wf_tensor *x[WF_RELAY_MAX];
} relay_run;

/* The lanes of group g in the rank's k-th segment. */
static wf_tensor *lanes_of(relay_run *q, int i, int k, int g) {
  const wf_part *p = q->p;
  wf_tensor *S = wf_state_in(q->r->state, q->what->slot + i);
  return wf_slice(q->r->c, S, 0, k * p->n_lanes + wf_part_lane(p, g),
                  k * p->n_lanes + wf_part_lane(p, g + 1));
}

/* Sends S; backward is tied to *y. */
static void hand(relay_run *q, int to, wf_tensor **y, wf_tensor *S) {
  wf_ctx *c = q->r->c;
  if (wf_is_poison(S) || wf_is_poison(*y)) {
    *y = wf_poison(c, WF_OK);
  } else if (!q->what->no_gradient) {
    *y = wf_hand(c, q->p->dist->comm, to, *y, S);
  } else {
    wf_status st = wf_send_tensor(c, q->p->dist->comm, to, S);
    if (st != WF_OK) *y = wf_poison(c, st);
  }
}

static wf_tensor *take(relay_run *q, int from, wf_tensor *like) {
  wf_ctx *c = q->r->c;
  if (!q->what->no_gradient || wf_is_poison(like)) return wf_take(c, q->p->dist->comm, from, like);
  wf_tensor *S = wf_empty(c, "dist", like->dtype, like->ndim, like->shape);
  if (wf_is_poison(S)) return S;
  wf_status st = wf_recv_tensor(c, q->p->dist->comm, from, S);
  return st == WF_OK ? S : wf_poison(c, st);
}

/* What the piece before left goes from the owner of its last segment to that of the first. */
static void carry(relay_run *q, int g) {
  const wf_part *p = q->p;
  int last = p->n_segments - 1, from = wf_part_owner(p, last), to = wf_part_owner(p, 0);
  int left = wf_part_slot(p, last), begins = wf_part_slot(p, 0);
  for (int i = 0; i < q->what->n_state; i++) {
    wf_tensor **S = &q->first[i * p->n_groups + g];
    if (!p->enters) {
      if (p->rank == to) *S = lanes_of(q, i, begins, g);
    } else if (from == to) {
      if (p->rank == to) *S = lanes_of(q, i, left, g);
    } else if (p->rank == from) {
      hand(q, to, &q->x[0], lanes_of(q, i, left, g));
    } else if (p->rank == to) {
      *S = take(q, from, lanes_of(q, i, begins, g));
    }
  }
}

/* What enters group g of segment s, the k-th of the rank. */
static void enter(relay_run *q, int s, int k, int g) {
  const wf_part *p = q->p;
  for (int i = 0; i < q->what->n_state; i++) {
    if (!s)
      q->S[i] = q->first[i * p->n_groups + g];
    else if (wf_part_owner(p, s - 1) == p->rank)
      q->S[i] = q->left[i * q->n_calls + (k - 1) * p->n_groups + g];
    else
      q->S[i] = take(q, wf_part_owner(p, s - 1), lanes_of(q, i, k, g));
  }
}

/* One call of the primitive: group g of segment s, whose tokens begin at *begin. */
static wf_status call(relay_run *q, int s, int k, int g, int64_t *begin) {
  const wf_part *p = q->p;
  const wf_relay *w = q->what;
  wf_ctx *c = q->r->c;
  wf_run run = *q->r;
  WF_TRY(wf_part_rows(q->r->part, c, k, g, &run.rows));
  enter(q, s, k, g);
  wf_state state = {.c = c,
                    .dtype = q->r->state->dtype,
                    .lanes = run.rows->n_lanes,
                    .base = w->slot,
                    .in = q->S,
                    .out = q->out};
  run.part = NULL;
  run.state = &state;
  wf_tensor *x[WF_RELAY_MAX], *y[WF_RELAY_MAX];
  for (int i = 0; i < w->n_x; i++)
    x[i] = q->x[i] ? wf_slice(c, q->x[i], 0, *begin, *begin + run.rows->n_tokens) : NULL;
  *begin += run.rows->n_tokens;
  memset(q->out, 0, sizeof q->out);
  w->body(&run, w->arg, x, y);
  for (int i = 0; i < w->n_y; i++)
    if (wf_is_poison(y[i])) return wf_ctx_failure(c);
  for (int i = 0; i < w->n_state && w->loose; i++) y[0] = wf_tie(c, y[0], q->S[i]);
  for (int i = 0; i < w->n_state; i++) {
    if (!q->out[i]) return WF_FAIL(WF_EINTERNAL, "a primitive leaves nothing in its state %d", i);
    if (s + 1 < p->n_segments && wf_part_owner(p, s + 1) != p->rank)
      hand(q, wf_part_owner(p, s + 1), &y[0], q->out[i]);
    q->left[i * q->n_calls + k * p->n_groups + g] = q->out[i];
  }
  for (int i = 0; i < w->n_y; i++) q->y[i * q->n_calls + k * p->n_groups + g] = y[i];
  return WF_OK;
}

static wf_status run_relay(relay_run *q) {
  const wf_part *p = q->p;
  int n_state = q->what->n_state;
  q->n_calls = p->n_own * p->n_groups;
  WF_CALLOC(q->y, "dist", (q->what->n_y + n_state) * q->n_calls + n_state * p->n_groups + 1);
  q->left = q->y + q->what->n_y * q->n_calls;
  q->first = q->left + n_state * q->n_calls;
  for (int g = 0; g < p->n_groups; g++) carry(q, g);
  int64_t begin = 0;
  for (int k = 0; k < p->n_own; k++)
    for (int g = 0; g < p->n_groups; g++) WF_TRY(call(q, p->own[k], k, g, &begin));
  return WF_OK;
}

void wf_seq_relay(wf_run *r, const wf_relay *w, wf_tensor *const *x, wf_tensor **y) {
  relay_run q = {.r = r, .what = w, .p = r->part};
  wf_status st = WF_OK;
  for (int i = 0; i < w->n_x; i++) {
    q.x[i] = x[i];
    if (x[i] && wf_is_poison(x[i])) st = wf_ctx_failure(r->c);
  }
  if (st == WF_OK && (w->n_x > WF_RELAY_MAX || w->n_y > WF_RELAY_MAX || w->n_state > WF_RELAY_MAX))
    st = WF_FAIL(WF_EINVAL, "relay: %d inputs, %d outputs, %d states", w->n_x, w->n_y, w->n_state);
  const char *label = wf_ctx_set_label(r->c, wf_state_kind_name(r->state->spec->slot[w->slot].kind));
  if (st == WF_OK) st = run_relay(&q);
  wf_ctx_set_label(r->c, label);
  for (int i = 0; i < w->n_y; i++)
    y[i] = st == WF_OK ? wf_concat(r->c, q.n_calls, q.y + i * q.n_calls) : wf_poison(r->c, st);
  for (int i = 0; i < w->n_state && st == WF_OK; i++)
    *wf_state_out(r->state, w->slot + i) = wf_concat(r->c, q.n_calls, q.left + i * q.n_calls);
  wf_free(q.y);
}
