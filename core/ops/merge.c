/* merge: attention over keys in parts. With the outputs o_b of the parts and their log-sum-exps l_b,
 *     w = softmax over b of l;  y = sum_b w_b o_b;  do_b = w_b dy;  dl_b = w_b (<dy, o_b> - <dy, y>)
 * A part that saw no key has l = -inf and counts nothing; where all are, y = 0.
 *
 * merge_pair takes parts one at a time, as they come: into (o, l) of all so far goes the next one,
 *     o <- o - sigmoid(l_b - l) (o - o_b);  l <- l - logsigmoid(l - l_b)
 */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS

enum { MOST = 64 }; /* parts */

/* The weights of element i's parts, n of them `step` apart. */
static inline void weights(int64_t n, const real *l, int64_t step, real *w) {
  real most = -(real)INFINITY, sum = 0;
  for (int64_t b = 0; b < n; b++) most = l[b * step] > most ? l[b * step] : most;
  for (int64_t b = 0; b < n; b++) {
    w[b] = most > -(real)INFINITY ? r_exp(l[b * step] - most) : 0;
    sum += w[b];
  }
  for (int64_t b = 0; b < n && sum > 0; b++) w[b] /= sum;
}

WF_KERNEL(merge) {
  const wf_tensor *part = call->in[0];
  const real *o = wf_data(part), *l = wf_data(call->in[1]);
  real *y = wf_data(call->out[0]);
  int64_t parts = part->shape[0], n = part->shape[1], d = part->shape[2];
  WF_PARALLEL_FOR(i0, i1, n, parts * (d + 8)) {
    real w[MOST];
    for (int64_t i = i0; i < i1; i++) {
      real *to = y + i * d;
      weights(parts, l + i, n, w);
      for (int64_t c = 0; c < d; c++) to[c] = 0;
      for (int64_t b = 0; b < parts; b++)
        for (int64_t c = 0; c < d; c++) to[c] += w[b] * o[(b * n + i) * d + c];
    }
  }
  return WF_OK;
}

WF_KERNEL(merge_grad) {
  const wf_tensor *part = call->in[0];
  const real *o = wf_data(part), *l = wf_data(call->in[1]), *dy = wf_data(call->in[2]);
  real *to = wf_data(call->out[0]), *dl = wf_data(call->out[1]);
  int64_t parts = part->shape[0], n = part->shape[1], d = part->shape[2];
  WF_PARALLEL_FOR(i0, i1, n, 2 * parts * (d + 8)) {
    real w[MOST], inner[MOST];
    for (int64_t i = i0; i < i1; i++) {
      real all = 0;
      weights(parts, l + i, n, w);
      for (int64_t b = 0; b < parts; b++) {
        const real *x = o + (b * n + i) * d, *g = dy + i * d;
        inner[b] = 0;
        for (int64_t c = 0; c < d; c++) inner[b] += g[c] * x[c];
        for (int64_t c = 0; c < d; c++) to[(b * n + i) * d + c] = w[b] * g[c];
        all += w[b] * inner[b];
      }
      for (int64_t b = 0; b < parts; b++) dl[b * n + i] = w[b] * (inner[b] - all);
    }
  }
  return WF_OK;
}

WF_KERNEL(merge_pair) {
  const real *o = wf_data(call->in[0]), *l = wf_data(call->in[1]);
  const real *ob = wf_data(call->in[2]), *lb = wf_data(call->in[3]);
  real *y = wf_data(call->out[0]), *ly = wf_data(call->out[1]);
  int64_t d = call->in[0]->shape[2];
  WF_PARALLEL_FOR(i0, i1, wf_numel(call->in[1]), d + 16) {
    for (int64_t i = i0; i < i1; i++) {
      real a = l[i], b = lb[i],
           w = b == -(real)INFINITY   ? 0
               : a == -(real)INFINITY ? 1
                                      : 1 / (1 + r_exp(a - b));
      ly[i] = w == 0 ? a : w == 1 ? b : a > b ? a + r_log1p(r_exp(b - a)) : b + r_log1p(r_exp(a - b));
      for (int64_t c = 0; c < d; c++) y[i * d + c] = o[i * d + c] - w * (o[i * d + c] - ob[i * d + c]);
    }
  }
  return WF_OK;
}

#else

