/* ring: the hops of both passes. What a hop computes is calls of attend and of its gradient (ring_plan.c). */
#include "dist/ring.h"
#include "core/memory.h"
#include "dist/op_impl.h"
#include "dist/ring_impl.h"

#include <math.h>
#include <string.h>

enum { Q, K, V, A, B, SINK, INPUTS };

typedef struct ring_attr {
  wf_comm *comm;
  const wf_ring_plan *plan;
  wf_attend_options o;
  int64_t terms_vary;
} ring_attr;

/* Keys side by side with their values, and their terms: a block on its way, or its gradient. */
typedef struct block {
  wf_tensor *kv; /* [n, Hk (dk + dv)] */
  wf_tensor *b;  /* [n, H] f64, or NULL */
  int64_t n;
} block;

typedef struct ring {
  wf_ctx *c;
  const ring_attr *a;
  const wf_ring_plan *p;
  wf_comm *comm;
  int P, rank;
  wf_tensor *const *in;
  int64_t heads, kv_heads, kdim, vdim;
} ring;

static ring open_ring(wf_ctx *c, const ring_attr *a, wf_tensor *const *in) {
  return (ring){.c = c,
                .a = a,
                .p = a->plan,
                .comm = a->comm,
                .P = a->plan->n_ranks,
                .rank = wf_comm_rank(a->comm) / a->plan->team,
                .in = in,
                .heads = in[Q]->shape[1],
                .kv_heads = in[K]->shape[1],
                .kdim = in[K]->shape[2],
                .vdim = in[V]->shape[2]};
}

static int rank_of(const ring *r, int offset) {
  return (r->rank + offset + r->P) % r->P;
}

/* The peer in another team: the one with the same heads. */
static int peer_of(const ring *r, int team) {
  return team * r->p->team + wf_comm_rank(r->comm) % r->p->team;
}

/* ---- views ---- */

static wf_tensor *rows_of(wf_tensor *t, int64_t begin, int64_t end) {
  if (!t) return NULL;
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, t->shape, sizeof shape);
  shape[0] = end - begin;
  return wf_view_raw(t, t->ndim, shape, t->stride, begin * t->stride[0]);
}

static wf_tensor *side(const ring *r, wf_tensor *kv, int64_t first, int64_t width) {
  return wf_view_raw(kv, 3, (int64_t[]){kv->shape[0], r->kv_heads, width},
                     (int64_t[]){kv->stride[0], width, 1}, first);
}
static wf_tensor *keys_of(const ring *r, wf_tensor *kv) {
  return side(r, kv, 0, r->kdim);
}
static wf_tensor *values_of(const ring *r, wf_tensor *kv) {
  return side(r, kv, r->kv_heads * r->kdim, r->vdim);
}

/* Of no scope: blocks live from one hop into the next. Given back by block_free. */
static wf_status block_make(const ring *r, int64_t n, bool terms, block *out) {
  wf_scope s = wf_scope_open(r->c);
  *out = (block){.n = n};
  out->kv = wf_keep(wf_empty(r->c, "dist", r->in[K]->dtype, WF_SHAPE(n, r->kv_heads * (r->kdim + r->vdim))));
  if (terms) out->b = wf_keep(wf_empty(r->c, "dist", WF_F64, WF_SHAPE(n, r->heads)));
  wf_scope_close(r->c, s);
  return wf_is_poison(out->kv) || (terms && wf_is_poison(out->b)) ? wf_ctx_failure(r->c) : WF_OK;
}

static void block_free(block *x) {
  wf_drop(x->kv);
  wf_drop(x->b);
  *x = (block){NULL};
}

static block block_rows(const block *x, int64_t begin, int64_t end) {
  return (block){rows_of(x->kv, begin, end), rows_of(x->b, begin, end), end - begin};
}

/* This rank's keys that travel, packed. */
static wf_status pack(const ring *r, block *out) {
  const wf_ring_plan *p = r->p;
  WF_TRY(block_make(r, wf_ring_rows(p, r->rank, 1), r->in[B] != NULL, out));
  wf_tensor *k = keys_of(r, out->kv), *v = values_of(r, out->kv);
  for (int64_t i = p->first[r->rank]; i < p->first[r->rank + 1]; i++) {
    const wf_ring_run *u = &p->run[i];
    int64_t from = u->row, end = u->row + u->n, to = u->at, behind = u->at + u->n;
    WF_TRY(wf_dist_copy(r->c, rows_of(r->in[K], from, end), rows_of(k, to, behind), false));
    WF_TRY(wf_dist_copy(r->c, rows_of(r->in[V], from, end), rows_of(v, to, behind), false));
    if (out->b) WF_TRY(wf_dist_copy(r->c, rows_of(r->in[B], from, end), rows_of(out->b, to, behind), false));
  }
  return WF_OK;
}

