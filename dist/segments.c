/* The op that wraps another one: its kernel and its gradient, block by block. */
#include "core/memory.h"
#include "core/ops.h"
#include "dist/segments_impl.h"

#include <pthread.h>
#include <string.h>

/* ---- forward ---- */

/* The lanes of the k-th own segment, or (-1) of all. */
static wf_status copy_lanes(const wf_seg_work *w, wf_tensor *from, wf_tensor *to, int k) {
  if (k < 0) return wf_dist_copy(w->c, from, to, false);
  return wf_dist_copy(w->c, wf_seg_lanes(w->p, from, k), wf_seg_lanes(w->p, to, k), false);
}

typedef struct forward {
  wf_tensor *const *in, *const *out;
  wf_tensor **gone;
} forward;

static wf_status run_forward(wf_seg_work *w, int64_t b, int k, void *arg) {
  forward *f = arg;
  wf_seg_block *x = &w->b[b], one = *x;
  const wf_carry *y = w->carry;
  if (k >= 0) {
    WF_TRY(wf_seg_cut(w, x, k, &one));
    one.out[y->left] = wf_seg_state(w, x, w->p->n_own);
    if (wf_is_poison(one.out[y->left])) return wf_ctx_failure(w->c);
  }
  int n_in = w->n_in;
  one.in[y->state] = x->came;
  wf_tensor *kept = wf_seg_block_of(w, f->out[w->n_out], y->in[y->state], b);
  if (kept != x->came) WF_TRY(copy_lanes(w, x->came, kept, k));
  if (x->chain && wf_chain_leaves(x->chain, 0)) { /* what rows leave is given: WF_CARRY_MAX */
    wf_call call = wf_seg_call(w, x->in, 0, NULL);
    wf_desc d;
    if (y->kind(&call, &d) == WF_CARRY_MAX) {
      wf_tensor *end = one.in[n_in++] = wf_seg_state(w, x, w->p->n_own);
      if (wf_is_poison(end)) return wf_ctx_failure(w->c);
      for (int j = 0; j < w->p->n_own; j++)
        WF_TRY(wf_dist_copy(w->c, wf_chain_leaves(x->chain, j), wf_seg_lanes(w->p, end, j), false));
    }
  }
  f->gone[b] = x->out[y->left];
  WF_TRY(wf_op_run(w->c, w->base, n_in, one.in, w->a->attr, w->n_out, one.out, 0));
  return k < 0 ? WF_OK : copy_lanes(w, one.out[y->left], f->gone[b], k);
}

static wf_status forward_all(wf_seg_work *w, const wf_call *call) {
  const wf_carry *y = w->carry;
  wf_tensor *kept = call->out[w->n_out], *state = call->in[y->state], **gone;
  for (int64_t b = 0; b < w->K; b++) {
    WF_TRY(wf_seg_divide(w, b, call->in, call->out));
    w->b[b].came = w->K == 1 ? kept : wf_seg_state(w, &w->b[b], w->p->n_own);
    if (wf_is_poison(w->b[b].came)) return wf_ctx_failure(w->c);
  }
  WF_CALLOC(gone, "dist", w->K);
  forward f = {call->in, call->out, gone};
  int last = w->p->n_segments - 1;
  bool home = wf_part_owner(w->p, last) == w->p->rank;
  wf_tensor *start = home ? wf_seg_lanes(w->p, state, wf_part_slot(w->p, last)) : NULL;
  wf_status st = wf_seg_exchange(w, start, y->in[y->state], run_forward, &f, gone);
  wf_free(gone);
  return st;
}

static wf_status segments_kernel(const wf_call *call) {
  wf_seg_work w;
  wf_scope s = wf_scope_open(call->ctx);
  wf_status st = wf_seg_open(call->ctx, call->attr, call->n_in, call->in, call->n_out, call->out, false, &w);
  if (st == WF_OK) st = forward_all(&w, call);
  st = wf_seg_close(&w, st);
  wf_scope_close(call->ctx, s);
  return st;
}
WF_DIST_KERNEL(segments)

/* ---- backward ---- */

typedef struct backward {
  const wf_vjp *g;
  wf_tensor **gone; /* [K] gradients of the entering states */
} backward;

