/* The op that wraps another one: its kernel and its gradient, block by block. */
#include "dist/segments.h"
#include "core/clock.h"
#include "core/memory.h"
#include "core/ops.h"
#include "dist/op_impl.h"

#include <pthread.h>
#include <string.h>

enum { BASE_ATTR = 160 };

typedef struct segments_attr {
  wf_part *part;
  const wf_op *base;
  int32_t transport, blocks;
  double seconds; /* by the cost model */
  char attr[BASE_ATTR] __attribute__((aligned(16)));
} segments_attr;
_Static_assert(sizeof(segments_attr) <= WF_MAX_ATTR, "an op's attr holds it");

/* ---- blocks of heads ---- */

static int dim_of(const wf_tensor *x, int dim) {
  return dim == WF_CARRY_HEADS ? x->ndim - 2 : dim;
}

/* What is divided: as many units as the fewest heads of an input. */
static int64_t units(const wf_op *base, int n_in, wf_tensor *const *in) {
  int64_t u = 0;
  for (int i = 0; i < n_in; i++)
    if (in[i] && base->carry->in[i] >= 0) {
      int64_t n = in[i]->shape[dim_of(in[i], base->carry->in[i])];
      if (!u || n < u) u = n;
    }
  return u > 0 ? u : 1;
}

/* Block b of K along `dim`; x itself where there is nothing to divide. */
static wf_tensor *block_of(wf_tensor *x, int dim, int64_t b, int64_t K, int64_t u) {
  if (!x || dim < 0 || K == 1 || wf_is_poison(x)) return x;
  dim = dim_of(x, dim);
  int64_t shape[WF_MAX_DIMS], each = x->shape[dim] / u, begin = u * b / K * each,
                              end = u * (b + 1) / K * each;
  memcpy(shape, x->shape, sizeof shape);
  shape[dim] = end - begin;
  if (x->storage) return wf_view_raw(x, x->ndim, shape, x->stride, begin * x->stride[dim]);
  wf_tensor *meta = wf_tensor_meta(x->ctx, x); /* of what nobody reads the shape is enough: an adjacent one */
  if (wf_is_poison(meta)) return meta;
  meta->shape[dim] = shape[dim];
  for (int64_t d = x->ndim - 1, s = 1; d >= 0; s *= shape[d--]) meta->stride[d] = s;
  return meta;
}

/* Lanes of the k-th own segment. */
static wf_tensor *lanes_of(const wf_part *p, wf_tensor *x, int k) {
  int64_t shape[WF_MAX_DIMS];
  if (!x || wf_is_poison(x)) return x;
  memcpy(shape, x->shape, sizeof shape);
  shape[0] = p->n_lanes;
  return wf_view_raw(x, x->ndim, shape, x->stride, k * p->n_lanes * x->stride[0]);
}

static wf_status copy(wf_ctx *c, wf_tensor *from, wf_tensor *to) {
  return wf_op_run(c, &wf_op_copy, 1, &from, NULL, 1, &to, 0);
}
static wf_tensor *packed(wf_ctx *c, wf_tensor *x) {
  if (wf_is_poison(x) || wf_is_contiguous(x)) return x;
  wf_tensor *y = wf_empty_like(c, "dist", x);
  wf_status st = wf_is_poison(y) ? WF_OK : copy(c, x, y);
  return st == WF_OK ? y : wf_poison(c, st);
}
static wf_status copy_or_zero(wf_ctx *c, wf_tensor *from, wf_tensor *to) {
  return from ? copy(c, from, to) : wf_tensor_zero(to);
}

/* ---- rows ---- */

/* The table of all own rows, those of segment k with flags[k] at most; `through`: flags only for rows that
 * take and leave. */
static wf_tensor *table_of(wf_ctx *c, const wf_part *p, const int *flags, bool through) {
  int64_t n = 0, at = 0, tokens = 0;
  for (int k = 0; k < p->n_own; k++) n += p->first[p->own[k] + 1] - p->first[p->own[k]];
  wf_row *row = wf_alloc("dist", (size_t)(n + 1) * sizeof *row);
  if (!row) return wf_poison(c, WF_ENOMEM);
  for (int k = 0; k < p->n_own; k++) {
    int s = p->own[k];
    for (int64_t i = p->first[s]; i < p->first[s + 1]; i++, at++) {
      row[at] = p->row[i];
      row[at].begin += tokens;
      row[at].lane += k * p->n_lanes;
      if (through && row[at].flags != (WF_ROW_TAKES | WF_ROW_LEAVES)) row[at].flags = 0;
      row[at].flags &= flags[k];
    }
    tokens += p->tokens[s];
  }
  wf_tensor *t = wf_from_host(c, "dist", WF_I64, WF_SHAPE(n, WF_ROW_COLS), row);
  wf_free(row);
  return t;
}

