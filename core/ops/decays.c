/* decays: the lower-triangular matrix of decays between the tokens of a piece, from log decays.
 *
 *     D[t, j] = exp(g_{j+1} + .. + g_t) for j <= t, else 0;  t, j = 0 .. L, 0 being what entered the piece
 *     dg_i = sum_{t >= i > j} dD[t, j] D[t, j]
 * The exponents are sums of segments, in double: no difference of large cumulative sums, and no exponent is
 * formed above the diagonal.
 */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/memory.h"

WF_KERNEL(decays) {
  const wf_tensor *g = call->in[0];
  const int64_t n = wf_outer(g), L = wf_inner(g), size = L + 1;
  const int threads = wf_threads_for(n, size * size * 8);
  double *sums;
  WF_ALLOC(sums, "decays", (size_t)(threads * size) * sizeof *sums);
  WF_PARALLEL_FOR(i0, i1, n, size * size * 8) {
    double *sum = sums + wf_part * size;
    for (int64_t i = i0; i < i1; i++) {
      const real *p = (const real *)wf_data(g) + i * L;
      real *D = (real *)wf_data(call->out[0]) + i * size * size;
      for (int64_t t = 0; t < size; t++, D += size) {
        for (int64_t j = 0; j < t; j++) sum[j] += (double)p[t - 1];
        sum[t] = 0;
#  pragma omp simd
        for (int64_t j = 0; j < t; j++) D[j] = r_exp((real)sum[j]);
        D[t] = 1;
        for (int64_t j = t + 1; j < size; j++) D[j] = 0;
      }
    }
  }
  wf_free(sums);
  return WF_OK;
}

WF_KERNEL(decays_grad) {
  const wf_tensor *D = call->in[1];
  const bool add = call->add & 1;
  const int64_t size = wf_inner(D), L = size - 1, n = size ? wf_numel(D) / (size * size) : 0;
  const int threads = wf_threads_for(n, size * size * 2);
  double *sums;
  WF_ALLOC(sums, "decays", (size_t)(threads * size) * sizeof *sums);
  WF_PARALLEL_FOR(i0, i1, n, size * size * 2) {
    double *sum = sums + wf_part * size; /* sum[j]: over the rows from i on */
    for (int64_t i = i0; i < i1; i++) {
      real *dg = (real *)wf_data(call->out[0]) + i * L;
      for (int64_t j = 0; j < size; j++) sum[j] = 0;
      for (int64_t t = L; t > 0; t--) {
        const real *u = (const real *)wf_data(call->in[0]) + (i * size + t) * size,
                   *v = (const real *)wf_data(D) + (i * size + t) * size;
        double total = 0;
#  pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < t; j++) {
          sum[j] += (double)u[j] * (double)v[j];
          total += sum[j];
        }
        dg[t - 1] = add ? dg[t - 1] + (real)total : (real)total;
      }
    }
  }
  wf_free(sums);
  return WF_OK;
}

#else

WF_CPU(decays)
WF_CPU(decays_grad)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *g = call->in[0];
  char a[96];
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(g->ndim >= 1 && g->ndim < WF_MAX_DIMS, "decays of %s; [..., L] expected",
                 wf_shape_text(g, a));
  wf_desc_like(&out[0], g);
  out[0].ndim = g->ndim + 1;
  out[0].shape[g->ndim - 1] = out[0].shape[g->ndim] = g->shape[g->ndim - 1] + 1;
  return WF_OK;
}

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *D = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 3));
  WF_SHAPE_CHECK(D->ndim >= 2 && wf_same_shape(D, call->in[0]) &&
                     D->shape[D->ndim - 1] == D->shape[D->ndim - 2] && wf_inner(D) > 0,
                 "gradient %s of decays %s", wf_shape_text(call->in[0], a), wf_shape_text(D, b));
  wf_desc_like(&out[0], D);
  out[0].ndim = D->ndim - 1;
  out[0].shape[D->ndim - 2]--;
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  return wf_op_run(g->ctx, &wf_op_decays_grad, 2, (wf_tensor *[]){g->dout[0], g->out[0]}, NULL, 1, &g->din[0],
                   g->add & 1);
}

static wf_status sample(wf_sample *s) {
  static const int64_t shape[][3] = {{2, 3, 5}, {2, 0, 4}, {3, 1, 1}, {1, 2, 0}, {1, 2, 7}};
  s->n_in = 1;
  s->in[0] = wf_sample_range(s, 3, shape[s->index], s->index == 4 ? -50 : -2, 0);
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  s->in[1] = wf_decays(s->ctx, s->in[0]);
  if (wf_is_poison(s->in[1])) return wf_ctx_check(s->ctx);
  s->in[0] = wf_sample_real(s, s->in[1]->ndim, s->in[1]->shape);
  s->n_in = 2;
  return WF_OK;
}

const wf_op wf_op_decays = {
    .name = "decays",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .save_out = 1,
    .vjp_adds = 1,
    .infer = infer,
    .vjp = vjp,
    .cpu = &decays_cpu,
    .sample = sample,
    .n_samples = 5,
};

const wf_op wf_op_decays_grad = {
    .name = "decays_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .adds = 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of decays; first order only"),
    .cpu = &decays_grad_cpu,
    .sample = grad_sample,
    .n_samples = 5,
};

wf_tensor *wf_decays(wf_ctx *c, wf_tensor *g) {
  return wf_op_apply(c, &wf_op_decays, 1, &g, NULL, NULL);
}

#endif
