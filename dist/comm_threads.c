/* Ranks that are threads of one process: the simulator in which tests run many ranks, and, with one rank,
 * `self`.
 *
 * Every call is made of letters. Each ordered pair of ranks has two boxes, one for sends and one for
 * collectives; a letter carries a copy of its elements and a number, and a receive draws its number when it
 * starts, so that calls match in the order in which they were started, whatever the order of the waits. A
 * collective posts to every rank and fetches from every rank (itself too) in rank order: that is the order in
 * which it reduces, on each rank alike.
 *
 * It is as strict as MPI may be: a send is done when the receiver has started the receive. And it tells what
 * MPI does not: a receive that meets a letter of another call, type or size, a rank that left, and ranks that
 * all wait for each other fail with a message instead of hanging.
 *
 * All groups that come from one wf_comm_threads share a world, whose one lock guards everything but the
 * elements.
 *
 * Virtual ranks are the same with the world's ranks in several processes: letters to other processes go by
 * comm_far_impl.h, a letter to several ranks of one process once. What a rank adds, and in which order, is
 * what it would be in one process. A send to another process is done at once, and who waits there in vain is
 * told nothing: that is the watch's part (watch.h).
 */
#include "dist/comm_threads_impl.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/memory.h"

static const char tag[] = "communicator";

typedef enum fetch_how {
  FETCH_SUM = WF_REDUCE_SUM,
  FETCH_MAX = WF_REDUCE_MAX,
  FETCH_MIN = WF_REDUCE_MIN,
  FETCH_COPY
} fetch_how;

typedef struct fetch {
  int from;
  int64_t number;
  wf_span into;
  fetch_how how;
} fetch;

struct wf_request {
  const char *call;
  int kind;
  int to; /* of a send: done when `to` has started receive `number`; else -1 */
  int64_t number;
  int n;
  fetch fetches[];
};

/* ---- waiting; the lock is held ---- */

/* Moves letters between processes. */
static void progress(world *w) {
  if (wf_far_progress(w->far) != WF_OK) stop(w, wf_error_message());
}

/* Where letters may come from other processes nobody tells us that they have: whoever waits asks, first in
 * quick succession. */
static void await_far(world *w, int64_t asked) {
  enum { QUICK = 200, PAUSE = 50000 /* ns */ };
  if (asked < QUICK) {
    pthread_mutex_unlock(&w->lock);
    sched_yield();
    pthread_mutex_lock(&w->lock);
    return;
  }
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += PAUSE;
  if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
  pthread_cond_timedwait(&w->news, &w->lock, &until);
}

/* Until there is news. Fails where there will be none: another rank stopped, `peer` left, or all wait. */
static wf_status await_news(threads *t, const char *call, int peer) {
  world *w = t->hub->world;
  const int rank = t->base.rank;
  if (!w->stopped[0] && t->hub->left[peer])
    return WF_FAIL(WF_EDEVICE, "%s: rank %d waits for rank %d, which has left the group", call, rank, peer);
  if (!w->stopped[0] && ++w->waiting == w->alive && !w->far) {
    snprintf(w->stopped, sizeof w->stopped,
             "%d rank%s wait%s for each other (rank %d of %d: %s, for rank %d)", w->alive,
             w->alive == 1 ? "" : "s", w->alive == 1 ? "s" : "", rank, t->hub->n, call, peer);
    announce(w);
  }
  if (w->stopped[0])
    return WF_FAIL(WF_EDEVICE, "%s: rank %d waits for rank %d in vain: %s", call, rank, peer, w->stopped);
  const int64_t seen = w->n_news;
  for (int64_t asked = 0; w->n_news == seen; asked++) {
    if (!w->far) {
      pthread_cond_wait(&w->news, &w->lock);
      continue;
    }
    progress(w);
    if (w->n_news == seen) await_far(w, asked);
  }
  return WF_OK;
}

void wf_comm_threads_stop(wf_comm *c, const char *why) {
  world *w = of(c)->hub->world;
  pthread_mutex_lock(&w->lock);
  stop(w, why);
  pthread_mutex_unlock(&w->lock);
}