/* ---- messages ---- */

typedef struct flight { /* a block under way */
  wf_pending *pending[2];
} flight;

static wf_status send(const ring *r, const block *x, int to, flight *f) {
  WF_TRY(wf_comm_send(r->comm, x->kv, peer_of(r, to), &f->pending[0]));
  return x->b ? wf_comm_send(r->comm, x->b, peer_of(r, to), &f->pending[1]) : WF_OK;
}
static wf_status receive(const ring *r, const block *x, int from, flight *f) {
  WF_TRY(wf_comm_recv(r->comm, x->kv, peer_of(r, from), &f->pending[0]));
  return x->b ? wf_comm_recv(r->comm, x->b, peer_of(r, from), &f->pending[1]) : WF_OK;
}
static wf_status landed(flight *f) {
  wf_status first = wf_comm_wait(&f->pending[0]), second = wf_comm_wait(&f->pending[1]);
  return first == WF_OK ? second : first;
}

/* The keys as they go round, the same in both passes. */
typedef struct tour {
  block was, here, next; /* what is still being sent, the block of the hop, the one coming in */
  flight was_out, out, in;
} tour;

/* Starts the messages of the next hop: this one's block goes on, as far as somebody needs it. */
static wf_status depart(const ring *r, tour *t, int hop) {
  if (hop + 1 == r->P) return WF_OK;
  block onward = block_rows(&t->here, 0, wf_ring_rows(r->p, rank_of(r, -hop), hop + 1));
  t->was_out = t->out;
  t->out = (flight){{NULL}};
  WF_TRY(send(r, &onward, rank_of(r, 1), &t->out));
  WF_TRY(block_make(r, wf_ring_rows(r->p, rank_of(r, -hop - 1), hop + 1), r->in[B] != NULL, &t->next));
  return receive(r, &t->next, rank_of(r, -1), &t->in);
}

static wf_status arrive(tour *t) {
  WF_TRY(landed(&t->was_out));
  WF_TRY(landed(&t->in));
  block_free(&t->was);
  t->was = t->here;
  t->here = t->next;
  t->next = (block){NULL};
  return WF_OK;
}

/* Waits after a failure too: nothing may write into what is freed. */
static wf_status all_landed(int n, flight *const *f, wf_status st) {
  for (int i = 0; i < n; i++) {
    wf_status s = landed(f[i]);
    if (st == WF_OK) st = s;
  }
  return st;
}

static wf_status tour_end(tour *t, wf_status st) {
  st = all_landed(3, (flight *[]){&t->was_out, &t->out, &t->in}, st);
  block_free(&t->was);
  block_free(&t->here);
  block_free(&t->next);
  return st;
}

/* ---- calls in parts, so that messages are looked after ---- */

enum { PART = 1 << 28 }; /* multiplications of a part, about */

/* A part: spans of queries [begin, end), which the span tensor counts from `begin`. */
typedef struct stage {
  int64_t begin, end;
  wf_tensor *span;
} stage;

typedef wf_status (*stage_fn)(const ring *r, void *arg, const wf_ring_call *call, const block *keys,
                              const stage *s);

static wf_status run_stage(const ring *r, int64_t n, wf_attend_span *span, stage_fn fn, void *arg,
                           const wf_ring_call *call, const block *keys) {
  wf_scope scope = wf_scope_open(r->c);
  stage s = {.begin = span[0].query, .end = span[n - 1].query + span[n - 1].queries};
  for (int64_t i = 0; i < n; i++) span[i].query -= s.begin;
  s.span = wf_attend_spans(r->c, n, span);
  wf_status st = wf_is_poison(s.span) ? wf_ctx_failure(r->c) : fn(r, arg, call, keys, &s);
  wf_scope_close(r->c, scope);
  wf_comm_poke(r->comm);
  return st;
}

