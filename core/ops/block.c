/* block_linear: a projection by a block-diagonal weight of small blocks,
 *     y[n, b, o] = sum_i W[b, o, i] x[n, b, i],
 * such as the 4 x 4 blocks of xLSTM's queries, keys and values. Blocks this small are no work for BLAS: the
 * weight is laid out once so that a token's outputs are its inputs times vectors. Backward: dx by the turned
 * blocks, dW summed over fixed parts of the tokens.
 */
#include "core/ops/ops_impl.h"

typedef struct block_attr {
  int32_t turned; /* multiply by W[b]^T */
} block_attr;

#ifdef WF_KERNEL_PASS
#  include <string.h>
#  include "core/ops/lines_impl.h"

/* to[i][b s + o] = W[b][o][i], or W[b][i][o] where turned. */
static void lay_out(int64_t blocks, int64_t s, const real *w, bool turned, real *to) {
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t o = 0; o < s; o++)
      for (int64_t i = 0; i < s; i++)
        to[i * blocks * s + b * s + o] = turned ? w[(b * s + i) * s + o] : w[(b * s + o) * s + i];
}

/* y += x times the laid-out weight; `s` is a constant once inlined. */
static inline __attribute__((always_inline)) void token(const int64_t s, int64_t blocks, const real *w,
                                                        const real *x, real *restrict y) {
  for (int64_t i = 0; i < s; i++)
    for (int64_t b = 0; b < blocks; b++) {
      real v = x[b * s + i];
      const real *column = w + (i * blocks + b) * s;
      for (int64_t o = 0; o < s; o++) y[b * s + o] += column[o] * v;
    }
}

WF_KERNEL(block_linear) {
  const wf_tensor *x = call->in[0], *w = call->in[1];
  const real *from = wf_data(x);
  real *y = wf_data(call->out[0]);
  int64_t n = x->shape[0], blocks = w->shape[0], s = w->shape[1], width = blocks * s;
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  size_t bytes = (size_t)(width * s) * sizeof(real);
  WF_TRY(wf_device_alloc(dev, "scratch", bytes, &work));
  lay_out(blocks, s, wf_data(w), ((const block_attr *)call->attr)->turned, work);
  bool add = call->add & 1;
  WF_PARALLEL_FOR(t0, t1, n, width * s / 4 + 1) {
    for (int64_t t = t0; t < t1; t++) {
      if (!add) memset(y + t * width, 0, (size_t)width * sizeof *y);
      if (s == 4)
        token(4, blocks, work, from + wf_row_at(x, t), y + t * width);
      else
        token(s, blocks, work, from + wf_row_at(x, t), y + t * width);
    }
  }
  wf_device_free(dev, "scratch", work, bytes);
  return WF_OK;
}

static inline __attribute__((always_inline)) void outer(const int64_t s, int64_t blocks, const real *dy,
                                                        const real *x, real *restrict dw) {
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t o = 0; o < s; o++)
      for (int64_t i = 0; i < s; i++) dw[(b * s + o) * s + i] += dy[b * s + o] * x[b * s + i];
}

WF_KERNEL(block_linear_dw) {
  const wf_tensor *dy = call->in[0], *x = call->in[1], *dw = call->out[0];
  const real *g = wf_data(dy), *from = wf_data(x);
  int64_t n = x->shape[0], blocks = dw->shape[0], s = dw->shape[1], size = blocks * s * s;
  int parts = wf_threads_for(n, size / 4 + 1);
  wf_device *dev = wf_ctx_device(call->ctx);
  void *work;
  size_t bytes = (size_t)(size * parts) * sizeof(real);
  WF_TRY(wf_device_alloc(dev, "scratch", bytes, &work));
  real *sum = work, *to = wf_data(dw);
  WF_PRAGMA(omp parallel for num_threads(parts) schedule(static, 1))
  for (int part = 0; part < parts; part++) {
    real *mine = sum + part * size;
    memset(mine, 0, (size_t)size * sizeof *mine);
    for (int64_t t = wf_range_begin(n, part, parts); t < wf_range_begin(n, part + 1, parts); t++) {
      if (s == 4)
        outer(4, blocks, g + wf_row_at(dy, t), from + wf_row_at(x, t), mine);
      else
        outer(s, blocks, g + wf_row_at(dy, t), from + wf_row_at(x, t), mine);
    }
  }
  for (int64_t i = 0; i < size; i++) {
    real v = call->add & 1 ? to[i] : 0;
    for (int part = 0; part < parts; part++) v += sum[part * size + i];
    to[i] = v;
  }
  wf_device_free(dev, "scratch", work, bytes);
  return WF_OK;
}

