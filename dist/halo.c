/* The exchange of tails, as one op. */
#include "dist/halo.h"
#include "core/memory.h"
#include "dist/op_impl.h"

/* The row of a lane that leaves its state in segment s; NULL where none does. */
static const wf_row *leaving(const wf_part *p, int s, int64_t lane) {
  for (int64_t i = p->first[s + 1] - 1; i >= p->first[s]; i--)
    if (p->row[i].lane == lane && p->row[i].flags & WF_ROW_LEAVES) return &p->row[i];
  return NULL;
}

/* Does a later segment, or what follows the piece, go on with the lane? */
static bool goes_on(const wf_part *p, int s, int64_t lane) {
  for (int64_t i = p->first[p->n_segments] - 1; i >= 0; i--)
    if (p->row[i].lane == lane) return i >= p->first[s + 1] || p->row[i].flags & WF_ROW_LEAVES;
  return false;
}

static bool has_rows(const wf_part *p, int s, int64_t lane) {
  for (int64_t i = p->first[s]; i < p->first[s + 1]; i++)
    if (p->row[i].lane == lane) return true;
  return false;
}

bool wf_halo_fits(const wf_part *p, int64_t reach) {
  for (int s = 0; s < p->n_segments; s++)
    for (int64_t lane = 0; lane < p->n_lanes; lane++) {
      switch ((wf_link)p->link[s * p->n_lanes + lane]) {
      case WF_LINK_SET: break;
      case WF_LINK_CHAIN:
        if (leaving(p, s, lane)->len < reach) return false;
        break;
      case WF_LINK_PASS:
        if (!has_rows(p, s, lane) && goes_on(p, s, lane)) return false;
        break;
      }
    }
  return true;
}

static int neighbour(const wf_part *p, int s) {
  return s < 0 || s >= p->n_segments ? -1 : wf_part_owner(p, s);
}

int64_t wf_halo_bytes(const wf_part *p, int64_t reach, int64_t token_bytes) {
  int64_t n = 0;
  for (int k = 0; k < p->n_own; k++)
    n += p->own[k] + 1 < p->n_segments && neighbour(p, p->own[k] + 1) != p->rank;
  int last = p->n_segments - 1;
  n += p->enters && wf_part_owner(p, last) == p->rank && wf_part_owner(p, 0) != p->rank;
  return n * p->n_lanes * reach * token_bytes;
}

/* ---- tails ---- */

/* The lanes of slot k in a tensor [lanes of the rank, reach, d]. */
static wf_tensor *slot_of(const wf_part *p, wf_tensor *S, int k) {
  const int64_t shape[] = {p->n_lanes, S->shape[1], S->shape[2]};
  return wf_view_raw(S, 3, shape, S->stride, k * p->n_lanes * S->stride[0]);
}

/* Calls `copy` with the last tokens of each row that leaves one in segment own[k], and their place in S. */
typedef wf_status (*tail_fn)(wf_ctx *c, wf_tensor *tokens, wf_tensor *place);
static wf_status each_tail(wf_ctx *c, const wf_part *p, int k, int64_t begin, wf_tensor *x, wf_tensor *S,
                           tail_fn copy) {
  int64_t reach = S->shape[1], d = S->shape[2];
  for (int64_t lane = 0; lane < p->n_lanes; lane++) {
    const wf_row *r = leaving(p, p->own[k], lane);
    if (!r) continue;
    int64_t n = r->len < reach ? r->len : reach;
    const int64_t shape[] = {n, d};
    wf_tensor *tokens = wf_view_raw(x, 2, shape, x->stride, (begin + r->begin + r->len - n) * x->stride[0]);
    wf_tensor *place = wf_view_raw(S, 2, shape, S->stride + 1,
                                   (k * p->n_lanes + lane) * S->stride[0] + (reach - n) * S->stride[1]);
    if (wf_is_poison(tokens) || wf_is_poison(place)) return wf_ctx_failure(c);
    WF_TRY(copy(c, tokens, place));
  }
  return WF_OK;
}

static wf_status copy_out(wf_ctx *c, wf_tensor *tokens, wf_tensor *place) {
  return wf_dist_copy(c, tokens, place, false);
}
static wf_status add_back(wf_ctx *c, wf_tensor *tokens, wf_tensor *place) {
  return wf_dist_copy(c, place, tokens, true);
}

static wf_status all_tails(wf_ctx *c, const wf_part *p, wf_tensor *x, wf_tensor *S, tail_fn copy) {
  int64_t begin = 0;
  for (int k = 0; k < p->n_own; k++) {
    WF_TRY(each_tail(c, p, k, begin, x, S, copy));
    begin += p->tokens[p->own[k]];
  }
  return WF_OK;
}

/* ---- the exchange ---- */

typedef struct exchange {
  wf_ctx *c;
  const wf_part *p;
  wf_pending **pending; /* [4 n_own + 4] */
  int n;
} exchange;

/* From slot a of `from` on rank `sender` to slot b of `to` on rank `receiver`; nothing where neither is this.
 */
static wf_status move(exchange *e, int sender, int a, wf_tensor *from, int receiver, int b, wf_tensor *to) {
  const wf_part *p = e->p;
  wf_tensor *x = p->rank == sender ? slot_of(p, from, a) : NULL;
  wf_tensor *y = p->rank == receiver ? slot_of(p, to, b) : NULL;
  if ((x && wf_is_poison(x)) || (y && wf_is_poison(y))) return wf_ctx_failure(e->c);
  if (x && y) return wf_dist_copy(e->c, x, y, false);
  if (x) return wf_comm_leave(p->dist->comm, x, receiver, &e->pending[e->n++]);
  if (y) return wf_comm_recv(p->dist->comm, y, sender, &e->pending[e->n++]);
  return WF_OK;
}

