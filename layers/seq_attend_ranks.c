/* attend over ranks: queries stay where their tokens are, or their heads are divided; the keys come to them.
 *
 *   ring         keys and values go round; a rank holds two blocks at a time            dist/ring.h
 *   gather       what a rank's queries see comes to it at once (LASP-2H)                dist/exchange.h
 *   all to all   all tokens, some of the heads: everything is local in between (Ulysses)
 *   usp          that in teams of ranks, and rings between the teams
 *
 * A window reaches so few ranks that its keys are always gathered, and so are dilated segments.
 */
#include "core/memory.h"
#include "dist/attend_ways.h"
#include "dist/ring.h"
#include "layers/seq_impl.h"

#include <string.h>

/* ---- pools ---- */

static wf_keys keys_of(const wf_run *r, int64_t window, int64_t reach) {
  if (window > 0) return (wf_keys){WF_KEYS_WINDOW, window - 1, reach, 0};
  if (r->state->capacity > 0) return (wf_keys){WF_KEYS_CACHE, r->state->capacity, reach, 0};
  return (wf_keys){WF_KEYS_TOKENS, 0, reach, 0};
}

/* The table of rows whose places are those in this rank's caches. */
static wf_tensor *cache_rows(wf_run *r) {
  const wf_rows *rows = r->rows;
  wf_row *row = wf_alloc("rows", (size_t)(rows->n + 1) * sizeof *row);
  if (!row) return wf_poison(r->c, WF_ENOMEM);
  for (int64_t i = 0; i < rows->n; i++) {
    row[i] = rows->row[i];
    row[i].place = wf_keys_cache_place(r->part, &row[i]);
  }
  wf_tensor *t = wf_from_host(r->c, "rows", WF_I64, WF_SHAPE(rows->n, WF_ROW_COLS), row);
  wf_free(row);
  return t;
}

/* What this rank has of one slot, [rows, ...] of dist/keys.h. */
static wf_tensor *pool_of(wf_run *r, const wf_keys *k, int slot, wf_tensor *x) {
  const wf_part *p = r->part;
  wf_ctx *c = r->c;
  int last = p->n_segments - 1, at = wf_part_slot(p, last);
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, x->shape, sizeof shape);
  if (k->where == WF_KEYS_CACHE) {
    wf_tensor *table = cache_rows(r), *S = wf_state_in(r->state, slot);
    if (wf_is_poison(table)) return table;
    wf_tensor *cache = wf_cache_append(c, S, x, &(wf_rows){.table = table});
    shape[0] = r->state->lanes * r->state->capacity;
    return wf_same_variable(cache, x->ndim, shape);
  }
  if (k->where != WF_KEYS_WINDOW || !k->room || wf_part_owner(p, last) != p->rank ||
      !(p->enters || p->leaves))
    return x;
  shape[0] = p->n_lanes * k->room;
  wf_tensor *S = wf_slice(c, wf_state_in(r->state, slot), 0, at * p->n_lanes, (at + 1) * p->n_lanes);
  return wf_concat(c, 2, (wf_tensor *[]){wf_reshape(c, S, x->ndim, shape), x});
}

/* The window's tokens after the piece, on the rank of the last segment. */
static void leave(wf_run *r, const wf_keys *k, int n, const int *slot, wf_tensor *const *pool) {
  const wf_keys_plan *plan;
  wf_tensor *left[3];
  if (k->where != WF_KEYS_WINDOW || !k->room || !r->part->leaves) return;
  wf_status st = wf_keys_leave(r->part, k->room, &plan);
  if (st == WF_OK) wf_exchange_rows(r->c, r->part->dist->comm, &plan->move, 0, n, pool, left);
  for (int i = 0; i < n; i++) {
    wf_tensor *S = wf_state_in(r->state, slot[i]);
    *wf_state_out(r->state, slot[i]) =
        st == WF_OK ? wf_reshape(r->c, left[i], S->ndim, S->shape) : wf_poison(r->c, st);
  }
}

