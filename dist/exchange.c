/* exchange: packing, messages, unpacking; the same in both directions. */
#include "dist/exchange.h"
#include "core/memory.h"
#include "dist/op_impl.h"

#include <string.h>

typedef struct exchange_attr {
  wf_comm *comm;
  const wf_exchange *plan;
  int64_t total[WF_EXCHANGE_MOST];
  int team; /* that divides the heads; 0: nobody does */
} exchange_attr;

void wf_head_share(int64_t heads, int r, int team, int64_t *begin, int64_t *end) {
  r %= team;
  *begin = heads * r / team;
  *end = (heads * (r + 1) + team - 1) / team;
}

int64_t wf_exchange_bytes(const wf_exchange *e, bool back, int64_t width) {
  int64_t n = 0;
  for (int i = 0; i < (back ? e->n_recv : e->n_send); i++) n += back ? e->recv[i].n : e->send[i].n;
  return n * width;
}

/* ---- messages ---- */

/* All runs of one peer and one tensor. */
typedef struct parcel {
  int peer, first, end; /* its runs */
  wf_tensor *t;         /* what they are rows of, cut to the peer's heads */
  wf_tensor *packed;    /* what is sent or received */
  bool direct;          /* a view of t itself */
  wf_pending *pending;
} parcel;

typedef struct traffic {
  wf_ctx *c;
  wf_comm *comm;
  int n;
  parcel *p;
} traffic;

static wf_tensor *rows_of(wf_tensor *t, int64_t row, int64_t n) {
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, t->shape, sizeof shape);
  shape[0] = n;
  return wf_view_raw(t, t->ndim, shape, t->stride, row * t->stride[0]);
}

/* The heads of rank r. */
static wf_tensor *heads_of(wf_tensor *t, int team, int r) {
  int64_t shape[WF_MAX_DIMS], begin, end;
  if (!team || wf_is_poison(t)) return t;
  memcpy(shape, t->shape, sizeof shape);
  wf_head_share(t->shape[1], r, team, &begin, &end);
  shape[1] = end - begin;
  return wf_view_raw(t, t->ndim, shape, t->stride, begin * t->stride[1]);
}

/* Between the packed rows and where they lie. */
static wf_status unpack(traffic *t, const parcel *p, const wf_run_of_rows *run, bool in, bool add) {
  if (p->direct) return WF_OK;
  int64_t at = 0;
  for (int i = p->first; i < p->end; i++) {
    wf_tensor *there = rows_of(p->t, run[i].row, run[i].n), *here = rows_of(p->packed, at, run[i].n);
    WF_TRY(in ? wf_dist_copy(t->c, here, there, add) : wf_dist_copy(t->c, there, here, false));
    at += run[i].n;
  }
  return WF_OK;
}

static wf_status make_parcel(traffic *t, parcel *p, const wf_run_of_rows *run, bool may_be_direct) {
  int64_t n = 0;
  for (int i = p->first; i < p->end; i++) n += run[i].n;
  if (p->end - p->first == 1 && may_be_direct) {
    p->packed = rows_of(p->t, run[p->first].row, n);
    if (wf_is_poison(p->packed)) return wf_ctx_failure(t->c);
    p->direct = wf_is_contiguous(p->packed);
    if (p->direct) return WF_OK;
  }
  int64_t shape[WF_MAX_DIMS];
  memcpy(shape, p->t->shape, sizeof shape);
  shape[0] = n;
  p->packed = wf_empty(t->c, "dist", p->t->dtype, p->t->ndim, shape);
  return wf_is_poison(p->packed) ? wf_ctx_failure(t->c) : WF_OK;
}

/* Starts the messages of tensor x: `in` receives. They are of the peers' heads in a team. */
static wf_status start(traffic *t, int n, const wf_run_of_rows *run, wf_tensor *x, int team, bool in,
                       bool add) {
  for (int i = 0, end; i < n; i = end) {
    for (end = i; end < n && run[end].peer == run[i].peer;) end++;
    parcel *p = &t->p[t->n++];
    *p = (parcel){.peer = run[i].peer, .first = i, .end = end, .t = heads_of(x, team, run[i].peer)};
    if (wf_is_poison(p->t)) return wf_ctx_failure(t->c);
    WF_TRY(make_parcel(t, p, run, !add));
    if (!in) WF_TRY(unpack(t, p, run, false, false));
    WF_TRY(in ? wf_comm_recv(t->comm, p->packed, p->peer, &p->pending)
              : wf_comm_send(t->comm, p->packed, p->peer, &p->pending));
  }
  return WF_OK;
}

