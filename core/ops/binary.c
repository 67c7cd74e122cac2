/* binary: add, sub, mul, div with numpy's broadcasting. Gradients have the output's shape; the engine sums
 * them to an input's shape. */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include "core/ops/lines_impl.h"

/* Plain loops for the strides that matter: both dense, or one of them a repeated number. */
#  define BINARY(name, OP)                                                                                 \
    static void line_##name(int64_t n, real *const *p, const int64_t *s, uint32_t add, const void *attr) { \
      (void)attr;                                                                                          \
      real *y = p[0];                                                                                      \
      const real *a = p[1], *b = p[2];                                                                     \
      int64_t ys = s[0], as = s[1], bs = s[2];                                                             \
      if (ys == 1 && as == 1 && bs == 1) {                                                                 \
        WF_EACH(n, add, y, 1, a[i] OP b[i]);                                                               \
      } else if (ys == 1 && as == 1 && bs == 0) {                                                          \
        real b0 = *b;                                                                                      \
        WF_EACH(n, add, y, 1, a[i] OP b0);                                                                 \
      } else if (ys == 1 && as == 0 && bs == 1) {                                                          \
        real a0 = *a;                                                                                      \
        WF_EACH(n, add, y, 1, a0 OP b[i]);                                                                 \
      } else {                                                                                             \
        WF_EACH(n, add, y, ys, a[i * as] OP b[i * bs]);                                                    \
      }                                                                                                    \
    }                                                                                                      \
    WF_KERNEL(name) {                                                                                      \
      wf_lines_run(3, (const wf_tensor *const[]){call->out[0], call->in[0], call->in[1]}, line_##name, 1,  \
                   call->add, NULL);                                                                       \
      return WF_OK;                                                                                        \
    }

BINARY(add, +)
BINARY(sub, -)
BINARY(mul, *)
BINARY(div, /)

#else

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 3));
  const wf_tensor *a = call->in[0], *b = call->in[1];
  char ta[96], tb[96];
  wf_desc_like(&out[0], a->ndim >= b->ndim ? a : b);
  for (int d = 1; d <= out[0].ndim; d++) {
    int64_t x = d > a->ndim ? 1 : a->shape[a->ndim - d], y = d > b->ndim ? 1 : b->shape[b->ndim - d];
    WF_SHAPE_CHECK(x == y || x == 1 || y == 1, "%s and %s do not broadcast", wf_shape_text(a, ta),
                   wf_shape_text(b, tb));
    out[0].shape[out[0].ndim - d] = x == 1 ? y : x;
  }
  return WF_OK;
}

static wf_status sample(wf_sample *s) {
  static const int64_t sa[][3] = {{3, 4, 5}, {3, 4, 5}, {3, 1, 5}, {2, 0, 5}, {3, 4, 5}};
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, 3, sa[s->index]);
  switch (s->index) { /* divisors stay away from 0 */
  case 0: s->in[1] = wf_sample_range(s, WF_SHAPE(3, 4, 5), 0.5, 2); break;
  case 1: s->in[1] = wf_sample_range(s, WF_SHAPE(5), 0.5, 2); break;
  case 2: s->in[1] = wf_sample_range(s, WF_SHAPE(4, 1), 0.5, 2); break;
  case 3: s->in[1] = wf_sample_range(s, WF_SHAPE(1, 5), 0.5, 2); break;
  default: /* a transposed right side */
    s->in[1] = wf_sample_range(s, WF_SHAPE(5, 4, 3), 0.5, 2);
    s->in[1] = wf_view_raw(s->in[1], 3, sa[4], (int64_t[]){1, 3, 12}, 0);
  }
  return WF_OK;
}

static wf_status run2(const wf_vjp *g, const wf_op *op, wf_tensor *a, wf_tensor *b, int i) {
  return wf_op_run(g->ctx, op, 2, (wf_tensor *[]){a, b}, NULL, 1, &g->din[i], g->add >> i & 1);
}

static wf_status run_affine(wf_ctx *c, wf_tensor *x, double mul, wf_tensor *y, bool add) {
  return wf_op_run(c, &wf_op_affine, 1, &x, (double[]){mul, 0}, 1, &y, add);
}

static wf_tensor *both_alias(const wf_vjp *g, int i) {
  (void)i;
  return g->dout[0];
}
static wf_tensor *first_alias(const wf_vjp *g, int i) {
  return i == 0 ? g->dout[0] : NULL;
}

static wf_status add_vjp(const wf_vjp *g) {
  for (int i = 0; i < 2; i++)
    if (g->din[i]) WF_TRY(wf_copy_into(g->ctx, g->dout[0], g->din[i], g->add >> i & 1));
  return WF_OK;
}
static wf_status sub_vjp(const wf_vjp *g) {
  if (g->din[0]) WF_TRY(wf_copy_into(g->ctx, g->dout[0], g->din[0], g->add & 1));
  return g->din[1] ? run_affine(g->ctx, g->dout[0], -1, g->din[1], g->add >> 1 & 1) : WF_OK;
}
static wf_status mul_vjp(const wf_vjp *g) {
  if (g->din[0]) WF_TRY(run2(g, &wf_op_mul, g->dout[0], g->in[1], 0));
  return g->din[1] ? run2(g, &wf_op_mul, g->dout[0], g->in[0], 1) : WF_OK;
}
/* da = dy / b, db = -dy y / b */
static wf_status div_vjp(const wf_vjp *g) {
  if (g->din[0]) WF_TRY(run2(g, &wf_op_div, g->dout[0], g->in[1], 0));
  if (!g->din[1]) return WF_OK;
  wf_ctx *c = g->ctx;
  wf_scope s = wf_scope_open(c);
  wf_tensor *t = wf_empty_like(c, "activation", g->din[1]);
  wf_status st = wf_op_run(c, &wf_op_mul, 2, (wf_tensor *[]){g->dout[0], g->out[0]}, NULL, 1, &t, 0);
  if (st == WF_OK) st = run_affine(c, t, -1, t, false);
  if (st == WF_OK) st = run2(g, &wf_op_div, t, g->in[1], 1);
  wf_scope_close(c, s);
  return st;
}

#  define BINARY(op, in_saved, out_saved, alias)                                \
    WF_CPU(op)                                                                  \
    WF_CUDA_DECLARE(op)                                                         \
    const wf_op wf_op_##op = {                                                  \
        .name = #op,                                                            \
        .min_in = 2,                                                            \
        .max_in = 2,                                                            \
        .n_out = 1,                                                             \
        .flags = WF_OP_BROADCAST,                                               \
        .strided = 3,                                                           \
        .adds = 1,                                                              \
        .save_in = in_saved,                                                    \
        .save_out = out_saved,                                                  \
        .vjp_adds = 3,                                                          \
        .infer = infer,                                                         \
        .vjp = op##_vjp,                                                        \
        .vjp_alias = alias,                                                     \
        .cpu = &op##_cpu,                                                       \
        .cuda = WF_CUDA_FN(op),                                                 \
        .sample = sample,                                                       \
        .n_samples = 5,                                                         \
    };                                                                          \
    wf_tensor *wf_##op(wf_ctx *c, wf_tensor *a, wf_tensor *b) {                 \
      return wf_op_apply(c, &wf_op_##op, 2, (wf_tensor *[]){a, b}, NULL, NULL); \
    }

BINARY(add, 0, 0, both_alias)
BINARY(sub, 0, 0, first_alias)
BINARY(mul, 3, 0, NULL)
BINARY(div, 2, 1, NULL)

#endif
