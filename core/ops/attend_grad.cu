/* CUDA kernels of the gradient of attend (formulas in attend_grad.c). Two passes form the probabilities again
 * from the log-sum-exp: a block for each query and head sums dq and da over the keys, a block for each key
 * and key head sums dk, dv and db over the queries that see it. No sum is shared between blocks. */
#include "core/ops/attend_impl.cuh"

/* An output: NULL data when not wanted. */
template <class T> struct grad_out {
  T *p;
  int64_t s, h; /* strides of tokens and heads */
  bool add;
};

/* The n-th output of the call if wanted; n moves on. */
template <class T> static grad_out<T> next_out(const wf_call *call, bool wanted, int *n) {
  if (!wanted) return {NULL, 0, 0, false};
  const wf_tensor *t = call->out[*n];
  const bool add = (call->add >> (*n)++ & 1) != 0;
  return {wf_cuda_ptr<T>(t), t->stride[0], t->ndim > 1 ? t->stride[1] : 0, add};
}

template <class real> struct grad_args {
  attend_args<real> a;
  const real *o, *lse, *dout, *dlse; /* dlse: NULL where none arrived */
  int64_t dos, doh;
  grad_out<real> q, k, v, sink;
  grad_out<double> da, db;
  real *share; /* [n, heads] of the sinks' gradient, or NULL */

  /* D = <do, o>, less the gradient of the log-sum-exp, of query i, head h, by one thread. */
  __device__ real inner(int64_t i, int64_t h) const {
    const real *x = o + (i * a.heads + h) * a.vdim, *y = dout + i * dos + h * doh;
    real s = 0;
    for (int64_t c = 0; c < a.vdim; c++) s += x[c] * y[c];
    return dlse ? s - dlse[i * a.heads + h] : s;
  }
  /* Probability and dS (before and after the soft cap) of query i and key j of the pool. */
  __device__ void pair(int64_t i, int64_t j, int64_t h, real delta, real *p, real *ds, real *dx) const {
    const real *x = dout + i * dos + h * doh, *y = a.v + j * a.vs + h / a.group * a.vh;
    real th, s = a.score(i, j, h, &th), dp = 0;
    for (int64_t c = 0; c < a.vdim; c++) dp += x[c] * y[c];
    if (a.sigmoid) {
      *p = 1 / (1 + exp(-s));
      *ds = *p * (1 - *p) * dp;
    } else {
      *p = exp(s - lse[i * a.heads + h]);
      *ds = *p * (dp - delta);
    }
    *dx = a.cap > 0 ? *ds * (1 - th * th) : *ds;
  }
};

template <class real> __device__ static void query_grad(const grad_args<real> &g, int64_t i, int64_t h) {
  __shared__ real weight[WF_CUDA_BLOCK];
  const attend_args<real> &a = g.a;
  const wf_attend_span w = a.row_of(i);
  const int64_t t = (i - w.query) / a.step, hi = a.hi(w, t), lo = a.lo(w, t);
  const real delta = g.inner(i, h);
  real *dq = g.q.p ? g.q.p + i * g.q.s + h * g.q.h : NULL;
  double da = 0;
  for (int64_t c = threadIdx.x; dq && !g.q.add && c < a.kdim; c += WF_CUDA_BLOCK) dq[c] = 0;
  for (int64_t j0 = lo; j0 < hi; j0 += WF_CUDA_BLOCK) {
    const int64_t j = j0 + threadIdx.x, count = hi - j0 < WF_CUDA_BLOCK ? hi - j0 : WF_CUDA_BLOCK;
    real p, ds = 0, dx = 0;
    if (j < hi) g.pair(i, w.key + j * a.step, h, delta, &p, &ds, &dx);
    da += (double)ds;
    __syncthreads(); /* the weights before these have been used */
    weight[threadIdx.x] = dx;
    __syncthreads();
    for (int64_t c = threadIdx.x; dq && c < a.kdim; c += WF_CUDA_BLOCK) {
      const real *k = a.k + (w.key + j0 * a.step) * a.ks + h / a.group * a.kh + c;
      real s = 0;
      for (int64_t l = 0; l < count; l++) s += weight[l] * k[l * a.step * a.ks];
      dq[c] += a.scale * s;
    }
  }
  da = wf_cuda_total(da);
  if (threadIdx.x > 0) return;
  if (g.da.p) wf_cuda_put(g.da.p + i * g.da.s + h * g.da.h, g.da.add, da);
  if (!g.share) return;
  const real lse = g.lse[i * a.heads + h];
  g.share[i * a.heads + h] = w.queries && lse > (real)-INFINITY ? exp(a.sink[h] - lse) * delta : (real)0;
}

