/* optim: one fused pass over flat buffers for each optimiser, and for the average of the weights. Formulas in
 * core/ops_optim.h. Elementwise, so that an output may be its input's buffer. */
#include "core/op_def.h"
#include "core/ops_optim.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

#  define SIMD WF_PRAGMA(omp simd)

static const real *in(const wf_call *call, int i) {
  return call->in[i] ? (const real *)wf_data(call->in[i]) : NULL;
}
static real *out(const wf_call *call, int i) {
  return (real *)wf_data(call->out[i]);
}

/* Where GO is 0, outputs are their inputs: true, after copying those that are buffers of their own. */
static bool skipped(const wf_call *call, int n, const int from[]) {
  if (in(call, 0)[WF_CTL_GO] != 0) return false;
  for (int i = 0; i < n; i++)
    if (out(call, i) != in(call, from[i]))
      memcpy(out(call, i), in(call, from[i]), (size_t)wf_numel(call->out[i]) * sizeof(real));
  return true;
}

/* 1 - LR decay, which needs the digits of a double before it is rounded once. */
static real kept(real lr, double decay) {
  return (real)(1 - (double)lr * decay);
}

static void adamw_range(int64_t i0, int64_t i1, const wf_call *call, const wf_adamw_attr *a) {
  const real *ctl = in(call, 0), *p = in(call, 1), *g = in(call, 2), *m = in(call, 3), *v = in(call, 4);
  real *p1 = out(call, 0), *m1 = out(call, 1), *v1 = out(call, 2);
  const real gs = ctl[WF_CTL_GRAD], lr = ctl[WF_CTL_LR] * ctl[WF_CTL_BIAS1], root = ctl[WF_CTL_BIAS2],
             keep = kept(ctl[WF_CTL_LR], a->decay), w1 = (real)(1 - a->beta1), b2 = (real)a->beta2,
             w2 = (real)(1 - a->beta2), eps = (real)a->eps;
  SIMD for (int64_t i = i0; i < i1; i++) {
    real gi = gs * g[i], mi = m[i] + w1 * (gi - m[i]), vi = b2 * v[i] + w2 * gi * gi;
    p1[i] = p[i] * keep - lr * mi / (root * r_sqrt(vi) + eps);
    m1[i] = mi;
    v1[i] = vi;
  }
}

WF_KERNEL(adamw) {
  if (skipped(call, 3, (const int[]){1, 3, 4})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 8) adamw_range(i0, i1, call, call->attr);
  return WF_OK;
}

static void sgd_range(int64_t i0, int64_t i1, const wf_call *call, const wf_sgd_attr *a) {
  const real *ctl = in(call, 0), *p = in(call, 1), *g = in(call, 2);
  real *p1 = out(call, 0);
  const real gs = ctl[WF_CTL_GRAD], lr = ctl[WF_CTL_LR], decay = (real)a->decay, mu = (real)a->momentum;
  if (call->n_out < 2) {
    SIMD for (int64_t i = i0; i < i1; i++) p1[i] = p[i] - lr * (gs * g[i] + decay * p[i]);
    return;
  }
  const real *m = in(call, 3), ahead = a->nesterov ? mu : 1, own = a->nesterov ? 1 : 0;
  real *m1 = out(call, 1);
  SIMD for (int64_t i = i0; i < i1; i++) {
    real gi = gs * g[i] + decay * p[i], mi = mu * m[i] + gi;
    p1[i] = p[i] - lr * (own * gi + ahead * mi);
    m1[i] = mi;
  }
}

WF_KERNEL(sgd) {
  if (skipped(call, call->n_out, (const int[]){1, 3})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 4) sgd_range(i0, i1, call, call->attr);
  return WF_OK;
}