/* ---- one call ---- */

typedef struct block {
  wf_chain *chain;
  wf_tensor *in[WF_MAX_IN], *out[WF_MAX_OUT], *dout[WF_MAX_OUT], *din[WF_MAX_IN];
  wf_tensor *A, *B; /* maps of the own segments */
  wf_tensor *came;  /* [own lanes]: the states that enter or, backwards, gradients of those that leave */
  wf_pending *wait;
} block;

typedef struct work {
  wf_ctx *c;
  const segments_attr *a;
  const wf_op *base;
  const wf_carry *carry;
  const wf_part *p;
  int n_in, n_out; /* of the base */
  int64_t K, u;
  bool turned;
  block *b;
  wf_pending **sent;
  size_t n_sent, cap_sent;
} work;

static wf_status work_open(wf_ctx *c, const segments_attr *a, int n_in, int n_out, wf_tensor *const *in,
                           bool turned, work *w) {
  *w = (work){.c = c,
              .a = a,
              .base = a->base,
              .carry = a->base->carry,
              .p = a->part,
              .n_in = n_in,
              .n_out = n_out,
              .turned = turned};
  w->u = units(a->base, n_in, in);
  w->K = a->blocks < w->u ? a->blocks : w->u;
  WF_CALLOC(w->b, "dist", w->K);
  return WF_OK;
}

static void keep_first(wf_status *st, wf_status x) {
  if (*st == WF_OK) *st = x;
}

static wf_status work_close(work *w, wf_status st) {
  for (int64_t b = 0; w->b && b < w->K; b++) {
    keep_first(&st, wf_chain_close(w->b[b].chain));
    keep_first(&st, wf_comm_wait(&w->b[b].wait));
  }
  for (size_t i = 0; i < w->n_sent; i++) keep_first(&st, wf_comm_wait(&w->sent[i]));
  wf_free(w->b);
  wf_free(w->sent);
  return st;
}

/* The block's inputs and outputs. */
static wf_status divide(work *w, int64_t b, wf_tensor *const *in, wf_tensor *const *out) {
  block *x = &w->b[b];
  const wf_carry *y = w->carry;
  for (int i = 0; i < w->n_in; i++) x->in[i] = block_of(in[i], y->in[i], b, w->K, w->u);
  for (int i = 0; i < w->n_out; i++) x->out[i] = block_of(out[i], y->out[i], b, w->K, w->u);
  for (int i = 0; i < w->n_in; i++)
    if (x->in[i] && wf_is_poison(x->in[i])) return wf_ctx_failure(w->c);
  for (int i = 0; i < w->n_out; i++)
    if (x->out[i] && wf_is_poison(x->out[i])) return wf_ctx_failure(w->c);
  return WF_OK;
}

static wf_call call_of(const work *w, wf_tensor *const *in, int n_out, wf_tensor *const *out) {
  return (wf_call){w->c, w->base, w->a->attr, w->n_in, n_out, in, out, 0};
}

/* A tensor of the lanes of `lanes` segments of the block's state. */
static wf_tensor *state_of(const work *w, const block *x, int64_t segments) {
  wf_desc d;
  wf_desc_like(&d, x->out[w->carry->left]);
  d.shape[0] = segments * w->p->n_lanes;
  return wf_empty(w->c, "dist", d.dtype, d.ndim, d.shape);
}

static wf_status post(work *w, wf_tensor *x, int to) {
  wf_tensor *flat = packed(w->c, x);
  if (wf_is_poison(flat)) return wf_ctx_failure(w->c);
  WF_TRY(wf_grow("dist", (void **)&w->sent, sizeof *w->sent, w->n_sent, &w->cap_sent));
  w->sent[w->n_sent] = NULL;
  return wf_comm_send(w->p->dist->comm, flat, to, &w->sent[w->n_sent++]);
}

