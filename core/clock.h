/* clock: time that only goes forward, for measuring. */
#ifndef WF_CORE_CLOCK_H
#define WF_CORE_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

double wf_now(void);     /* seconds since some fixed moment */
double wf_cpu_now(void); /* seconds of processor time that this thread has had */

#ifdef __cplusplus
}
#endif

#endif
