/* How states come to segments: by maps and a chain, or by the pipe. */
#include "core/memory.h"
#include "dist/segments_impl.h"

#include <string.h>

/* ---- by maps ---- */

static wf_status copy_or_zero(wf_ctx *c, wf_tensor *from, wf_tensor *to) {
  return from ? wf_dist_copy(c, from, to, false) : wf_tensor_zero(to);
}

static wf_status chain_open(wf_seg_work *w, wf_seg_block *x, wf_tensor *start) {
  wf_chain_spec s = {.c = w->c,
                     .part = w->p,
                     .turned = w->turned,
                     .transport = (wf_transport)w->a->transport,
                     .dtype = x->out[w->carry->left]->dtype,
                     .before = x > w->b ? x[-1].chain : NULL};
  wf_call call = wf_seg_call(w, x->in, 0, NULL);
  s.kind = w->carry->kind(&call, &s.A);
  if (s.kind == WF_CARRY_MAX && s.transport != WF_TRANSPORT_RELAY)
    s.transport = WF_TRANSPORT_GATHER; /* sums of decays in another order would differ in their last bits */
  wf_desc_like(&s.B, x->out[w->carry->left]);
  s.B.shape[0] = w->p->n_lanes;
  if (s.A.ndim) s.A.shape[0] = w->p->n_lanes;
  wf_tensor *flat = start;
  if (start) flat = wf_dist_packed(w->c, start);
  if (flat && wf_is_poison(flat)) return wf_ctx_failure(w->c);
  return wf_chain_open(&s, flat, &x->chain);
}

static bool any_needs(const wf_seg_work *w, const wf_seg_block *x, bool factor) {
  for (int k = 0; k < w->p->n_own; k++)
    if (factor ? wf_chain_needs_factor(x->chain, k) : wf_chain_needs(x->chain, k)) return true;
  return false;
}

/* Forwards and backwards the chain asks for the A of a segment between the first and the last one. */
static bool keeps(const wf_seg_work *w, int k) {
  return w->A && w->p->own[k] > 0 && w->p->own[k] < w->p->n_segments - 1;
}

/* x->A, formed for the segments with flags[k]. */
static wf_status form(wf_seg_work *w, wf_seg_block *x, const int *flags) {
  wf_tensor *in[WF_MAX_IN];
  memcpy(in, x->in, sizeof in);
  in[w->carry->table] = wf_seg_table(w->c, w->p, flags, true, -1);
  wf_call call = wf_seg_call(w, x->in, 0, NULL);
  wf_desc d = {.ndim = 0};
  w->carry->kind(&call, &d);
  d.shape[0] = w->p->n_own * w->p->n_lanes;
  x->A = wf_empty(w->c, "dist", d.dtype, d.ndim, d.shape);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->A)) return wf_ctx_failure(w->c);
  call = wf_seg_call(w, in, 1, &x->A);
  return wf_op_run_beside(&call, w->carry->factor);
}

/* A of the own segments that need it. */
static wf_status factors(wf_seg_work *w, wf_seg_block *x) {
  if (!any_needs(w, x, true)) return WF_OK;
  int *flags, any = 0;
  wf_tensor *kept = wf_seg_block_of(w, w->A, 1, x - w->b);
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++)
    any |= flags[k] = wf_chain_needs_factor(x->chain, k) && !(w->turned && keeps(w, k)) ? 3 : 0;
  wf_status st = WF_OK;
  if (any)
    st = form(w, x, flags);
  else if (wf_is_poison(x->A = wf_dist_packed(w->c, kept)))
    st = wf_ctx_failure(w->c);
  wf_free(flags);
  for (int k = 0; k < w->p->n_own && any && st == WF_OK; k++) {
    if (!keeps(w, k)) continue;
    wf_tensor *here = wf_seg_lanes(w->p, x->A, k), *there = wf_seg_lanes(w->p, kept, k);
    st = w->turned ? wf_dist_copy(w->c, there, here, false) : wf_dist_copy(w->c, here, there, false);
  }
  return st;
}

/* The maps of a block, forwards. */
static wf_status sum_up(wf_seg_work *w, wf_seg_block *x) {
  WF_TRY(factors(w, x));
  if (!any_needs(w, x, false)) return WF_OK;
  int *flags;
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++)
    flags[k] = WF_ROW_TAKES | (wf_chain_needs(x->chain, k) ? WF_ROW_LEAVES : 0);
  wf_tensor *in[WF_MAX_IN];
  memcpy(in, x->in, sizeof in);
  in[w->carry->table] = wf_seg_table(w->c, w->p, flags, false, -1);
  wf_free(flags);
  in[w->carry->state] = NULL;
  x->B = wf_seg_state(w, x, w->p->n_own);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->B)) return wf_ctx_failure(w->c);
  wf_call call = wf_seg_call(w, in, 1, &x->B);
  return wf_op_run_beside(&call, w->carry->advance);
}

/* Backwards: B is the gradient of the entering state with none from after. */
static wf_status sum_up_turned(wf_seg_work *w, wf_seg_block *x) {
  WF_TRY(factors(w, x));
  if (!any_needs(w, x, false)) return WF_OK;
  int *flags;
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++)
    flags[k] = WF_ROW_LEAVES | (wf_chain_needs(x->chain, k) ? WF_ROW_TAKES : 0);
  wf_tensor *in[WF_MAX_IN], *dout[WF_MAX_OUT], *din[WF_MAX_IN] = {NULL};
  memcpy(in, x->in, sizeof in);
  memcpy(dout, x->dout, sizeof dout);
  in[w->carry->table] = wf_seg_table(w->c, w->p, flags, false, -1);
  wf_free(flags);
  dout[w->carry->left] = NULL;
  x->B = din[w->carry->state] = wf_seg_state(w, x, w->p->n_own);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->B)) return wf_ctx_failure(w->c);
  wf_vjp g = wf_seg_vjp(w, x, in, dout, din, 0);
  return w->base->vjp(&g);
}

