/* train: a run from its config to its last checkpoint. */
#ifndef WF_EXPERIMENTS_TRAIN_H
#define WF_EXPERIMENTS_TRAIN_H

#include <signal.h>
#include "experiments/config.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { WF_STOP = 1, WF_STOP_REQUEUE = 2 };

typedef struct wf_train_options {
  bool resume;                       /* go on from the run's newest good checkpoint */
  bool overwrite;                    /* remove what an earlier run of the name left */
  bool profile;                      /* print time by op at the end */
  const volatile sig_atomic_t *stop; /* set to WF_STOP... by a signal handler: save and stop after the step;
                                        may be NULL. One rank's is all ranks' */
  /* Set by the call. */
  bool leads;   /* this is rank 0, which speaks for all */
  bool requeue; /* it was stopped by WF_STOP_REQUEUE */
} wf_train_options;

/* Train `cfg` (which may change: on resume `auto` takes what the run stored). Writes the run's folder:
 * config.yaml, metrics.jsonl, checkpoints/step-XXXXXXXX.h5; shows progress on stdout. WF_EINTERRUPTED when
 * `stop` ended it, after its checkpoint was written. */
wf_status wf_train(wf_config *cfg, wf_train_options *o);

#ifdef __cplusplus
}
#endif

#endif