/* ---- letters ---- */

static wf_status load_make(wf_span x, load **out) {
  load *l = NULL;
  WF_ALLOC(l, tag, sizeof *l + wf_span_bytes(x));
  atomic_init(&l->refs, 1);
  if (x.n > 0) memcpy(l->bytes, x.p, wf_span_bytes(x));
  *out = l;
  return WF_OK;
}

/* The lock is held, here and below. */
wf_status wf_threads_put(box *b, int64_t number, const char *call, load *l, wf_span x) {
  letter *m;
  WF_CALLOC(m, tag, 1);
  *m = (letter){.number = number, .call = call, .load = l, .x = x};
  atomic_fetch_add(&l->refs, 1);
  *(b->last ? &b->last->next : &b->first) = m;
  b->last = m;
  return WF_OK;
}

/* To the process of rank `to`, and there for all ranks of the group where `all`. */
static wf_status post_far(threads *t, int kind, const char *call, int to, bool all, load *l, wf_span x) {
  wf_far_letter f = {.hub = t->hub->id,
                     .n = x.n,
                     .most = t->base.most,
                     .kind = kind,
                     .from = t->base.rank,
                     .to = all ? -1 : to,
                     .dtype = x.dtype};
  snprintf(f.call, sizeof f.call, "%s", call);
  for (int i = 0; i < to && all; i++)
    if (process_of(t->hub, i) == process_of(t->hub, to)) return WF_OK; /* has it already */
  atomic_fetch_add(&l->refs, 1);
  const wf_status s = wf_far_send(t->hub->world->far, process_of(t->hub, to), &f, x.p, l);
  if (s != WF_OK) atomic_fetch_sub(&l->refs, 1);
  return s;
}

/* Posts x, which lies in the load, to rank `to`; `all`: the same goes to every rank. */
static wf_status post(threads *t, int kind, const char *call, int to, bool all, load *l, wf_span x) {
  if (!is_here(t->hub, to)) return post_far(t, kind, call, to, all, l, x);
  box *b = box_of(t->hub, kind, t->base.rank, to);
  return wf_threads_put(b, b->sent++, call, l, x);
}

static letter *take(box *b, int64_t number) {
  letter **at = &b->first, *before = NULL;
  while (*at && (*at)->number != number) {
    before = *at;
    at = &before->next;
  }
  letter *m = *at;
  if (!m) return NULL;
  *at = m->next;
  if (b->last == m) b->last = before;
  return m;
}

#define REDUCE(T)                                                            \
  do {                                                                       \
    T *a = (T *)into.p;                                                      \
    const T *b = (const T *)x.p;                                             \
    if (how == FETCH_SUM)                                                    \
      for (int64_t i = 0; i < into.n; i++) a[i] = (T)(a[i] + b[i]);          \
    else if (how == FETCH_MAX)                                               \
      for (int64_t i = 0; i < into.n; i++) a[i] = b[i] > a[i] ? b[i] : a[i]; \
    else                                                                     \
      for (int64_t i = 0; i < into.n; i++) a[i] = b[i] < a[i] ? b[i] : a[i]; \
  } while (0)

static void apply(wf_span into, wf_span x, fetch_how how) {
  if (into.n == 0) return;
  if (how == FETCH_COPY) {
    memcpy(into.p, x.p, wf_span_bytes(into));
    return;
  }
  switch (into.dtype) {
  case WF_F32: REDUCE(float); break;
  case WF_F64: REDUCE(double); break;
  case WF_I32: REDUCE(int32_t); break;
  default: REDUCE(int64_t); break; /* the front lets no other type through */
  }
}