static wf_status run_call(const ring *r, const wf_ring_call *call, const block *keys, stage_fn fn,
                          void *arg) {
  wf_attend_span *part;
  int64_t n = 0, most = PART / (r->heads * (r->kdim + r->vdim) + 1) + 1, left = most;
  WF_ALLOC(part, "dist", (size_t)(call->end - call->first + 2) * sizeof *part);
  wf_status st = WF_OK;
  for (int64_t i = call->first; i < call->end && st == WF_OK; i++) {
    wf_attend_span x = r->p->span[i];
    int64_t rest = x.queries;
    for (; rest && st == WF_OK; rest -= x.queries) {
      int64_t fit = (left / (x.keys + 1) + 64) / 64 * 64; /* whole blocks of queries */
      x.queries = rest < fit || r->P == 1 ? rest : fit;
      part[n++] = x;
      x.query += x.queries;
      x.distance += x.queries;
      left -= x.queries * (x.keys + 1);
      if (left > 0) continue;
      st = run_stage(r, n, part, fn, arg, call, keys);
      n = 0;
      left = most;
    }
  }
  if (n && st == WF_OK) st = run_stage(r, n, part, fn, arg, call, keys);
  wf_free(part);
  return st;
}

/* All calls of a hop; *next is the first of those that follow. */
static wf_status run_hop(const ring *r, int hop, const block *keys, int *next, stage_fn fn, void *arg) {
  for (; *next < r->p->n_calls && r->p->call[*next].hop == hop; ++*next)
    WF_TRY(run_call(r, &r->p->call[*next], keys, fn, arg));
  return WF_OK;
}

/* ---- forward ---- */

/* The inputs of attend for a part. */
static void stage_inputs(const ring *r, const wf_ring_call *call, const block *keys, const stage *s,
                         wf_tensor **in) {
  in[0] = rows_of(r->in[Q], s->begin, s->end);
  in[1] = call->hop ? keys_of(r, keys->kv) : r->in[K];
  in[2] = call->hop ? values_of(r, keys->kv) : r->in[V];
  in[3] = s->span;
  in[4] = rows_of(r->in[A], s->begin, s->end);
  in[5] = call->hop ? keys->b : r->in[B];
  in[6] = call->own ? r->in[SINK] : NULL; /* a logit of the softmax over all parts: in one of them */
}

static wf_status attend_stage(const ring *r, void *arg, const wf_ring_call *call, const block *keys,
                              const stage *s) {
  wf_tensor *const *out = arg, *in[7];
  wf_tensor *all[] = {rows_of(out[0], s->begin, s->end), rows_of(out[1], s->begin, s->end)};
  stage_inputs(r, call, keys, s, in);
  if (call->own) return wf_op_run(r->c, &wf_op_attend, 7, in, &r->a->o, 2, all, 0);
  wf_tensor *here[] = {wf_empty_like(r->c, "dist", all[0]), wf_empty_like(r->c, "dist", all[1])};
  WF_TRY(wf_op_run(r->c, &wf_op_attend, 7, in, &r->a->o, 2, here, 0));
  if (r->a->o.kind == WF_ATTEND_SIGMOID) return wf_dist_copy(r->c, here[0], all[0], true);
  wf_tensor *pair[] = {all[0], all[1], here[0], here[1]};
  return wf_op_run(r->c, &wf_op_merge_pair, 4, pair, NULL, 2, all, 0);
}

static wf_status hop_on(const ring *r, tour *t, int hop, int *call, wf_tensor *const *out) {
  if (hop) WF_TRY(arrive(t));
  WF_TRY(depart(r, t, hop));
  return run_hop(r, hop, &t->here, call, attend_stage, (void *)(uintptr_t)out);
}

static wf_status go_round(const ring *r, tour *t, wf_tensor *const *out) {
  int call = 0;
  WF_TRY(pack(r, &t->here));
  wf_status st = WF_OK;
  for (int hop = 0; hop < r->P && st == WF_OK; hop++) {
    wf_scope s = wf_scope_open(r->c);
    st = hop_on(r, t, hop, &call, out);
    wf_scope_close(r->c, s);
  }
  return st;
}

static wf_status ring_kernel(const wf_call *call) {
  ring r = open_ring(call->ctx, call->attr, call->in);
  tour t = {.here = {NULL}};
  wf_scope scope = wf_scope_open(r.c);
  wf_status st = tour_end(&t, go_round(&r, &t, call->out));
  wf_scope_close(r.c, scope);
  return st;
}
WF_DIST_KERNEL(ring)

/* ---- backward ---- */

typedef struct pull {
  const wf_vjp *g;
  wf_tensor *d[INPUTS], *dout; /* to be added to; NULL where not wanted */
  block before, mine, sent; /* gradients of the block of the hop: of the ranks before, and with this one's */
  block homing[2];          /* of this rank's keys, those that come home, of this hop and the last */
  flight in, on, home, homes[2];
} pull;