/* Forward: what segments leave (`left`; of the piece before, `carry`) to where it enters. Backward: the
 * gradients of what enters back to where it was left. The order is that of the segments on every rank. */
static wf_status exchange_all(exchange *e, bool back, wf_tensor *carry, wf_tensor *left, wf_tensor *enters) {
  const wf_part *p = e->p;
  int last = p->n_segments - 1;
  for (int s = 0; s <= last; s++) {
    if (!s && !p->enters) continue;
    int before = s ? s - 1 : last, a = wf_part_owner(p, before), b = wf_part_owner(p, s);
    wf_tensor *source = s ? left : carry;
    if (back)
      WF_TRY(move(e, b, wf_part_slot(p, s), enters, a, wf_part_slot(p, before), source));
    else
      WF_TRY(move(e, a, wf_part_slot(p, before), source, b, wf_part_slot(p, s), enters));
  }
  return WF_OK;
}

static wf_status run_exchange(wf_ctx *c, const wf_part *p, bool back, wf_tensor *carry, wf_tensor *left,
                              wf_tensor *enters) {
  exchange e = {.c = c, .p = p};
  WF_CALLOC(e.pending, "dist", 2 * p->n_segments + 2);
  wf_status st = exchange_all(&e, back, carry, left, enters);
  for (int i = 0; i < e.n; i++) { /* all of them, whatever fails */
    wf_status w = wf_comm_wait(&e.pending[i]);
    if (st == WF_OK) st = w;
  }
  wf_free(e.pending);
  return st;
}

/* ---- the op: x, carry -> enters, leaves ---- */

typedef struct halo_attr {
  const wf_part *part;
} halo_attr;

static wf_status halo_kernel(const wf_call *call) {
  const wf_part *p = ((const halo_attr *)call->attr)->part;
  wf_tensor *enters = call->out[0], *leaves = call->out[1];
  WF_TRY(wf_tensor_zero(enters));
  WF_TRY(wf_tensor_zero(leaves));
  WF_TRY(all_tails(call->ctx, p, call->in[0], leaves, copy_out));
  return run_exchange(call->ctx, p, false, call->in[1], leaves, enters);
}
WF_DIST_KERNEL(halo)

static wf_status halo_vjp(const wf_vjp *g) {
  const wf_part *p = ((const halo_attr *)g->attr)->part;
  wf_ctx *c = g->ctx;
  wf_scope scope = wf_scope_open(c);
  const wf_tensor *S = g->out[0];
  wf_tensor *left = wf_zeros(c, "dist", S->dtype, 3, S->shape), *enters = g->dout[0],
            *carry = g->din[1] && !(g->add & 2) ? g->din[1] : wf_zeros(c, "dist", S->dtype, 3, S->shape);
  if (!enters) enters = wf_zeros(c, "dist", S->dtype, 3, S->shape);
  wf_status st =
      wf_is_poison(left) || wf_is_poison(carry) || wf_is_poison(enters) ? wf_ctx_failure(c) : WF_OK;
  if (st == WF_OK && carry == g->din[1]) st = wf_tensor_zero(carry);
  if (st == WF_OK) st = run_exchange(c, p, true, carry, left, enters);
  int last = p->n_segments - 1;
  if (st == WF_OK && g->dout[1] && wf_part_owner(p, last) == p->rank) { /* what follows the piece */
    wf_tensor *from = slot_of(p, g->dout[1], wf_part_slot(p, last)),
              *to = slot_of(p, left, wf_part_slot(p, last));
    st = wf_dist_copy(c, from, to, false);
  }
  if (st == WF_OK && g->din[0] && !(g->add & 1)) st = wf_tensor_zero(g->din[0]);
  if (st == WF_OK && g->din[0]) st = all_tails(c, p, g->din[0], left, add_back);
  if (st == WF_OK && g->din[1] && carry != g->din[1]) st = wf_dist_copy(c, carry, g->din[1], true);
  wf_scope_close(c, scope);
  return st;
}

static wf_status halo_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_part *p = ((const halo_attr *)call->attr)->part;
  const wf_tensor *x = call->in[0], *carry = call->in[1];
  WF_SHAPE_CHECK(x->ndim == 2 && carry->ndim == 3 && x->shape[0] == p->n_tokens &&
                     carry->shape[0] == p->n_own * p->n_lanes && carry->shape[2] == x->shape[1],
                 "halo: tokens and state of other shapes than the part's");
  wf_desc_like(&out[0], carry);
  wf_desc_like(&out[1], carry);
  return WF_OK;
}

static const wf_op op_dist_halo = {.name = "dist_halo",
                                   .min_in = 2,
                                   .max_in = 2,
                                   .n_out = 2,
                                   .attr_size = sizeof(halo_attr),
                                   .strided = 1,
                                   .vjp_adds = 3,
                                   .infer = halo_infer,
                                   .vjp = halo_vjp,
                                   WF_DIST_CPU(halo)};

wf_tensor *wf_dist_halo(wf_ctx *c, const wf_part *p, wf_tensor *x, wf_tensor *carry, wf_tensor **leaves) {
  wf_tensor *out[2];
  wf_op_apply(c, &op_dist_halo, 2, (wf_tensor *[]){x, carry}, &(halo_attr){p}, out);
  *leaves = out[1];
  return out[0];
}
