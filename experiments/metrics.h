/* metrics: metrics.jsonl, one JSON object a line, complete or absent.
 *
 *     {"step": 10, "tokens": 40960, "loss": 4.1254, "lr": 0.001}
 *
 * "step" always comes first. A line reaches the system in one write, so a killed run leaves whole lines; on
 * resume everything after the step the run goes on from is cut off, and the file reads as if nothing had
 * happened.
 */
#ifndef WF_EXPERIMENTS_METRICS_H
#define WF_EXPERIMENTS_METRICS_H

#include <stddef.h>
#include <stdint.h>
#include "core/status.h"
#include "experiments/text.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_metric {
  const char *name; /* letters, digits and _ */
  double value;     /* whole numbers are written as such, non-finite ones as null */
} wf_metric;

typedef struct wf_metrics {
  int fd;
  char *path;
  wf_text line;
} wf_metrics;

/* Begin a new file, replacing one that is there. Close with wf_metrics_close. */
wf_status wf_metrics_create(wf_metrics *m, const char *path);

/* Go on after `step`: lines of later steps, and a damaged tail, are cut off. A missing file is begun. */
wf_status wf_metrics_resume(wf_metrics *m, const char *path, int64_t step);

wf_status wf_metrics_write(wf_metrics *m, int64_t step, const wf_metric *values, size_t n);

void wf_metrics_close(wf_metrics *m); /* harmless on a zeroed struct */

#ifdef __cplusplus
}
#endif

#endif
