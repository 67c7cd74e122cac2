/* plan: what a step of a config's training takes on a rank of a mesh of any size, predicted.
 *
 * The step itself runs, on paper: the same model, layout, transports and optimiser on a device that
 * allocates and counts but computes nothing (core/device.h), and over a communicator that sends nothing
 * (dist/comm.h). So memory, messages, bytes and operations are those of the runtime, whatever its layers do
 * (but for what kernels allocate while they run). Seconds follow on a clock of the rank's own:
 *
 *     an op           its operations, or its bytes, at the rate measured for it; else the slower of both
 *                     at the rank's rates of operations and of memory
 *     a message       latency + bytes / bandwidth, from when the link is free; both directions at once
 *     a collective    as dist/cost.h says
 *     waiting         to the end of an exchange: what the ops since its start have not hidden
 *
 * Others are taken to be as far as this rank is. Where ranks take turns (relays: serial mixers) that is not
 * so: there the rank is idle for (P-1)/groups of what it runs, and for the P-1 messages to the last rank.
 */
#ifndef WF_EXPERIMENTS_PLAN_H
#define WF_EXPERIMENTS_PLAN_H

#include "core/op.h"
#include "dist/mesh.h"
#include "experiments/config.h"
#include "experiments/link.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a rank computes in a second. */
typedef struct wf_plan_rates {
  double flops, memory; /* operations; bytes */
  struct wf_op_rate {
    const wf_op *op;
    double per_flop, per_byte; /* seconds; 0 where the op has none */
  } * op;                      /* [n] measured ones */
  int n;
} wf_plan_rates;
/* By steps of the model on this machine with at most `tokens` tokens of a sequence, and its rates of products
 * and of memory. The caller frees. */
wf_status wf_plan_measure(const wf_config *cfg, int64_t vocab, int64_t tokens, wf_plan_rates *out);
void wf_plan_rates_free(wf_plan_rates *r);

/* Exchanges by what they are for. */
typedef enum wf_plan_use {
  WF_PLAN_SCAN,
  WF_PLAN_SHIFT,
  WF_PLAN_ATTEND,
  WF_PLAN_SERIAL,
  WF_PLAN_RELAYOUT,  /* tokens of recurrences to the contiguous layout and back */
  WF_PLAN_GRADIENTS, /* and all that the whole job agrees on */
  WF_PLAN_USES
} wf_plan_use;
extern const char *const
    wf_plan_use_name[WF_PLAN_USES]; /* "scans", "halos", "attention", "serial", "relayout", "gradients" */

typedef struct wf_plan_part {
  int64_t messages, bytes;      /* sent to another rank */
  int64_t calls, call_bytes;    /* collectives, and this rank's bytes in them (dist/comm.h: wf_comm_counts) */
  double seconds, waited, idle; /* of the exchanges; of them, not hidden; while other ranks have their turn */
} wf_plan_part;

typedef struct wf_plan {
  int data, sequence, rank; /* of data x sequence */
  bool zigzag;
  int64_t tokens;                                                             /* of a step, over all ranks */
  int64_t weights, gradients, optimizer, states, activations, exchange, peak; /* bytes */
  wf_plan_part part[WF_PLAN_USES];
  double flops, compute, step; /* operations; seconds */
  /* Of what the ranks could do in serial mixers and relays, the part they do; 1 where there are none. The
   * (head, sequence) pairs that they divide; 0 where they take turns. */
  double serial;
  int64_t shards;
} wf_plan;

/* Of one rank. `link`: wf_cost_default() with a link of its own, or that of a run. Errors are those of weft
 * train with this config. */
wf_status wf_plan_rank(const wf_config *cfg, int64_t vocab, int data, int sequence, int rank,
                       const wf_plan_rates *rates, const wf_cost *link, wf_plan *out);
/* Of the job: time and exchanges of the slowest of some ranks (first, middle, last; all of up to four),
 * memory of the one that needs most. */
wf_status wf_plan_job(const wf_config *cfg, int64_t vocab, int data, int sequence, const wf_plan_rates *rates,
                      const wf_cost *link, wf_plan *out);

/* What this rank of `mesh` will send, and how busy it is where ranks take turns: a line for the start of a
 * run. */
wf_status wf_plan_announce(FILE *out, const wf_config *cfg, int64_t vocab, const wf_mesh *mesh);

#ifdef __cplusplus
}
#endif

#endif
