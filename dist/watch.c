/* Datagrams of fixed size; rank 0 keeps a table of what it heard last. */
#include "dist/watch.h"
#include "core/clock.h"
#include "core/memory.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PHASE = 48, HOST = 64, ADDRESSES = 8 };

/* What a rank says of itself. Ranks of a job run the same program, so its layout is the same everywhere. */
typedef struct sign {
  uint64_t job;
  int64_t rank, step, leaving;
  double in_phase; /* seconds */
  char phase[PHASE], host[HOST];
} sign;

typedef struct heard {
  double at;
  sign sign;
} heard;

struct wf_watch {
  int rank, size, socket;
  wf_watch_options o;
  uint64_t job;
  struct sockaddr_in first[ADDRESSES]; /* of rank 0: all of its host's, then the one that answered */
  int n_first;
  pthread_t thread;
  atomic_bool ends, reached; /* reached: rank 0 has answered; on rank 0: all have spoken */
  _Atomic(const char *) phase;
  _Atomic int64_t step;
  _Atomic double since;
  heard *table; /* [size] on rank 0; of rank 0 alone elsewhere */
};

/* ---- signs ---- */

static void describe(wf_watch *w, sign *s) {
  *s = (sign){.job = w->job,
              .rank = w->rank,
              .step = atomic_load(&w->step),
              .leaving = atomic_load(&w->ends),
              .in_phase = wf_now() - atomic_load(&w->since)};
  snprintf(s->phase, sizeof s->phase, "%s", atomic_load(&w->phase));
  gethostname(s->host, sizeof s->host - 1);
}

static void say(wf_watch *w, int n, const struct sockaddr_in *to) {
  sign s;
  describe(w, &s);
  for (int i = 0; i < n; i++)
    (void)sendto(w->socket, &s, sizeof s, 0, (const struct sockaddr *)(const void *)&to[i], sizeof to[i]);
}

/* Everything that has arrived; rank 0 answers each. */
static void listen_to(wf_watch *w) {
  sign s;
  struct sockaddr_in from;
  socklen_t size = sizeof from;
  while (recvfrom(w->socket, &s, sizeof s, MSG_DONTWAIT, (struct sockaddr *)(void *)&from, &size) ==
         (ssize_t)sizeof s) {
    size = sizeof from;
    if (s.job != w->job || s.rank < 0 || s.rank >= w->size || (w->rank != 0) == (s.rank != 0)) continue;
    w->table[s.rank] = (heard){wf_now(), s};
    if (w->rank == 0) {
      say(w, 1, &from);
    } else if (w->n_first > 1) {
      w->first[0] = from;
      w->n_first = 1;
    }
  }
  bool all = true;
  for (int r = w->rank == 0; r < (w->rank == 0 ? w->size : 1); r++) all &= w->table[r].sign.job == w->job;
  if (all) atomic_store(&w->reached, true);
}

static _Noreturn void give_up(const wf_watch *w, const heard *h, int rank, const char *what, double seconds) {
  fprintf(stderr,
          "weft: error: %s %d%s%s %s for %.0f s; it was last in step %lld, %s\n"
          "  hint: the job ends here; weft train --resume goes on from the last checkpoint "
          "(parallel.timeout, parallel.step_timeout say how long to wait)\n",
          w->o.who ? w->o.who : "rank", rank, *h->sign.host ? " on " : "", h->sign.host, what, seconds,
          (long long)h->sign.step, *h->sign.phase ? h->sign.phase : "its start");
  fflush(NULL);
  _exit(1); /* not MPI_Abort: the rank's own thread may be inside MPI */
}

static void judge(wf_watch *w) {
  double now = wf_now();
  if (!atomic_load(&w->reached)) return;
  for (int r = w->rank == 0; r < (w->rank == 0 ? w->size : 1); r++) {
    const heard *h = &w->table[r];
    if (h->sign.leaving) continue;
    if (now - h->at > w->o.silence) give_up(w, h, r, "gave no sign of life", now - h->at);
    if (w->rank == 0 && w->o.stuck > 0 && h->sign.in_phase > w->o.stuck)
      give_up(w, h, r, "came no further", h->sign.in_phase);
  }
}

static void *watching(void *arg) {
  wf_watch *w = arg;
  double next = 0;
  while (!atomic_load(&w->ends)) {
    if (wf_now() >= next) {
      if (w->rank != 0) say(w, w->n_first, w->first);
      next = wf_now() + (atomic_load(&w->reached) ? 1 : 0.02);
    }
    struct pollfd p = {.fd = w->socket, .events = POLLIN};
    poll(&p, 1, atomic_load(&w->reached) ? 250 : 10);
    listen_to(w);
    judge(w);
  }
  if (w->rank != 0) say(w, w->n_first, w->first);
  return NULL;
}