/* ---- by maps ---- */

static wf_status chain_open(work *w, block *x, wf_tensor *start) {
  wf_chain_spec s = {.c = w->c,
                     .part = w->p,
                     .turned = w->turned,
                     .transport = (wf_transport)w->a->transport,
                     .dtype = x->out[w->carry->left]->dtype};
  wf_call call = call_of(w, x->in, 0, NULL);
  s.kind = w->carry->kind(&call, &s.A);
  if (s.kind == WF_CARRY_MAX && s.transport != WF_TRANSPORT_RELAY)
    s.transport = WF_TRANSPORT_GATHER; /* sums of decays in another order would differ in their last bits */
  wf_desc_like(&s.B, x->out[w->carry->left]);
  s.B.shape[0] = w->p->n_lanes;
  if (s.A.ndim) s.A.shape[0] = w->p->n_lanes;
  wf_tensor *flat = start;
  if (start) flat = packed(w->c, start);
  if (flat && wf_is_poison(flat)) return wf_ctx_failure(w->c);
  return wf_chain_open(&s, flat, &x->chain);
}

static bool any_needs(const work *w, const block *x, bool factor) {
  for (int k = 0; k < w->p->n_own; k++)
    if (factor ? wf_chain_needs_factor(x->chain, k) : wf_chain_needs(x->chain, k)) return true;
  return false;
}

/* A of the own segments that need it. */
static wf_status factors(work *w, block *x) {
  if (!any_needs(w, x, true)) return WF_OK;
  int *flags;
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++) flags[k] = wf_chain_needs_factor(x->chain, k) ? 3 : 0;
  wf_tensor *in[WF_MAX_IN];
  memcpy(in, x->in, sizeof in);
  in[w->carry->table] = table_of(w->c, w->p, flags, true);
  wf_free(flags);
  wf_call call = call_of(w, x->in, 0, NULL);
  wf_desc d = {.ndim = 0};
  w->carry->kind(&call, &d);
  d.shape[0] = w->p->n_own * w->p->n_lanes;
  x->A = wf_empty(w->c, "dist", d.dtype, d.ndim, d.shape);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->A)) return wf_ctx_failure(w->c);
  call = call_of(w, in, 1, &x->A);
  return wf_op_run_beside(&call, w->carry->factor);
}

/* The maps of a block, forwards. */
static wf_status sum_up(work *w, block *x) {
  WF_TRY(factors(w, x));
  if (!any_needs(w, x, false)) return WF_OK;
  int *flags;
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++)
    flags[k] = WF_ROW_TAKES | (wf_chain_needs(x->chain, k) ? WF_ROW_LEAVES : 0);
  wf_tensor *in[WF_MAX_IN];
  memcpy(in, x->in, sizeof in);
  in[w->carry->table] = table_of(w->c, w->p, flags, false);
  wf_free(flags);
  in[w->carry->state] = NULL;
  x->B = state_of(w, x, w->p->n_own);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->B)) return wf_ctx_failure(w->c);
  wf_call call = call_of(w, in, 1, &x->B);
  return wf_op_run_beside(&call, w->carry->advance);
}

static wf_vjp vjp_of(const work *w, const block *x, wf_tensor *const *in, wf_tensor *const *dout,
                     wf_tensor *const *din, uint32_t add) {
  return (wf_vjp){w->c, w->base, w->a->attr, w->n_in, w->n_out, in, x->out, dout, din, add};
}

/* Backwards: B is the gradient of the entering state with none from after. */
static wf_status sum_up_turned(work *w, block *x) {
  WF_TRY(factors(w, x));
  if (!any_needs(w, x, false)) return WF_OK;
  int *flags;
  WF_CALLOC(flags, "dist", w->p->n_own + 1);
  for (int k = 0; k < w->p->n_own; k++)
    flags[k] = WF_ROW_LEAVES | (wf_chain_needs(x->chain, k) ? WF_ROW_TAKES : 0);
  wf_tensor *in[WF_MAX_IN], *dout[WF_MAX_OUT], *din[WF_MAX_IN] = {NULL};
  memcpy(in, x->in, sizeof in);
  memcpy(dout, x->dout, sizeof dout);
  in[w->carry->table] = table_of(w->c, w->p, flags, false);
  wf_free(flags);
  dout[w->carry->left] = NULL;
  x->B = din[w->carry->state] = state_of(w, x, w->p->n_own);
  if (wf_is_poison(in[w->carry->table]) || wf_is_poison(x->B)) return wf_ctx_failure(w->c);
  wf_vjp g = vjp_of(w, x, in, dout, din, 0);
  return w->base->vjp(&g);
}

