/* One rank of a group of which there is no other: for what a step would send, at any number of ranks. */
#include "dist/comm_impl.h"

#include <stdlib.h>
#include "core/memory.h"

typedef struct on_paper {
  wf_comm base;
  wf_paper paper;
} on_paper;

struct wf_request {
  double told;
};

static on_paper *of(wf_comm *c) {
  return (on_paper *)(void *)c;
}

static wf_status start_moving(wf_comm *c, const wf_paper_call *x, bool now, wf_request **request) {
  const wf_paper *p = &of(c)->paper;
  double told = p->start(p->arg, x);
  if (now) {
    p->wait(p->arg, told);
    return WF_OK;
  }
  WF_ALLOC(*request, "communicator", sizeof **request);
  (*request)->told = told;
  return WF_OK;
}

static int64_t bytes_of(wf_span x) {
  return (int64_t)wf_span_bytes(x);
}

static wf_status start(wf_comm *c, const char *call, wf_span x, bool now, wf_request **request) {
  return start_moving(c, &(wf_paper_call){call, c->size, bytes_of(x), bytes_of(x), 0}, now, request);
}

static wf_status paper_send(wf_comm *c, wf_span x, int to, bool now, wf_request **request) {
  (void)to;
  return start(c, "send", x, now, request);
}
static wf_status paper_recv(wf_comm *c, wf_span x, int from, bool now, wf_request **request) {
  (void)from;
  return start(c, "recv", x, now, request);
}
static wf_status paper_broadcast(wf_comm *c, wf_span x, int root, bool now, wf_request **request) {
  (void)root;
  return start(c, "broadcast", x, now, request);
}
static wf_status paper_all_reduce(wf_comm *c, wf_span x, wf_reduce how, bool now, wf_request **request) {
  (void)how;
  return start(c, "all_reduce", x, now, request);
}
static wf_status paper_reduce_scatter(wf_comm *c, wf_span x, const int64_t *counts, wf_span out, bool now,
                                      wf_request **request) {
  (void)counts, (void)out;
  return start(c, "reduce_scatter", x, now, request);
}
static wf_status paper_all_gather(wf_comm *c, const int64_t *counts, wf_span out, bool now,
                                  wf_request **request) {
  wf_span own = wf_span_part(out, 0, counts[c->rank]);
  return start_moving(c, &(wf_paper_call){"all_gather", c->size, bytes_of(own), bytes_of(out), 0}, now,
                      request);
}
static wf_status paper_all_to_all(wf_comm *c, wf_span x, const int64_t *send, wf_span out,
                                  const int64_t *recv, bool now, wf_request **request) {
  wf_paper_call call = {.call = "all_to_all", .ranks = c->size, .bytes = bytes_of(x)};
  (void)out, (void)recv;
  for (int i = 0; i < c->size; i++) call.messages += i != c->rank && send[i] > 0;
  call.moved = call.bytes - send[c->rank] * (int64_t)wf_dtype_size(x.dtype);
  return start_moving(c, &call, now, request);
}
static wf_status paper_barrier(wf_comm *c) {
  return start(c, "barrier", (wf_span){0}, true, NULL);
}
static wf_status paper_wait(wf_comm *c, wf_request *request) {
  const wf_paper *p = &of(c)->paper;
  p->wait(p->arg, request->told);
  wf_free(request);
  return WF_OK;
}
static void paper_poke(wf_comm *c) {
  (void)c;
}
static wf_status paper_split(wf_comm *c, int color, int key, wf_comm **out) {
  (void)color, (void)key, (void)out;
  return WF_FAIL(WF_EUNSUPPORTED, "rank %d of %d on paper does not know the colours of the others", c->rank,
                 c->size);
}
static void paper_free(wf_comm *c) {
  wf_free(of(c));
}
static void paper_abort(wf_comm *c, int code) {
  (void)c;
  exit(code);
}

static const wf_comm_ops paper_ops = {.send = paper_send,
                                      .recv = paper_recv,
                                      .broadcast = paper_broadcast,
                                      .all_reduce = paper_all_reduce,
                                      .reduce_scatter = paper_reduce_scatter,
                                      .all_gather = paper_all_gather,
                                      .all_to_all = paper_all_to_all,
                                      .barrier = paper_barrier,
                                      .wait = paper_wait,
                                      .poke = paper_poke,
                                      .split = paper_split,
                                      .free = paper_free,
                                      .abort = paper_abort};

wf_status wf_comm_paper(int rank, int n, const wf_paper *paper, wf_comm **out) {
  if (n < 1 || rank < 0 || rank >= n) return WF_FAIL(WF_EINVAL, "rank %d of %d on paper", rank, n);
  on_paper *p;
  WF_CALLOC(p, "communicator", 1);
  p->base = (wf_comm){
      .ops = &paper_ops, .name = "paper", .rank = rank, .size = n, .local_size = 1, .most = INT64_MAX};
  p->paper = *paper;
  *out = &p->base;
  return WF_OK;
}