static wf_status pull_stage(const ring *r, void *arg, const wf_ring_call *call, const block *keys,
                            const stage *s) {
  pull *x = arg;
  const wf_vjp *g = x->g;
  wf_tensor *in[7], *din[7] = {NULL},
                    *out[] = {rows_of(g->out[0], s->begin, s->end), rows_of(g->out[1], s->begin, s->end)};
  wf_tensor *dout[] = {rows_of(x->dout, s->begin, s->end), rows_of(g->dout[1], s->begin, s->end)};
  stage_inputs(r, call, keys, s, in);
  din[0] = rows_of(x->d[Q], s->begin, s->end);
  din[1] = call->hop ? keys_of(r, x->mine.kv) : x->d[K];
  din[2] = call->hop ? values_of(r, x->mine.kv) : x->d[V];
  din[4] = rows_of(x->d[A], s->begin, s->end);
  din[5] = call->hop ? x->mine.b : x->d[B];
  din[6] = call->own ? x->d[SINK] : NULL;
  wf_vjp share = {r->c, &wf_op_attend, &r->a->o, 7, 2, in, out, dout, din, 0x7f};
  for (int i = 0; i < 7; i++)
    if ((in[i] && wf_is_poison(in[i])) || (din[i] && wf_is_poison(din[i]))) return wf_ctx_failure(r->c);
  return wf_op_attend.vjp(&share);
}

/* Gradients that the rank of hop `hop` was the last to add to go to where the keys lie. */
static wf_status bring_home(const ring *r, pull *x, int hop) {
  const wf_ring_plan *p = r->p;
  block *b = &x->homing[hop % 2];
  WF_TRY(landed(&x->homes[hop % 2]));
  int64_t begin = wf_ring_rows(p, r->rank, hop + 1);
  wf_tensor *k = keys_of(r, b->kv), *v = values_of(r, b->kv);
  for (int64_t i = p->first[r->rank]; i < p->first[r->rank + 1]; i++) {
    const wf_ring_run *u = &p->run[i];
    if (u->last != hop) continue;
    int64_t from = u->at - begin, end = from + u->n, to = u->row, behind = u->row + u->n;
    if (x->d[K]) WF_TRY(wf_dist_copy(r->c, rows_of(k, from, end), rows_of(x->d[K], to, behind), true));
    if (x->d[V]) WF_TRY(wf_dist_copy(r->c, rows_of(v, from, end), rows_of(x->d[V], to, behind), true));
    if (x->d[B] && b->b)
      WF_TRY(wf_dist_copy(r->c, rows_of(b->b, from, end), rows_of(x->d[B], to, behind), true));
  }
  block_free(b);
  return WF_OK;
}

/* What the ranks before have of the gradients of the hop's block begins to come in. */
static wf_status expect(const ring *r, pull *x, int hop) {
  if (hop < 2) return WF_OK;
  WF_TRY(block_make(r, wf_ring_rows(r->p, rank_of(r, -hop), hop), r->a->terms_vary, &x->before));
  return receive(r, &x->before, rank_of(r, -1), &x->in);
}

/* So do, from the rank that meets this rank's keys on this hop, those that end there. */
static wf_status expect_home(const ring *r, pull *x, int hop) {
  int64_t n = wf_ring_rows(r->p, r->rank, hop) - wf_ring_rows(r->p, r->rank, hop + 1);
  WF_TRY(block_make(r, n, r->a->terms_vary, &x->homing[hop % 2]));
  return receive(r, &x->homing[hop % 2], rank_of(r, hop), &x->homes[hop % 2]);
}

static wf_status pass_on(const ring *r, pull *x, int hop) {
  int64_t n = x->mine.n, on = wf_ring_rows(r->p, rank_of(r, -hop), hop + 1);
  block onward = block_rows(&x->mine, 0, on), rest = block_rows(&x->mine, on, n);
  WF_TRY(landed(&x->in));
  if (x->before.n) {
    WF_TRY(wf_dist_copy(r->c, x->before.kv, x->mine.kv, true));
    if (x->mine.b) WF_TRY(wf_dist_copy(r->c, x->before.b, x->mine.b, true));
  }
  WF_TRY(landed(&x->on)); /* of the last hop */
  WF_TRY(landed(&x->home));
  block_free(&x->before);
  block_free(&x->sent);
  x->sent = x->mine;
  x->mine = (block){NULL};
  WF_TRY(send(r, &onward, rank_of(r, 1), &x->on));
  return send(r, &rest, rank_of(r, -hop), &x->home);
}

