/* Plans of exchanges from single routes. */
#include "core/memory.h"
#include "dist/exchange.h"

#include <stdlib.h>

static wf_status push(wf_run_of_rows **list, int *n, size_t *cap, int peer, int64_t row, int64_t len) {
  wf_run_of_rows *last = *n ? &(*list)[*n - 1] : NULL;
  if (last && last->peer == peer && last->row + last->n == row) {
    last->n += len;
    return WF_OK;
  }
  WF_TRY(wf_grow("dist", (void **)list, sizeof **list, (size_t)*n, cap));
  (*list)[(*n)++] = (wf_run_of_rows){peer, row, len};
  return WF_OK;
}

/* Rows that stay on the rank. */
static wf_status keep(wf_exchange_router *r, int64_t from, int64_t to, int64_t n) {
  wf_exchange *e = r->plan;
  wf_run_of_rows *f = e->n_own ? &e->own_from[e->n_own - 1] : NULL;
  wf_run_of_rows *t = e->n_own ? &e->own_to[e->n_own - 1] : NULL;
  if (f && f->row + f->n == from && t->row + t->n == to) {
    f->n += n;
    t->n += n;
    return WF_OK;
  }
  WF_TRY(wf_grow("dist", (void **)&e->own_from, sizeof *f, (size_t)e->n_own, &r->cap_from));
  WF_TRY(wf_grow("dist", (void **)&e->own_to, sizeof *t, (size_t)e->n_own, &r->cap_to));
  e->own_from[e->n_own] = (wf_run_of_rows){r->rank, from, n};
  e->own_to[e->n_own++] = (wf_run_of_rows){r->rank, to, n};
  return WF_OK;
}

wf_status wf_exchange_route(wf_exchange_router *r, int from, int to, int64_t row, int64_t at, int64_t n) {
  wf_exchange *e = r->plan;
  if (from == r->rank && to == r->rank) return keep(r, row, at, n);
  if (from == r->rank) return push(&e->send, &e->n_send, &r->cap_send, to, row, n);
  return to == r->rank ? push(&e->recv, &e->n_recv, &r->cap_recv, from, at, n) : WF_OK;
}

static int by_peer(const void *a, const void *b) {
  const wf_run_of_rows *x = a, *y = b;
  if (x->peer != y->peer) return x->peer < y->peer ? -1 : 1;
  return x->row < y->row ? -1 : x->row > y->row;
}

void wf_exchange_routed(wf_exchange_router *r) {
  wf_exchange *e = r->plan;
  if (e->n_recv) qsort(e->recv, (size_t)e->n_recv, sizeof *e->recv, by_peer);
}

void wf_exchange_free(wf_exchange *e) {
  wf_free(e->send);
  wf_free(e->recv);
  wf_free(e->own_from);
  wf_free(e->own_to);
}