WF_CPU(merge)
WF_CPU(merge_grad)
WF_CPU(merge_pair)

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *o = call->in[0], *l = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 3));
  WF_SHAPE_CHECK(o->ndim == 3 && l->ndim == 2 && o->shape[0] == l->shape[0] && o->shape[1] == l->shape[1] &&
                     o->shape[0] >= 1 && o->shape[0] <= 64,
                 "merge: parts %s and log-sum-exps %s; [1 to 64, n, d] and [.., n] expected",
                 wf_shape_text(o, a), wf_shape_text(l, b));
  wf_desc_set(&out[0], o->dtype, WF_SHAPE(o->shape[1], o->shape[2]));
  return WF_OK;
}

static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(wf_want_real(call, 7));
  wf_desc_like(&out[0], call->in[0]);
  wf_desc_like(&out[1], call->in[1]);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  wf_tensor *in[] = {g->in[0], g->in[1], g->dout[0]}, *out[2];
  for (int i = 0; i < 2; i++) {
    out[i] = g->din[i] ? g->din[i] : wf_empty_like(g->ctx, "gradient", g->in[i]);
    if (wf_is_poison(out[i])) return wf_ctx_failure(g->ctx);
  }
  return wf_op_run(g->ctx, &wf_op_merge_grad, 3, in, NULL, 2, out, 0);
}

static wf_status sample(wf_sample *s) {
  static const int64_t shape[][3] = {{3, 5, 4}, {1, 3, 2}, {2, 0, 3}};
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, 3, shape[s->index]);
  s->in[1] = wf_sample_real(s, 2, shape[s->index]);
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  s->n_in = 3;
  s->in[2] = wf_sample_real(s, 2, wf_is_poison(s->in[0]) ? (int64_t[]){0, 0} : s->in[0]->shape + 1);
  return WF_OK;
}

const wf_op wf_op_merge = {
    .name = "merge",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .save_in = 3,
    .infer = infer,
    .vjp = vjp,
    .cpu = &merge_cpu,
    .sample = sample,
    .n_samples = 3,
};

const wf_op wf_op_merge_grad = {
    .name = "merge_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .infer = grad_infer,
    WF_NONDIFF("gradient of merge; first order only"),
    .cpu = &merge_grad_cpu,
    .sample = grad_sample,
    .n_samples = 3,
};

static wf_status pair_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *o = call->in[0], *l = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 15));
  WF_SHAPE_CHECK(o->ndim == 3 && l->ndim == 2 && o->shape[0] == l->shape[0] && o->shape[1] == l->shape[1] &&
                     wf_same_shape(o, call->in[2]) && wf_same_shape(l, call->in[3]),
                 "merge_pair: %s with log-sum-exps %s; [n, heads, d] and [n, heads], twice, expected",
                 wf_shape_text(o, a), wf_shape_text(l, b));
  wf_desc_like(&out[0], o);
  wf_desc_like(&out[1], l);
  return WF_OK;
}

static wf_status pair_sample(wf_sample *s) {
  static const int64_t shape[][3] = {{5, 3, 4}, {0, 2, 3}};
  s->n_in = 4;
  for (int i = 0; i < 4; i++) s->in[i] = wf_sample_real(s, i % 2 ? 2 : 3, shape[s->index]);
  return WF_OK;
}

/* The outputs may be the first two inputs. */
const wf_op wf_op_merge_pair = {
    .name = "merge_pair",
    .min_in = 4,
    .max_in = 4,
    .n_out = 2,
    .infer = pair_infer,
    WF_NONDIFF("a step of attention in parts, whose gradient needs the log-sum-exp of all of them"),
    .cpu = &merge_pair_cpu,
    .sample = pair_sample,
    .n_samples = 2,
};

wf_tensor *wf_merge(wf_ctx *c, int n, wf_tensor *const *o, wf_tensor *const *lse) {
  if (n == 1) return o[0];
  wf_tensor *x[2][WF_MAX_IN];
  if (n > WF_MAX_IN) return wf_poison(c, WF_FAIL(WF_EINVAL, "%d parts; at most %d", n, WF_MAX_IN));
  for (int b = 0; b < n; b++) {
    x[0][b] = wf_reshape(c, o[b], WF_SHAPE(1, -1, o[b]->shape[o[b]->ndim - 1]));
    x[1][b] = wf_reshape(c, lse[b], WF_SHAPE(1, -1));
  }
  wf_tensor *y = wf_op_apply(c, &wf_op_merge, 2,
                             (wf_tensor *[]){wf_concat(c, n, x[0]), wf_concat(c, n, x[1])}, NULL, NULL);
  return wf_reshape(c, y, o[0]->ndim, o[0]->shape);
}

#endif