static wf_status fetch_one(threads *t, const wf_request *r, const fetch *f) {
  world *w = t->hub->world;
  box *b = box_of(t->hub, r->kind, f->from, t->base.rank);
  wf_status s = WF_OK;
  letter *m;
  pthread_mutex_lock(&w->lock);
  while (!(m = take(b, f->number)) && s == WF_OK) s = await_news(t, r->call, f->from);
  pthread_mutex_unlock(&w->lock);
  if (!m) return s;
  if (strcmp(m->call, r->call) != 0)
    s = WF_FAIL(WF_EINVAL, "rank %d calls %s where rank %d calls %s", f->from, m->call, t->base.rank,
                r->call);
  else if (m->x.dtype != f->into.dtype || m->x.n != f->into.n)
    s = WF_FAIL(WF_EINVAL, "%s: rank %d gives %lld elements of %s, rank %d expects %lld of %s", r->call,
                f->from, (long long)m->x.n, wf_dtype_name(m->x.dtype), t->base.rank, (long long)f->into.n,
                wf_dtype_name(f->into.dtype));
  else
    apply(f->into, m->x, f->how);
  load_drop(m->load);
  wf_free(m);
  return s;
}

static wf_status threads_wait(wf_comm *c, wf_request *r) {
  threads *t = of(c);
  wf_status s = WF_OK;
  if (r->to >= 0) {
    pthread_mutex_lock(&t->hub->world->lock);
    const box *b = box_of(t->hub, r->kind, c->rank, r->to);
    while (b->started <= r->number && s == WF_OK) s = await_news(t, r->call, r->to);
    pthread_mutex_unlock(&t->hub->world->lock);
  }
  for (int i = 0; i < r->n && s == WF_OK; i++) s = fetch_one(t, r, &r->fetches[i]);
  wf_free(r);
  return s;
}

static wf_status request_make(const char *call, int kind, int n, wf_request **out) {
  wf_request *r = NULL;
  WF_ALLOC(r, tag, sizeof *r + (size_t)n * sizeof r->fetches[0]);
  *r = (wf_request){.call = call, .kind = kind, .to = -1};
  *out = r;
  return WF_OK;
}

/* Starts a receive. The lock is held. */
static void start(threads *t, wf_request *r, int from, wf_span into, fetch_how how) {
  const int64_t number = box_of(t->hub, r->kind, from, t->base.rank)->started++;
  r->fetches[r->n++] = (fetch){from, number, into, how};
}

/* ---- between two ---- */

static wf_status threads_send(wf_comm *c, wf_span x, int to, bool now, wf_request **request) {
  (void)now;
  threads *t = of(c);
  wf_request *r = NULL;
  load *l = NULL;
  WF_TRY(request_make("send", PAIR, 0, &r));
  wf_status s = load_make(x, &l);
  if (s == WF_OK) {
    x.p = l->bytes;
    pthread_mutex_lock(&t->hub->world->lock);
    if (is_here(t->hub, to)) {
      r->to = to;
      r->number = box_of(t->hub, PAIR, c->rank, to)->sent;
    }
    s = post(t, PAIR, "recv", to, false, l, x);
    announce(t->hub->world);
    pthread_mutex_unlock(&t->hub->world->lock);
    load_drop(l);
  }
  if (s == WF_OK)
    *request = r;
  else
    wf_free(r);
  return s;
}

static wf_status threads_recv(wf_comm *c, wf_span x, int from, bool now, wf_request **request) {
  (void)now;
  threads *t = of(c);
  wf_request *r = NULL;
  WF_TRY(request_make("recv", PAIR, 1, &r));
  pthread_mutex_lock(&t->hub->world->lock);
  start(t, r, from, x, FETCH_COPY);
  announce(t->hub->world);
  pthread_mutex_unlock(&t->hub->world->lock);
  *request = r;
  return WF_OK;
}

/* ---- of all ---- */

/* Posts run i of x to rank i (send NULL: all of it; x NULL: nothing), and fetches run i of out from rank i
 * (recv NULL: all of it), from `root` alone where it is not below zero; the first is copied, the others by
 * `how`. */
