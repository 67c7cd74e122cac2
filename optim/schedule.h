/* schedule: the learning rate over a run, as a factor of its peak.
 *
 * Pure functions of the step, so that a resumed run continues exactly. Steps count from 0; a warm-up of w
 * steps rises linearly, 1/w, 2/w, ... 1; after it comes the kind's own course, which step `steps` (one past
 * the last) would end.
 */
#ifndef WF_OPTIM_SCHEDULE_H
#define WF_OPTIM_SCHEDULE_H

#include "core/option.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_schedule_type {
  const char *name, *help;
  const wf_option *options;
  size_t options_size;
  /* The factor from `progress`, 0 <= progress <= 1: the part of the steps after the warm-up that is done. */
  double (*course)(const void *options, double progress);
} wf_schedule_type;

int wf_schedule_count(void);
const wf_schedule_type *wf_schedule_at(int i);
const wf_schedule_type *wf_schedule_find(const char *name); /* NULL when unknown */

/* The factor of step `step` of a run of `steps`. Beyond the end it stays at its last value. */
double wf_schedule_factor(const wf_schedule_type *type, const void *options, int64_t steps, int64_t step);

#ifdef __cplusplus
}
#endif

#endif
