/* rehearsal: steps of a config's training with tokens of no meaning, on a device and a mesh of the caller's:
 * on paper (experiments/plan.h), or in fact, to measure what its ops take.
 */
#ifndef WF_EXPERIMENTS_REHEARSAL_H
#define WF_EXPERIMENTS_REHEARSAL_H

#include "dist/mesh.h"
#include "experiments/parallel.h"
#include "experiments/shards.h"
#include "layers/stream.h"
#include "optim/ema.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_rehearsal {
  const wf_config *cfg;
  wf_mesh *mesh;
  wf_ctx *c;
  wf_model *model;
  wf_shards shards;
  wf_optimizer *optimizer;
  wf_ema *ema;
  wf_state *carried;
  wf_lanes lanes;  /* of `carried` */
  wf_tokens batch; /* of one of train.accumulation parts, for this rank of data */
} wf_rehearsal;

/* The caller closes, also after a failure. The device and the mesh must live until then; the mesh gets the
 * layout that the model asks for. `vocab` stands where the config says auto. Parameters are undefined. */
wf_status wf_rehearsal_open(const wf_config *cfg, int64_t vocab, wf_device *dev, wf_mesh *mesh,
                            wf_rehearsal *out);
/* What every step of weft train does between its data and its report. */
wf_status wf_rehearsal_step(wf_rehearsal *r);
void wf_rehearsal_close(wf_rehearsal *r);

#ifdef __cplusplus
}
#endif

#endif
