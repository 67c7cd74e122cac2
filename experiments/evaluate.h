/* evaluate: the loss of a model over a split of a token store. */
#ifndef WF_EXPERIMENTS_EVALUATE_H
#define WF_EXPERIMENTS_EVALUATE_H

#include "data/store.h"
#include "dist/mesh.h"
#include "experiments/config.h"
#include "layers/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_evaluation {
  double loss;          /* nats a token; z-loss not counted */
  double perplexity;    /* e^loss */
  double bits_per_byte; /* of text */
  int64_t tokens;       /* that had a label */
} wf_evaluation;

/* Over the first `batches` batches of the split (auto: all of it) in its fixed order, as cfg->data cuts it;
 * with train.carry_state documents go on from batch to batch here too. `mesh` (NULL: this process alone): all
 * its ranks call, and all get the result. */
wf_status wf_evaluate(wf_model *m, const wf_config *cfg, const wf_mesh *mesh, const wf_store *store,
                      int split, int64_t batches, wf_evaluation *out);

#ifdef __cplusplus
}
#endif

#endif
