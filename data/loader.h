/* loader: batches from a source of sequences, made ahead on a thread.
 *
 * The whole position is one number, the cursor: how many sequences all ranks together have consumed. The
 * batch after a cursor is the same on any number of ranks, so saving the cursor is enough to go on exactly,
 * also on another number. Gradient accumulation takes consecutive batches.
 */
#ifndef WF_DATA_LOADER_H
#define WF_DATA_LOADER_H

#include <stdbool.h>
#include <stdint.h>
#include "core/rows.h"
#include "core/status.h"
#include "data/sequences.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_loader_options {
  int64_t batch;     /* sequences in a batch, on all ranks together */
  int rank, n_ranks; /* n_ranks 0 means 1; rank r gets the r-th of n_ranks near-equal parts of each batch */
  int64_t cursor;    /* where to begin */
  bool once;         /* one pass, the last batch may be smaller; otherwise without end */
  int ahead;         /* batches made ahead on a thread; 0: made when asked for, without a thread */
} wf_loader_options;

typedef struct wf_batch {
  int64_t n_tokens;
  const int32_t *inputs, *labels; /* [n_tokens]; a label is the token to predict, -1: none */
  int64_t n_labels;               /* labels that are not -1 */
  int64_t n_rows, n_lanes;        /* lanes: sequences of this rank, also ones without tokens */
  const wf_row *rows;             /* [n_rows], tile the tokens: for wf_rows_create */
  int64_t n_sequences;            /* on all ranks */
  int64_t cursor;                 /* after this batch */
  int64_t epoch;                  /* of its first sequence, from 0 */
} wf_batch;

/* The first sequence of a batch that rank `rank` gets. */
static inline int64_t wf_loader_first(int64_t batch, int rank, int n_ranks) {
  return batch * rank / n_ranks;
}

typedef struct wf_loader wf_loader;

/* Takes the source over: it is freed with the loader, also when this fails. WF_EINVAL for impossible options.
 */
wf_status wf_loader_open(wf_sequences *source, const wf_loader_options *o, wf_loader **out);
void wf_loader_close(wf_loader *l); /* stops the thread; NULL is allowed */

/* The next batch, valid until the next call; NULL after the last of a single pass. A rank may get a batch
 * without tokens where there are fewer sequences than ranks. An error comes with the batch it concerns and
 * stays. */
wf_status wf_loader_next(wf_loader *l, const wf_batch **batch);

int64_t wf_loader_cursor(const wf_loader *l);    /* after the last batch given out */
int64_t wf_loader_per_epoch(const wf_loader *l); /* sequences; 0: endless */
double wf_loader_waited(const wf_loader *l);     /* seconds that wf_loader_next has waited, in all */

#ifdef __cplusplus
}
#endif

#endif