typedef wf_status (*block_run)(work *w, int64_t b, void *arg);

/* `start`: the block's, at the owner of the last segment; then `run` has it. */
static wf_status by_chain(work *w, wf_tensor *start, int start_dim, block_run run, void *arg) {
  wf_comm *comm = w->p->dist->comm;
  for (int64_t b = 0; b < w->K; b++)
    WF_TRY(chain_open(w, &w->b[b], block_of(start, start_dim, b, w->K, w->u)));
  for (int64_t b = 0; b < w->K; b++) {
    WF_TRY(w->turned ? sum_up_turned(w, &w->b[b]) : sum_up(w, &w->b[b]));
    WF_TRY(wf_chain_start(w->b[b].chain, w->b[b].A, w->b[b].B));
    wf_comm_poke(comm);
  }
  int turns = wf_chain_turns(w->b[0].chain);
  for (int t = 0; t + 1 < turns; t++)
    for (int64_t b = 0; b < w->K; b++) WF_TRY(wf_chain_turn(w->b[b].chain, t));
  for (int64_t b = 0; b < w->K; b++) {
    block *x = &w->b[b];
    if (turns) WF_TRY(wf_chain_turn(x->chain, turns - 1));
    for (int k = 0; k < w->p->n_own; k++)
      WF_TRY(copy_or_zero(w->c, wf_chain_state(x->chain, k), lanes_of(w->p, x->came, k)));
    WF_TRY(run(w, b, arg));
    wf_comm_poke(comm);
  }
  return WF_OK;
}

/* ---- by the pipe ---- */

/* This rank's only segment, counted along the scan; -1: none. */
static int pipe_place(const work *w) {
  if (w->p->n_own == 0) return -1;
  return w->turned ? w->p->n_segments - 1 - w->p->own[0] : w->p->own[0];
}
static int pipe_owner(const work *w, int i) {
  return wf_part_owner(w->p, w->turned ? w->p->n_segments - 1 - i : i);
}

/* Block by block: what enters, `run`, what leaves (`gone`, which run has made). The state that enters the
 * first segment comes from the owner of the last one; the gradient of it goes back by the caller. */
static wf_status by_pipe(work *w, wf_tensor *start, int start_dim, block_run run, void *arg,
                         wf_tensor **gone) {
  const wf_part *p = w->p;
  int i = pipe_place(w), n = p->n_segments, home = wf_part_owner(p, n - 1), first = pipe_owner(w, 0);
  bool enters = !w->turned && p->enters, from_home = enters && home != first;
  wf_comm *comm = p->dist->comm;
  for (int64_t b = 0; b < w->K; b++) {
    block *x = &w->b[b];
    wf_tensor *s = block_of(start, start_dim, b, w->K, w->u);
    if (from_home && p->rank == home) WF_TRY(post(w, s, first));
    int from = i > 0 ? pipe_owner(w, i - 1) : i == 0 && from_home ? home : -1;
    if (from >= 0) WF_TRY(wf_comm_recv(comm, x->came, from, &x->wait));
    if (i == 0 && from < 0) WF_TRY(copy_or_zero(w->c, w->turned || enters ? s : NULL, x->came));
  }
  for (int64_t b = 0; b < w->K; b++) {
    WF_TRY(wf_comm_wait(&w->b[b].wait));
    WF_TRY(run(w, b, arg));
    if (i >= 0 && i + 1 < n) WF_TRY(post(w, gone[b], pipe_owner(w, i + 1)));
    wf_comm_poke(comm);
  }
  return WF_OK;
}

static wf_status exchange(work *w, wf_tensor *start, int start_dim, block_run run, void *arg,
                          wf_tensor **gone) {
  wf_cost *cost = w->p->dist->cost;
  double before = wf_comm_count(w->p->dist->comm).waited;
  wf_status st = w->a->transport == WF_TRANSPORT_PIPE ? by_pipe(w, start, start_dim, run, arg, gone)
                                                      : by_chain(w, start, start_dim, run, arg);
  if (cost) cost->predicted += w->a->seconds, cost->scans++;
  if (cost) cost->waited += wf_comm_count(w->p->dist->comm).waited - before;
  return st;
}