/* Key j of the pool, key head `head`. */
template <class real> __device__ static void key_grad(const grad_args<real> &g, int64_t j, int64_t head) {
  __shared__ real prob[WF_CUDA_BLOCK], weight[WF_CUDA_BLOCK];
  const attend_args<real> &a = g.a;
  real *dk = g.k.p ? g.k.p + j * g.k.s + head * g.k.h : NULL;
  real *dv = g.v.p ? g.v.p + j * g.v.s + head * g.v.h : NULL;
  for (int64_t c = threadIdx.x; dk && !g.k.add && c < a.kdim; c += WF_CUDA_BLOCK) dk[c] = 0;
  for (int64_t c = threadIdx.x; dv && !g.v.add && c < a.vdim; c += WF_CUDA_BLOCK) dv[c] = 0;
  for (int64_t h = head * a.group; h < (head + 1) * a.group; h++) {
    double db = 0;
    for (int64_t r = 0; r < a.rows; r++) {
      const wf_attend_span w = a.span[r];
      const int64_t own = (j - w.key) / a.step, since = own - w.distance; /* since: the query at its place */
      if (j < w.key || (j - w.key) % a.step || own >= w.keys || since >= w.queries) continue;
      const int64_t begin = since > 0 ? since : 0;
      const int64_t end = a.window > 0 && since + a.window < w.queries ? since + a.window : w.queries;
      for (int64_t t0 = begin; t0 < end; t0 += WF_CUDA_BLOCK) {
        const int64_t t = t0 + threadIdx.x, count = end - t0 < WF_CUDA_BLOCK ? end - t0 : WF_CUDA_BLOCK;
        real p = 0, ds = 0, dx = 0;
        if (t < end) {
          const int64_t i = w.query + t * a.step;
          g.pair(i, j, h, a.sigmoid ? (real)0 : g.inner(i, h), &p, &ds, &dx);
        }
        db -= (double)ds;
        __syncthreads(); /* the numbers before these have been used */
        prob[threadIdx.x] = p;
        weight[threadIdx.x] = dx;
        __syncthreads();
        for (int64_t c = threadIdx.x; dv && c < a.vdim; c += WF_CUDA_BLOCK) {
          const real *y = g.dout + (w.query + t0 * a.step) * g.dos + h * g.doh + c;
          real s = 0;
          for (int64_t l = 0; l < count; l++) s += prob[l] * y[l * a.step * g.dos];
          dv[c] += s;
        }
        for (int64_t c = threadIdx.x; dk && c < a.kdim; c += WF_CUDA_BLOCK) {
          const real *q = a.q + (w.query + t0 * a.step) * a.qs + h * a.qh + c;
          real s = 0;
          for (int64_t l = 0; l < count; l++) s += weight[l] * q[l * a.step * a.qs];
          dk[c] += a.scale * s;
        }
      }
    }
    db = wf_cuda_total(db);
    if (threadIdx.x == 0 && g.db.p) wf_cuda_put(g.db.p + j * g.db.s + h * g.db.h, g.db.add, db);
  }
}

WF_CUDA_KERNEL(attend_grad) {
  grad_args<real> g;
  WF_TRY(attend_read(call, &g.a));
  const wf_tensor *d = call->in[ATTEND_DO];
  g.o = wf_cuda_in<real>(call, ATTEND_O);
  g.lse = wf_cuda_in<real>(call, ATTEND_LSE);
  g.dout = wf_cuda_ptr<real>(d);
  g.dlse = wf_cuda_in<real>(call, ATTEND_DLSE);
  g.dos = d->stride[0], g.doh = d->stride[1];
  g.share = NULL;
  for (int i = 0; i < call->n_out; i++) {
    const wf_tensor *t = call->out[i];
    if (t->ndim == 3 && t->shape[2] > 1 && t->stride[2] != 1)
      return WF_FAIL(WF_EINTERNAL, "attend_grad: output %d has no unit stride", i);
  }
  const int32_t want = ((const attend_grad_attr *)call->attr)->want;
  int at = 0;
  g.q = next_out<real>(call, want & 1, &at);
  g.k = next_out<real>(call, want & 2, &at);
  g.v = next_out<real>(call, want & 4, &at);
  g.da = next_out<double>(call, want & 8, &at);
  g.db = next_out<double>(call, want & 16, &at);
  g.sink = next_out<real>(call, want & 32, &at);
  const int64_t n = g.a.n, m = g.a.m, heads = g.a.heads, kv_heads = g.a.kv_heads;
  wf_cuda_scratch share;
  if (g.sink.p) {
    WF_TRY(wf_cuda_take(call, (size_t)(n * heads) * sizeof(real), &share));
    g.share = (real *)share.p;
  }
  if (g.q.p || g.da.p || g.sink.p)
    WF_TRY(wf_cuda_rows(call, n * heads, [=] __device__(int64_t u) { query_grad(g, u / heads, u % heads); }));
  if (g.k.p || g.v.p || g.db.p)
    WF_TRY(wf_cuda_rows(call, m * kv_heads,
                        [=] __device__(int64_t u) { key_grad(g, u / kv_heads, u % kv_heads); }));
  if (!g.sink.p) return WF_OK;
  return wf_cuda_rows(call, heads, [=] __device__(int64_t h) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += WF_CUDA_BLOCK) sum += (double)g.share[i * heads + h];
    sum = wf_cuda_total(sum);
    if (threadIdx.x == 0) wf_cuda_put(g.sink.p + h * g.sink.s, g.sink.add, (real)-sum);
  });
}