static wf_status exchange(wf_comm *c, const char *call, const wf_span *x, const int64_t *send, wf_span out,
                          const int64_t *recv, int root, fetch_how how, wf_request **request) {
  threads *t = of(c);
  wf_request *r = NULL;
  load *l = NULL;
  WF_TRY(request_make(call, COLLECTIVE, c->size, &r));
  wf_status s = x ? load_make(*x, &l) : WF_OK;
  if (s == WF_OK) {
    pthread_mutex_lock(&t->hub->world->lock);
    for (int i = 0; i < c->size && s == WF_OK; i++) {
      if (l) {
        const wf_span all = {l->bytes, x->dtype, x->n};
        s = post(t, COLLECTIVE, call, i, !send, l,
                 send ? wf_span_part(all, wf_sum_counts(send, i), send[i]) : all);
      }
      if (root < 0 || i == root)
        start(t, r, i, recv ? wf_span_part(out, wf_sum_counts(recv, i), recv[i]) : out,
              r->n > 0 ? how : FETCH_COPY);
    }
    announce(t->hub->world);
    pthread_mutex_unlock(&t->hub->world->lock);
    if (l) load_drop(l);
  }
  if (s == WF_OK)
    *request = r;
  else
    wf_free(r);
  return s;
}

static wf_status threads_broadcast(wf_comm *c, wf_span x, int root, bool now, wf_request **request) {
  (void)now;
  return exchange(c, "broadcast", c->rank == root ? &x : NULL, NULL, x, NULL, root, FETCH_COPY, request);
}
static wf_status threads_all_reduce(wf_comm *c, wf_span x, wf_reduce how, bool now, wf_request **request) {
  (void)now;
  return exchange(c, "all_reduce", &x, NULL, x, NULL, -1, (fetch_how)how, request);
}
static wf_status threads_reduce_scatter(wf_comm *c, wf_span x, const int64_t *counts, wf_span out, bool now,
                                        wf_request **request) {
  (void)now;
  return exchange(c, "reduce_scatter", &x, counts, out, NULL, -1, FETCH_SUM, request);
}
static wf_status threads_all_gather(wf_comm *c, const int64_t *counts, wf_span out, bool now,
                                    wf_request **request) {
  (void)now;
  const wf_span own = wf_span_part(out, wf_sum_counts(counts, c->rank), counts[c->rank]);
  return exchange(c, "all_gather", &own, NULL, out, counts, -1, FETCH_COPY, request);
}
static wf_status threads_all_to_all(wf_comm *c, wf_span x, const int64_t *send, wf_span out,
                                    const int64_t *recv, bool now, wf_request **request) {
  (void)now;
  return exchange(c, "all_to_all", &x, send, out, recv, -1, FETCH_COPY, request);
}
static wf_status threads_barrier(wf_comm *c) {
  wf_request *r = NULL;
  const wf_span none = {NULL, WF_U8, 0};
  WF_TRY(exchange(c, "barrier", &none, NULL, none, NULL, -1, FETCH_COPY, &r));
  return threads_wait(c, r);
}

/* Letters need no help, but those between processes do. */
static void threads_poke(wf_comm *c) {
  world *w = of(c)->hub->world;
  if (!w->far || pthread_mutex_trylock(&w->lock) != 0) return;
  progress(w);
  pthread_mutex_unlock(&w->lock);
}

static void threads_abort(wf_comm *c, int code) {
  world *w = of(c)->hub->world;
  fflush(stdout);
  fflush(stderr);
  if (w->far) {
    pthread_mutex_lock(&w->lock);
    wf_far_abort(code);
  }
  _Exit(code);
}

const wf_comm_ops wf_threads_ops = {
    .send = threads_send,
    .recv = threads_recv,
    .broadcast = threads_broadcast,
    .all_reduce = threads_all_reduce,
    .reduce_scatter = threads_reduce_scatter,
    .all_gather = threads_all_gather,
    .all_to_all = threads_all_to_all,
    .barrier = threads_barrier,
    .wait = threads_wait,
    .poke = threads_poke,
    .split = wf_threads_split,
    .free = wf_threads_free,
    .abort = threads_abort,
};
