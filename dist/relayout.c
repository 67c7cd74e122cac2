/* The contiguous twin of a part, and the exchanges between the two. */
#include "dist/relayout.h"
#include "core/memory.h"

#include <math.h>

/* ---- which tokens go where ---- */

/* The rows of segment s that lie in places [from, to) of the piece, as runs of the rank's tokens that begin
 * with the segment's at `base`: added to run[n], those that follow each other as one. -> the runs */
static int runs_of(const wf_part *p, int s, int64_t base, int64_t from, int64_t to, int peer,
                   wf_run_of_rows *run, int n, bool join) {
  for (int64_t i = p->first[s]; i < p->first[s + 1]; i++) {
    wf_row cut;
    int64_t start = p->start[p->row[i].lane];
    int64_t before = wf_row_cut(&p->row[i], start + from, start + to, &cut);
    if (before < 0) continue;
    wf_run_of_rows r = {peer, base + p->row[i].begin + before, cut.len};
    if (join && n && run[n - 1].peer == peer && run[n - 1].row + run[n - 1].n == r.row)
      run[n - 1].n += r.n;
    else
      run[n++] = r;
  }
  return n;
}

/* This rank's tokens before its k-th segment. */
static int64_t base_of(const wf_part *p, int k) {
  int64_t n = 0;
  for (int i = 0; i < k; i++) n += p->tokens[p->own[i]];
  return n;
}

/* What goes from this rank's segments of the part p to the peer's of its twin q or, not `out`, comes from the
 * peer's: runs of this rank's tokens, in the order of p's segments on both sides. */
static int between(const wf_part *p, const wf_part *q, bool out, int peer, wf_run_of_rows *run, int n,
                   bool join) {
  const wf_layout *a = p->dist->layout, *b = q->dist->layout;
  int t = out ? peer : p->rank, from_rank = out ? p->rank : peer; /* q's segment of a rank has its number */
  int64_t low = wf_layout_bound(b, p->length, t), high = wf_layout_bound(b, p->length, t + 1);
  for (int s = 0; s < p->n_segments; s++) {
    if (a->owner[s] != from_rank) continue;
    int64_t from = wf_layout_bound(a, p->length, s), to = wf_layout_bound(a, p->length, s + 1);
    if (low > from) from = low;
    if (high < to) to = high;
    if (from >= to) continue;
    n = out ? runs_of(p, s, base_of(p, a->slot[s]), from, to, peer, run, n, join)
            : runs_of(q, t, 0, from, to, peer, run, n, join);
  }
  return n;
}

static wf_status plan_tokens(const wf_part *p, const wf_part *q, wf_exchange *e) {
  int64_t rows = p->first[p->n_segments] + q->first[q->n_segments];
  int ranks = p->dist->layout->n_ranks;
  WF_CALLOC(e->send, "dist", rows + 1);
  WF_CALLOC(e->recv, "dist", rows + 1);
  WF_CALLOC(e->own_from, "dist", rows + 1);
  WF_CALLOC(e->own_to, "dist", rows + 1);
  e->pool = p->n_tokens;
  e->rows = q->n_tokens;
  for (int peer = 0; peer < ranks; peer++) {
    if (peer == p->rank) continue;
    e->n_send = between(p, q, true, peer, e->send, e->n_send, true);
    e->n_recv = between(p, q, false, peer, e->recv, e->n_recv, true);
  }
  e->n_own = between(p, q, true, p->rank, e->own_from, 0, false);
  between(p, q, false, p->rank, e->own_to, 0, false);
  return WF_OK;
}

/* ---- where the state is ---- */

static wf_status plan_state(const wf_part *p, const wf_part *q, wf_exchange *e, wf_exchange *none) {
  int last = p->n_segments - 1, from = wf_part_owner(p, last), to = q->n_segments - 1;
  wf_run_of_rows there = {to, wf_part_slot(p, last) * p->n_lanes, p->n_lanes}, here = {from, 0, p->n_lanes};
  *none = (wf_exchange){.pool = p->n_own * p->n_lanes, .rows = q->n_own * q->n_lanes, .holes = true};
  *e = *none;
  WF_CALLOC(e->send, "dist", 1);
  WF_CALLOC(e->recv, "dist", 1);
  WF_CALLOC(e->own_from, "dist", 1);
  WF_CALLOC(e->own_to, "dist", 1);
  e->send[0] = e->own_from[0] = there;
  e->recv[0] = e->own_to[0] = here;
  if (!p->n_lanes) return WF_OK;
  e->n_own = from == p->rank && to == p->rank;
  e->n_send = from == p->rank && to != p->rank;
  e->n_recv = to == p->rank && from != p->rank;
  return WF_OK;
}

/* ---- making ---- */

static void free_exchange(wf_exchange *e) {
  wf_free(e->send);
  wf_free(e->recv);
  wf_free(e->own_from);
  wf_free(e->own_to);
}

void wf_relayout_free(wf_part *p) {
  wf_relayout *l = p->relayout;
  if (!l) return;
  wf_rows_free(l->rows);
  wf_part_free(l->part);
  wf_layout_free(l->layout);
  free_exchange(&l->tokens);
  free_exchange(&l->state);
  wf_free(l);
  p->relayout = NULL;
}