/* ---- the beginning and the end ---- */

/* The addresses of this host, the loopback's too. */
static void addresses(wf_watch *w, in_port_t port) {
  struct ifaddrs *all;
  if (getifaddrs(&all) != 0) return;
  for (struct ifaddrs *i = all; i && w->n_first < ADDRESSES; i = i->ifa_next)
    if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET && i->ifa_flags & IFF_UP) {
      struct sockaddr_in *a = &w->first[w->n_first++];
      *a = *(struct sockaddr_in *)(void *)i->ifa_addr;
      a->sin_port = port;
    }
  freeifaddrs(all);
}

static wf_status open_socket(wf_watch *w) {
  struct sockaddr_in any = {.sin_family = AF_INET};
  socklen_t size = sizeof any;
  w->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (w->socket < 0 || bind(w->socket, (struct sockaddr *)(void *)&any, sizeof any) != 0 ||
      getsockname(w->socket, (struct sockaddr *)(void *)&any, &size) != 0)
    return WF_FAIL(WF_EDEVICE, "a socket for signs of life: %s", strerror(errno));
  addresses(w, any.sin_port);
  w->job = (uint64_t)(wf_now() * 1e6) << 16 ^ (uint64_t)getpid();
  return WF_OK;
}

static wf_status start(wf_comm *world, wf_watch *w) {
  wf_status s = open_socket(w);
  int64_t ok = s == WF_OK; /* every rank takes part in what follows */
  WF_TRY(wf_comm_all_reduce_host(world, WF_I64, &ok, 1, WF_REDUCE_MIN));
  if (!ok) return s == WF_OK ? WF_FAIL(WF_EPEER, "a rank has no socket for signs of life") : s;
  WF_TRY(wf_comm_broadcast_host(world, w->first, sizeof w->first, 0));
  WF_TRY(wf_comm_broadcast_host(world, &w->n_first, sizeof w->n_first, 0));
  WF_TRY(wf_comm_broadcast_host(world, &w->job, sizeof w->job, 0));
  WF_CALLOC(w->table, "dist", w->size);
  int failed = pthread_create(&w->thread, NULL, watching, w);
  if (failed) return WF_FAIL(WF_EDEVICE, "a thread for signs of life: %s", strerror(failed));
  for (double begin = wf_now(); !atomic_load(&w->reached) && wf_now() - begin < 5;) usleep(2000);
  return WF_OK;
}

static void end(wf_watch *w) {
  if (w->thread) {
    atomic_store(&w->ends, true);
    pthread_join(w->thread, NULL);
  }
  if (w->socket >= 0) close(w->socket);
  wf_free(w->table);
  wf_free(w);
}

wf_status wf_watch_start(wf_comm *world, const wf_watch_options *o, wf_watch **out, const char **warning) {
  *out = NULL;
  *warning = NULL;
  if (wf_comm_size(world) == 1) return WF_OK;
  wf_watch *w;
  WF_CALLOC(w, "dist", 1);
  w->rank = wf_comm_rank(world);
  w->size = wf_comm_size(world);
  w->socket = -1;
  w->o = *o;
  atomic_store(&w->phase, "");
  atomic_store(&w->since, wf_now());
  wf_status s = start(world, w);
  int64_t reached = s == WF_OK && atomic_load(&w->reached);
  wf_status all = wf_comm_all_reduce_host(world, WF_I64, &reached, 1, WF_REDUCE_MIN);
  if (s == WF_OK) s = all;
  if (s == WF_OK && reached) {
    *out = w;
    return WF_OK;
  }
  end(w);
  if (s == WF_OK)
    *warning = "datagrams do not pass between the hosts: a rank that hangs will not be noticed (a firewall?)";
  return s;
}

void wf_watch_phase(wf_watch *w, int64_t step, const char *phase) {
  if (!w) return;
  atomic_store(&w->step, step);
  atomic_store(&w->phase, phase);
  atomic_store(&w->since, wf_now());
}

void wf_watch_stop(wf_comm *world, wf_watch *w) {
  if (!w) return;
  wf_watch_phase(w, atomic_load(&w->step), "the end");
  if (wf_comm_barrier(world) != WF_OK) wf_error_clear();
  end(w);
}
