/* Measured rates of the machine. */
#include "experiments/rates.h"
#include "core/ops.h"

#include <time.h>

double wf_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

wf_status wf_rate_matrix(wf_ctx *c, int64_t n, double seconds, double *flops) {
  wf_scope s = wf_scope_open(c);
  wf_sample smp = {.ctx = c, .real = WF_F32};
  wf_tensor *a = wf_sample_real(&smp, WF_SHAPE(n, n)), *b = wf_sample_real(&smp, WF_SHAPE(n, n));
  double best = 1e30, start = wf_now();
  wf_status st = WF_OK;
  for (int i = 0; st == WF_OK && (i < 3 || wf_now() - start < seconds); i++) {
    wf_scope inner = wf_scope_open(c);
    double t0 = wf_now();
    wf_tensor *y = wf_matmul(c, a, b);
    st = wf_is_poison(y) ? wf_ctx_check(c) : wf_device_sync(wf_ctx_device(c));
    double t = wf_now() - t0;
    if (t < best) best = t;
    wf_scope_close(c, inner);
  }
  wf_scope_close(c, s);
  *flops = 2 * (double)n * (double)n * (double)n / best;
  return st;
}
