/* The way of an op over the segments of a part, by the cost model. */
#include "dist/segments_impl.h"

enum { CHANNELS = 128 }; /* of a block, at least: they share what is read of each token */

typedef struct plan {
  const wf_cost *cost;
  int64_t P, most;  /* segments; blocks */
  double a, b, run; /* bytes of A and B; seconds of a segment's forward */
  double share;
  int own; /* segments of a rank, at most */
} plan;

static double lane_bytes(int ndim, const int64_t *shape, wf_dtype dtype) {
  double n = (double)wf_dtype_size(dtype);
  for (int d = 1; d < ndim; d++) n *= (double)shape[d];
  return n;
}

/* Into how many blocks the call can be divided, each with work for all threads. */
static int64_t most_blocks(const wf_call *call, int threads) {
  int64_t u, n = wf_seg_blocks(call->op, call->n_in, call->in, INT64_MAX, &u);
  bool channels = call->op->carry->in[0] == call->in[0]->ndim - 1;
  n /= (int64_t)(channels ? CHANNELS : 1) * (threads > 1 ? threads : 1);
  return n > 0 ? n : 1;
}

static plan plan_of(const wf_part *p, const wf_cost *cost, const wf_call *call) {
  const wf_carry *y = call->op->carry;
  const wf_tensor *s = call->in[y->state];
  double lanes = (double)p->n_lanes, each = lane_bytes(s->ndim, s->shape, s->dtype);
  int64_t widest = 0;
  wf_desc A = {.ndim = 0};
  if (y->kind) y->kind(call, &A);
  for (int i = 0; i < p->n_segments; i++)
    if (p->tokens[i] > widest) widest = p->tokens[i];
  return (plan){.cost = cost,
                .P = p->n_segments,
                .most = most_blocks(call, cost->threads),
                .a = A.ndim ? lanes * lane_bytes(A.ndim, A.shape, A.dtype) : 0,
                .b = lanes * each,
                .run = (double)widest * each / (double)wf_dtype_size(s->dtype) * y->work / cost->flops,
                .share = y->share,
                .own = wf_layout_most(p->dist->layout)};
}

static int64_t blocks_of(const plan *x, wf_transport t) {
  double n = t == WF_TRANSPORT_PIPE || t == WF_TRANSPORT_RELAY ? x->b : x->a + x->b;
  if (t == WF_TRANSPORT_PIPE) return wf_cost_blocks(x->cost, x->P, n, x->most, x->run);
  if (t == WF_TRANSPORT_RELAY) return wf_cost_blocks(x->cost, x->P, n, x->most, 0);
  bool large = n / x->cost->bandwidth > 10 * x->cost->latency; /* one is under way while others are formed */
  return !large ? 1 : x->most < 4 ? x->most : 4;
}

static double seconds(const plan *x, wf_transport t, int64_t K) {
  double maps = x->own * x->share * x->run, hops = (double)(x->P - 1), state = x->b / x->cost->combine;
  switch (t) {
  case WF_TRANSPORT_PIPE: return wf_cost_pipe(x->cost, x->P, x->b, K, x->run);
  case WF_TRANSPORT_RELAY: return maps + wf_cost_relay(x->cost, x->P, x->b, K) + hops * state / (double)K;
  case WF_TRANSPORT_GATHER: return maps + wf_cost_gather(x->cost, x->P, x->a + x->b) + hops * state;
  default: return maps + wf_cost_log(x->cost, x->P, x->a + x->b);
  }
}

/* Can the segments of a rank run one by one? All that is of tokens must be seen to be so, by its heads. */
static bool one_by_one(const wf_call *call) {
  const wf_op *op = call->op;
  for (int i = 0; i < call->n_in; i++)
    if (call->in[i] && i != op->carry->table && (unsigned char)op->carry->in[i] > 1) return false;
  return op->vjp_adds >> op->carry->init & 1;
}

void wf_seg_choose(const wf_part *p, const wf_call *call, wf_seg_attr *a) {
  const wf_dist *d = p->dist;
  wf_cost usual = wf_cost_default();
  plan x = plan_of(p, d->cost ? d->cost : &usual, call);
  bool pipe = x.own == 1 || one_by_one(call), maps = call->op->carry->kind != NULL;
  a->seconds = -1;
  for (int t = WF_TRANSPORT_PIPE; t <= WF_TRANSPORT_LOG; t++) {
    if (t == WF_TRANSPORT_PIPE ? !pipe : !maps) continue;
    if (maps && d->transport != WF_TRANSPORT_AUTO && (int)d->transport != t) continue;
    int64_t u, K = d->blocks ? d->blocks : blocks_of(&x, (wf_transport)t);
    K = wf_seg_blocks(call->op, call->n_in, call->in, K, &u);
    double s = seconds(&x, (wf_transport)t, K);
    if (a->seconds >= 0 && s >= a->seconds) continue;
    a->seconds = s;
    a->transport = t;
    a->blocks = (int32_t)K;
  }
}