const wf_attend_span *wf_seq_fetch(wf_run *r, int64_t window, int64_t reach, int n, const int *slot,
                                   wf_tensor *const *x, wf_tensor **y) {
  wf_keys k = keys_of(r, window, reach);
  const wf_keys_plan *plan = NULL;
  wf_tensor *pool[3];
  wf_status st = wf_keys_fetch(r->part, &k, &plan);
  for (int i = 0; i < n && st == WF_OK; i++) pool[i] = pool_of(r, &k, slot[i], x[i]);
  if (st == WF_OK) {
    wf_exchange_rows(r->c, r->part->dist->comm, &plan->move, 0, n, pool, y);
    leave(r, &k, n, slot, pool);
  }
  for (int i = 0; i < n && st != WF_OK; i++) y[i] = wf_poison(r->c, st);
  return st == WF_OK ? plan->span : NULL;
}

/* ---- the ways ---- */

/* What all of them are given. */
typedef struct attend_run {
  wf_run *r;
  const wf_seq_attend_in *in;
  const wf_attend_options *o;
  wf_keys keys;
  int n, slot[3]; /* k, v and, where there are gates, c */
  wf_tensor *x[3], **lse;
} attend_run;

static wf_tensor *gathered(attend_run *a) {
  wf_run *r = a->r;
  wf_tensor *y[3], *here = a->in->c, *there = NULL;
  const wf_attend_span *span = wf_seq_fetch(r, a->o->window, a->o->window, a->n, a->slot, a->x, y);
  if (wf_is_poison(y[0]) || !span) return wf_poison(r->c, WF_OK);
  if (a->n == 3) there = y[2];
  int64_t n = r->rows->n, *pos = wf_alloc("rows", (size_t)(n + 1) * sizeof *pos);
  if (!pos) return wf_poison(r->c, WF_ENOMEM);
  for (int64_t i = 0; i < n; i++) pos[i] = r->rows->row[i].pos;
  wf_seq_alibi(r->c, n, span, pos, a->in->slope, a->in->q->shape, y[0]->shape[0], &here, &there);
  wf_free(pos);
  return wf_attend_lse(r->c, a->in->q, y[0], y[1], wf_attend_spans(r->c, n, span), here, there, a->in->sink,
                       a->o, a->lse);
}

/* ALiBi for queries and a pool, from places in the lane counted from the piece's start. */
static void places(attend_run *a, int64_t pool, wf_tensor **here, wf_tensor **there) {
  wf_run *r = a->r;
  const wf_part *p = r->part;
  int64_t n = r->rows->n_tokens, H = a->in->q->shape[1];
  double *at = wf_calloc("rows", (size_t)(n + pool) + 1, sizeof *at);
  if (!at) {
    *here = *there = wf_poison(r->c, WF_ENOMEM);
    return;
  }
  for (int64_t i = 0; i < r->rows->n; i++) {
    const wf_row *row = &r->rows->row[i];
    for (int64_t t = 0; t < row->len; t++)
      at[row->begin + t] = (double)(row->place + t - p->start[row->lane % p->n_lanes]);
  }
  wf_keys_places(p, &a->keys, at + n);
  wf_tensor *x = wf_from_host(r->c, "rows", WF_F64, WF_SHAPE(n + pool, 1), at);
  wf_tensor *slope = wf_affine(r->c, wf_from_host(r->c, "rows", WF_F64, WF_SHAPE(1, H), a->in->slope), -1, 0);
  wf_free(at);
  x = wf_mul(r->c, x, slope);
  wf_tensor *far[] = {wf_slice(r->c, x, 0, 0, n), wf_slice(r->c, x, 0, n, n + pool)}, **to[] = {here, there};
  for (int i = 0; i < 2; i++) *to[i] = *to[i] ? wf_add(r->c, *to[i], far[i]) : far[i];
}