static wf_status run_backward(wf_seg_work *w, int64_t b, int k, void *arg) {
  backward *f = arg;
  wf_seg_block *x = &w->b[b], one = *x;
  const wf_carry *y = w->carry;
  uint32_t add = f->g->add & ~(1u << y->state);
  for (int i = 0; i < w->n_in; i++)
    if (x->din[i] && wf_seg_shares(w, f->g->din[i], y->in[i], b)) add |= 1u << i;
  wf_tensor *before = f->gone[b];
  if (k >= 0) {
    WF_TRY(wf_seg_cut(w, x, k, &one));
    before = wf_seg_state(w, x, w->p->n_own);
    if (wf_is_poison(before)) return wf_ctx_failure(w->c);
    if (k != w->p->n_own - 1) add |= 1u << y->init; /* the last one has gone first */
  }
  one.dout[y->left] = x->came;
  one.din[y->state] = before;
  wf_vjp g = wf_seg_vjp(w, &one, one.in, one.dout, one.din, add);
  WF_TRY(w->base->vjp(&g));
  return k < 0 ? WF_OK : copy_lanes(w, before, f->gone[b], k);
}

/* The gradient of the state that entered the piece, to where that lay. */
static wf_status return_start(wf_seg_work *w, const wf_vjp *g, wf_tensor **gone) {
  const wf_part *p = w->p;
  int s = w->carry->state, dim = w->carry->in[s], last = p->n_segments - 1;
  int home = wf_part_owner(p, last), first = wf_part_owner(p, 0);
  wf_tensor *to = g->din[s];
  bool add = g->add >> s & 1;
  if (to && !add) WF_TRY(wf_tensor_zero(to));
  if (!p->enters || (p->rank != home && p->rank != first)) return WF_OK;
  wf_tensor *mine = to ? wf_seg_lanes(p, to, wf_part_slot(p, last)) : NULL;
  for (int64_t b = 0; b < w->K; b++) {
    wf_tensor *x = p->rank == first ? wf_seg_lanes(p, gone[b], wf_part_slot(p, 0)) : NULL;
    if (first != home && p->rank == first) WF_TRY(wf_seg_post(w, x, home));
    if (p->rank != home) continue;
    if (first != home) {
      x = wf_seg_state(w, &w->b[b], 1);
      if (wf_is_poison(x)) return wf_ctx_failure(w->c);
      WF_TRY(wf_comm_recv(p->dist->comm, x, first, NULL));
    }
    wf_tensor *place = mine ? wf_seg_block_of(w, mine, dim, b) : NULL;
    if (place) WF_TRY(wf_dist_copy(w->c, x, place, true));
  }
  return WF_OK;
}

static wf_status backward_all(wf_seg_work *w, const wf_vjp *g) {
  const wf_carry *y = w->carry;
  const wf_part *p = w->p;
  wf_tensor *in[WF_MAX_IN], **gone;
  memcpy(in, g->in, (size_t)w->n_in * sizeof *in);
  in[y->state] = g->out[w->n_out];
  int last = p->n_segments - 1;
  bool home = wf_part_owner(p, last) == p->rank, pipe = w->a->transport == WF_TRANSPORT_PIPE;
  WF_CALLOC(gone, "dist", w->K);
  wf_status st = WF_OK;
  for (int64_t b = 0; b < w->K && st == WF_OK; b++) {
    wf_seg_block *x = &w->b[b];
    st = wf_seg_divide(w, b, in, g->out);
    if (st != WF_OK) break;
    for (int i = 0; i < w->n_out; i++) x->dout[i] = wf_seg_block_of(w, g->dout[i], y->out[i], b);
    for (int i = 0; i < w->n_in; i++)
      if (i != y->state) x->din[i] = wf_seg_block_of(w, g->din[i], y->in[i], b);
    x->came = wf_seg_state(w, x, p->n_own);
    bool first = p->enters && wf_part_owner(p, 0) == p->rank;
    if (pipe || first) gone[b] = wf_seg_state(w, x, p->n_own);
    if (wf_is_poison(x->came) || (gone[b] && wf_is_poison(gone[b]))) st = wf_ctx_failure(w->c);
  }
  backward f = {g, gone};
  wf_tensor *start =
      home && g->dout[y->left] ? wf_seg_lanes(p, g->dout[y->left], wf_part_slot(p, last)) : NULL;
  if (st == WF_OK) st = wf_seg_exchange(w, start, y->out[y->left], run_backward, &f, gone);
  if (st == WF_OK) st = return_start(w, g, gone);
  wf_free(gone);
  return st;
}

static wf_status segments_vjp(const wf_vjp *g) {
  wf_seg_work w;
  wf_scope s = wf_scope_open(g->ctx);
  wf_status st = wf_seg_open(g->ctx, g->attr, g->n_in, g->in, g->n_out, g->out, true, &w);
  if (st == WF_OK) st = backward_all(&w, g);
  st = wf_seg_close(&w, st);
  wf_scope_close(g->ctx, s);
  return st;
}