/* What has come in goes to its rows, in the order of the peers; this rank's own in its place. */
static wf_status arrive(traffic *t, const wf_exchange *e, const wf_run_of_rows *run, int first, int end,
                        wf_tensor *from, wf_tensor *to, bool back, bool add) {
  const wf_run_of_rows *source = back ? e->own_to : e->own_from, *aim = back ? e->own_from : e->own_to;
  bool own = false;
  for (int i = first; i <= end; i++) {
    if (!own && (i == end || t->p[i].peer > wf_comm_rank(t->comm))) {
      for (int k = 0; k < e->n_own; k++)
        WF_TRY(wf_dist_copy(t->c, rows_of(from, source[k].row, source[k].n),
                            rows_of(to, aim[k].row, aim[k].n), add));
      own = true;
    }
    if (i == end) break;
    WF_TRY(wf_comm_wait(&t->p[i].pending));
    WF_TRY(unpack(t, &t->p[i], run, true, add));
  }
  return WF_OK;
}

static wf_status move(traffic *t, const exchange_attr *a, bool back, int n, wf_tensor *const *x,
                      wf_tensor *const *y, uint32_t add) {
  const wf_exchange *e = a->plan;
  int first[WF_EXCHANGE_MOST + 1], rank = wf_comm_rank(t->comm);
  const wf_run_of_rows *in = back ? e->send : e->recv, *out = back ? e->recv : e->send;
  for (int i = 0; i < n; i++) {
    first[i] = t->n;
    if (back || e->holes)
      if (!(add >> i & 1)) WF_TRY(wf_tensor_zero(y[i]));
    WF_TRY(start(t, back ? e->n_send : e->n_recv, in, y[i], back ? a->team : 0, true, back || add >> i & 1));
  }
  first[n] = t->n;
  for (int i = 0; i < n; i++)
    WF_TRY(start(t, back ? e->n_recv : e->n_send, out, x[i], back ? 0 : a->team, false, false));
  for (int i = 0; i < n; i++) {
    wf_tensor *from = heads_of(x[i], back ? 0 : a->team, rank);
    wf_tensor *to = heads_of(y[i], back ? a->team : 0, rank);
    if (wf_is_poison(from) || wf_is_poison(to)) return wf_ctx_failure(t->c);
    WF_TRY(arrive(t, e, in, first[i], first[i + 1], from, to, back, back || add >> i & 1));
  }
  return WF_OK;
}

/* `back` as an op: x are rows of results, y of pools. */
static wf_status exchange(wf_ctx *c, const exchange_attr *a, bool back, int n, wf_tensor *const *x,
                          wf_tensor *const *y, uint32_t add) {
  traffic t = {.c = c, .comm = a->comm};
  const wf_exchange *e = a->plan;
  WF_CALLOC(t.p, "dist", (e->n_send + e->n_recv) * n + 1);
  wf_scope scope = wf_scope_open(c);
  wf_status st = move(&t, a, back, n, x, y, add);
  for (int i = 0; i < t.n; i++) { /* after a failure too: nothing may write into what is freed */
    wf_status waited = wf_comm_wait(&t.p[i].pending);
    if (st == WF_OK) st = waited;
  }
  wf_scope_close(c, scope);
  wf_free(t.p);
  return st;
}

/* ---- the ops ---- */

static wf_status exchange_kernel(const wf_call *call) {
  return exchange(call->ctx, call->attr, false, call->n_in, call->in, call->out, 0);
}
static wf_status back_kernel(const wf_call *call) {
  return exchange(call->ctx, call->attr, true, call->n_in, call->in, call->out, 0);
}
WF_DIST_KERNEL(exchange)
WF_DIST_KERNEL(back)

static wf_status check(const wf_call *call, int64_t rows) {
  const exchange_attr *a = call->attr;
  for (int i = 0; i < call->n_in; i++) {
    const wf_tensor *x = call->in[i];
    char text[96];
    WF_SHAPE_CHECK(x->ndim >= (a->team ? 2 : 1) && x->shape[0] == rows,
                   "exchange: %s where %lld rows are expected", wf_shape_text(x, text), (long long)rows);
  }
  return WF_OK;
}

