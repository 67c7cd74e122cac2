/* cost: how long an exchange takes, by the alpha-beta model: a message of n bytes takes
 * latency + n / bandwidth.
 *
 * Of P ranks, n bytes of each:
 *     all-gather           ceil(log2 P) latency + (P - 1) n / bandwidth
 *     reduce-scatter       the same, of shares of n bytes
 *     all-reduce           both, of shares of n / P bytes
 *     broadcast            ceil(log2 P) (latency + n / bandwidth)
 *     all to all           a message to each, one after the other
 * Of a scan over P segments whose states are n bytes:
 *     relay in K blocks    (P + K - 2) (latency + n / (K bandwidth))
 *     all-gather           as above
 *     log-step             ceil(log2 P) (latency + n / bandwidth + combine)
 *     pipe of K blocks     the same as relay, and each hop runs its block in between
 */
#ifndef WF_DIST_COST_H
#define WF_DIST_COST_H

#include "dist/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_cost {
  double latency;   /* seconds of a message */
  double bandwidth; /* bytes/s of a link */
  double combine;   /* bytes/s of states composed */
  double flops;     /* of one rank's scans, as wf_carry.work counts them */
  int threads;      /* of a rank: blocks have as many heads */
  /* What the scans so far took, in seconds of this rank: by the formulas, and waited for in fact. */
  double predicted, waited;
  int64_t scans;
  int64_t moved; /* mixers whose tokens went to the contiguous layout and back */
  /* Of the serial mixers so far the one that keeps ranks least busy: the part of their time that it does (0:
   * none ran), and the shards it is divided into, 0 where ranks take turns. */
  double serial;
  int64_t shards;
} wf_cost;

/* Of ranks of one machine, until they are measured. */
wf_cost wf_cost_default(void);
/* The default with what is measured, the latency and bandwidth between ranks 0 and 1 of the group and the
 * rate of rank 0's scans while all run some, to powers of two so that the next run chooses alike, and with
 * the threads that rank 0 has set in *c. All ranks call and get the same. */
wf_status wf_cost_calibrate(wf_comm *comm, wf_cost *c);
/* The rate of scans alone, of one rank with c->threads. */
wf_status wf_cost_measure(wf_cost *c);

/* Notes a serial mixer. */
void wf_cost_serial(wf_cost *c, int64_t shards, double efficiency);

double wf_cost_messages(const wf_cost *c, int64_t messages, double n); /* of n bytes in all */
double wf_cost_all_reduce(const wf_cost *c, int64_t P, double n);
double wf_cost_broadcast(const wf_cost *c, int64_t P, double n);
double wf_cost_relay(const wf_cost *c, int64_t P, double n, int64_t K);
double wf_cost_gather(const wf_cost *c, int64_t P, double n);
double wf_cost_log(const wf_cost *c, int64_t P, double n);
/* `run`: seconds of a segment's run. */
double wf_cost_pipe(const wf_cost *c, int64_t P, double n, int64_t K, double run);
/* The K in 1 .. most for which a relay or, with `run`, a pipe is fastest. */
int64_t wf_cost_blocks(const wf_cost *c, int64_t P, double n, int64_t most, double run);

#ifdef __cplusplus
}
#endif

#endif
