/* The system's monotonic clock, and a thread's own. */
#include "core/clock.h"

#include <time.h>

static double seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double wf_now(void) {
  return seconds(CLOCK_MONOTONIC);
}
double wf_cpu_now(void) {
  return seconds(CLOCK_THREAD_CPUTIME_ID);
}
