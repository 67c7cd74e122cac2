/* human: numbers as people read and write them. */
#ifndef WF_EXPERIMENTS_HUMAN_H
#define WF_EXPERIMENTS_HUMAN_H

#include <stdint.h>
#include "core/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* These fill `out` and return it. */
const char *wf_human_count(double n, char out[24]);      /* 950, 12.3k, 4.57M */
const char *wf_human_bytes(double bytes, char out[24]);  /* 812 B, 12.3 MiB */
const char *wf_human_time(double seconds, char out[24]); /* 0:07, 12:30, 3:05:00, 2d 4h; ? when unknown */

/* "1k,4096,2M" as numbers of at least 1, k and M being powers of 1024; `what` stands in the message. */
wf_status wf_human_read(const char *what, const char *text, int64_t *out, int most, int *n);

#ifdef __cplusplus
}
#endif

#endif
