/* virtual: a run whose bytes do not depend on the number of its processes (parallel.bitwise).
 *
 * The config's mesh counts virtual ranks, V = data x sequence, and any number P of processes that divides V
 * may run it. A process runs V / P of them, each a thread with a device, a model, a batch and an optimiser of
 * its own and no further threads. Every virtual rank does what a rank of a job of V processes does; what they
 * send each other is added in their order (wf_comm_virtual); and nothing they choose is measured. So P cannot
 * show.
 */
#ifndef WF_EXPERIMENTS_VIRTUAL_H
#define WF_EXPERIMENTS_VIRTUAL_H

#include "dist/watch.h"
#include "experiments/train.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_seat { /* of a virtual rank in its process */
  wf_comm *world;        /* the rank is to free it */
  wf_watch *watch;       /* of the process, or NULL */
  int each;              /* virtual ranks of a process */
} wf_seat;

typedef wf_status (*wf_virtual_rank)(wf_config *cfg, wf_train_options *o, const wf_seat *seat);

/* Runs `rank` on a thread for each virtual rank of this process, with copies of `cfg` and `o`, whose results
 * are set. Fails with what the first rank says that failed itself. */
wf_status wf_virtual_run(const wf_config *cfg, wf_train_options *o, wf_virtual_rank rank);

#ifdef __cplusplus
}
#endif

#endif
