/* CUDA kernel of attend: a block for each query and head goes over its keys WF_CUDA_BLOCK at a time, with
 * online softmax; a thread scores one key, then sums its own columns of the values. */
#include "core/ops/attend_impl.cuh"

/* One query i and head h; o has vdim numbers. */
template <class real>
__device__ static void attend_query(const attend_args<real> &g, int64_t i, int64_t h, real *o, real *lse) {
  __shared__ real weight[WF_CUDA_BLOCK];
  const wf_attend_span w = g.row_of(i);
  const int64_t t = (i - w.query) / g.step, hi = g.hi(w, t), lo = g.lo(w, t);
  double max = -INFINITY, sum = 0;
  for (int64_t c = threadIdx.x; c < g.vdim; c += WF_CUDA_BLOCK) o[c] = 0;
  for (int64_t j0 = lo; j0 < hi; j0 += WF_CUDA_BLOCK) {
    const int64_t j = j0 + threadIdx.x, count = hi - j0 < WF_CUDA_BLOCK ? hi - j0 : WF_CUDA_BLOCK;
    real p = 0, factor = 1, th;
    if (g.sigmoid) {
      if (j < hi) p = 1 / (1 + exp(-g.score(i, w.key + j * g.step, h, &th)));
    } else {
      const real x = j < hi ? g.score(i, w.key + j * g.step, h, &th) : (real)-INFINITY;
      const double m = wf_cuda_max()(max, wf_cuda_largest((double)x));
      if (m > -INFINITY || m != m) {
        factor = (real)exp(max - m);
        p = j < hi ? exp(x - (real)m) : (real)0;
      }
      sum = sum * (double)factor + wf_cuda_total((double)p);
      max = m;
    }
    __syncthreads(); /* the weights before these have been used */
    weight[threadIdx.x] = p;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < g.vdim; c += WF_CUDA_BLOCK) {
      const real *v = g.v + (w.key + j0 * g.step) * g.vs + h / g.group * g.vh + c;
      real s = o[c] * factor;
      for (int64_t k = 0; k < count; k++) s += weight[k] * v[k * g.step * g.vs];
      o[c] = s;
    }
  }
  real scale = 1, l = 0;
  if (!g.sigmoid) {
    double grown = 1;
    if (g.sink && w.queries) {
      const double z = (double)g.sink[h], m = z > max ? z : max;
      if (m > -INFINITY) { /* a key or the sink counts */
        grown = exp(max - m);
        sum = sum * grown + exp(z - m);
        max = m;
      }
    }
    l = sum == 0 ? (real)-INFINITY : (real)(max + log(sum));
    scale = sum == 0 ? (real)0 : (real)(grown / sum);
  }
  for (int64_t c = threadIdx.x; c < g.vdim; c += WF_CUDA_BLOCK) o[c] *= scale;
  if (threadIdx.x == 0) *lse = l;
}

WF_CUDA_KERNEL(attend) {
  attend_args<real> g;
  WF_TRY(attend_read(call, &g));
  real *o = wf_cuda_ptr<real>(call->out[0]), *lse = wf_cuda_ptr<real>(call->out[1]);
  return wf_cuda_rows(call, g.n * g.heads, [=] __device__(int64_t u) {
    attend_query(g, u / g.heads, u % g.heads, o + u * g.vdim, lse + u);
  });
}
