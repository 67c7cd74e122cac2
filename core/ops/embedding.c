/* embedding: rows of a table by ids. Threads of the gradient split the columns, so each sum runs in the order
 * of the tokens whatever the number of threads. */
#include "core/ops/ops_impl.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

static wf_status check_ids(const int32_t *id, int64_t n, int64_t below) {
  int64_t bad = 0;
#  pragma omp simd reduction(+ : bad)
  for (int64_t i = 0; i < n; i++) bad += id[i] < 0 || id[i] >= below;
  if (bad == 0) return WF_OK;
  int64_t i = 0;
  while (id[i] >= 0 && id[i] < below) i++;
  return WF_FAIL(WF_EINVAL, "id %d at place %lld; there are rows 0 to %lld", id[i], (long long)i,
                 (long long)below - 1);
}

WF_KERNEL(embedding) {
  const wf_tensor *table = call->in[0], *ids = call->in[1];
  const real *t = wf_data(table);
  const int32_t *id = wf_data(ids);
  real *y = wf_data(call->out[0]);
  int64_t n = wf_numel(ids), d = table->shape[1], ld = table->stride[0];
  WF_TRY(check_ids(id, n, table->shape[0]));
  WF_PARALLEL_FOR(i0, i1, n, d) {
    for (int64_t i = i0; i < i1; i++) memcpy(y + i * d, t + id[i] * ld, (size_t)d * sizeof(real));
  }
  return WF_OK;
}

WF_KERNEL(embedding_grad) {
  const wf_tensor *dy = call->in[0], *ids = call->in[1], *out = call->out[0];
  const real *g = wf_data(dy);
  const int32_t *id = wf_data(ids);
  real *dt = wf_data(out);
  int64_t n = wf_numel(ids), v = out->shape[0], d = out->shape[1], ld = v > 1 ? out->stride[0] : d,
          ldg = dy->stride[0];
  const bool add = call->add & 1;
  WF_TRY(check_ids(id, n, v));
  if (!add) {
    WF_PARALLEL_FOR(r0, r1, v, d) {
      for (int64_t r = r0; r < r1; r++) memset(dt + r * ld, 0, (size_t)d * sizeof(real));
    }
  }
  enum { LINE = 16 }; /* columns are dealt in cache lines */
  WF_PARALLEL_FOR(c0, c1, (d + LINE - 1) / LINE, n * LINE) {
    int64_t j0 = c0 * LINE, j1 = c1 * LINE < d ? c1 * LINE : d;
    for (int64_t i = 0; i < n; i++) {
      real *q = dt + id[i] * ld;
      const real *p = g + i * ldg;
#  pragma omp simd
      for (int64_t j = j0; j < j1; j++) q[j] += p[j];
    }
  }
  return WF_OK;
}

#else

WF_CPU(embedding)
WF_CUDA_DECLARE(embedding)
WF_CPU(embedding_grad)
WF_CUDA_DECLARE(embedding_grad)

static wf_status want_ids(const wf_call *call) {
  const wf_tensor *x = call->in[0], *ids = call->in[1];
  char a[96], b[96];
  WF_TRY(wf_want_real(call, 1));
  WF_SHAPE_CHECK(x->ndim == 2 && ids->ndim == 1 && ids->dtype == WF_I32,
                 "rows of %s by ids %s; a matrix and one dimension of i32 expected", wf_shape_text(x, a),
                 wf_shape_text(ids, b));
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want_ids(call));
  wf_desc_set(&out[0], call->in[0]->dtype, WF_SHAPE(call->in[1]->shape[0], call->in[0]->shape[1]));
  return WF_OK;
}

/* attr: i64 number of rows of the table */
static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  WF_TRY(want_ids(call));
  WF_SHAPE_CHECK(call->in[0]->shape[0] == call->in[1]->shape[0], "one gradient for each id expected");
  wf_desc_set(&out[0], call->in[0]->dtype, WF_SHAPE(*(const int64_t *)call->attr, call->in[0]->shape[1]));
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  return wf_op_run(g->ctx, &wf_op_embedding_grad, 2, (wf_tensor *[]){g->dout[0], g->in[1]},
                   &g->in[0]->shape[0], 1, &g->din[0], g->add & 1);
}

static wf_status sample(wf_sample *s) {
  int64_t n[] = {9, 0, 40};
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(5, s->index == 2 ? 19 : 3));
  if (s->index == 0) /* columns of a wider table */
    s->in[0] = wf_view_raw(wf_sample_real(s, WF_SHAPE(5, 7)), 2, (int64_t[]){5, 3}, (int64_t[]){7, 1}, 2);
  s->in[1] = wf_sample_ids(s, 1, &n[s->index], 5);
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  int64_t n[] = {9, 0, 40};
  *(int64_t *)(void *)s->attr = 6; /* a row without ids */
  s->n_in = 2;
  s->in[0] = wf_sample_real(s, WF_SHAPE(n[s->index], s->index == 2 ? 19 : 3));
  s->in[1] = wf_sample_ids(s, 1, &n[s->index], 5);
  return WF_OK;
}

const wf_op wf_op_embedding = {
    .name = "embedding",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .rowmajor = 1,
    .save_in = 2,
    .vjp_adds = 1,
    .nograd_in = 2,
    .infer = infer,
    .vjp = vjp,
    .cpu = &embedding_cpu,
    .cuda = WF_CUDA_FN(embedding),
    .sample = sample,
    .n_samples = 3,
};

const wf_op wf_op_embedding_grad = {
    .name = "embedding_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(int64_t),
    .rowmajor = 1,
    .adds = 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of embedding; first order only"),
    .cpu = &embedding_grad_cpu,
    .cuda = WF_CUDA_FN(embedding_grad),
    .sample = grad_sample,
    .n_samples = 3,
};

wf_tensor *wf_embedding(wf_ctx *c, wf_tensor *table, wf_tensor *ids) {
  return wf_op_apply(c, &wf_op_embedding, 2, (wf_tensor *[]){table, ids}, NULL, NULL);
}
wf_tensor *wf_gather_rows(wf_ctx *c, wf_tensor *x, wf_tensor *index) {
  return wf_embedding(c, x, index);
}

#endif
