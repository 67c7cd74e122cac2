/* parallel: how a run spreads over the processes that mpirun or srun started.
 *
 * Every rank reads the same config and makes the same model from the same seed. The ranks of `data` share a
 * batch, those of `sequence` share each of its sequences (dist/mesh.h). Gradients are summed over all of them
 * and divided once by the number of labels in the whole batch, so any mesh takes the same steps. Rank 0
 * leads: it alone prints and writes files.
 */
#ifndef WF_EXPERIMENTS_PARALLEL_H
#define WF_EXPERIMENTS_PARALLEL_H

#include "dist/mesh.h"
#include "experiments/config.h"
#include "layers/model.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The processes of the job, by parallel.transport: one without mpirun. */
wf_status wf_parallel_processes(const wf_config *cfg, wf_comm **out);
/* WF_EPEER unless all ranks have the same config and the same program. */
wf_status wf_parallel_same(const wf_config *cfg, wf_comm *c);
/* The job's ranks as the config's mesh, before anything else is opened: those of `world`, which it takes over
 * also when it fails, or where that is NULL the processes, one without mpirun. Sets the threads
 * of this process where the config leaves them open. Errors with hints: a mesh that does not fit the number
 * of ranks, a transport this build lacks, ranks with different configs or another weft. The caller closes. */
wf_status wf_parallel_open(const wf_config *cfg, wf_comm *world, wf_mesh *out);
/* The link of a sequence's ranks, as the scans of this run and of those that resume it take it: what the
 * config says, else what wf_parallel_open has measured (nothing in a bitwise run), which it then says. */
wf_status wf_parallel_link(wf_config *cfg, wf_mesh *mesh, bool *measured);
/* How sequences lie over their ranks and what passes between them. Where the config leaves the layout to us
 * it is known with the model: zigzag for attention over everything before, else contiguous. Same on all
 * ranks. */
wf_status wf_parallel_layout(const wf_config *cfg, wf_model *m, wf_mesh *mesh);
/* Which recurrences move their tokens to the contiguous layout, and what that was predicted to take: for the
 * start of a run; nothing where the layout is contiguous. */
void wf_parallel_relayout(FILE *out, const wf_config *cfg, wf_model *m, wf_mesh *mesh);

static inline bool wf_parallel_leads(const wf_mesh *m) {
  return wf_comm_rank(m->world) == 0;
}

/* The lanes of a state that goes from batch to batch: a rank has those of its share of the batch, for each of
 * its segments of a sequence. What the next batch takes is what the last segment left, on its owner. */
typedef struct wf_lanes {
  int64_t here;     /* lanes of this rank's state */
  int64_t all;      /* sequences of the batch */
  int64_t first, n; /* those of the batch whose state is on this rank, */
  int64_t at;       /* from this lane of it on */
  int64_t *count;   /* [ranks] n of every rank; they follow one another in the batch. wf_free */
} wf_lanes;
wf_status wf_parallel_lanes(const wf_mesh *m, int64_t batch, wf_lanes *out);

/* Sums of a step over all ranks. Labels and tokens are those of the rank's batch, which the ranks of a
 * sequence all know and which count once. */
typedef struct wf_totals {
  double loss;
  int64_t labels, tokens;
  int stop;     /* WF_STOP... (train.h) that some rank was asked for; 0: none */
  int bad_rank; /* the first whose own loss is not finite; -1: none */
} wf_totals;
wf_status wf_parallel_totals(const wf_mesh *m, wf_totals *t);

/* "2 x 4 ranks (data x sequence), zigzag, mpi", for the start of a run; nothing for one rank. */
void wf_parallel_describe(const wf_mesh *m, char out[160]);

#ifdef __cplusplus
}
#endif

#endif