static void lion_range(int64_t i0, int64_t i1, const wf_call *call, const wf_lion_attr *a) {
  const real *ctl = in(call, 0), *p = in(call, 1), *g = in(call, 2), *m = in(call, 3);
  real *p1 = out(call, 0), *m1 = out(call, 1);
  const real gs = ctl[WF_CTL_GRAD], lr = ctl[WF_CTL_LR], keep = kept(lr, a->decay), b1 = (real)a->beta1,
             w1 = (real)(1 - a->beta1), b2 = (real)a->beta2, w2 = (real)(1 - a->beta2);
  SIMD for (int64_t i = i0; i < i1; i++) {
    real gi = gs * g[i], c = b1 * m[i] + w1 * gi, up = c > 0 ? lr : 0, down = c < 0 ? lr : 0;
    p1[i] = p[i] * keep - up + down;
    m1[i] = b2 * m[i] + w2 * gi;
  }
}

WF_KERNEL(lion) {
  if (skipped(call, 2, (const int[]){1, 3})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 4) lion_range(i0, i1, call, call->attr);
  return WF_OK;
}

static void muon_momentum_range(int64_t i0, int64_t i1, const wf_call *call, const wf_muon_attr *a) {
  const real *ctl = in(call, 0), *g = in(call, 1), *m = in(call, 2);
  real *u = out(call, 0), *m1 = out(call, 1);
  const real mu = (real)a->momentum, w = (real)((1 - a->momentum) * (double)ctl[WF_CTL_GRAD]);
  const real ahead = a->nesterov ? mu : 1, own = a->nesterov ? 1 : 0;
  SIMD for (int64_t i = i0; i < i1; i++) {
    real gi = w * g[i], mi = mu * m[i] + gi;
    u[i] = own * gi + ahead * mi;
    m1[i] = mi;
  }
}

WF_KERNEL(muon_momentum) {
  if (skipped(call, 2, (const int[]){1, 2})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 4) muon_momentum_range(i0, i1, call, call->attr);
  return WF_OK;
}

WF_KERNEL(muon_poly) {
  const wf_muon_poly_attr *k = call->attr;
  const real *s = in(call, 0), *ss = in(call, 1), a = (real)k->a, b = (real)k->b, c = (real)k->c;
  real *y = out(call, 0);
  int64_t n = call->in[0]->shape[0];
  WF_PARALLEL_FOR(r0, r1, n, 2 * n) {
    for (int64_t r = r0; r < r1; r++) {
      SIMD for (int64_t i = r * n; i < (r + 1) * n; i++) y[i] = b * s[i] + c * ss[i];
      y[r * n + r] += a;
    }
  }
  return WF_OK;
}

static void muon_apply_range(int64_t i0, int64_t i1, const wf_call *call, const wf_muon_apply_attr *a) {
  const real *p = in(call, 1), *u = in(call, 2), lr = in(call, 0)[WF_CTL_LR], keep = kept(lr, a->decay),
             by = (real)((double)lr * a->scale);
  real *p1 = out(call, 0);
  SIMD for (int64_t i = i0; i < i1; i++) p1[i] = p[i] * keep - by * u[i];
}

WF_KERNEL(muon_apply) {
  if (skipped(call, 1, (const int[]){1})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 2) muon_apply_range(i0, i1, call, call->attr);
  return WF_OK;
}

static void ema_range(int64_t i0, int64_t i1, const wf_call *call) {
  const real *a = in(call, 1), *p = in(call, 2), mix = in(call, 0)[WF_CTL_MIX];
  real *a1 = out(call, 0);
  SIMD for (int64_t i = i0; i < i1; i++) a1[i] = a[i] + mix * (p[i] - a[i]);
}

WF_KERNEL(ema) {
  if (skipped(call, 1, (const int[]){1})) return WF_OK;
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), 2) ema_range(i0, i1, call);
  return WF_OK;
}

WF_KERNEL(swap) {
  const real *a = in(call, 0), *b = in(call, 1);
  real *a1 = out(call, 0), *b1 = out(call, 1);
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[0]), 1) {
    SIMD for (int64_t i = i0; i < i1; i++) {
      real x = a[i], y = b[i];
      a1[i] = y;
      b1[i] = x;
    }
  }
  return WF_OK;
}

#else

#  define FLAT WF_NONDIFF("an update of parameters is not part of the differentiated step")

