/* human: numbers as people read them. Each fills `out` and returns it. */
#ifndef WF_EXPERIMENTS_HUMAN_H
#define WF_EXPERIMENTS_HUMAN_H

#ifdef __cplusplus
extern "C" {
#endif

const char *wf_human_count(double n, char out[24]);      /* 950, 12.3k, 4.57M */
const char *wf_human_bytes(double bytes, char out[24]);  /* 812 B, 12.3 MiB */
const char *wf_human_time(double seconds, char out[24]); /* 0:07, 12:30, 3:05:00, 2d 4h; ? when unknown */

#ifdef __cplusplus
}
#endif

#endif
