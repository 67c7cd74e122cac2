/* sample: from a model's logits to the next id. */
#ifndef WF_EXPERIMENTS_SAMPLE_H
#define WF_EXPERIMENTS_SAMPLE_H

#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wf_sampling {
  double temperature; /* divides the logits; 0: always the likeliest id */
  int64_t top_k;      /* among this many likeliest ids; 0: all */
  double top_p;       /* among the fewest likeliest ids whose probabilities reach this share; 1: all */
} wf_sampling;

/* The id that the uniform number u in [0, 1) draws from logits [n]. Temperature first, then top_k, then top_p
 * of what top_k left (nucleus sampling, Holtzman et al. 2020); the likeliest id always stays. Of equal logits
 * the lower id counts as likelier. A logit may be -inf: never drawn.
 * Errors: WF_EINVAL for options out of range, WF_ENUMERIC for a NaN or infinite logit, or none above -inf. */
wf_status wf_sample_id(const wf_sampling *o, const double *logits, int64_t n, double u, int64_t *id);

#ifdef __cplusplus
}
#endif

#endif
