/* CUDA kernels of the norms: a block for each row; in the gradient then a block for each weight. */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"
#include "core/ops/ops_impl.h"

/* What a row is divided by: (x - mean) scale. */
struct row_stat {
  double mean, scale;
};

template <class real> __device__ static row_stat measure(const norm_attr &o, const real *x, int64_t d) {
  row_stat s = {0, 0};
  double sum = 0;
  if (o.kind == WF_NORM_LAYER) {
    for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) sum += (double)x[j];
    s.mean = wf_cuda_total(sum) / (double)(d > 0 ? d : 1);
    sum = 0;
  }
  for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) {
    double c = (double)x[j] - s.mean;
    sum += c * c;
  }
  sum = wf_cuda_total(sum);
  if (o.kind != L2) sum /= (double)(d > 0 ? d : 1);
  s.scale = 1 / sqrt(sum + o.eps);
  return s;
}

template <class real>
static wf_status forward(const wf_call *call, const wf_tensor *r, const real *w, const real *b) {
  const norm_attr o = *(const norm_attr *)call->attr;
  const wf_tensor *x = call->in[0], *y = call->out[0], *h = r ? call->out[1] : NULL;
  const wf_cuda_dims ax = wf_cuda_leading(x), ar = wf_cuda_leading(r), ay = wf_cuda_leading(y),
                     ah = wf_cuda_leading(h);
  const real *px = wf_cuda_ptr<real>(x), *pr = wf_cuda_ptr<real>(r);
  real *py = wf_cuda_ptr<real>(y), *ph = wf_cuda_ptr<real>(h);
  const int64_t d = wf_inner(x);
  return wf_cuda_rows(call, wf_outer(x), [=] __device__(int64_t t) {
    const real *row = px + ax(t);
    if (pr) { /* each thread goes on to read what it wrote */
      real *sum = ph + ah(t);
      for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) sum[j] = row[j] + pr[ar(t) + j];
      row = sum;
    }
    const row_stat s = measure(o, row, d);
    for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) {
      real v = (real)(((double)row[j] - s.mean) * s.scale);
      py[ay(t) + j] = (w ? v * w[j] : v) + (b ? b[j] : (real)0);
    }
  });
}

WF_CUDA_KERNEL(norm) {
  return forward<real>(call, NULL, wf_cuda_in<real>(call, 1), wf_cuda_in<real>(call, 2));
}
WF_CUDA_KERNEL(add_norm) {
  return forward<real>(call, call->in[1], wf_cuda_in<real>(call, 2), wf_cuda_in<real>(call, 3));
}

/* With t = (x - mean) s and g = dy w:  dx = s (g - mean g - t mean(g t)) + dh, dw = sum dy t, db = sum dy;
 * the means of g stay out where nothing was centred, and are sums for L2. */
WF_CUDA_KERNEL(norm_grad) {
  const norm_attr o = *(const norm_attr *)call->attr;
  const wf_tensor *dy = call->in[0], *x = call->in[1], *dh = wf_in(call, 3);
  wf_tensor *out[4] = {call->out[0], NULL, NULL, NULL}; /* dx, dr, dw, db */
  bool add[4] = {(call->add & 1) != 0, false, false, false};
  for (int k = 1, at = 1; k < 4; k++)
    if (o.outs >> (k - 1) & 1) {
      add[k] = call->add >> at & 1;
      out[k] = call->out[at++];
    }
  const int64_t n = wf_outer(x), d = wf_inner(x);
  const wf_cuda_dims ay = wf_cuda_leading(dy), ax = wf_cuda_leading(x), ah = wf_cuda_leading(dh),
                     adx = wf_cuda_leading(out[0]), adr = wf_cuda_leading(out[1]);
  const real *pdy = wf_cuda_ptr<real>(dy), *px = wf_cuda_ptr<real>(x), *w = wf_cuda_in<real>(call, 2),
             *pdh = wf_cuda_ptr<real>(dh);
  real *dx = wf_cuda_ptr<real>(out[0]), *dr = wf_cuda_ptr<real>(out[1]), *dw = wf_cuda_ptr<real>(out[2]),
       *db = wf_cuda_ptr<real>(out[3]);
  const bool add_x = add[0], add_r = add[1], add_w = add[2], add_b = add[3];
  wf_cuda_scratch kept;
  WF_TRY(wf_cuda_take(call, (size_t)n * sizeof(row_stat), &kept));
  row_stat *stats = (row_stat *)kept.p;
  WF_TRY(wf_cuda_rows(call, n, [=] __device__(int64_t t) {
    const real *row = px + ax(t), *g = pdy + ay(t);
    const row_stat s = measure(o, row, d);
    double gx = 0, gs = 0;
    for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) {
      double v = (double)g[j] * (w ? (double)w[j] : 1.0);
      gx += v * ((double)row[j] - s.mean) * s.scale;
      gs += v;
    }
    const double share = o.kind == L2 ? 1.0 : 1.0 / (double)(d > 0 ? d : 1);
    const double along = wf_cuda_total(gx) * share;
    const double mean_g = o.kind == WF_NORM_LAYER ? wf_cuda_total(gs) * share : 0.0;
    for (int64_t j = threadIdx.x; j < d; j += WF_CUDA_BLOCK) {
      double v = (double)g[j] * (w ? (double)w[j] : 1.0), c = ((double)row[j] - s.mean) * s.scale;
      v = s.scale * (v - mean_g - c * along) + (pdh ? (double)pdh[ah(t) + j] : 0.0);
      if (dr) wf_cuda_put(dr + adr(t) + j, add_r, (real)v);
      wf_cuda_put(dx + adx(t) + j, add_x, (real)v);
    }
    if (threadIdx.x == 0) stats[t] = s;
  }));
  if (!dw && !db) return WF_OK;
  return wf_cuda_rows(call, d, [=] __device__(int64_t j) {
    double sw = 0, sb = 0;
    for (int64_t t = threadIdx.x; t < n; t += WF_CUDA_BLOCK) {
      double g = (double)pdy[ay(t) + j];
      sw += g * (((double)px[ax(t) + j] - stats[t].mean) * stats[t].scale);
      sb += g;
    }
    sw = wf_cuda_total(sw);
    sb = wf_cuda_total(sb);
    if (threadIdx.x > 0) return;
    if (dw) wf_cuda_put(dw + j, add_w, (real)sw);
    if (db) wf_cuda_put(db + j, add_b, (real)sb);
  });
}
