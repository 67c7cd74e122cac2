/* checkpoint: a run's whole state in one checked HDF5 file, written beside, summed, synced and renamed.
 *
 * It holds logical tensors by name, so that it resumes on any number of ranks:
 *
 * - attributes of the root: format "weft checkpoint", version, step, tokens, cursor, seed; optimizer,
 *   updates, skipped; ema_updates
 * - config, tokenizer: u8 [n], the resolved YAML and the blob of data/tokenizer.h
 * - params/NAME: each parameter in its shape
 * - optimizer/STATE/NAME: each state of the optimiser, in the parameter's shape
 * - ema/NAME: averaged weights, where there are any
 * - state/SLOT, state/positions: what the lanes carry, where they do
 *
 * Equal content gives equal bytes.
 */
#ifndef WF_EXPERIMENTS_CHECKPOINT_H
#define WF_EXPERIMENTS_CHECKPOINT_H

#include "experiments/parallel.h"
#include "experiments/shards.h"
#include "layers/state.h"
#include "optim/ema.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is saved and restored. NULL parts are left out of a save and passed over by a load. The groups of the
 * optimiser and the average are shards->own; without shards those of `params`, in their order. */
typedef struct wf_snapshot {
  wf_params *params;
  const wf_shards *shards;
  wf_optimizer *optimizer;
  wf_ema *ema;
  wf_state *state;
  const wf_lanes *lanes;        /* NULL: all lanes of the state, on every rank */
  int64_t step, tokens, cursor; /* done so far: steps, tokens, sequences of the loader */
  uint64_t seed;
} wf_snapshot;

/* What a load finds besides tensors; owned by the caller: wf_checkpoint_info_free. */
typedef struct wf_checkpoint_info {
  char *config;
  size_t config_size; /* config is NUL-terminated as well */
  char *tokenizer;    /* NULL when there is none */
  size_t tokenizer_size;
  char *optimizer; /* its type, or NULL */
  int64_t step, tokens, cursor;
  uint64_t seed;
  int64_t vocab; /* rows of the embedding; 0 where there is none */
} wf_checkpoint_info;

/* Write `path`. Errors leave what stood there before, and no temporary file. Of all ranks of s->shards: the
 * first one writes what the others send it; an error of its own is not theirs. */
wf_status wf_checkpoint_save(const char *path, const wf_snapshot *s, const char *config,
                             const void *tokenizer, size_t tokenizer_size);

/* Write DIR/step-%08d.h5 and then remove all but the newest `keep` (0: keep all) up to this step, and what a
 * killed run left unfinished. */
wf_status wf_checkpoint_save_step(const char *dir, const wf_snapshot *s, const char *config,
                                  const void *tokenizer, size_t tokenizer_size, int64_t keep);

/* The facts alone, after checking all sums. */
wf_status wf_checkpoint_read_info(const char *path, wf_checkpoint_info *out);
void wf_checkpoint_info_free(wf_checkpoint_info *info);

/* Fill what `s` names, and its counters. Errors: WF_ENOTFOUND, WF_ESHAPE naming the first tensor that is
 * missing, left over or of another shape, with nothing overwritten; WF_EFORMAT for damage, which may be found
 * in the middle. Weights may be saved as f32 or f64 and are converted to the model's type. */
wf_status wf_checkpoint_load(const char *path, wf_snapshot *s);

/* Weights alone; with `averaged` those of the moving average where the file has them. */
wf_status wf_checkpoint_load_params(const char *path, wf_params *params, bool averaged);

/* The newest checkpoint of a folder whose sums are right. For each newer one that is not, `refused` (may be
 * NULL) is called with its path and why. *path by wf_alloc, NULL when there is none. */
wf_status wf_checkpoint_latest(const char *dir, void (*refused)(void *arg, const char *path, const char *why),
                               void *arg, char **path);

#ifdef __cplusplus
}
#endif

#endif
