/* What saving and loading share: the list of all tensors of a snapshot. Private to checkpoint_*.c. */
#ifndef WF_EXPERIMENTS_CHECKPOINT_IMPL_H
#define WF_EXPERIMENTS_CHECKPOINT_IMPL_H

#include "experiments/checkpoint.h"

enum { WF_CHECKPOINT_VERSION = 1, WF_STAGED = 1 << 18 }; /* elements that pass through the buffer at once */
#define WF_CHECKPOINT_FORMAT "weft checkpoint"

/* A tensor of the file, of which this rank has elements [first, first + numel(own)). */
typedef struct wf_logical {
  int ndim;
  const int64_t *shape;
  wf_tensor *own;
  int64_t first;
  const int64_t *count; /* [ranks] elements of each, in their order; NULL: every rank has all */
} wf_logical;

typedef wf_status (*wf_logical_fn)(void *arg, const char *name, const wf_logical *t);

/* Every tensor of a snapshot, and the weights alone under `prefix`, always in the same order. */
wf_status wf_checkpoint_each(const wf_snapshot *s, wf_logical_fn fn, void *arg);
wf_status wf_checkpoint_weights(const wf_params *ps, const char *prefix, wf_logical_fn fn, void *arg);

/* The next elements that pass at once, as a view in the current scope. */
wf_status wf_staged_piece(wf_tensor *flat, int64_t first, int64_t *count, wf_tensor **piece);

wf_status wf_snapshot_check(const wf_snapshot *s);

#endif
