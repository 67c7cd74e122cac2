/* unary: elementwise functions of one tensor, from the formulas in unary_impl.h. Each has an op for its
 * gradient, <name>_grad(dy, saved), where saved is the function's input or output; where that is
 * differentiated in turn, <name>_curve(u, dy, x) is its gradient by x. */
#include "core/ops/ops_impl.h"
#include "core/ops/unary_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

static void line_affine(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr) {
  const double *m = attr;
  real *y = p[0], mul = (real)m[0], plus = (real)m[1];
  const real *x = p[1];
  int64_t ys = s[0], xs = s[1];
  if (ys == 1 && xs == 1)
    WF_EACH(n, add, y, 1, mul * x[i] + plus);
  else
    WF_EACH(n, add, y, ys, mul * x[i * xs] + plus);
}

WF_KERNEL(affine) {
  wf_lines_run(2, (const wf_tensor *const[]){call->out[0], call->in[0]}, line_affine, 1, call->add,
               call->attr);
  return WF_OK;
}

#  define UNARY(name, saved, order, value, gradient, lo, hi)                                               \
    static inline real value_##name(real x) {                                                              \
      return value;                                                                                        \
    }                                                                                                      \
    static inline real grad_##name(real dy, real s) {                                                      \
      return gradient;                                                                                     \
    }                                                                                                      \
    static void line_##name(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr) { \
      (void)attr;                                                                                          \
      real *y = p[0];                                                                                      \
      const real *x = p[1];                                                                                \
      int64_t ys = s[0], xs = s[1];                                                                        \
      if (ys == 1 && xs == 1)                                                                              \
        WF_EACH(n, add, y, 1, value_##name(x[i]));                                                         \
      else                                                                                                 \
        WF_EACH(n, add, y, ys, value_##name(x[i * xs]));                                                   \
    }                                                                                                      \
    static void line_##name##_grad(int64_t n, real *const *p, const int64_t *s, uint32_t add,              \
                                   const void *attr) {                                                     \
      (void)attr;                                                                                          \
      real *dx = p[0];                                                                                     \
      const real *dy = p[1], *v = p[2];                                                                    \
      int64_t ds = s[0], gs = s[1], vs = s[2];                                                             \
      if (ds == 1 && gs == 1 && vs == 1)                                                                   \
        WF_EACH(n, add, dx, 1, grad_##name(dy[i], v[i]));                                                  \
      else                                                                                                 \
        WF_EACH(n, add, dx, ds, grad_##name(dy[i * gs], v[i * vs]));                                       \
    }                                                                                                      \
    WF_KERNEL(name) {                                                                                      \
      wf_lines_run(2, (const wf_tensor *const[]){call->out[0], call->in[0]}, line_##name, 4, call->add,    \
                   NULL);                                                                                  \
      return WF_OK;                                                                                        \
    }                                                                                                      \
    WF_KERNEL(name##_grad) {                                                                               \
      wf_lines_run(3, (const wf_tensor *const[]){call->out[0], call->in[0], call->in[1]},                  \
                   line_##name##_grad, 4, call->add, NULL);                                                \
      return WF_OK;                                                                                        \
    }

WF_UNARY_OPS(UNARY)

#  define CURVE(name, curvature)                                                                       \
    static inline real curve_##name(real u, real dy, real s) {                                         \
      return curvature;                                                                                \
    }                                                                                                  \
    static void line_##name##_curve(int64_t n, real *const *p, const int64_t *s, uint32_t add,         \
                                    const void *attr) {                                                \
      (void)attr;                                                                                      \
      real *to = p[0];                                                                                 \
      const real *u = p[1], *dy = p[2], *x = p[3];                                                     \
      if (s[0] == 1 && s[1] == 1 && s[2] == 1 && s[3] == 1)                                            \
        WF_EACH(n, add, to, 1, curve_##name(u[i], dy[i], x[i]));                                       \
      else                                                                                             \
        WF_EACH(n, add, to, s[0], curve_##name(u[i * s[1]], dy[i * s[2]], x[i * s[3]]));               \
    }                                                                                                  \
    WF_KERNEL(name##_curve) {                                                                          \
      wf_lines_run(4, (const wf_tensor *const[]){call->out[0], call->in[0], call->in[1], call->in[2]}, \
                   line_##name##_curve, 8, call->add, NULL);                                           \
      return WF_OK;                                                                                    \
    }

WF_UNARY_TWICE_OPS(CURVE)

#else

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 7));
  char a[96], b[96];
  for (int i = 1; i < call->n_in; i++)
    WF_SHAPE_CHECK(wf_same_shape(call->in[0], call->in[i]), "%s and %s differ", wf_shape_text(call->in[0], a),
                   wf_shape_text(call->in[i], b));
  wf_desc_like(&out[0], call->in[0]);
  return WF_OK;
}

/* Contiguous, empty, a column slice, a scalar; odd sizes. */
static wf_tensor *sample_input(wf_sample *s, double lo, double hi) {
  switch (s->index) {
  case 0: return wf_sample_range(s, WF_SHAPE(3, 7), lo, hi);
  case 1: return wf_sample_range(s, WF_SHAPE(0, 7), lo, hi);
  case 2:
    return wf_view_raw(wf_sample_range(s, WF_SHAPE(5, 9), lo, hi), 2, (int64_t[]){5, 3}, (int64_t[]){9, 1},
                       4);
  default: return wf_sample_range(s, 0, NULL, lo, hi);
  }
}

/* ---- affine: attr {mul, add} ---- */

WF_CPU(affine)
WF_CUDA_DECLARE(affine)

static wf_status affine_vjp(const wf_vjp *g) {
  return wf_op_run(g->ctx, &wf_op_affine, 1, &g->dout[0], (double[]){((const double *)g->attr)[0], 0}, 1,
                   &g->din[0], g->add);
}
static wf_tensor *affine_alias(const wf_vjp *g, int i) {
  (void)i;
  return ((const double *)g->attr)[0] == 1 ? g->dout[0] : NULL;
}
static wf_status affine_sample(wf_sample *s) {
  double *m = (double *)(void *)s->attr;
  m[0] = -0.75;
  m[1] = 0.5;
  s->n_in = 1;
  s->in[0] = sample_input(s, -1.5, 1.5);
  return WF_OK;
}

const wf_op wf_op_affine = {
    .name = "affine",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attr_size = 2 * sizeof(double),
    .strided = 1,
    .adds = 1,
    .vjp_adds = 1,
    .infer = infer,
    .vjp = affine_vjp,
    .vjp_alias = affine_alias,
    .cpu = &affine_cpu,
    .cuda = WF_CUDA_FN(affine),
    .sample = affine_sample,
    .n_samples = 4,
};

wf_tensor *wf_affine(wf_ctx *c, wf_tensor *x, double mul, double add) {
  return wf_op_apply(c, &wf_op_affine, 1, &x, (double[]){mul, add}, NULL);
}

/* ---- the others ---- */

enum { IN, OUT };

#  define CURVE(op, curvature)                                                                              \
    WF_CPU(op##_curve)                                                                                      \
    WF_CUDA_DECLARE(op##_curve)                                                                             \
    static wf_status op##_curve_sample(wf_sample *s) {                                                      \
      s->n_in = 3;                                                                                          \
      for (int i = 0; i < 3; i++) s->in[i] = sample_input(s, -2, 2);                                        \
      return WF_OK;                                                                                         \
    }                                                                                                       \
    const wf_op wf_op_##op##_curve = {                                                                      \
        .name = #op "_curve",                                                                               \
        .min_in = 3,                                                                                        \
        .max_in = 3,                                                                                        \
        .n_out = 1,                                                                                         \
        .strided = 7,                                                                                       \
        .adds = 1,                                                                                          \
        .infer = infer,                                                                                     \
        WF_NONDIFF("gradient of " #op "_grad; second order only"),                                          \
        .cpu = &op##_curve_cpu,                                                                             \
        .cuda = WF_CUDA_FN(op##_curve),                                                                     \
        .sample = op##_curve_sample,                                                                        \
        .n_samples = 4,                                                                                     \
    };                                                                                                      \
    static wf_status op##_grad_vjp(const wf_vjp *g) {                                                       \
      wf_tensor *in[3] = {g->dout[0], g->in[0], g->in[1]};                                                  \
      if (g->din[0])                                                                                        \
        WF_TRY(wf_op_run(g->ctx, &wf_op_##op##_grad, 2, (wf_tensor *[]){in[0], in[2]}, NULL, 1, &g->din[0], \
                         g->add & 1));                                                                      \
      if (!g->din[1]) return WF_OK;                                                                         \
      return wf_op_run(g->ctx, &wf_op_##op##_curve, 3, in, NULL, 1, &g->din[1], g->add >> 1 & 1);           \
    }                                                                                                       \
    wf_tensor *wf_##op##_grad(wf_ctx *c, wf_tensor *dy, wf_tensor *x) {                                     \
      return wf_op_apply(c, &wf_op_##op##_grad, 2, (wf_tensor *[]){dy, x}, NULL, NULL);                     \
    }

WF_UNARY_TWICE_OPS(CURVE)

#  define ONCE(op)  WF_NONDIFF("gradient of " #  op "; first order only")
#  define TWICE(op) .save_in = 3, .vjp_adds = 3, .vjp = op##_grad_vjp
#  define UNARY(op, saved, order, value, gradient, lo, hi)                              \
    WF_CPU(op)                                                                          \
    WF_CUDA_DECLARE(op)                                                                 \
    WF_CPU(op##_grad)                                                                   \
    WF_CUDA_DECLARE(op##_grad)                                                          \
    static wf_status op##_sample(wf_sample *s) {                                        \
      s->n_in = 1;                                                                      \
      s->in[0] = sample_input(s, lo, hi);                                               \
      return WF_OK;                                                                     \
    }                                                                                   \
    static wf_status op##_grad_sample(wf_sample *s) {                                   \
      s->n_in = 2;                                                                      \
      s->in[0] = sample_input(s, -1, 1);                                                \
      s->in[1] = sample_input(s, saved == IN ? lo : 0.1, saved == IN ? hi : 0.9);       \
      return WF_OK;                                                                     \
    }                                                                                   \
    static wf_status op##_vjp(const wf_vjp *g) {                                        \
      wf_tensor *in[2] = {g->dout[0], saved == IN ? g->in[0] : g->out[0]};              \
      return wf_op_run(g->ctx, &wf_op_##op##_grad, 2, in, NULL, 1, &g->din[0], g->add); \
    }                                                                                   \
    const wf_op wf_op_##op = {                                                          \
        .name = #op,                                                                    \
        .min_in = 1,                                                                    \
        .max_in = 1,                                                                    \
        .n_out = 1,                                                                     \
        .strided = 1,                                                                   \
        .adds = 1,                                                                      \
        .save_in = saved == IN,                                                         \
        .save_out = saved == OUT,                                                       \
        .vjp_adds = 1,                                                                  \
        .infer = infer,                                                                 \
        .vjp = op##_vjp,                                                                \
        .cpu = &op##_cpu,                                                               \
        .cuda = WF_CUDA_FN(op),                                                         \
        .sample = op##_sample,                                                          \
        .n_samples = 4,                                                                 \
    };                                                                                  \
    const wf_op wf_op_##op##_grad = {                                                   \
        .name = #op "_grad",                                                            \
        .min_in = 2,                                                                    \
        .max_in = 2,                                                                    \
        .n_out = 1,                                                                     \
        .strided = 3,                                                                   \
        .adds = 1,                                                                      \
        .infer = infer,                                                                 \
        order(op),                                                                      \
        .cpu = &op##_grad_cpu,                                                          \
        .cuda = WF_CUDA_FN(op##_grad),                                                  \
        .sample = op##_grad_sample,                                                     \
        .n_samples = 4,                                                                 \
    };                                                                                  \
    wf_tensor *wf_##op(wf_ctx *c, wf_tensor *x) {                                       \
      return wf_op_apply(c, &wf_op_##op, 1, &x, NULL, NULL);                            \
    }

WF_UNARY_OPS(UNARY)

#endif
