/* Ranks that are threads: what the files of worlds and groups share.
 *
 *     comm_threads.c   the transport: letters, calls, waiting
 *     comm_world.c     worlds and groups: making, splitting and ending them; letters from other processes
 *     comm_far_impl.h       what carries those
 *
 * Private to dist.
 */
#ifndef WF_DIST_COMM_THREADS_IMPL_H
#define WF_DIST_COMM_THREADS_IMPL_H

#include "dist/comm_far_impl.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include "core/memory.h"

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

static inline threads *of(wf_comm *c) {
  return (threads *)(void *)c;
}

static inline box *box_of(hub *h, int kind, int from, int to) {
  return &h->boxes[((int64_t)kind * h->n + from) * h->n + to];
}

static inline int process_of(const hub *h, int rank) {
  return h->members[rank] / h->world->each;
}
static inline bool is_here(const hub *h, int rank) {
  return process_of(h, rank) == h->world->process;
}

static inline void load_drop(load *l) {
  if (atomic_fetch_sub(&l->refs, 1) == 1) wf_free(l);
}

/* ---- the lock is held ---- */

static inline void announce(world *w) {
  w->waiting = 0; /* everyone looks again */
  w->n_news++;
  pthread_cond_broadcast(&w->news);
}

static inline void stop(world *w, const char *why) {
  if (!w->stopped[0]) snprintf(w->stopped, sizeof w->stopped, "%s", why);
  announce(w);
}

/* Puts x, which lies in the load, into a box. */
wf_status wf_threads_put(box *b, int64_t number, const char *call, load *l, wf_span x);

extern const wf_comm_ops wf_threads_ops;
wf_status wf_threads_split(wf_comm *c, int color, int key, wf_comm **out);
void wf_threads_free(wf_comm *c);

#endif
