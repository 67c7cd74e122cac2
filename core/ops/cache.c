/* cache_append: writes tokens into an append-only cache, in place; recomputing or replaying a piece writes
 * the same bytes again. cache_append_grad takes the written slice out of the cache's gradient. */
#include "core/ops/rows_impl.h"

#ifdef WF_KERNEL_PASS
#  include <string.h>

/* The lines of tokens of every row, between cache and x. */
static wf_status each_row(const wf_tensor *cache, const wf_tensor *x, const wf_tensor *table, bool take) {
  int64_t lanes = cache->shape[0], capacity = cache->shape[1], rows = table->shape[0], width;
  int64_t lines = wf_token_lines(cache, 2, &width);
  const wf_row *row = wf_data(table);
  for (int64_t r = 0; r < rows; r++)
    if (row[r].lane < 0 || row[r].lane >= lanes || row[r].place < 0 || row[r].len < 0 || row[r].begin < 0 ||
        row[r].len > capacity || row[r].place > capacity - row[r].len ||
        row[r].begin > x->shape[0] - row[r].len)
      return wf_hint(WF_FAIL(WF_EINVAL, "row %lld writes places %lld to %lld of lane %lld; a lane holds %lld",
                             (long long)r, (long long)row[r].place, (long long)(row[r].place + row[r].len),
                             (long long)row[r].lane, (long long)capacity),
                     "give the cache a larger capacity or shorten the sequence");
  real *c = wf_data(cache), *y = wf_data(x);
  for (int64_t r = 0; r < rows; r++) {
    WF_PARALLEL_FOR(t0, t1, row[r].len, lines * width) {
      for (int64_t t = t0; t < t1; t++)
        for (int64_t l = 0; l < lines; l++) {
          real *in = c + row[r].lane * cache->stride[0] + (row[r].place + t) * cache->stride[1] +
                     wf_line_at(cache, 2, l);
          real *out = y + (row[r].begin + t) * x->stride[0] + wf_line_at(x, 1, l);
          if (!take)
            memcpy(in, out, (size_t)width * sizeof *in);
          else {
            memcpy(out, in, (size_t)width * sizeof *in);
            memset(in, 0, (size_t)width * sizeof *in);
          }
        }
    }
  }
  return WF_OK;
}

WF_KERNEL(cache_append) {
  return each_row(call->out[0], call->in[1], call->in[2], false);
}

WF_KERNEL(cache_append_grad) {
  return each_row(call->in[0], call->out[0], call->in[1], true);
}

#else

WF_CPU(cache_append)
WF_CPU(cache_append_grad)
WF_CUDA_DECLARE(cache_append)
WF_CUDA_DECLARE(cache_append_grad)

static wf_status check(const wf_tensor *cache, const wf_tensor *table) {
  char t[2][96];
  int last = cache->ndim - 1;
  WF_SHAPE_CHECK(cache->ndim >= 2 && (last < 2 || cache->shape[last] <= 1 || cache->stride[last] == 1) &&
                     table->ndim == 2 && table->shape[1] == WF_ROW_COLS && table->dtype == WF_I64,
                 "cache %s, rows %s", wf_shape_text(cache, t[0]), wf_shape_text(table, t[1]));
  return WF_OK;
}

static wf_status infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *cache = call->in[0], *x = call->in[1];
  WF_TRY(check(cache, call->in[2]));
  char t[2][96];
  bool same = x->ndim == cache->ndim - 1 && x->dtype == cache->dtype;
  for (int d = 1; same && d < x->ndim; d++) same = x->shape[d] == cache->shape[d + 1];
  WF_SHAPE_CHECK(same, "tokens %s do not fit cache %s", wf_shape_text(x, t[0]), wf_shape_text(cache, t[1]));
  wf_desc_like(&out[0], cache);
  return WF_OK;
}

static wf_status vjp(const wf_vjp *g) {
  if (!g->din[1]) return WF_OK;
  int64_t n = g->in[1]->shape[0];
  return wf_op_run(g->ctx, &wf_op_cache_append_grad, 2, (wf_tensor *[]){g->dout[0], g->in[2]}, &n, 1,
                   &g->din[1], g->add >> 1 & 1);
}

static wf_tensor *sample_table(wf_sample *s) {
  static const wf_row row[] = {{.begin = 0, .len = 2, .lane = 1, .pos = 1, .place = 1},
                               {.begin = 2, .len = 3, .lane = 0, .pos = 0, .place = 2}};
  return wf_from_host(s->ctx, "sample", WF_I64, WF_SHAPE(s->index == 2 ? 0 : 2, WF_ROW_COLS), row);
}

static wf_status sample(wf_sample *s) {
  s->n_in = 3;
  int64_t n = s->index == 2 ? 0 : 5;
  if (s->index == 0) {
    s->in[0] = wf_sample_real(s, WF_SHAPE(2, 6, 2, 3));
    wf_tensor *wide = wf_sample_real(s, WF_SHAPE(n, 2, 7));
    s->in[1] = wf_view_raw(wide, 3, (int64_t[]){n, 2, 3}, (int64_t[]){14, 7, 1}, 4);
  } else {
    s->in[0] = wf_sample_real(s, WF_SHAPE(2, 5, 3));
    s->in[1] = wf_sample_real(s, WF_SHAPE(n, 3));
  }
  s->in[2] = sample_table(s);
  s->wrt = 2;
  return WF_OK;
}

const wf_op wf_op_cache_append = {
    .name = "cache_append",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .flags = WF_OP_INPLACE,
    .strided = 1,
    .rowmajor = 2,
    .save_in = 4,
    .nograd_in = 4,
    .infer = infer,
    .vjp = vjp,
    .cpu = &cache_append_cpu,
    .cuda = WF_CUDA_FN(cache_append),
    .sample = sample,
    .n_samples = 3,
};

/* attr: int64 tokens. in: the cache's gradient (changed: the slice becomes zero), the table of rows. */
static wf_status grad_infer(const wf_call *call, wf_desc *out, int *n_out) {
  (void)n_out;
  const wf_tensor *cache = call->in[0];
  WF_TRY(check(cache, call->in[1]));
  wf_desc_set(&out[0], cache->dtype, cache->ndim - 1, cache->shape + 1);
  out[0].shape[0] = *(const int64_t *)call->attr;
  return WF_OK;
}

static wf_status grad_sample(wf_sample *s) {
  WF_TRY(sample(s));
  *(int64_t *)(void *)s->attr = s->in[1]->shape[0];
  s->in[1] = s->in[2];
  s->n_in = 2;
  return WF_OK;
}

const wf_op wf_op_cache_append_grad = {
    .name = "cache_append_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .attr_size = sizeof(int64_t),
    .strided = 1,
    .rowmajor_out = 1,
    .infer = grad_infer,
    WF_NONDIFF("gradient of cache_append; moves its input"),
    .cpu = &cache_append_grad_cpu,
    .cuda = WF_CUDA_FN(cache_append_grad),
    .sample = grad_sample,
    .n_samples = 3,
};

wf_tensor *wf_cache_append(wf_ctx *c, wf_tensor *cache, wf_tensor *x, const wf_rows *rows) {
  return wf_op_apply(c, &wf_op_cache_append, 3, (wf_tensor *[]){cache, x, rows->table}, NULL, NULL);
}

#endif