/* `start`: the block's, at the owner of the last segment; then `run` has it. */
static wf_status by_chain(wf_seg_work *w, wf_tensor *start, int start_dim, wf_seg_run run, void *arg) {
  wf_comm *comm = w->p->dist->comm;
  for (int64_t b = 0; b < w->K; b++) WF_TRY(chain_open(w, &w->b[b], wf_seg_block_of(w, start, start_dim, b)));
  for (int64_t b = 0; b < w->K; b++) {
    WF_TRY(w->turned ? sum_up_turned(w, &w->b[b]) : sum_up(w, &w->b[b]));
    WF_TRY(wf_chain_start(w->b[b].chain, w->b[b].A, w->b[b].B));
    wf_comm_poke(comm);
  }
  int turns = wf_chain_turns(w->b[0].chain);
  for (int t = 0; t + 1 < turns; t++)
    for (int64_t b = 0; b < w->K; b++) WF_TRY(wf_chain_turn(w->b[b].chain, t));
  for (int64_t b = 0; b < w->K; b++) {
    wf_seg_block *x = &w->b[b];
    if (turns) WF_TRY(wf_chain_turn(x->chain, turns - 1));
    for (int k = 0; k < w->p->n_own; k++)
      WF_TRY(copy_or_zero(w->c, wf_chain_state(x->chain, k), wf_seg_lanes(w->p, x->came, k)));
    WF_TRY(run(w, b, -1, arg));
    wf_comm_poke(comm);
  }
  return WF_OK;
}

/* ---- by the pipe ---- */

/* Segments are counted along the scan. The i-th: whose it is, and its place among its owner's. */
static int pipe_segment(const wf_seg_work *w, int i) {
  return w->turned ? w->p->n_segments - 1 - i : i;
}
static int pipe_owner(const wf_seg_work *w, int i) {
  return wf_part_owner(w->p, pipe_segment(w, i));
}
static int pipe_slot(const wf_seg_work *w, int i) {
  return wf_part_slot(w->p, pipe_segment(w, i));
}

/* What enters the i-th segment, which is own: posted, or there at once. */
static wf_status pipe_expect(wf_seg_work *w, int i, int64_t b, wf_tensor *start, int home) {
  bool enters = !w->turned && w->p->enters;
  int k = pipe_slot(w, i), from = i > 0 ? pipe_owner(w, i - 1) : enters ? home : w->p->rank;
  wf_tensor *here = wf_seg_lanes(w->p, w->b[b].came, k);
  if (from != w->p->rank) return wf_comm_recv(w->p->dist->comm, here, from, &w->wait[k * w->K + b]);
  return i > 0 ? WF_OK : copy_or_zero(w->c, w->turned || enters ? start : NULL, here);
}

static wf_status pipe_leave(wf_seg_work *w, int i, int64_t b, wf_tensor *gone) {
  if (i + 1 == w->p->n_segments) return WF_OK;
  int k = pipe_slot(w, i), to = pipe_owner(w, i + 1);
  wf_tensor *left = wf_seg_lanes(w->p, gone, k);
  if (to != w->p->rank) return wf_seg_post(w, left, to);
  return wf_dist_copy(w->c, left, wf_seg_lanes(w->p, w->b[b].came, pipe_slot(w, i + 1)), false);
}

/* Segment by segment and block by block, the same order everywhere: what enters, `run`, what leaves (`gone`,
 * which run has made). The state that enters the first segment comes from the owner of the last one; the
 * gradient of it goes back by the caller. */
static wf_status by_pipe(wf_seg_work *w, wf_tensor *start, int start_dim, wf_seg_run run, void *arg,
                         wf_tensor **gone) {
  const wf_part *p = w->p;
  int n = p->n_segments, home = wf_part_owner(p, n - 1), first = pipe_owner(w, 0);
  for (int64_t b = 0; b < w->K && p->rank == home && first != home && !w->turned && p->enters; b++)
    WF_TRY(wf_seg_post(w, wf_seg_block_of(w, start, start_dim, b), first));
  for (int i = 0; i < n; i++)
    for (int64_t b = 0; b < w->K && pipe_owner(w, i) == p->rank; b++)
      WF_TRY(pipe_expect(w, i, b, wf_seg_block_of(w, start, start_dim, b), home));
  for (int i = 0; i < n; i++)
    for (int64_t b = 0; b < w->K && pipe_owner(w, i) == p->rank; b++) {
      int k = pipe_slot(w, i);
      WF_TRY(wf_comm_wait(&w->wait[k * w->K + b]));
      WF_TRY(run(w, b, p->n_own > 1 ? k : -1, arg));
      WF_TRY(pipe_leave(w, i, b, gone[b]));
      wf_comm_poke(p->dist->comm);
    }
  for (int64_t b = 0; b < w->K && p->n_own == 0; b++) WF_TRY(run(w, b, -1, arg));
  return WF_OK;
}

wf_status wf_seg_exchange(wf_seg_work *w, wf_tensor *start, int start_dim, wf_seg_run run, void *arg,
                          wf_tensor **gone) {
  wf_cost *cost = w->p->dist->cost;
  double before = wf_comm_count(w->p->dist->comm).waited;
  wf_status st = w->a->transport == WF_TRANSPORT_PIPE ? by_pipe(w, start, start_dim, run, arg, gone)
                                                      : by_chain(w, start, start_dim, run, arg);
  if (cost) cost->predicted += w->a->seconds, cost->scans++;
  if (cost) cost->waited += wf_comm_count(w->p->dist->comm).waited - before;
  return st;
}