static wf_status exchange_infer(const wf_call *call, wf_desc *out, int *n_out) {
  const exchange_attr *a = call->attr;
  WF_TRY(check(call, a->plan->pool));
  *n_out = call->n_in;
  for (int i = 0; i < call->n_in; i++) {
    int64_t begin, end;
    wf_desc_like(&out[i], call->in[i]);
    out[i].shape[0] = a->plan->rows;
    if (!a->team) continue;
    wf_head_share(call->in[i]->shape[1], wf_comm_rank(a->comm), a->team, &begin, &end);
    out[i].shape[1] = end - begin;
  }
  return WF_OK;
}

static wf_status back_infer(const wf_call *call, wf_desc *out, int *n_out) {
  const exchange_attr *a = call->attr;
  WF_TRY(check(call, a->plan->rows));
  *n_out = call->n_in;
  for (int i = 0; i < call->n_in; i++) {
    wf_desc_like(&out[i], call->in[i]);
    out[i].shape[0] = a->plan->pool;
    if (a->team) out[i].shape[1] = a->total[i];
  }
  return WF_OK;
}

/* Every rank takes part in the gradient of every tensor, also where it wants none or got none. */
static wf_status transposed(const wf_vjp *g, bool back) {
  wf_tensor *x[WF_EXCHANGE_MOST], *y[WF_EXCHANGE_MOST];
  wf_scope s = wf_scope_open(g->ctx);
  for (int i = 0; i < g->n_in; i++) {
    const wf_tensor *o = g->out[i], *in = g->in[i];
    x[i] = g->dout[i] ? g->dout[i] : wf_zeros(g->ctx, "gradient", o->dtype, o->ndim, o->shape);
    y[i] = g->din[i] ? g->din[i] : wf_empty(g->ctx, "gradient", in->dtype, in->ndim, in->shape);
  }
  wf_status st = WF_OK;
  for (int i = 0; i < g->n_in; i++)
    if (wf_is_poison(x[i]) || wf_is_poison(y[i])) st = wf_ctx_failure(g->ctx);
  if (st == WF_OK) st = exchange(g->ctx, g->attr, back, g->n_in, x, y, g->add);
  wf_scope_close(g->ctx, s);
  return st;
}
static wf_status exchange_vjp(const wf_vjp *g) {
  return transposed(g, true);
}
static wf_status back_vjp(const wf_vjp *g) {
  return transposed(g, false);
}

#define EXCHANGE_OP(title, kind)                                      \
  static const wf_op op_##kind = {.name = title,                      \
                                  .min_in = 1,                        \
                                  .max_in = WF_EXCHANGE_MOST,         \
                                  .n_out = -1,                        \
                                  .attr_size = sizeof(exchange_attr), \
                                  .flags = WF_OP_TYPE_OF_FIRST,       \
                                  .strided = 15,                      \
                                  .vjp_adds = 15,                     \
                                  .infer = kind##_infer,              \
                                  .vjp = kind##_vjp,                  \
                                  WF_DIST_CPU(kind)};
EXCHANGE_OP("exchange", exchange)
EXCHANGE_OP("give_back", back)

static void apply(wf_ctx *c, const wf_op *op, const exchange_attr *a, int n, wf_tensor *const *x,
                  wf_tensor **y) {
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, op, n, x, a, out);
  memcpy(y, out, (size_t)n * sizeof *y);
}

void wf_exchange_rows(wf_ctx *c, wf_comm *comm, const wf_exchange *e, int team, int n, wf_tensor *const *x,
                      wf_tensor **y) {
  apply(c, &op_exchange, &(exchange_attr){.comm = comm, .plan = e, .team = team}, n, x, y);
}

void wf_exchange_back(wf_ctx *c, wf_comm *comm, const wf_exchange *e, int team, const int64_t *total, int n,
                      wf_tensor *const *y, wf_tensor **x) {
  exchange_attr a = {.comm = comm, .plan = e, .team = team};
  for (int i = 0; team && i < n; i++) a.total[i] = total[i];
  apply(c, &op_back, &a, n, y, x);
}
