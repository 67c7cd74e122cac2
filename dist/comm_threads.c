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
#include "dist/comm_far_impl.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/memory.h"

static const char tag[] = "communicator";

typedef struct load { /* elements on their way, shared by the letters of one call */
  atomic_int refs;
  char call[WF_FAR_CALL]; /* of a letter that comes from another process */
  _Alignas(64) char bytes[];
} load;

typedef struct letter {
  struct letter *next;
  int64_t number;
  const char *call;
  load *load;
  wf_span x; /* inside the load */
} letter;

typedef struct box {
  letter *first, *last;
  int64_t sent, started; /* letters posted; receives started */
} box;

enum { PAIR, COLLECTIVE, N_KINDS };

typedef struct hub hub;

typedef struct world {
  pthread_mutex_t lock;
  pthread_cond_t news;
  int refs;    /* communicators */
  int alive;   /* ranks that hold one */
  int waiting; /* of them, those that found nothing to do since the last news */
  int64_t n_news;
  char stopped[200]; /* why nobody may wait any more */
  int *held;         /* [ranks of the world] communicators each holds */
  int process, each; /* this process; ranks of one, of which process p has p * each and those that follow */
  wf_far *far;       /* NULL: there are no others */
  hub *hubs;
  int64_t n_hubs; /* ever */
} world;

struct hub { /* a group, of which this process holds some ranks */
  world *world;
  hub *next;
  int64_t id;   /* the same in every process */
  int n, refs;  /* ranks; communicators here */
  int *members; /* [n] their ranks in the world */
  bool *left;   /* [n] has freed its communicator */
  box *boxes;   /* [kind, from, to] */
};

typedef struct threads {
  wf_comm base;
  hub *hub;
  int world_rank;
} threads;

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

static threads *of(wf_comm *c) {
  return (threads *)(void *)c;
}

static box *box_of(hub *h, int kind, int from, int to) {
  return &h->boxes[((int64_t)kind * h->n + from) * h->n + to];
}

static int process_of(const hub *h, int rank) {
  return h->members[rank] / h->world->each;
}
static bool is_here(const hub *h, int rank) {
  return process_of(h, rank) == h->world->process;
}

/* ---- waiting; the lock is held ---- */

static void announce(world *w) {
  w->waiting = 0; /* everyone looks again */
  w->n_news++;
  pthread_cond_broadcast(&w->news);
}

static void stop(world *w, const char *why) {
  if (!w->stopped[0]) snprintf(w->stopped, sizeof w->stopped, "%s", why);
  announce(w);
}

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

static void load_drop(load *l) {
  if (atomic_fetch_sub(&l->refs, 1) == 1) wf_free(l);
}

static wf_status load_make(wf_span x, load **out) {
  load *l = NULL;
  WF_ALLOC(l, tag, sizeof *l + wf_span_bytes(x));
  atomic_init(&l->refs, 1);
  if (x.n > 0) memcpy(l->bytes, x.p, wf_span_bytes(x));
  *out = l;
  return WF_OK;
}

/* The lock is held, here and below. */
static wf_status put(box *b, int64_t number, const char *call, load *l, wf_span x) {
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
  return put(b, b->sent++, call, l, x);
}

/* ---- letters from other processes: numbered as they come, put where they belong when all of them is there
 * ---- */

typedef struct parcel {
  wf_far_letter letter;
  load *load;
  int64_t number[]; /* [ranks of the group] of those here that it is for */
} parcel;

static hub *hub_find(const world *w, int64_t id) {
  hub *h = w->hubs;
  while (h && h->id != id) h = h->next;
  return h;
}

static bool is_for(const hub *h, const wf_far_letter *l, int rank) {
  return is_here(h, rank) && (l->to < 0 || l->to == rank);
}

static wf_status far_comes(void *arg, const wf_far_letter *l, void **handle, void **into) {
  hub *h = hub_find(arg, l->hub); /* NULL: everyone here has left it */
  const wf_span x = {NULL, (wf_dtype)l->dtype, l->n};
  parcel *p = NULL;
  WF_ALLOC(p, tag, sizeof *p + (h ? (size_t)h->n * sizeof p->number[0] : 0));
  p->letter = *l;
  p->load = wf_alloc(tag, sizeof *p->load + wf_span_bytes(x));
  if (!p->load) {
    wf_free(p);
    return WF_ENOMEM;
  }
  atomic_init(&p->load->refs, 1);
  memcpy(p->load->call, l->call, sizeof p->load->call);
  for (int i = 0; h && i < h->n; i++)
    if (is_for(h, l, i)) p->number[i] = box_of(h, l->kind, l->from, i)->sent++;
  *handle = p;
  *into = p->load->bytes;
  return WF_OK;
}