/* This rank's pools of k, v and c; the terms of the scores, of queries and of the pool. */
static wf_status pools(attend_run *a, wf_tensor **pool, wf_tensor **here, wf_tensor **there) {
  for (int i = 0; i < a->n; i++) {
    pool[i] = pool_of(a->r, &a->keys, a->slot[i], a->x[i]);
    if (wf_is_poison(pool[i])) return wf_ctx_failure(a->r->c);
  }
  *here = a->in->c;
  *there = a->n == 3 ? pool[2] : NULL;
  return WF_OK;
}

static wf_tensor *round_the_ring(attend_run *a) {
  wf_run *r = a->r;
  const wf_ring_plan *ring;
  wf_tensor *pool[3], *here = NULL, *there = NULL;
  wf_status st = wf_ring_make(r->part, &a->keys, &ring);
  if (st == WF_OK) st = pools(a, pool, &here, &there);
  if (st != WF_OK) return wf_poison(r->c, st);
  if (a->in->slope) places(a, pool[0]->shape[0], &here, &there);
  return wf_ring_attend(r->c, r->part->dist->comm, ring, a->in->q, pool[0], pool[1], here, there, a->n == 3,
                        a->in->sink, a->o, a->lse);
}

/* ---- heads ---- */

/* Between tokens and heads: what this rank's share of the heads sees of all tokens of its team. */
typedef struct shared_heads {
  const wf_exchange *tokens, *keys;
  int team;
  int64_t begin, end; /* its query heads */
  wf_tensor *q, *k, *v, *here, *there, *sink;
} shared_heads;

static wf_tensor *repeat_heads(wf_ctx *c, wf_tensor *x, int64_t f) {
  int64_t n = x->shape[0], H = x->shape[1], d = x->shape[2];
  if (f == 1) return x;
  return wf_reshape(c, wf_expand(c, wf_reshape(c, x, WF_SHAPE(n, H, 1, d)), WF_SHAPE(n, H, f, d)),
                    WF_SHAPE(n, H * f, d));
}

/* The pools and terms of this rank go to the heads. */
static wf_status divide(attend_run *a, wf_tensor *const *pool, wf_tensor *here, wf_tensor *there,
                        shared_heads *x) {
  wf_ctx *c = a->r->c;
  wf_comm *comm = a->r->part->dist->comm;
  int64_t f = wf_attend_repeats(a->in->k->shape[1], x->team);
  wf_tensor *q[] = {a->in->q, here}, *k[] = {repeat_heads(c, pool[0], f), repeat_heads(c, pool[1], f), there};
  wf_tensor *my_q[2] = {NULL}, *my_k[3] = {NULL};
  wf_head_share(a->in->q->shape[1], wf_comm_rank(comm), x->team, &x->begin, &x->end);
  wf_exchange_rows(c, comm, x->tokens, x->team, here ? 2 : 1, q, my_q);
  wf_exchange_rows(c, comm, x->keys, x->team, there ? 3 : 2, k, my_k);
  x->q = my_q[0], x->here = my_q[1];
  x->k = my_k[0], x->v = my_k[1], x->there = my_k[2];
  x->sink = a->in->sink ? wf_slice(c, a->in->sink, 0, x->begin, x->end) : NULL;
  return wf_is_poison(x->q) || wf_is_poison(x->k) ? wf_ctx_failure(c) : WF_OK;
}

/* Outputs of the heads back to their tokens. */
static wf_tensor *rejoin(attend_run *a, const shared_heads *x, wf_tensor *const *y) {
  int64_t H = a->in->q->shape[1], total[] = {H, H};
  wf_tensor *o[2];
  wf_exchange_back(a->r->c, a->r->part->dist->comm, x->tokens, x->team, total, a->in->lse ? 2 : 1, y, o);
  if (a->in->lse) *a->lse = o[1];
  return o[0];
}

