/* link: what joins two ranks, as people write it: "100Gb/s,10us" is a bandwidth, in bits (b) or bytes (B),
 * and a latency; ",80Gflop/s" after them, or not, is what a rank's scans do meanwhile (dist/cost.h). */
#ifndef WF_EXPERIMENTS_LINK_H
#define WF_EXPERIMENTS_LINK_H

#include "dist/cost.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sets bandwidth and latency of *out, and flops where they are given. WF_EINVAL with a hint; `what` names the
 * text. */
wf_status wf_link_read(const char *what, const char *text, wf_cost *out);
/* As wf_link_read takes it: links that are powers of two read back the same. */
void wf_link_print(const wf_cost *c, char out[120]);
/* "2T", "150G/s", "80e9": something a second. */
wf_status wf_rate_read(const char *what, const char *text, double *out);

#ifdef __cplusplus
}
#endif

#endif
