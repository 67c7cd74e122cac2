/* bench_scan: the members of the linear-recurrence family by themselves, beside blockwise attention of the
 * same sizes.
 *
 * One op on random inputs of fresh sequences, forward, and forward with backward to all inputs, K = V.
 * Operations are counted as the mathematics needs them, 14 K V a token and head for both ways (forward 4:
 * write and read; backward 10) and 20 with the delta rule, whatever a kernel does; attention's as those of
 * the keys that a query sees; of the selective scan 14 a channel and state.
 */
#ifndef WF_EXPERIMENTS_BENCH_SCAN_H
#define WF_EXPERIMENTS_BENCH_SCAN_H

#include "experiments/bench.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum wf_bench_decay {
  WF_DECAY_NONE,
  WF_DECAY_CONSTANT,
  WF_DECAY_HEAD,
  WF_DECAY_CHANNEL
} wf_bench_decay;

typedef enum wf_bench_kind {
  WF_BENCH_SCAN,
  WF_BENCH_MLSTM,     /* the scan with its exponential gates, stabiliser and normalised read */
  WF_BENCH_SELECTIVE, /* Mamba's scan of heads x K channels, N = 16 */
  WF_BENCH_ATTENTION  /* no recurrence at all */
} wf_bench_kind;

typedef struct wf_bench_member {
  const char *name, *used; /* by which mixers */
  wf_bench_decay decay;
  bool weights, delta; /* wf_scan_in.w, wf_scan_in.beta */
  wf_bench_kind kind;
} wf_bench_member;

extern const wf_bench_member wf_bench_members[]; /* attention first; ends with a NULL name */

typedef struct wf_bench_scan {
  const wf_bench_member *member;
  int64_t heads, size, T, batch, chunk; /* chunk 0: the kernel's choice */
  int64_t against;                      /* chunks to time by turns with those; 0: none; 1: the recurrence */
  double decay;                         /* log decays lie between it and 0 */
} wf_bench_scan;

typedef struct wf_bench_scan_row {
  double forward_s, both_s; /* medians */
  double forward_against_s, both_against_s;
  double flops;     /* of both ways, as counted above, all tokens */
  double tensor_mb; /* peak */
} wf_bench_scan_row;

wf_status wf_bench_scan_run(wf_ctx *c, const wf_bench_scan *s, const wf_bench_options *o,
                            wf_bench_scan_row *row);

#ifdef __cplusplus
}
#endif

#endif
