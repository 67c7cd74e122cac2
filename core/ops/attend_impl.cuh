/* What the CUDA kernels of attend and its gradient share: arguments, rows, the score of one query and key. */
#ifndef WF_CORE_OPS_ATTEND_IMPL_CUH
#define WF_CORE_OPS_ATTEND_IMPL_CUH

#include "core/cuda_impl.cuh"
#include "core/ops/attend_impl.h"

template <class real> struct attend_args {
  const real *q, *k, *v, *sink;
  const double *a, *b;            /* terms of the scores */
  int64_t qs, qh, ks, kh, vs, vh; /* strides of tokens and heads */
  const wf_attend_span *span;
  int64_t rows, n, m, heads, kv_heads, group, kdim, vdim, window;
  int64_t step; /* from one token of a row to the next, in tokens */
  real scale, cap, log_len;
  bool sigmoid;

  /* The row of query i; one without queries or keys for none. */
  __device__ wf_attend_span row_of(int64_t i) const {
    for (int64_t r = 0; r < rows; r++) {
      const wf_attend_span w = span[r];
      if (i >= w.query && (i - w.query) % step == 0 && (i - w.query) / step < w.queries) return w;
    }
    return {0, 0, 0, 0, 0};
  }
  /* Query t of a row sees its keys [lo, hi), none where lo >= hi. */
  __device__ int64_t hi(const wf_attend_span &w, int64_t t) const {
    return w.distance + t < w.keys ? w.distance + t + 1 : w.keys;
  }
  __device__ int64_t lo(const wf_attend_span &w, int64_t t) const {
    return window > 0 && w.distance + t >= window ? w.distance + t + 1 - window : 0;
  }
  /* Score of query i and key j of the pool for head h; *th receives the tanh of the soft cap. */
  __device__ real score(int64_t i, int64_t j, int64_t h, real *th) const {
    const real *x = q + i * qs + h * qh, *y = k + j * ks + h / group * kh;
    real s = 0;
    for (int64_t c = 0; c < kdim; c++) s += x[c] * y[c];
    s *= scale;
    *th = 0;
    if (cap > 0) {
      *th = tanh(s / cap);
      s = cap * *th;
    }
    if (b) s += (real)(a[i * heads + h] - b[j * heads + h]);
    return sigmoid ? s - log_len : s;
  }
};

/* Reads and checks the first seven inputs. */
template <class real> static wf_status attend_read(const wf_call *call, attend_args<real> *g) {
  const wf_attend_options *o = (const wf_attend_options *)call->attr; /* first in both attrs */
  const wf_tensor *q = call->in[ATTEND_Q], *k = call->in[ATTEND_K], *v = call->in[ATTEND_V];
  g->q = wf_cuda_ptr<real>(q), g->k = wf_cuda_ptr<real>(k), g->v = wf_cuda_ptr<real>(v);
  g->a = wf_cuda_in<double>(call, ATTEND_A), g->b = wf_cuda_in<double>(call, ATTEND_B);
  g->sink = wf_cuda_in<real>(call, ATTEND_SINK);
  g->qs = q->stride[0], g->qh = q->stride[1];
  g->ks = k->stride[0], g->kh = k->stride[1];
  g->vs = v->stride[0], g->vh = v->stride[1];
  g->span = (const wf_attend_span *)wf_cuda_in<int64_t>(call, ATTEND_SPAN);
  g->rows = call->in[ATTEND_SPAN]->shape[0];
  g->n = q->shape[0], g->heads = q->shape[1], g->kdim = q->shape[2];
  g->m = k->shape[0], g->kv_heads = k->shape[1], g->vdim = v->shape[2];
  g->group = g->heads / g->kv_heads;
  g->window = o->window;
  g->step = o->stride > 1 ? o->stride : 1;
  g->scale = (real)o->scale, g->cap = (real)o->softcap;
  g->sigmoid = o->kind == WF_ATTEND_SIGMOID;
  g->log_len = g->sigmoid ? (real)log((double)o->len_bias) : (real)0;
  const wf_attend_span *span = g->span;
  const int64_t n = g->n, m = g->m, step = g->step;
  int64_t at;
  wf_attend_span s;
  WF_TRY(wf_cuda_first(
      call, g->rows, [=] __device__(int64_t r) { return !attend_span_fits(span + r, step, n, m); }, &at));
  if (at < 0) return WF_OK;
  WF_TRY(wf_device_read(wf_ctx_device(call->ctx), &s, span + at, sizeof s));
  return attend_no_fit(at, &s, n, m);
}

#endif