/* ---- the descriptions ---- */

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  const wf_seg_attr *a = call->attr;
  wf_call base = *call;
  base.op = a->base;
  base.attr = a->attr;
  WF_TRY(a->base->infer(&base, out, n_out));
  const wf_carry *y = a->base->carry;
  if (y->left + 1 != *n_out || *n_out + 2 > WF_MAX_OUT)
    return WF_FAIL(WF_EINVAL, "%s over ranks leaves no state", a->base->name);
  out[*n_out] = out[y->left]; /* for the backward: the states that enter; dense maps */
  ++*n_out;
  wf_desc A = {.ndim = 0};
  if (a->transport == WF_TRANSPORT_PIPE || y->kind(&base, &A) != WF_CARRY_DENSE) return WF_OK;
  A.shape[0] = a->part->n_own * a->part->n_lanes;
  out[(*n_out)++] = A;
  return WF_OK;
}

static const wf_op *const bases[] = {&wf_op_scan_scalar,        &wf_op_scan_channel,   &wf_op_scan_delta,
                                     &wf_op_scan_delta_channel, &wf_op_scan_diag,      &wf_op_scan_sum,
                                     &wf_op_scan_max,           &wf_op_selective_scan, &wf_op_recur};
enum { BASES = sizeof bases / sizeof *bases };
static wf_op wrapped[BASES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What the base says of its inputs and outputs, and one or two more outputs, which are saved. */
static void describe(void) {
  for (int i = 0; i < BASES; i++) {
    const wf_op *base = bases[i];
    uint32_t kept = 3u << (base->carry->left + 1); /* the states that enter, the maps */
    wrapped[i] = (wf_op){.name = base->name,
                         .min_in = base->min_in,
                         .max_in = base->max_in,
                         .n_out = -1,
                         .attr_size = sizeof(wf_seg_attr),
                         .optional = base->optional,
                         .strided = base->strided | base->rowmajor,
                         .save_in = base->save_in & ~(1u << base->carry->state),
                         .save_out = base->save_out | kept,
                         .vjp_adds = base->vjp_adds,
                         .nograd_in = base->nograd_in,
                         .nograd_out = base->nograd_out | kept,
                         .infer = infer,
                         .vjp = base->vjp ? segments_vjp : NULL,
                         .nondiff = base->nondiff,
                         WF_DIST_CPU(segments)};
  }
}

bool wf_segments_serve(const wf_part *p) {
  switch (p->dist->transport) {
  case WF_TRANSPORT_SERIAL: return false;
  case WF_TRANSPORT_PIPE: return wf_layout_most(p->dist->layout) == 1;
  default: return true;
  }
}
bool wf_segments_pipe(const wf_part *p) {
  wf_transport t = p->dist->transport;
  return (t == WF_TRANSPORT_AUTO || t == WF_TRANSPORT_PIPE) && wf_layout_most(p->dist->layout) == 1;
}

static wf_tensor *apply(const wf_carrier *self, wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in,
                        const void *attr, wf_tensor **out) {
  const wf_segments *s = (const wf_segments *)(const void *)self;
  wf_seg_attr a = {.part = s->part, .base = op};
  int i = 0;
  while (i < BASES && bases[i] != op) i++;
  wf_status st = WF_OK;
  if (i == BASES || op->attr_size > sizeof a.attr)
    st = WF_FAIL(WF_EUNSUPPORTED, "'%s' over the ranks of a sequence", op->name);
  for (int j = 0; j < n_in && st == WF_OK; j++)
    if (in[j] && wf_is_poison(in[j])) st = wf_ctx_failure(c);
  if (st == WF_OK) wf_seg_choose(s->part, &(wf_call){c, op, attr, n_in, 0, in, NULL, 0}, &a);
  if (st == WF_OK && a.seconds < 0)
    st = WF_FAIL(WF_EUNSUPPORTED, "'%s' by transport %d over %d segments of %d ranks", op->name,
                 (int)s->part->dist->transport, s->part->n_segments, s->part->dist->layout->n_ranks);
  if (st != WF_OK) {
    for (int j = 0; j < WF_MAX_OUT; j++) out[j] = wf_poison(c, st);
    return out[0];
  }
  pthread_once(&once, describe);
  memcpy(a.attr, attr, op->attr_size);
  return wf_op_apply(c, &wrapped[i], n_in, in, &a, out);
}

wf_segments wf_segments_of(wf_part *part) {
  return (wf_segments){{apply}, part};
}