static wf_status far_came(void *arg, void *handle) {
  world *w = arg;
  parcel *p = handle;
  const wf_far_letter *l = &p->letter;
  hub *h = hub_find(w, l->hub);
  wf_status s = WF_OK;
  for (int i = 0; h && i < h->n && s == WF_OK; i++)
    if (is_for(h, l, i))
      s = put(box_of(h, l->kind, l->from, i), p->number[i], p->load->call, p->load,
              (wf_span){p->load->bytes, (wf_dtype)l->dtype, l->n});
  load_drop(p->load);
  wf_free(p);
  announce(w);
  return s;
}

static void far_sent(void *arg, void *handle) {
  (void)arg;
  load_drop(handle);
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

/* ---- making and ending ---- */

static void world_free(world *w) {
  wf_far_close(w->far, !w->stopped[0]);
  pthread_mutex_destroy(&w->lock);
  pthread_cond_destroy(&w->news);
  wf_free(w->held);
  wf_free(w);
}

static void hub_free(hub *h) {
  hub **at = &h->world->hubs;
  while (*at && *at != h) at = &(*at)->next;
  if (*at) *at = h->next;
  for (int64_t i = 0; h->boxes && i < (int64_t)N_KINDS * h->n * h->n; i++)
    for (letter *m = h->boxes[i].first, *next; m; m = next) {
      next = m->next;
      load_drop(m->load);
      wf_free(m);
    }
  wf_free(h->boxes);
  wf_free(h->left);
  wf_free(h->members);
  wf_free(h);
}

/* Of these n ranks of the world (NULL: all of them). */
static wf_status hub_make(world *w, int64_t id, int n, const int *members, hub **out) {
  hub *h = NULL;
  WF_CALLOC(h, tag, 1);
  h->world = w;
  h->id = id;
  h->n = n;
  h->members = wf_alloc(tag, (size_t)n * sizeof *h->members);
  h->left = wf_calloc(tag, (size_t)n, sizeof *h->left);
  h->boxes = wf_calloc(tag, (size_t)N_KINDS * (size_t)n * (size_t)n, sizeof *h->boxes);
  if (!h->left || !h->boxes || !h->members) {
    hub_free(h);
    return WF_ENOMEM;
  }
  for (int i = 0; i < n; i++) {
    h->members[i] = members ? members[i] : i;
    h->refs += is_here(h, i);
  }
  h->next = w->hubs;
  *out = w->hubs = h;
  return WF_OK;
}

static void threads_free(wf_comm *c) {
  threads *t = of(c);
  hub *h = t->hub;
  world *w = h->world;
  pthread_mutex_lock(&w->lock);
  h->left[c->rank] = true;
  if (--h->refs == 0) hub_free(h);
  if (--w->held[t->world_rank] == 0) w->alive--;
  const bool last = --w->refs == 0;
  announce(w);
  pthread_mutex_unlock(&w->lock);
  if (last) world_free(w);
  wf_free(t);
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

static wf_status threads_split(wf_comm *c, int color, int key, wf_comm **out);

static const wf_comm_ops threads_ops = {
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
    .split = threads_split,
    .free = threads_free,
    .abort = threads_abort,
};

static int on_this_host(const hub *h) {
  const wf_far *far = h->world->far;
  int n = 0;
  for (int i = 0; i < h->n; i++) n += !far || wf_far_is_near(far, process_of(h, i));
  return n;
}

static wf_status rank_make(hub *h, int rank, int world_rank, const char *name, wf_comm **out) {
  threads *t;
  WF_CALLOC(t, tag, 1);
  t->base = (wf_comm){.ops = &threads_ops,
                      .name = name,
                      .rank = rank,
                      .size = h->n,
                      .local_size = on_this_host(h),
                      .most = WF_FAR_MOST};
  t->hub = h;
  t->world_rank = world_rank;
  pthread_mutex_lock(&h->world->lock);
  h->world->refs++;
  if (h->world->held[world_rank]++ == 0) h->world->alive++;
  pthread_mutex_unlock(&h->world->lock);
  *out = &t->base;
  return WF_OK;
}

/* This process's ranks: each of the processes, or n alone. */
static wf_status make(wf_comm *processes, int n, const char *name, wf_comm **out) {
  world *w;
  hub *h = NULL;
  const int many = processes ? wf_comm_size(processes) : 1, process = processes ? wf_comm_rank(processes) : 0;
  int made = 0;
  if (n < 1) return WF_FAIL(WF_EINVAL, "a group of %d ranks", n);
  WF_CALLOC(w, tag, 1);
  w->process = process;
  w->each = n;
  pthread_condattr_t clock;
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->news, &clock);
  pthread_condattr_destroy(&clock);
  w->held = wf_calloc(tag, (size_t)many * (size_t)n, sizeof *w->held);
  wf_status s = w->held ? hub_make(w, 0, many * n, NULL, &h) : WF_ENOMEM;
  if (many > 1) /* with every process, whatever happened here */
    s = wf_far_open(processes, s, &(wf_far_sink){w, far_comes, far_came, far_sent}, &w->far);
  while (s == WF_OK && made < n) {
    s = rank_make(h, process * n + made, process * n + made, name, &out[made]);
    made += s == WF_OK;
  }
  if (s == WF_OK) return WF_OK;
  if (h) h->refs = made;
  if (made == 0) {
    if (h) hub_free(h);
    stop(w, "it could not be made");
    world_free(w);
  }
  while (made > 0) threads_free(out[--made]);
  return wf_frame_at(__FILE__, __LINE__, __func__, s);
}

wf_status wf_comm_threads(int n, wf_comm **out) {
  return make(NULL, n, "threads", out);
}

wf_status wf_comm_self(wf_comm **out) {
  return make(NULL, 1, "self", out);
}

wf_status wf_comm_virtual(wf_comm *processes, int each, wf_comm **out) {
  return make(processes, each, "virtual", out);
}

/* ---- splitting ---- */

typedef struct place { /* what each rank tells the others */
  int64_t color, key;
  int64_t id;  /* of the group, should this rank be its first */
  int64_t hub; /* where it is, in the first's process */
} place;

/* Everyone's place, in the order of the ranks; all[rank] is ours. */
static wf_status tell(wf_comm *c, place *all) {
  wf_request *r = NULL;
  const wf_span own = {&all[c->rank], WF_U8, sizeof(place)},
                out = {all, WF_U8, c->size * (int64_t)sizeof(place)};
  int64_t *counts = wf_alloc(tag, (size_t)c->size * sizeof *counts);
  if (!counts) return WF_ENOMEM;
  for (int i = 0; i < c->size; i++) counts[i] = sizeof(place);
  wf_status s = exchange(c, "split", &own, NULL, out, counts, -1, FETCH_COPY, &r);
  if (s == WF_OK) s = threads_wait(c, r);
  wf_free(counts);
  return s;
}

/* The ranks of our colour in their new order; `who` in the old group. Returns how many. */
static int order(const place *all, int size, int64_t color, int *who) {
  int n = 0;
  for (int i = 0; i < size; i++) {
    if (all[i].color != color) continue;
    int at = n++;
    for (; at > 0 && all[who[at - 1]].key > all[i].key; at--) who[at] = who[at - 1];
    who[at] = i;
  }
  return n;
}

/* The first of a new group in each process makes its hub there, and tells the others where it is. */
static wf_status split_into(threads *t, place *all, int *who, int *members, wf_comm **out) {
  world *w = t->hub->world;
  place *own = &all[t->base.rank];
  hub *h = NULL;
  pthread_mutex_lock(&w->lock);
  own->id = (int64_t)(w->process + 1) << 32 | ++w->n_hubs;
  pthread_mutex_unlock(&w->lock);
  WF_TRY(tell(&t->base, all));
  const int n = order(all, t->base.size, own->color, who);
  int rank = 0, first = n;
  for (int i = n; i-- > 0;) {
    members[i] = t->hub->members[who[i]];
    if (who[i] == t->base.rank) rank = i;
    if (is_here(t->hub, who[i])) first = i;
  }
  wf_status made = WF_OK;
  if (rank == first) {
    pthread_mutex_lock(&w->lock);
    made = hub_make(w, all[who[0]].id, n, members, &h);
    pthread_mutex_unlock(&w->lock);
  }
  own->hub = (int64_t)(intptr_t)h;
  WF_TRY(tell(&t->base, all));
  WF_TRY(made);
  if (!(h = (hub *)(intptr_t)all[who[first]].hub))
    return WF_FAIL(WF_ENOMEM, "split: rank %d could not make the group", who[first]);
  WF_TRY(rank_make(h, rank, t->world_rank, t->base.name, out));
  (*out)->most = t->base.most;
  return WF_OK;
}

static wf_status threads_split(wf_comm *c, int color, int key, wf_comm **out) {
  place *all = wf_calloc(tag, (size_t)c->size, sizeof *all);
  int *who = wf_calloc(tag, 2 * (size_t)c->size, sizeof *who);
  wf_status s = all && who ? WF_OK : WF_ENOMEM;
  if (s == WF_OK) {
    all[c->rank] = (place){.color = color, .key = key};
    s = split_into(of(c), all, who, who + c->size, out);
  }
  wf_free(all);
  wf_free(who);
  return s == WF_OK ? s : wf_frame_at(__FILE__, __LINE__, __func__, s);
}
