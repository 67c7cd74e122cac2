/* What the kinds of communicator fill in. Private to dist (and its tests).
 *
 * The front (comm.c) checks arguments, brings tensors to host memory, counts and measures; a transport moves
 * spans of host memory. Its calls start; what is under way is a wf_request of the transport's own, handed
 * back by `wait`, which frees it. A call that has nothing left to do leaves *request NULL. `now` says that
 * the caller waits at once, so the call may block. No call has zero elements in all, and collectives have at
 * least two ranks.
 */
#ifndef WF_DIST_COMM_IMPL_H
#define WF_DIST_COMM_IMPL_H

#include "dist/comm.h"

typedef struct wf_request wf_request; /* each transport's own */

typedef struct wf_span { /* n elements in host memory */
  void *p;
  wf_dtype dtype;
  int64_t n;
} wf_span;

typedef struct wf_comm_ops {
  wf_status (*send)(wf_comm *c, wf_span x, int to, bool now, wf_request **request);
  /* The same where the sender goes on: of a copy nothing is left to do. NULL: send serves. */
  wf_status (*leave)(wf_comm *c, wf_span x, int to, wf_request **request);
  wf_status (*recv)(wf_comm *c, wf_span x, int from, bool now, wf_request **request);
  wf_status (*broadcast)(wf_comm *c, wf_span x, int root, bool now, wf_request **request);
  wf_status (*all_reduce)(wf_comm *c, wf_span x, wf_reduce how, bool now, wf_request **request);
  wf_status (*reduce_scatter)(wf_comm *c, wf_span x, const int64_t *counts, wf_span out, bool now,
                              wf_request **request);
  /* This rank's part stands in `out` already. */
  wf_status (*all_gather)(wf_comm *c, const int64_t *counts, wf_span out, bool now, wf_request **request);
  wf_status (*all_to_all)(wf_comm *c, wf_span x, const int64_t *send, wf_span out, const int64_t *recv,
                          bool now, wf_request **request);
  wf_status (*barrier)(wf_comm *c);
  wf_status (*wait)(wf_comm *c, wf_request *request);
  void (*poke)(wf_comm *c);
  wf_status (*split)(wf_comm *c, int color, int key, wf_comm **out);
  void (*free)(wf_comm *c); /* `c` too */
  void (*abort)(wf_comm *c, int code);
} wf_comm_ops;

struct wf_comm { /* first in each transport's own struct */
  const wf_comm_ops *ops;
  const char *name;
  int rank, size, local_size;
  int64_t most; /* elements one call of the transport takes (MPI's counts are ints); tests lower it */
  wf_comm_counts counts;
};

/* Ranks that are threads: this rank fails, so the others must not wait for it in any group that came from the
 * same wf_comm_threads; their calls fail with `why`. */
void wf_comm_threads_stop(wf_comm *c, const char *why);

/* The MPI_Comm behind `c`, as a pointer to it; NULL where it is of another kind. */
void *wf_comm_mpi_handle(wf_comm *c);

/* The MPI tags of messages and of the runs of an all_to_all, which comm_mpi.c makes of messages. */
enum { WF_COMM_MPI_MESSAGE = 1, WF_COMM_MPI_RUN = 2 };

static inline wf_span wf_span_part(wf_span x, int64_t first, int64_t n) {
  return (wf_span){(char *)x.p + (size_t)first * wf_dtype_size(x.dtype), x.dtype, n};
}
static inline size_t wf_span_bytes(wf_span x) {
  return (size_t)x.n * wf_dtype_size(x.dtype);
}
static inline int64_t wf_sum_counts(const int64_t *counts, int n) {
  int64_t sum = 0;
  for (int i = 0; i < n; i++) sum += counts[i];
  return sum;
}

#endif