/* A segment for each rank, with the shares of those that it has. */
static wf_status twin_layout(const wf_layout *l, wf_layout **out) {
  int64_t *share;
  WF_CALLOC(share, "dist", l->n_ranks);
  for (int s = 0; s < l->n_segments; s++) share[l->owner[s]] += l->ahead[s + 1] - l->ahead[s];
  wf_status st = wf_layout_create(WF_LAYOUT_CONTIGUOUS, l->n_ranks, share, out);
  wf_free(share);
  return st;
}

/* Of the twin's segment on this rank, the only one. */
static wf_status twin_rows(const wf_part *q, wf_ctx *c, wf_rows **out) {
  int s = q->own[0];
  return wf_rows_create(c, q->first[s + 1] - q->first[s], q->row + q->first[s], q->n_lanes, out);
}

static wf_status make(wf_part *p, wf_ctx *c, wf_relayout *l) {
  WF_TRY(twin_layout(p->dist->layout, &l->layout));
  l->dist = *p->dist;
  l->dist.layout = l->layout;
  WF_TRY(wf_part_create(&l->dist, p->n_whole, p->whole, p->n_lanes, p->past, p->piece, &l->part));
  WF_TRY(twin_rows(l->part, c, &l->rows));
  WF_TRY(plan_tokens(p, l->part, &l->tokens));
  return plan_state(p, l->part, &l->state, &l->none);
}

wf_status wf_relayout_of(wf_part *p, wf_ctx *c, const wf_relayout **out) {
  const wf_layout *l = p->dist->layout;
  bool contiguous = l->n_segments == l->n_ranks;
  for (int s = 0; s < l->n_segments && contiguous; s++) contiguous = l->owner[s] == s;
  *out = p->relayout;
  if (contiguous || p->relayout) return WF_OK;
  WF_CALLOC(p->relayout, "dist", 1);
  wf_status st = make(p, c, p->relayout);
  if (st != WF_OK) wf_relayout_free(p);
  *out = p->relayout;
  return st;
}

/* ---- moving ---- */

wf_tensor *wf_relayout_tokens(wf_ctx *c, const wf_relayout *l, wf_tensor *x) {
  wf_tensor *y;
  wf_exchange_rows(c, l->dist.comm, &l->tokens, 0, 1, &x, &y);
  return y;
}
wf_tensor *wf_relayout_tokens_back(wf_ctx *c, const wf_relayout *l, wf_tensor *y) {
  wf_tensor *x;
  wf_exchange_back(c, l->dist.comm, &l->tokens, 0, NULL, 1, &y, &x);
  return x;
}
wf_tensor *wf_relayout_state(wf_ctx *c, const wf_relayout *l, wf_tensor *S) {
  wf_tensor *y;
  wf_exchange_rows(c, l->dist.comm, l->part->enters ? &l->state : &l->none, 0, 1, &S, &y);
  return y;
}
wf_tensor *wf_relayout_state_back(wf_ctx *c, const wf_relayout *l, wf_tensor *S) {
  wf_tensor *x;
  wf_exchange_back(c, l->dist.comm, &l->state, 0, NULL, 1, &S, &x);
  return x;
}

/* ---- does it pay? ---- */

/* States of n bytes handed on over S segments, forward and backward. */
static double scans(const wf_dist *d, const wf_cost *c, int64_t S, double n) {
  const double pipe = wf_cost_pipe(c, S, n, wf_cost_blocks(c, S, n, c->threads, 0), 0),
               hops = (double)(S - 1) * n / c->combine, gather = wf_cost_gather(c, S, n) + hops,
               log = wf_cost_log(c, S, n);
  switch (d->transport) {
  case WF_TRANSPORT_AUTO: return 2 * fmin(pipe, fmin(gather, log));
  case WF_TRANSPORT_GATHER: return 2 * gather;
  case WF_TRANSPORT_LOG: return 2 * log;
  default: return 2 * pipe;
  }
}

/* The same of states that only running can tell, in groups of lanes; each slot is a message of its own. */
static double relays(const wf_cost *c, int64_t S, double n, double lanes, int slots, int ranks) {
  double K = fmin(fmax(lanes, 1), 4.0 * ranks), hops = (double)(S - 1) + K - 1;
  return S > 1 ? 2 * hops * (slots * c->latency + n / (K * c->bandwidth)) : 0;
}

void wf_relayout_cost(const wf_dist *d, const wf_relayout_size *x, double *in_place, double *moved) {
  const wf_cost usual = wf_cost_default(), *c = d->cost ? d->cost : &usual;
  int ranks = d->layout->n_ranks;
  double s[2];
  for (int i = 0; i < 2; i++) {
    int64_t S = i ? ranks : d->layout->n_segments;
    s[i] = (x->n_scan ? scans(d, c, S, x->lanes * x->scan) : 0) +
           (x->n_serial ? relays(c, S, x->lanes * x->serial, x->lanes, x->n_serial, ranks) : 0);
  }
  /* In and out, and both gradients: most of a rank's tokens go to two others. */
  double move = 4 * wf_cost_messages(c, 2, x->tokens);
  if (x->carried) move += 4 * wf_cost_messages(c, x->n_state, x->lanes * (x->scan + x->serial));
  *in_place = s[0];
  *moved = s[1] + move;
}
