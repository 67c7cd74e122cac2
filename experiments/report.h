/* report: what a run says about its model and its time. */
#ifndef WF_EXPERIMENTS_REPORT_H
#define WF_EXPERIMENTS_REPORT_H

#include <stdio.h>
#include "experiments/shards.h"
#include "optim/ema.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parameters by kind, and the memory that a step of `tokens` tokens at once will take on this rank. */
void wf_report_model(FILE *out, wf_model *m, const wf_shards *s, const wf_optimizer *opt, const wf_ema *ema,
                     int64_t tokens);

/* Time, calls and rates by op, the slowest first. */
void wf_report_profile(FILE *out, const wf_ctx *c);

/* The most memory that the process has held. */
void wf_report_memory(FILE *out);

#ifdef __cplusplus
}
#endif

#endif
