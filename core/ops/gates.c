/* exp_gates: exponential gates, kept in range by a stabiliser m (scan_max) and its drop m_{t-1} - m_t,
 *     g_t = f_t + drop_t,   w_t = e^{i_t - m_t},   floor_t = e^{-m_t}.
 * A recurrence with log decay g and weights w then holds its state times e^{-m}, and every exponential is at
 * most 1 (xLSTM, Beck et al. 2024; mixers 7). g is formed in double from the rounded m, so that sums of g
 * telescope. m is a constant in the backward: what is read does not depend on it.
 */
#include "core/ops/ops_impl.h"

enum { F, I, M, DROP };

#ifdef WF_KERNEL_PASS

WF_KERNEL(exp_gates) {
  const real *f = call->in[F] ? wf_data(call->in[F]) : NULL, *in = wf_data(call->in[I]),
             *m = wf_data(call->in[M]), *drop = wf_data(call->in[DROP]);
  real *g = wf_data(call->out[0]), *w = wf_data(call->out[1]), *low = wf_data(call->out[2]);
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[I]), 16) {
    for (int64_t i = i0; i < i1; i++) {
      g[i] = drop[i] < R(-1e29) ? 0 : (f ? f[i] : 0) + drop[i];
      w[i] = r_exp(in[i] - m[i]);
      low[i] = r_exp(-m[i]);
    }
  }
  return WF_OK;
}

#else

WF_CPU(exp_gates)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 15));
  char a[96], b[96];
  for (int i = F; i <= DROP; i++)
    WF_SHAPE_CHECK(!call->in[i] || wf_same_shape(call->in[i], call->in[I]), "exp_gates: %s and %s differ",
                   wf_shape_text(call->in[i], a), wf_shape_text(call->in[I], b));
  for (int i = 0; i < 3; i++) wf_desc_like(&out[i], call->in[I]);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *v) {
  if (v->din[F])
    WF_TRY(v->dout[0] ? wf_copy_into(v->ctx, v->dout[0], v->din[F], false) : wf_zero_raw(v->ctx, v->din[F]));
  if (!v->din[I]) return WF_OK;
  if (!v->dout[1]) return wf_zero_raw(v->ctx, v->din[I]);
  return wf_op_run(v->ctx, &wf_op_mul, 2, (wf_tensor *[]){v->dout[1], v->out[1]}, NULL, 1, &v->din[I], 0);
}

static wf_status sample(wf_sample *s) {
  int64_t shape[] = {s->index == 1 ? 0 : 5, 3};
  s->n_in = 4;
  s->in[F] = s->index == 2 ? NULL : wf_sample_range(s, 2, shape, -3, 0);
  for (int i = I; i <= DROP; i++) s->in[i] = wf_sample_real(s, 2, shape);
  return WF_OK;
}

const wf_op wf_op_exp_gates = {
    .name = "exp_gates",
    .min_in = 4,
    .max_in = 4,
    .n_out = 3,
    .optional = 1 << F,
    .save_out = 2,
    .nograd_in = 1 << M | 1 << DROP,
    .nograd_out = 4,
    .infer = infer,
    .vjp = vjp,
    .cpu = &exp_gates_cpu,
    .sample = sample,
    .n_samples = 3,
};

void wf_exp_gates(wf_ctx *c, wf_tensor *f, wf_tensor *i, wf_tensor *m, wf_tensor *drop, wf_tensor **g,
                  wf_tensor **w, wf_tensor **floor) {
  wf_tensor *out[WF_MAX_OUT];
  wf_op_apply(c, &wf_op_exp_gates, 4, (wf_tensor *[]){f, i, m, drop}, NULL, out);
  *g = out[0], *w = out[1], *floor = out[2];
}

#endif
