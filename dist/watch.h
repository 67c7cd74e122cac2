/* watch: signs of life between ranks, so that a job ends when one of them stops giving any.
 *
 * A thread of every rank tells rank 0 each second, by a datagram, that it lives and what it is doing; rank 0
 * answers. Messages of MPI do not tell: who waits for a stopped process waits for ever. The first to miss a
 * sign for `silence` seconds, or rank 0 where some rank has been in one phase for `stuck` seconds, prints
 * which rank it was, on which host and in which phase, and ends its process, upon which mpirun ends the job.
 */
#ifndef WF_DIST_WATCH_H
#define WF_DIST_WATCH_H

#include "dist/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_watch wf_watch;

typedef struct wf_watch_options {
  double silence;  /* seconds without a sign */
  double stuck;    /* seconds in one phase; 0: any */
  const char *who; /* what the ranks of `world` are called, lives for ever; NULL: "rank" */
} wf_watch_options;

/* Of all ranks of `world`. *out is NULL for one rank, and, with *warning set to a text that lives for ever,
 * where datagrams do not pass between the hosts; otherwise *warning is NULL. */
wf_status wf_watch_start(wf_comm *world, const wf_watch_options *o, wf_watch **out, const char **warning);
/* What this rank does from now on; `phase` lives for ever: "the gradients". NULL is allowed. */
void wf_watch_phase(wf_watch *w, int64_t step, const char *phase);
/* Of all ranks together. */
void wf_watch_stop(wf_comm *world, wf_watch *w);

#ifdef __cplusplus
}
#endif

#endif