/* ---- forward ---- */

typedef struct forward {
  wf_tensor *const *in, *const *out;
  wf_tensor **gone;
} forward;

static wf_status run_forward(work *w, int64_t b, void *arg) {
  forward *f = arg;
  block *x = &w->b[b];
  const wf_carry *y = w->carry;
  wf_tensor *in[WF_MAX_IN];
  int n_in = w->n_in;
  memcpy(in, x->in, sizeof in);
  in[y->state] = x->came;
  wf_tensor *kept = block_of(f->out[w->n_out], y->in[y->state], b, w->K, w->u);
  if (kept != x->came) WF_TRY(copy(w->c, x->came, kept));
  if (x->chain && wf_chain_leaves(x->chain, 0)) { /* what rows leave is given: WF_CARRY_MAX */
    wf_call call = call_of(w, x->in, 0, NULL);
    wf_desc d;
    if (y->kind(&call, &d) == WF_CARRY_MAX) {
      wf_tensor *end = in[n_in++] = state_of(w, x, w->p->n_own);
      if (wf_is_poison(end)) return wf_ctx_failure(w->c);
      for (int k = 0; k < w->p->n_own; k++)
        WF_TRY(copy(w->c, wf_chain_leaves(x->chain, k), lanes_of(w->p, end, k)));
    }
  }
  f->gone[b] = x->out[y->left];
  return wf_op_run(w->c, w->base, n_in, in, w->a->attr, w->n_out, x->out, 0);
}

static wf_status forward_all(work *w, const wf_call *call) {
  const wf_carry *y = w->carry;
  wf_tensor *kept = call->out[w->n_out], *state = call->in[y->state], **gone;
  for (int64_t b = 0; b < w->K; b++) {
    WF_TRY(divide(w, b, call->in, call->out));
    w->b[b].came = w->K == 1 ? kept : state_of(w, &w->b[b], w->p->n_own);
    if (wf_is_poison(w->b[b].came)) return wf_ctx_failure(w->c);
  }
  WF_CALLOC(gone, "dist", w->K);
  forward f = {call->in, call->out, gone};
  int last = w->p->n_segments - 1;
  bool home = wf_part_owner(w->p, last) == w->p->rank;
  wf_tensor *start = home ? lanes_of(w->p, state, wf_part_slot(w->p, last)) : NULL;
  wf_status st = exchange(w, start, y->in[y->state], run_forward, &f, gone);
  wf_free(gone);
  return st;
}

static wf_status segments_kernel(const wf_call *call) {
  work w;
  wf_scope s = wf_scope_open(call->ctx);
  wf_status st = work_open(call->ctx, call->attr, call->n_in, call->n_out - 1, call->in, false, &w);
  if (st == WF_OK) st = forward_all(&w, call);
  st = work_close(&w, st);
  wf_scope_close(call->ctx, s);
  return st;
}
WF_DIST_KERNEL(segments)

/* ---- backward ---- */

typedef struct backward {
  const wf_vjp *g;
  wf_tensor **gone; /* [K] gradients of the entering states */
} backward;

static wf_status run_backward(work *w, int64_t b, void *arg) {
  backward *f = arg;
  block *x = &w->b[b];
  uint32_t add = f->g->add & ~(1u << w->carry->state);
  for (int i = 0; i < w->n_in && b; i++) /* what all blocks share */
    if (x->din[i] && w->carry->in[i] < 0) add |= 1u << i;
  x->dout[w->carry->left] = x->came;
  x->din[w->carry->state] = f->gone[b];
  wf_vjp g = vjp_of(w, x, x->in, x->dout, x->din, add);
  return w->base->vjp(&g);
}

