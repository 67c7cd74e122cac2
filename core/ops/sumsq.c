/* sumsq, unit_norm: sums of squares over a whole buffer, accumulated in double. For gradient norms and Muon.
 */
#include "core/op_def.h"
#include "core/ops_optim.h"

#ifdef WF_KERNEL_PASS

/* The buffer is cut into PARTS whatever the number of threads, and a part into LANES sums: the order of
 * additions depends on the size alone. */
enum { PARTS = 64, LANES = 32 };

#  define DEFINE_PART(name, type)                                              \
    static double name(const type *x, int64_t n) {                             \
      double lane[LANES] = {0}, sum = 0;                                       \
      int64_t i = 0;                                                           \
      for (; i + LANES <= n; i += LANES)                                       \
        for (int j = 0; j < LANES; j++) {                                      \
          double y = (double)x[i + j];                                         \
          lane[j] += y * y;                                                    \
        }                                                                      \
      for (int j = 0; i < n; i++, j++) lane[j] += (double)x[i] * (double)x[i]; \
      for (int j = 0; j < LANES; j++) sum += lane[j];                          \
      return sum;                                                              \
    }
DEFINE_PART(part_f32, float)
DEFINE_PART(part_f64, double)

static double sum_of_squares(const wf_tensor *x) {
  int64_t n = wf_numel(x);
  double part[PARTS], sum = 0;
  WF_PARALLEL_FOR(k0, k1, PARTS, n / PARTS + 1) {
    for (int64_t k = k0; k < k1; k++) {
      int64_t begin = wf_range_begin(n, (int)k, PARTS), count = wf_range_begin(n, (int)k + 1, PARTS) - begin;
      part[k] = x->dtype == WF_F32 ? part_f32((const float *)wf_data(x) + begin, count)
                                   : part_f64((const double *)wf_data(x) + begin, count);
    }
  }
  for (int k = 0; k < PARTS; k++) sum += part[k];
  return sum;
}

WF_KERNEL(sumsq) {
  *(double *)wf_data(call->out[0]) = sum_of_squares(call->in[0]);
  return WF_OK;
}

WF_KERNEL(unit_norm) {
  const real *x = wf_data(call->in[0]);
  real *y = wf_data(call->out[0]);
  const real by = (real)(1 / (sqrt(sum_of_squares(call->in[0])) + *(const double *)call->attr));
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[0]), 1) {
    WF_PRAGMA(omp simd) for (int64_t i = i0; i < i1; i++) y[i] = x[i] * by;
  }
  return WF_OK;
}

#else

WF_CPU(sumsq)
WF_CUDA_DECLARE(sumsq)
WF_CPU(unit_norm)
WF_CUDA_DECLARE(unit_norm)

static wf_status check(const wf_call *call) {
  WF_SHAPE_CHECK(call->in[0]->dtype == WF_F32 || call->in[0]->dtype == WF_F64,
                 "sums of squares are taken of f32 or f64, not %s", wf_dtype_name(call->in[0]->dtype));
  return WF_OK;
}
static wf_status infer_sumsq(const wf_call *call, wf_desc *out, int *n_out) {
  *n_out = 1;
  wf_desc_set(&out[0], WF_F64, 0, NULL);
  return check(call);
}
static wf_status infer_unit_norm(const wf_call *call, wf_desc *out, int *n_out) {
  *n_out = 1;
  wf_desc_like(&out[0], call->in[0]);
  return check(call);
}

static wf_status sample(wf_sample *s) {
  s->n_in = 1;
  s->in[0] = s->index == 2   ? wf_sample_real(s, WF_SHAPE(0))
             : s->index == 1 ? wf_sample_real(s, WF_SHAPE(3000))
                             : wf_sample_real(s, WF_SHAPE(7, 5));
  *(double *)(void *)s->attr = 1e-7;
  return WF_OK;
}

const wf_op wf_op_sumsq = {
    .name = "sumsq",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .infer = infer_sumsq,
    WF_NONDIFF("measures gradients; a loss takes wf_square and wf_sum_all"),
    .cpu = &sumsq_cpu,
    .cuda = WF_CUDA_FN(sumsq),
    .sample = sample,
    .n_samples = 3,
};

const wf_op wf_op_unit_norm = {
    .name = "unit_norm",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = sizeof(double),
    .infer = infer_unit_norm,
    WF_NONDIFF("part of an optimiser's step; a layer takes wf_l2norm"),
    .cpu = &unit_norm_cpu,
    .cuda = WF_CUDA_FN(unit_norm),
    .sample = sample,
    .n_samples = 3,
};

#endif
