/* assemble: from a config to the objects of a run: device, model, optimiser. */
#ifndef WF_EXPERIMENTS_ASSEMBLE_H
#define WF_EXPERIMENTS_ASSEMBLE_H

#include "data/store.h"
#include "experiments/config.h"
#include "layers/model.h"
#include "optim/optimizer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Open the config's device and set the number of threads. */
wf_status wf_assemble_device(const wf_config *cfg, wf_device **out);

/* The config's model with allocated, undefined parameters. `vocab` stands where the config says auto; a
 * config's vocabulary below it is refused. Errors of a layer carry its place in the config. */
wf_status wf_assemble_model(wf_ctx *c, const wf_config *cfg, int64_t vocab, wf_model **out);

/* The model's parameter groups as the optimisers see them; borrow from the model. */
typedef struct wf_groups {
  int n;
  wf_opt_group *group;
  wf_opt_range *range;
} wf_groups;
wf_status wf_groups_of(wf_model *m, wf_groups *out);
void wf_groups_free(wf_groups *g);

wf_status wf_assemble_optimizer(wf_ctx *c, const wf_config *cfg, const wf_groups *g, wf_optimizer **out);

/* ---- a trained model, for eval, generate, score and convert ---- */

typedef struct wf_loaded {
  wf_config cfg;
  wf_device *dev;
  wf_ctx *c;
  wf_model *model;
  wf_tokenizer *tokenizer;
  char *path; /* of the checkpoint */
  int64_t step;
} wf_loaded;

/* `from`: a checkpoint file, a run's folder or its name under runs/; a folder means its newest good
 * checkpoint. `averaged`: the moving average's weights where there are any. `sets` override the stored config
 * (run.device...). */
wf_status wf_loaded_open(const char *from, bool averaged, const char *const *sets, size_t n_sets,
                         wf_loaded *out);
void wf_loaded_close(wf_loaded *l);

/* A store's ids mean something only to a model of the same tokenizer: WF_EINVAL unless the store's blob is
 * this one. */
wf_status wf_check_tokenizer(const wf_store *store, const void *blob, size_t n);

/* The path of the checkpoint that `from` means; wf_free. */
wf_status wf_find_checkpoint(const char *from, char **path);

#ifdef __cplusplus
}
#endif

#endif