/* The gradient of the state that entered the piece, to where that lay. */
static wf_status return_start(work *w, const wf_vjp *g, wf_tensor **gone) {
  const wf_part *p = w->p;
  int s = w->carry->state, dim = w->carry->in[s], last = p->n_segments - 1;
  int home = wf_part_owner(p, last), first = wf_part_owner(p, 0);
  wf_tensor *to = g->din[s];
  bool add = g->add >> s & 1;
  if (to && !add) WF_TRY(wf_tensor_zero(to));
  if (!p->enters || (p->rank != home && p->rank != first)) return WF_OK;
  wf_tensor *mine = to ? lanes_of(p, to, wf_part_slot(p, last)) : NULL;
  for (int64_t b = 0; b < w->K; b++) {
    wf_tensor *x = p->rank == first ? lanes_of(p, gone[b], wf_part_slot(p, 0)) : NULL;
    if (first != home && p->rank == first) WF_TRY(post(w, x, home));
    if (p->rank != home) continue;
    if (first != home) {
      x = state_of(w, &w->b[b], 1);
      if (wf_is_poison(x)) return wf_ctx_failure(w->c);
      WF_TRY(wf_comm_recv(p->dist->comm, x, first, NULL));
    }
    wf_tensor *place = mine ? block_of(mine, dim, b, w->K, w->u) : NULL;
    if (place) WF_TRY(wf_op_run(w->c, &wf_op_copy, 1, &x, NULL, 1, &place, 1));
  }
  return WF_OK;
}

static wf_status backward_all(work *w, const wf_vjp *g) {
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
    block *x = &w->b[b];
    st = divide(w, b, in, g->out);
    if (st != WF_OK) break;
    for (int i = 0; i < w->n_out; i++) x->dout[i] = block_of(g->dout[i], y->out[i], b, w->K, w->u);
    for (int i = 0; i < w->n_in; i++)
      if (i != y->state) x->din[i] = block_of(g->din[i], y->in[i], b, w->K, w->u);
    x->came = state_of(w, x, p->n_own);
    bool first = p->enters && wf_part_owner(p, 0) == p->rank;
    if (pipe || first) gone[b] = state_of(w, x, p->n_own);
    if (wf_is_poison(x->came) || (gone[b] && wf_is_poison(gone[b]))) st = wf_ctx_failure(w->c);
  }
  backward f = {g, gone};
  wf_tensor *start = home && g->dout[y->left] ? lanes_of(p, g->dout[y->left], wf_part_slot(p, last)) : NULL;
  if (st == WF_OK) st = exchange(w, start, y->out[y->left], run_backward, &f, gone);
  if (st == WF_OK) st = return_start(w, g, gone);
  wf_free(gone);
  return st;
}

static wf_status segments_vjp(const wf_vjp *g) {
  work w;
  wf_scope s = wf_scope_open(g->ctx);
  wf_status st = work_open(g->ctx, g->attr, g->n_in, g->n_out - 1, g->in, true, &w);
  if (st == WF_OK) st = backward_all(&w, g);
  st = work_close(&w, st);
  wf_scope_close(g->ctx, s);
  return st;
}

/* ---- the descriptions ---- */

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  const segments_attr *a = call->attr;
  wf_call base = *call;
  base.op = a->base;
  base.attr = a->attr;
  WF_TRY(a->base->infer(&base, out, n_out));
  if (a->base->carry->left + 1 != *n_out || *n_out == WF_MAX_OUT)
    return WF_FAIL(WF_EINVAL, "%s over ranks leaves no state", a->base->name);
  out[*n_out] = out[a->base->carry->left]; /* the states that enter, for the backward */
  ++*n_out;
  return WF_OK;
}

static const wf_op *const bases[] = {&wf_op_scan_scalar,        &wf_op_scan_channel,   &wf_op_scan_delta,
                                     &wf_op_scan_delta_channel, &wf_op_scan_diag,      &wf_op_scan_sum,
                                     &wf_op_scan_max,           &wf_op_selective_scan, &wf_op_recur};
