/* clock: time that only goes forward, for measuring. */
#ifndef WF_CORE_CLOCK_H
#define WF_CORE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

double wf_now(void); /* seconds since some fixed moment */

#ifdef __cplusplus
}
#endif

#endif