#else

WF_CPU(block_linear)
WF_CPU(block_linear_dw)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 3));
  const wf_tensor *x = call->in[0], *w = call->in[1];
  char a[96], b[96];
  WF_SHAPE_CHECK(x->ndim == 2 && w->ndim == 3 && w->shape[1] == w->shape[2] &&
                     x->shape[1] == w->shape[0] * w->shape[1],
                 "block_linear: x %s, blocks %s; [n, b s] and [b, s, s] expected", wf_shape_text(x, a),
                 wf_shape_text(w, b));
  wf_desc_like(&out[0], x);
  return WF_OK;
}

static wf_status dw_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 3));
  const wf_tensor *dy = call->in[0], *x = call->in[1];
  int64_t s = *(const int64_t *)call->attr;
  WF_SHAPE_CHECK(wf_same_shape(dy, x) && x->ndim == 2 && s > 0 && x->shape[1] % s == 0,
                 "block_linear_dw: blocks of %lld", (long long)s);
  wf_desc_set(&out[0], x->dtype, 3, (int64_t[]){x->shape[1] / s, s, s});
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  block_attr turned = {!((const block_attr *)g->attr)->turned};
  if (g->din[0])
    WF_TRY(wf_op_run(g->ctx, &wf_op_block_linear, 2, (wf_tensor *[]){g->dout[0], g->in[1]}, &turned, 1,
                     &g->din[0], g->add & 1));
  if (!g->din[1]) return WF_OK;
  wf_tensor *in[] = {g->dout[0], g->in[0]};
  if (!turned.turned) in[0] = g->in[0], in[1] = g->dout[0];
  return wf_op_run(g->ctx, &wf_op_block_linear_dw, 2, in, &g->in[1]->shape[1], 1, &g->din[1],
                   g->add >> 1 & 1);
}

/* Blocks of 4 and of 3, turned; columns of a wider buffer; empty. */
static wf_status sample(wf_sample *s) {
  int64_t size = s->index == 1 ? 3 : 4, n = s->index == 3 ? 0 : 5;
  *(block_attr *)(void *)s->attr = (block_attr){s->index == 1};
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(n, 2 * size));
  if (s->index == 2)
    s->in[0] = wf_view_raw(wf_sample_real(s, WF_SHAPE(n, 11)), 2, (int64_t[]){n, 8}, (int64_t[]){11, 1}, 2);
  s->in[1] = wf_sample_real(s, WF_SHAPE(2, size, size));
  return WF_OK;
}
static wf_status dw_sample(wf_sample *s) {
  WF_TRY(sample(s));
  *(int64_t *)(void *)s->attr = s->in[1]->shape[1];
  s->in[1] = wf_sample_real(s, 2, s->in[0]->shape);
  return WF_OK;
}

const wf_op wf_op_block_linear = {
    .name = "block_linear",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(block_attr),
    .rowmajor = 1,
    .adds = 1,
    .save_in = 3,
    .vjp_adds = 3,
    .infer = infer,
    .vjp = vjp,
    .cpu = &block_linear_cpu,
    .sample = sample,
    .n_samples = 4,
};

const wf_op wf_op_block_linear_dw = {
    .name = "block_linear_dw",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(int64_t),
    .rowmajor = 3,
    .adds = 1,
    .infer = dw_infer,
    WF_NONDIFF("gradient of block_linear; first order only"),
    .cpu = &block_linear_dw_cpu,
    .sample = dw_sample,
    .n_samples = 4,
};

wf_tensor *wf_block_linear(wf_ctx *c, wf_tensor *x, wf_tensor *w) {
  return wf_op_apply(c, &wf_op_block_linear, 2, (wf_tensor *[]){x, w}, &(block_attr){0}, NULL);
}

#endif
