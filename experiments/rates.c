/* Measured rates of the machine: ops of core, timed. */
#include "experiments/rates.h"
#include "core/clock.h"
#include "core/ops.h"
#include "core/ops_optim.h"

/* The shortest of some trials of op(in) into out. */
static wf_status shortest(wf_ctx *c, const wf_op *op, int n_in, wf_tensor *const *in, wf_tensor *out,
                          double seconds, double *best) {
  if (wf_is_poison(out)) return wf_ctx_check(c);
  double start = wf_now();
  *best = 1e30;
  for (int i = 0; i < 3 || wf_now() - start < seconds; i++) {
    double t0 = wf_now();
    WF_TRY(wf_op_run(c, op, n_in, in, NULL, 1, &out, 0));
    WF_TRY(wf_device_sync(wf_ctx_device(c)));
    double t = wf_now() - t0;
    if (t < *best) *best = t;
  }
  return WF_OK;
}

wf_status wf_rate_product(wf_ctx *c, int64_t m, int64_t n, int64_t k, double seconds, double *flops) {
  wf_scope s = wf_scope_open(c);
  wf_sample smp = {.ctx = c, .real = WF_F32};
  wf_tensor *in[] = {wf_sample_real(&smp, WF_SHAPE(m, k)), wf_sample_real(&smp, WF_SHAPE(n, k))};
  wf_tensor *y = wf_empty(c, "rate", WF_F32, WF_SHAPE(m, n));
  double t = 1;
  wf_status st = shortest(c, &wf_op_linear, 2, in, y, seconds, &t);
  wf_scope_close(c, s);
  *flops = 2 * (double)m * (double)n * (double)k / t;
  return st;
}

wf_status wf_rate_matrix(wf_ctx *c, int64_t n, double seconds, double *flops) {
  return wf_rate_product(c, n, n, n, seconds, flops);
}

wf_status wf_rate_memory(wf_ctx *c, double seconds, double *read, double *copy) {
  enum { N = 64 << 20 };
  wf_scope s = wf_scope_open(c);
  wf_tensor *x = wf_zeros(c, "rate", WF_F32, WF_SHAPE(N)), *y = wf_empty_like(c, "rate", x);
  wf_tensor *sum = wf_empty(c, "rate", WF_F64, 0, NULL);
  double copying = 1, reading = 1;
  wf_status st = shortest(c, &wf_op_copy, 1, &x, y, seconds, &copying);
  if (st == WF_OK) st = shortest(c, &wf_op_sumsq, 1, &y, sum, seconds, &reading);
  wf_scope_close(c, s);
  *copy = 8.0 * N / copying;
  *read = 4.0 * N / reading;
  return st;
}

wf_status wf_rate_exp(wf_ctx *c, double seconds, double *exps) {
  enum { N = 1 << 17 };
  wf_scope s = wf_scope_open(c);
  wf_sample smp = {.ctx = c, .real = WF_F32};
  wf_tensor *x = wf_sample_real(&smp, WF_SHAPE(N)), *y = wf_empty(c, "rate", WF_F32, WF_SHAPE(N));
  double t = 1;
  wf_status st = shortest(c, &wf_op_exp, 1, &x, y, seconds, &t);
  wf_scope_close(c, s);
  *exps = N / t;
  return st;
}