/* ctl if the op has one, then buffers of one shape and dtype; outputs like `from`. */
static wf_status flat(const wf_call *call, bool ctl, wf_desc *d, int n, const int from[]) {
  const wf_tensor *first = call->in[ctl];
  WF_SHAPE_CHECK(first->dtype == WF_F32 || first->dtype == WF_F64, "optimisers work in f32 or f64, not %s",
                 wf_dtype_name(first->dtype));
  WF_SHAPE_CHECK(!ctl || (call->in[0]->dtype == first->dtype && wf_numel(call->in[0]) == WF_CTL_N),
                 "the control values are [%d] %s", WF_CTL_N, wf_dtype_name(first->dtype));
  for (int i = ctl + 1; i < call->n_in; i++) {
    char a[96], b[96];
    if (!call->in[i]) continue;
    WF_SHAPE_CHECK(wf_same_shape(call->in[i], first) && call->in[i]->dtype == first->dtype,
                   "buffers of one optimiser step differ: %s and %s", wf_shape_text(first, a),
                   wf_shape_text(call->in[i], b));
  }
  for (int i = 0; i < n; i++) wf_desc_like(&d[i], call->in[from[i]]);
  return WF_OK;
}

/* Odd sizes, among them none; every value positive, as second moments are. */
static void sample_flat(wf_sample *s, bool ctl, int n_in) {
  static const int64_t sizes[] = {37, 1, 0};
  int64_t n = sizes[s->index];
  s->n_in = n_in;
  if (ctl) s->in[0] = wf_sample_range(s, WF_SHAPE(WF_CTL_N), 0.1, 0.9);
  for (int i = ctl; i < n_in; i++) s->in[i] = wf_sample_range(s, 1, &n, 0.1, 1.5);
}

WF_CPU(adamw)
WF_CUDA_DECLARE(adamw)

static wf_status infer_adamw(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = 3;
  return flat(call, true, d, 3, (const int[]){1, 3, 4});
}
static wf_status sample_adamw(wf_sample *s) {
  sample_flat(s, true, 5);
  *(wf_adamw_attr *)(void *)s->attr = (wf_adamw_attr){0.9, 0.95, 1e-8, 0.1};
  return WF_OK;
}
const wf_op wf_op_adamw = {
    .name = "adamw",
    .min_in = 5,
    .max_in = 5,
    .n_out = 3,
    .attr_size = sizeof(wf_adamw_attr),
    .infer = infer_adamw,
    FLAT,
    .cpu = &adamw_cpu,
    .cuda = WF_CUDA_FN(adamw),
    .sample = sample_adamw,
    .n_samples = 3,
};

WF_CPU(sgd)
WF_CUDA_DECLARE(sgd)

static wf_status infer_sgd(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = call->n_in == 4 && call->in[3] ? 2 : 1;
  return flat(call, true, d, *n_out, (const int[]){1, 3});
}
static wf_status sample_sgd(wf_sample *s) {
  sample_flat(s, true, s->index == 1 ? 3 : 4);
  *(wf_sgd_attr *)(void *)s->attr = (wf_sgd_attr){0.9, 0.1, s->index == 0};
  return WF_OK;
}
const wf_op wf_op_sgd = {
    .name = "sgd",
    .min_in = 3,
    .max_in = 4,
    .n_out = -1,
    .attr_size = sizeof(wf_sgd_attr),
    .optional = 1u << 3,
    .infer = infer_sgd,
    FLAT,
    .cpu = &sgd_cpu,
    .cuda = WF_CUDA_FN(sgd),
    .sample = sample_sgd,
    .n_samples = 3,
};

WF_CPU(lion)
WF_CUDA_DECLARE(lion)

static wf_status infer_lion(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = 2;
  return flat(call, true, d, 2, (const int[]){1, 3});
}
static wf_status sample_lion(wf_sample *s) {
  sample_flat(s, true, 4);
  *(wf_lion_attr *)(void *)s->attr = (wf_lion_attr){0.9, 0.99, 0.1};
  return WF_OK;
}
const wf_op wf_op_lion = {
    .name = "lion",
    .min_in = 4,
    .max_in = 4,
    .n_out = 2,
    .attr_size = sizeof(wf_lion_attr),
    .infer = infer_lion,
    FLAT,
    .cpu = &lion_cpu,
    .cuda = WF_CUDA_FN(lion),
    .sample = sample_lion,
    .n_samples = 3,
};