enum { BASES = sizeof bases / sizeof *bases };
static wf_op wrapped[BASES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* What the base says of its inputs and outputs, and one more output, which is saved. */
static void describe(void) {
  for (int i = 0; i < BASES; i++) {
    const wf_op *base = bases[i];
    uint32_t kept = 1u << (base->carry->left + 1); /* the states that enter */
    wrapped[i] = (wf_op){.name = base->name,
                         .min_in = base->min_in,
                         .max_in = base->max_in,
                         .n_out = -1,
                         .attr_size = sizeof(segments_attr),
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

/* ---- choosing: by what all ranks know alike ---- */

typedef struct plan {
  const wf_cost *cost;
  int64_t P, most;  /* segments; blocks */
  double a, b, run; /* bytes of A and B; seconds of a segment's forward */
  double share;
} plan;

static double lane_bytes(int ndim, const int64_t *shape, wf_dtype dtype) {
  double n = (double)wf_dtype_size(dtype);
  for (int d = 1; d < ndim; d++) n *= (double)shape[d];
  return n;
}

static plan plan_of(const wf_part *p, const wf_cost *cost, const wf_call *call) {
  const wf_carry *y = call->op->carry;
  const wf_tensor *s = call->in[y->state];
  double lanes = (double)p->n_lanes, each = lane_bytes(s->ndim, s->shape, s->dtype);
  int64_t widest = 0, u = units(call->op, call->n_in, call->in);
  wf_desc A = {.ndim = 0};
  if (y->kind) y->kind(call, &A);
  for (int i = 0; i < p->n_segments; i++)
    if (p->tokens[i] > widest) widest = p->tokens[i];
  return (plan){.cost = cost,
                .P = p->n_segments,
                .most = u / (cost->threads > 1 ? cost->threads : 1) + (u < cost->threads),
                .a = A.ndim ? lanes * lane_bytes(A.ndim, A.shape, A.dtype) : 0,
                .b = lanes * each,
                .run = (double)widest * each / (double)wf_dtype_size(s->dtype) * y->work / cost->flops,
                .share = y->share};
}

static int64_t blocks_of(const plan *x, wf_transport t) {
  double n = t == WF_TRANSPORT_PIPE || t == WF_TRANSPORT_RELAY ? x->b : x->a + x->b;
  if (t == WF_TRANSPORT_PIPE) return wf_cost_blocks(x->cost, x->P, n, x->most, x->run);
  if (t == WF_TRANSPORT_RELAY) return wf_cost_blocks(x->cost, x->P, n, x->most, 0);
  bool large = n / x->cost->bandwidth > 10 * x->cost->latency; /* one is under way while others are formed */
  return !large ? 1 : x->most < 4 ? x->most : 4;
}

static double seconds(const plan *x, wf_transport t, int64_t K) {
  double maps = x->share * x->run, hops = (double)(x->P - 1), state = x->b / x->cost->combine;
  switch (t) {
  case WF_TRANSPORT_PIPE: return wf_cost_pipe(x->cost, x->P, x->b, K, x->run);
  case WF_TRANSPORT_RELAY: return maps + wf_cost_relay(x->cost, x->P, x->b, K) + hops * state / (double)K;
  case WF_TRANSPORT_GATHER: return maps + wf_cost_gather(x->cost, x->P, x->a + x->b) + hops * state;
  default: return maps + wf_cost_log(x->cost, x->P, x->a + x->b);
  }
}

static void choose(const wf_part *p, const wf_call *call, segments_attr *a) {
  const wf_dist *d = p->dist;
  wf_cost usual = wf_cost_default();
  plan x = plan_of(p, d->cost ? d->cost : &usual, call);
  bool pipe = wf_layout_most(d->layout) == 1, maps = call->op->carry->kind != NULL;
  a->seconds = -1;
  for (int t = WF_TRANSPORT_PIPE; t <= WF_TRANSPORT_LOG; t++) {
    if (t == WF_TRANSPORT_PIPE ? !pipe : !maps) continue;
    if (maps && d->transport != WF_TRANSPORT_AUTO && (int)d->transport != t) continue;
    int64_t K = d->blocks ? d->blocks : blocks_of(&x, (wf_transport)t);
    double s = seconds(&x, (wf_transport)t, K);
    if (a->seconds >= 0 && s >= a->seconds) continue;
    a->seconds = s;
    a->transport = t;
    a->blocks = (int32_t)K;
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
  segments_attr a = {.part = s->part, .base = op};
  int i = 0;
  while (i < BASES && bases[i] != op) i++;
  wf_status st = WF_OK;
  if (i == BASES || op->attr_size > sizeof a.attr)
    st = WF_FAIL(WF_EUNSUPPORTED, "'%s' over the ranks of a sequence", op->name);
  for (int j = 0; j < n_in && st == WF_OK; j++)
    if (in[j] && wf_is_poison(in[j])) st = wf_ctx_failure(c);
  if (st == WF_OK) choose(s->part, &(wf_call){c, op, attr, n_in, 0, in, NULL, 0}, &a);
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
