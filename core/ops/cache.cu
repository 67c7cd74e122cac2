/* CUDA kernels of cache_append and its gradient. */
#include "core/cuda_impl.cuh"

static wf_status check_rows(const wf_call *call, const wf_tensor *table, int64_t lanes, int64_t capacity,
                            int64_t n) {
  const wf_row *row = wf_cuda_ptr<wf_row>(table);
  int64_t at;
  WF_TRY(wf_cuda_first(
      call, table->shape[0],
      [=] __device__(int64_t r) {
        return row[r].lane < 0 || row[r].lane >= lanes || row[r].place < 0 || row[r].len < 0 ||
               row[r].begin < 0 || row[r].len > capacity || row[r].place > capacity - row[r].len ||
               row[r].begin > n - row[r].len;
      },
      &at));
  if (at < 0) return WF_OK;
  wf_row bad;
  WF_TRY(wf_device_read(wf_ctx_device(call->ctx), &bad, row + at, sizeof bad));
  return wf_hint(WF_FAIL(WF_EINVAL, "row %lld writes places %lld to %lld of lane %lld; a lane holds %lld",
                         (long long)at, (long long)bad.place, (long long)(bad.place + bad.len),
                         (long long)bad.lane, (long long)capacity),
                 "give the cache a larger capacity or shorten the sequence");
}

/* Between cache and x, every element of the tokens of every row. */
template <class real>
static wf_status each_row(const wf_call *call, const wf_tensor *cache, const wf_tensor *x,
                          const wf_tensor *table, bool take) {
  const int64_t n = x->shape[0], rows = table->shape[0], lane_step = cache->stride[0],
                place_step = cache->stride[1], token_step = x->stride[0];
  WF_TRY(check_rows(call, table, cache->shape[0], cache->shape[1], n));
  if (rows == 0) return WF_OK;
  const wf_cuda_dims inside = wf_cuda_dims_of(cache, 2, cache->ndim), own = wf_cuda_dims_of(x, 1, x->ndim);
  int64_t each = 1;
  for (int d = 1; d < x->ndim; d++) each *= x->shape[d];
  const wf_row *row = wf_cuda_ptr<wf_row>(table);
  real *c = wf_cuda_ptr<real>(cache), *y = wf_cuda_ptr<real>(x);
  return wf_cuda_each(call, n * each, [=] __device__(int64_t i) {
    const int64_t t = i / each, e = i % each;
    const wf_row r = row[wf_cuda_row_of(row, rows, t, 0)];
    if (t < r.begin || t >= r.begin + r.len) return;
    real *in = c + r.lane * lane_step + (r.place + t - r.begin) * place_step + inside(e);
    real *out = y + t * token_step + own(e);
    if (take) {
      *out = *in;
      *in = 0;
    } else {
      *in = *out;
    }
  });
}

WF_CUDA_KERNEL(cache_append) {
  return each_row<real>(call, call->out[0], call->in[1], call->in[2], false);
}

WF_CUDA_KERNEL(cache_append_grad) {
  return each_row<real>(call, call->in[0], call->out[0], call->in[1], true);
}