WF_CPU(muon_momentum)
WF_CUDA_DECLARE(muon_momentum)

static wf_status infer_muon_momentum(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = 2;
  return flat(call, true, d, 2, (const int[]){1, 2});
}
static wf_status sample_muon_momentum(wf_sample *s) {
  sample_flat(s, true, 3);
  *(wf_muon_attr *)(void *)s->attr = (wf_muon_attr){0.95, s->index == 0};
  return WF_OK;
}
const wf_op wf_op_muon_momentum = {
    .name = "muon_momentum",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .attr_size = sizeof(wf_muon_attr),
    .infer = infer_muon_momentum,
    FLAT,
    .cpu = &muon_momentum_cpu,
    .cuda = WF_CUDA_FN(muon_momentum),
    .sample = sample_muon_momentum,
    .n_samples = 3,
};

WF_CPU(muon_poly)
WF_CUDA_DECLARE(muon_poly)

static wf_status infer_muon_poly(const wf_call *call, wf_desc *d, int *n_out) {
  char text[96];
  *n_out = 1;
  WF_SHAPE_CHECK(call->in[0]->ndim == 2 && call->in[0]->shape[0] == call->in[0]->shape[1],
                 "a square matrix expected, not %s", wf_shape_text(call->in[0], text));
  return flat(call, false, d, 1, (const int[]){0});
}
static wf_status sample_muon_poly(wf_sample *s) {
  int64_t n = 5 - 2 * s->index;
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(n, n));
  s->in[1] = wf_sample_real(s, WF_SHAPE(n, n));
  *(wf_muon_poly_attr *)(void *)s->attr = (wf_muon_poly_attr){3.4445, -4.7750, 2.0315};
  return WF_OK;
}
const wf_op wf_op_muon_poly = {
    .name = "muon_poly",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(wf_muon_poly_attr),
    .infer = infer_muon_poly,
    FLAT,
    .cpu = &muon_poly_cpu,
    .cuda = WF_CUDA_FN(muon_poly),
    .sample = sample_muon_poly,
    .n_samples = 2,
};

WF_CPU(muon_apply)
WF_CUDA_DECLARE(muon_apply)

static wf_status infer_first(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = 1;
  return flat(call, true, d, 1, (const int[]){1});
}
static wf_status sample_muon_apply(wf_sample *s) {
  sample_flat(s, true, 3);
  *(wf_muon_apply_attr *)(void *)s->attr = (wf_muon_apply_attr){0.1, 1.5};
  return WF_OK;
}
const wf_op wf_op_muon_apply = {
    .name = "muon_apply",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .attr_size = sizeof(wf_muon_apply_attr),
    .infer = infer_first,
    FLAT,
    .cpu = &muon_apply_cpu,
    .cuda = WF_CUDA_FN(muon_apply),
    .sample = sample_muon_apply,
    .n_samples = 3,
};

WF_CPU(ema)
WF_CUDA_DECLARE(ema)

static wf_status sample_ema(wf_sample *s) {
  sample_flat(s, true, 3);
  return WF_OK;
}
const wf_op wf_op_ema = {
    .name = "ema",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .infer = infer_first,
    FLAT,
    .cpu = &ema_cpu,
    .cuda = WF_CUDA_FN(ema),
    .sample = sample_ema,
    .n_samples = 3,
};

WF_CPU(swap)
WF_CUDA_DECLARE(swap)

static wf_status infer_swap(const wf_call *call, wf_desc *d, int *n_out) {
  *n_out = 2;
  return flat(call, false, d, 2, (const int[]){1, 0});
}
static wf_status sample_swap(wf_sample *s) {
  sample_flat(s, false, 2);
  return WF_OK;
}
const wf_op wf_op_swap = {
    .name = "swap",
    .min_in = 2,
    .max_in = 2,
    .n_out = 2,
    .infer = infer_swap,
    FLAT,
    .cpu = &swap_cpu,
    .cuda = WF_CUDA_FN(swap),
    .sample = sample_swap,
    .n_samples = 3,
};

#endif