/* The order of the calls is that in which messages between two ranks pair up. */
static wf_status hop_back(const ring *r, tour *t, pull *x, int hop, int *call) {
  if (hop) WF_TRY(arrive(t));
  WF_TRY(expect(r, x, hop));
  WF_TRY(depart(r, t, hop));
  if (hop == 0) return run_hop(r, 0, NULL, call, pull_stage, x);
  WF_TRY(expect_home(r, x, hop));
  WF_TRY(block_make(r, t->here.n, r->a->terms_vary, &x->mine));
  WF_TRY(wf_tensor_zero(x->mine.kv));
  if (x->mine.b) WF_TRY(wf_tensor_zero(x->mine.b));
  WF_TRY(run_hop(r, hop, &t->here, call, pull_stage, x));
  WF_TRY(pass_on(r, x, hop));
  return hop > 1 ? bring_home(r, x, hop - 1) : WF_OK;
}

static wf_status pull_round(const ring *r, tour *t, pull *x) {
  int call = 0;
  WF_TRY(pack(r, &t->here));
  wf_status st = WF_OK;
  for (int hop = 0; hop < r->P && st == WF_OK; hop++) {
    wf_scope s = wf_scope_open(r->c);
    st = hop_back(r, t, x, hop, &call);
    wf_scope_close(r->c, s);
  }
  return st == WF_OK && r->P > 1 ? bring_home(r, x, r->P - 1) : st;
}

/* Gradients are added up in their places, which are cleared where nothing was. */
static wf_status destinations(const ring *r, const wf_vjp *g, pull *x) {
  const wf_tensor *o = g->out[0];
  x->dout = g->dout[0] ? g->dout[0] : wf_zeros(r->c, "gradient", o->dtype, o->ndim, o->shape);
  if (wf_is_poison(x->dout)) return wf_ctx_failure(r->c);
  for (int i = 0; i < INPUTS; i++) {
    x->d[i] = g->din[i];
    if (x->d[i] && !(g->add >> i & 1)) WF_TRY(wf_tensor_zero(x->d[i]));
  }
  return WF_OK;
}

static wf_status ring_vjp(const wf_vjp *g) {
  ring r = open_ring(g->ctx, g->attr, g->in);
  tour t = {.here = {NULL}};
  pull x = {.g = g};
  wf_scope scope = wf_scope_open(r.c);
  wf_status st = destinations(&r, g, &x);
  if (st == WF_OK) st = pull_round(&r, &t, &x);
  st = tour_end(&t, st);
  st = all_landed(5, (flight *[]){&x.in, &x.on, &x.home, &x.homes[0], &x.homes[1]}, st);
  block *all[] = {&x.before, &x.mine, &x.sent, &x.homing[0], &x.homing[1]};
  for (int i = 0; i < 5; i++) block_free(all[i]);
  wf_scope_close(r.c, scope);
  return st;
}

/* ---- the op ---- */

static wf_status ring_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *q = call->in[Q];
  const wf_attend_options *o = &((const ring_attr *)call->attr)->o;
  WF_SHAPE_CHECK(q->ndim == 3 && call->in[K]->ndim == 3 && call->in[V]->ndim == 3 && !o->window &&
                     o->stride <= 1,
                 "ring: queries, keys and values [n, heads, d], and no window");
  wf_desc_set(&out[0], q->dtype, WF_SHAPE(q->shape[0], q->shape[1], call->in[V]->shape[2]));
  wf_desc_set(&out[1], q->dtype, WF_SHAPE(q->shape[0], q->shape[1]));
  return WF_OK;
}

static const wf_op op_ring = {.name = "ring",
                              .min_in = INPUTS,
                              .max_in = INPUTS,
                              .n_out = 2,
                              .attr_size = sizeof(ring_attr),
                              .flags = WF_OP_TYPE_OF_FIRST,
                              .optional = 1 << A | 1 << B | 1 << SINK,
                              .rowmajor = 1 << Q | 1 << K | 1 << V,
                              .save_in = (1 << INPUTS) - 1,
                              .save_out = 3,
                              .vjp_adds = (1 << INPUTS) - 1,
                              .infer = ring_infer,
                              .vjp = ring_vjp,
                              WF_DIST_CPU(ring)};

wf_tensor *wf_ring_attend(wf_ctx *c, wf_comm *comm, const wf_ring_plan *ring, wf_tensor *q, wf_tensor *k,
                          wf_tensor *v, wf_tensor *a, wf_tensor *b, bool terms_vary, wf_tensor *sink,
                          const wf_attend_options *o, wf_tensor **lse) {
  ring_attr attr = {.comm = comm, .plan = ring, .o = *o, .terms_vary = terms_vary};
  wf_tensor *out[2];
  wf_op_apply(c, &op_ring, INPUTS, (wf_tensor *[]){q, k, v, a, b, sink}, &attr, out);
  *lse = out[1];
  return out[0];
}
