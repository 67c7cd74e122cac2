/* comm_trial: each call of dist/comm.h once, on tensors of a device, against what it says; for bodies that
 * wf_ranks_run runs. */
#ifndef WF_TESTS_DIST_COMM_TRIAL_H
#define WF_TESTS_DIST_COMM_TRIAL_H

#include "tests/dist/ranks.h"

enum { MAX_RANKS = 8 };

typedef struct bench { /* where a rank's tensors live */
  wf_ctx *ctx, *host;  /* the same for the CPU */
} bench;

bench bench_open(wf_device_type kind);
void bench_close(bench *b);

/* What element i of rank r's tensor holds: a small integer, exact in every type. */
double value(int r, int64_t i);
/* n elements of rank `rank`; all 99 where it is below zero. */
wf_tensor *made(bench *b, wf_dtype dtype, int64_t n, int rank);
wf_tensor *on_host(bench *b, wf_tensor *x); /* x itself, or its copy on the CPU */
void put(wf_tensor *x, int64_t i, double v);
double get(const wf_tensor *x, int64_t i);

#define EXPECT(x, i, expected)                                                                               \
  WF_RANK_ASSERT(get(x, i) == (expected), "%s: element %lld is %g instead of %g", wf_dtype_name((x)->dtype), \
                 (long long)(i), get(x, i), (double)(expected))

typedef struct trial {
  wf_comm *c;
  bench *b;
  wf_dtype dtype;
  int64_t n;
  bool later; /* with a pending */
} trial;

/* Counts, uneven on purpose: rank i has n + i elements, or none where i % 3 == 1. */
int64_t uneven(const trial *t, int i);
/* Rank a sends rank b n + 2 a + b elements, and none where (a + b) % 3 == 2. */
int64_t crossing(const trial *t, int a, int b);
double reduced(int size, int64_t i, wf_reduce how); /* element i of the reduction of all ranks' tensors */

void try_ring(const trial *t);
void try_broadcast(const trial *t); /* from each rank */
void try_all_reduce(const trial *t);
void try_reduce_scatter(const trial *t);
void try_all_gather(const trial *t, bool in_place);
void try_all_to_all(const trial *t);

/* All of them, and messages that block. */
void try_all(wf_comm *c, wf_device_type kind, wf_dtype dtype, int64_t n, bool later);

#endif
