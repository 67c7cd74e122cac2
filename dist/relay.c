/* hand and take: each is the other's gradient. */
#include "dist/relay.h"
#include "dist/op_impl.h"

typedef struct relay_attr {
  wf_comm *comm;
  int64_t peer;
} relay_attr;

wf_status wf_send_tensor(wf_ctx *c, wf_comm *comm, int to, wf_tensor *x) {
  wf_scope s = wf_scope_open(c);
  wf_tensor *packed = wf_dist_packed(c, x);
  wf_status st = wf_is_poison(packed) ? wf_ctx_failure(c) : wf_comm_leave(comm, packed, to, NULL);
  wf_scope_close(c, s);
  return st;
}

wf_status wf_recv_tensor(wf_ctx *c, wf_comm *comm, int from, wf_tensor *x) {
  if (wf_is_contiguous(x)) return wf_comm_recv(comm, x, from, NULL);
  wf_scope s = wf_scope_open(c);
  wf_tensor *packed = wf_empty_like(c, "dist", x);
  wf_status st = wf_is_poison(packed) ? wf_ctx_failure(c) : wf_comm_recv(comm, packed, from, NULL);
  if (st == WF_OK) st = wf_dist_copy(c, packed, x, false);
  wf_scope_close(c, s);
  return st;
}

/* ---- hand ---- */

static wf_tensor *hand_view(const wf_call *call) {
  wf_tensor *y = call->in[0];
  const relay_attr *a = call->attr;
  wf_status st = wf_send_tensor(call->ctx, a->comm, (int)a->peer, call->in[1]);
  return st == WF_OK ? wf_view_raw(y, y->ndim, y->shape, y->stride, 0) : wf_poison(call->ctx, st);
}

static wf_status hand_vjp(const wf_vjp *g) {
  const relay_attr *a = g->attr;
  wf_scope s = wf_scope_open(g->ctx);
  wf_tensor *dS =
      g->din[1] ? g->din[1] : wf_empty(g->ctx, "dist", g->in[1]->dtype, g->in[1]->ndim, g->in[1]->shape);
  wf_status st =
      wf_is_poison(dS) ? wf_ctx_failure(g->ctx) : wf_recv_tensor(g->ctx, a->comm, (int)a->peer, dS);
  if (st == WF_OK && g->din[0]) st = wf_dist_copy(g->ctx, g->dout[0], g->din[0], g->add & 1);
  wf_scope_close(g->ctx, s);
  return st;
}

static wf_status hand_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  wf_desc_like(&out[0], call->in[0]);
  return WF_OK;
}

static const wf_op op_hand = {.name = "hand",
                              .min_in = 2,
                              .max_in = 2,
                              .n_out = 1,
                              .attr_size = sizeof(relay_attr),
                              .flags = WF_OP_VIEW | WF_OP_TYPE_OF_FIRST,
                              .strided = 3,
                              .vjp_adds = 1,
                              .infer = hand_infer,
                              .view = hand_view,
                              .vjp = hand_vjp};

wf_tensor *wf_hand(wf_ctx *c, wf_comm *comm, int to, wf_tensor *y, wf_tensor *S) {
  return wf_op_apply(c, &op_hand, 2, (wf_tensor *[]){y, S}, &(relay_attr){comm, to}, NULL);
}

/* ---- tie ---- */

static wf_tensor *tie_view(const wf_call *call) {
  wf_tensor *y = call->in[0];
  return wf_view_raw(y, y->ndim, y->shape, y->stride, 0);
}

static wf_status tie_vjp(const wf_vjp *g) {
  if (g->din[1] && !(g->add & 2)) WF_TRY(wf_tensor_zero(g->din[1]));
  if (!g->din[0]) return WF_OK;
  return wf_dist_copy(g->ctx, g->dout[0], g->din[0], g->add & 1);
}

static const wf_op op_tie = {.name = "tie",
                             .min_in = 2,
                             .max_in = 2,
                             .n_out = 1,
                             .flags = WF_OP_VIEW | WF_OP_TYPE_OF_FIRST,
                             .strided = 3,
                             .vjp_adds = 3,
                             .infer = hand_infer,
                             .view = tie_view,
                             .vjp = tie_vjp};

wf_tensor *wf_tie(wf_ctx *c, wf_tensor *y, wf_tensor *S) {
  return wf_op_apply(c, &op_tie, 2, (wf_tensor *[]){y, S}, NULL, NULL);
}

/* ---- take ---- */

static wf_status take_kernel(const wf_call *call) {
  const relay_attr *a = call->attr;
  return wf_recv_tensor(call->ctx, a->comm, (int)a->peer, call->out[0]);
}
WF_DIST_KERNEL(take)

static wf_status take_vjp(const wf_vjp *g) {
  const relay_attr *a = g->attr;
  WF_TRY(wf_send_tensor(g->ctx, a->comm, (int)a->peer, g->dout[0]));
  return g->din[0] && !(g->add & 1) ? wf_tensor_zero(g->din[0]) : WF_OK;
}

static const wf_op op_take = {.name = "take",
                              .min_in = 1,
                              .max_in = 1,
                              .n_out = 1,
                              .attr_size = sizeof(relay_attr),
                              .strided = 1,
                              .vjp_adds = 1,
                              .infer = hand_infer,
                              .vjp = take_vjp,
                              WF_DIST_CPU(take)};

wf_tensor *wf_take(wf_ctx *c, wf_comm *comm, int from, wf_tensor *like) {
  return wf_op_apply(c, &op_take, 1, &like, &(relay_attr){comm, from}, NULL);
}