static wf_tensor *by_heads(attend_run *a) {
  wf_run *r = a->r;
  wf_ctx *c = r->c;
  const wf_keys_plan *tokens, *keys;
  wf_tensor *pool[3], *here = NULL, *there = NULL, *y[2];
  shared_heads x = {.team = wf_comm_size(r->part->dist->comm)};
  wf_status st = wf_keys_fetch_all(r->part, &(wf_keys){WF_KEYS_TOKENS, 0, 1, 0}, &tokens);
  if (st == WF_OK) st = wf_keys_fetch_all(r->part, &a->keys, &keys);
  if (st == WF_OK) st = pools(a, pool, &here, &there);
  if (st != WF_OK) return wf_poison(c, st);
  x.tokens = &tokens->move, x.keys = &keys->move;
  st = divide(a, pool, here, there, &x);
  if (st != WF_OK) return wf_poison(c, st);
  wf_seq_alibi(c, keys->n_spans, keys->span, keys->pos, a->in->slope ? a->in->slope + x.begin : NULL,
               x.q->shape, x.k->shape[0], &x.here, &x.there);
  y[0] = wf_attend_lse(c, x.q, x.k, x.v, wf_attend_spans(c, keys->n_spans, keys->span), x.here, x.there,
                       x.sink, a->o, &y[1]);
  return rejoin(a, &x, y);
}

static wf_tensor *in_teams(attend_run *a, int team) {
  wf_run *r = a->r;
  wf_ctx *c = r->c;
  const wf_keys_plan *tokens, *keys;
  const wf_ring_plan *ring;
  wf_tensor *pool[3], *here = NULL, *there = NULL, *y[2];
  shared_heads x = {.team = team};
  wf_keys together = a->keys;
  together.team = team;
  wf_status st = wf_keys_team(r->part, &(wf_keys){WF_KEYS_TOKENS, 0, 0, team}, &tokens);
  if (st == WF_OK) st = wf_keys_team(r->part, &together, &keys);
  if (st == WF_OK) st = wf_ring_make(r->part, &together, &ring);
  if (st == WF_OK) st = pools(a, pool, &here, &there);
  if (st != WF_OK) return wf_poison(c, st);
  if (a->in->slope) places(a, pool[0]->shape[0], &here, &there);
  x.tokens = &tokens->move, x.keys = &keys->move;
  st = divide(a, pool, here, there, &x);
  if (st != WF_OK) return wf_poison(c, st);
  y[0] = wf_ring_attend(c, r->part->dist->comm, ring, x.q, x.k, x.v, x.here, x.there, a->n == 3, x.sink, a->o,
                        &y[1]);
  return rejoin(a, &x, y);
}

/* ---- which ---- */

wf_tensor *wf_seq_attend_ranks(wf_run *r, const wf_seq_attend_slots *slots, const wf_seq_attend_in *in,
                               const wf_attend_options *o, wf_tensor **lse) {
  attend_run a = {.r = r,
                  .in = in,
                  .o = o,
                  .keys = keys_of(r, o->window, o->window),
                  .n = in->c ? 3 : 2,
                  .slot = {slots->k, slots->v, slots->c},
                  .x = {in->k, in->v, in->c},
                  .lse = lse};
  wf_attend_size size = {.heads = in->q->shape[1],
                         .kv_heads = in->k->shape[1],
                         .K = in->k->shape[2],
                         .V = in->v->shape[2],
                         .number = (int64_t)wf_dtype_size(in->q->dtype),
                         .gates = in->c,
                         .bias = in->slope,
                         .lse = in->lse};
  wf_attend_choice how = {WF_ATTENTION_GATHER, 1};
  wf_status st = o->window > 0 ? WF_OK : wf_attend_way(r->part, &a.keys, &size, &how);
  if (st != WF_OK) return wf_poison(r->c, st);
  switch (how.way) {
  case WF_ATTENTION_RING: return round_the_ring(&a);
  case WF_ATTENTION_ALL_TO_ALL: return by_heads(&a);
  case WF_ATTENTION_USP: return in_teams(&a, how.team);
  default: return gathered(&a);
  }
}
