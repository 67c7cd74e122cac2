/* glu: act(gate) . up in one pass, and its gradient in another; the activation is computed again there. */
#include "core/ops/ops_impl.h"
#include "core/ops/unary_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

/* act(g) and its derivative, by kind */
#  define KINDS(X)                                                             \
    X(SWI, g *WF_UNARY_SIGMOID(g), WF_UNARY_SILU_GRAD(g, WF_UNARY_SIGMOID(g))) \
    X(GE, WF_UNARY_GELU(g), WF_UNARY_GELU_GRAD(g))                             \
    X(SIGMOID, WF_UNARY_SIGMOID(g), WF_UNARY_SIGMOID(g) * (R(1.0) - WF_UNARY_SIGMOID(g)))

#  define GLU(kind, value, derivative)                                                                     \
    static inline real value_##kind(real g) {                                                              \
      return value;                                                                                        \
    }                                                                                                      \
    static inline real derivative_##kind(real g) {                                                         \
      return derivative;                                                                                   \
    }                                                                                                      \
    static void line_##kind(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr) { \
      (void)s, (void)attr;                                                                                 \
      real *y = p[0];                                                                                      \
      const real *gate = p[1], *up = p[2];                                                                 \
      WF_EACH(n, add, y, 1, value_##kind(gate[i]) * up[i]);                                                \
    }                                                                                                      \
    static void grad_##kind(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr) { \
      (void)s, (void)attr;                                                                                 \
      real *dg = p[0], *du = p[1];                                                                         \
      const real *dy = p[2], *gate = p[3], *up = p[4];                                                     \
      real keep_g = add & 1 ? R(1.0) : R(0.0), keep_u = add & 2 ? R(1.0) : R(0.0);                         \
      if (add) {                                                                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                              \
          real a = dy[i] * up[i] * derivative_##kind(gate[i]), b = dy[i] * value_##kind(gate[i]);          \
          dg[i] = (keep_g != R(0.0) ? dg[i] : R(0.0)) + a;                                                 \
          du[i] = (keep_u != R(0.0) ? du[i] : R(0.0)) + b;                                                 \
        }                                                                                                  \
        return;                                                                                            \
      }                                                                                                    \
      _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                \
        real a = dy[i] * up[i] * derivative_##kind(gate[i]), b = dy[i] * value_##kind(gate[i]);            \
        dg[i] = a;                                                                                         \
        du[i] = b;                                                                                         \
      }                                                                                                    \
    }

KINDS(GLU)

static const wf_line_fn line[] = {line_SWI, line_GE, line_SIGMOID},
                        grad[] = {grad_SWI, grad_GE, grad_SIGMOID};

WF_KERNEL(glu) {
  wf_lines_run(3, (const wf_tensor *const[]){call->out[0], call->in[0], call->in[1]},
               line[*(const int32_t *)call->attr], 6, call->add, NULL);
  return WF_OK;
}

WF_KERNEL(glu_grad) {
  const wf_tensor *const t[] = {call->out[0], call->out[1], call->in[0], call->in[1], call->in[2]};
  wf_lines_run(5, t, grad[*(const int32_t *)call->attr], 10, call->add, NULL);
  return WF_OK;
}

#else

WF_CPU(glu)
WF_CUDA_DECLARE(glu)
WF_CPU(glu_grad)
WF_CUDA_DECLARE(glu_grad)

/* attr: i32 wf_glu_kind. glu: (gate, up) -> y. glu_grad: (dy, gate, up) -> (dgate, dup). */
static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 7));
  int32_t kind = *(const int32_t *)call->attr;
  WF_SHAPE_CHECK(kind >= WF_GLU_SWI && kind <= WF_GLU_SIGMOID, "no gated activation %d", kind);
  char a[96], b[96];
  for (int i = 1; i < call->n_in; i++)
    WF_SHAPE_CHECK(wf_same_shape(call->in[0], call->in[i]), "gate and up differ: %s and %s",
                   wf_shape_text(call->in[0], a), wf_shape_text(call->in[i], b));
  for (int i = 0; i < call->n_in - 1; i++) wf_desc_like(&out[i], call->in[0]);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  wf_ctx *c = g->ctx;
  wf_scope s = wf_scope_open(c);
  wf_tensor *in[3] = {g->dout[0], g->in[0], g->in[1]}, *out[2] = {g->din[0], g->din[1]};
  for (int i = 0; i < 2; i++)
    if (!out[i]) out[i] = wf_empty_like(c, "activation", g->in[i]);
  wf_status st = wf_op_run(c, &wf_op_glu_grad, 3, in, g->attr, 2, out, g->add);
  wf_scope_close(c, s);
  return st;
}

/* Index: kind, contiguous or (from 3 on) column slices of one buffer; then empty. */
static wf_status some(wf_sample *s, int n) {
  *(int32_t *)(void *)s->attr = s->index % 3;
  s->n_in = n;
  int64_t rows = s->index == 6 ? 0 : 3;
  if (s->index < 3) {
    for (int i = 0; i < n; i++) s->in[i] = wf_sample_real(s, WF_SHAPE(rows, 7));
    return WF_OK;
  }
  wf_tensor *all = wf_sample_range(s, WF_SHAPE(rows, 16), -3, 3);
  if (n == 3) s->in[0] = wf_sample_real(s, WF_SHAPE(rows, 7));
  for (int i = 0; i < 2; i++)
    s->in[n - 2 + i] = wf_view_raw(all, 2, (int64_t[]){rows, 7}, (int64_t[]){16, 1}, 8 * i);
  return WF_OK;
}
static wf_status sample(wf_sample *s) {
  return some(s, 2);
}
static wf_status grad_sample(wf_sample *s) {
  return some(s, 3);
}

const wf_op wf_op_glu = {
    .name = "glu",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(int32_t),
    .rowmajor = 3,
    .adds = 1,
    .save_in = 3,
    .vjp_adds = 3,
    .infer = infer,
    .vjp = vjp,
    .cpu = &glu_cpu,
    .cuda = WF_CUDA_FN(glu),
    .sample = sample,
    .n_samples = 7,
};

const wf_op wf_op_glu_grad = {
    .name = "glu_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .attr_size = sizeof(int32_t),
    .rowmajor = 7,
    .adds = 3,
    .infer = infer,
    WF_NONDIFF("gradient of glu; first order only"),
    .cpu = &glu_grad_cpu,
    .cuda = WF_CUDA_FN(glu_grad),
    .sample = grad_sample,
    .n_samples = 7,
};

wf_tensor *wf_glu(wf_ctx *c, wf_glu_kind kind, wf_tensor *gate, wf_tensor *up) {
  int32_t attr = (int32_t)kind;
  return wf_op_apply(c, &wf_op_glu, 2, (wf_tensor *[]){gate, up}, &attr, NULL);
}

#endif
