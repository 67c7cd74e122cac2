/* build: from a config to the model it describes. */
#ifndef WF_EXPERIMENTS_BUILD_H
#define WF_EXPERIMENTS_BUILD_H

#include "experiments/config.h"
#include "layers/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Every layer's own check of its options against the width and each other, without allocating weights. An
 * error stands at the layer's place in the file. */
wf_status wf_config_check_layers(const wf_config *c);

/* The model in `ctx`, its weights undefined. `vocab` serves where model.vocab is auto; a given model.vocab
 * that is smaller than it is refused (0: not known). Groups of parameters follow train.rules. Free with
 * wf_model_free. */
wf_status wf_config_build(const wf_config *c, wf_ctx *ctx, int64_t vocab, wf_model **out);

#ifdef __cplusplus
}
#endif

#endif
