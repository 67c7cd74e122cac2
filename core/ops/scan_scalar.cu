/* CUDA kernels of scan_scalar and its gradient: the plain recurrence, a thread for each column or each row of
 * a head's state, which lies in scratch memory in double.
 *
 * With dS_t the gradient of S_t:  dS_t = e^{g_{t+1}} dS_{t+1} + s q_t^T do_t,
 *     dq_t = s do_t S_t^T,  dk_t = v_t dS_t^T,  dv_t = k_t dS_t  (k weighted by w),
 *     dg_t = sum_{i >= t} (q_i dq_i - k_i dk_i) + <S_end, dS_end>,
 * the last a difference of sums formed in double. dq and dk are formed for each head and then added over the
 * heads that share them.
 */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"

template <class real> struct scan_args {
  const real *q, *k, *v, *g, *w, *state, *init, *dout, *dstate;
  int64_t qs, qh, ks, kh, vs, vh, gs, ws, dos, doh; /* strides of tokens and heads (of q, k: groups) */
  const wf_row *row;
  int64_t rows, heads, groups, kdim, vdim, size; /* vdim: of the outputs; size: of a state [kdim, vdim] */
  int64_t ones;                                  /* the column of ones, or vdim */
  int64_t lanes;
  double scale;

  __device__ double decay(int64_t t, int64_t h) const { return g ? exp((double)g[t * gs + h]) : 1.0; }
  __device__ double weight(int64_t t, int64_t h) const { return w ? (double)w[t * ws + h] : 1.0; }
  __device__ const real *query(int64_t t, int64_t h) const { return q + t * qs + h * groups / heads * qh; }
  __device__ const real *key(int64_t t, int64_t h) const { return k + t * ks + h * groups / heads * kh; }
  __device__ double value(int64_t t, int64_t h, int64_t j) const {
    return j < ones ? (double)v[t * vs + h * vh + j] : 1.0;
  }
  /* Element e of the state in which row r starts. */
  __device__ double enter(int64_t r, int64_t h, int64_t e) const {
    if (row[r].flags & WF_ROW_TAKES) return state ? (double)state[(row[r].lane * heads + h) * size + e] : 0.0;
    return init ? (double)init[h * size + e] : 0.0;
  }
  /* Of the gradient of the state it ends in. */
  __device__ double leave(int64_t r, int64_t h, int64_t e) const {
    const bool leaves = dstate && row[r].flags & WF_ROW_LEAVES;
    return leaves ? (double)dstate[(row[r].lane * heads + h) * size + e] : 0.0;
  }
};

template <class real> static wf_status scan_read(const wf_call *call, scan_args<real> *a) {
  const scan_attr *at = (const scan_attr *)call->attr;
  const wf_tensor *q = call->in[SCAN_Q], *k = call->in[SCAN_K], *v = call->in[SCAN_V];
  a->q = wf_cuda_in<real>(call, SCAN_Q), a->k = wf_cuda_in<real>(call, SCAN_K);
  a->v = wf_cuda_in<real>(call, SCAN_V), a->g = wf_cuda_in<real>(call, SCAN_G);
  a->w = wf_cuda_in<real>(call, SCAN_W);
  a->state = wf_cuda_in<real>(call, SCAN_STATE), a->init = wf_cuda_in<real>(call, SCAN_INIT);
  a->dout = wf_cuda_in<real>(call, SCAN_DO), a->dstate = wf_cuda_in<real>(call, SCAN_DSTATE);
  a->qs = q->stride[0], a->qh = q->stride[1];
  a->ks = k->stride[0], a->kh = k->stride[1];
  a->vs = v->stride[0], a->vh = v->stride[1];
  a->gs = a->g ? call->in[SCAN_G]->stride[0] : 0;
  a->ws = a->w ? call->in[SCAN_W]->stride[0] : 0;
  a->dos = a->dout ? call->in[SCAN_DO]->stride[0] : 0;
  a->doh = a->dout ? call->in[SCAN_DO]->stride[1] : 0;
  a->row = wf_cuda_in<wf_row>(call, SCAN_TABLE);
  a->rows = call->in[SCAN_TABLE]->shape[0];
  a->heads = v->shape[1], a->groups = q->shape[1], a->kdim = q->shape[2], a->ones = v->shape[2];
  a->vdim = a->ones + at->o.ones;
  a->size = a->kdim * a->vdim;
  a->lanes = at->lanes;
  a->scale = at->o.scale;
  return wf_cuda_check_rows(call, call->in[SCAN_TABLE], q->shape[0], at->lanes);
}

WF_CUDA_KERNEL(scan_scalar) {
  scan_args<real> a;
  WF_TRY(scan_read(call, &a));
  real *o = wf_cuda_ptr<real>(call->out[0]);
  wf_cuda_scratch space;
  WF_TRY(wf_cuda_take(call, (size_t)(a.rows * a.heads * a.size) * sizeof(double), &space));
  double *states = (double *)space.p;
  WF_TRY(wf_cuda_each(call, a.rows * a.heads * a.vdim, [=] __device__(int64_t u) {
    const int64_t j = u % a.vdim, rh = u / a.vdim, h = rh % a.heads, r = rh / a.heads;
    double *s = states + rh * a.size + j; /* column j */
    for (int64_t i = 0; i < a.kdim; i++) s[i * a.vdim] = a.enter(r, h, i * a.vdim + j);
    for (int64_t t = a.row[r].begin; t < a.row[r].begin + a.row[r].len; t++) {
      const real *q = a.query(t, h), *k = a.key(t, h);
      const double e = a.decay(t, h), v = a.weight(t, h) * a.value(t, h, j);
      double sum = 0;
      for (int64_t i = 0; i < a.kdim; i++) {
        const double next = e * s[i * a.vdim] + (double)k[i] * v;
        s[i * a.vdim] = next;
        sum += (double)q[i] * next;
      }
      o[(t * a.heads + h) * a.vdim + j] = (real)(a.scale * sum);
    }
  }));
  if (call->n_out < 2) return WF_OK;
  real *left = wf_cuda_ptr<real>(call->out[1]);
  const int64_t each = a.heads * a.size;
  return wf_cuda_each(call, a.lanes * each, [=] __device__(int64_t i) {
    const int64_t r = wf_cuda_row_with(a.row, a.rows, i / each, WF_ROW_LEAVES);
    if (r >= 0)
      left[i] = (real)states[r * each + i % each];
    else
      left[i] = a.state ? a.state[i] : (real)0;
  });
}

/* A destination with its strides of tokens and heads (or groups); p NULL: not wanted. */
template <class real> struct scan_out {
  real *p;
  int64_t s, h;
  bool add;
  __device__ void put(int64_t t, int64_t head, int64_t i, double v) const {
    wf_cuda_put(p + t * s + head * h + i, add, (real)v);
  }
};

WF_CUDA_KERNEL(scan_scalar_grad) {
  scan_args<real> a;
  WF_TRY(scan_read(call, &a));
  const int32_t want = ((const scan_attr *)call->attr)->want;
  scan_out<real> out[7] = {}; /* dq, dk, dv, dg, dw, dstate, dinit */
  for (int i = 0, n = 0; i < 7; i++)
    if (want >> i & 1) {
      const wf_tensor *t = call->out[n];
      out[i] = {wf_cuda_ptr<real>(t), t->stride[0], t->stride[1], (bool)(call->add >> n & 1)};
      n++;
    }
  const scan_out<real> dq = out[0], dk = out[1], dv = out[2], dg = out[3], dw = out[4], ds = out[5],
                       di = out[6];
  const int64_t each = a.heads * a.size, n = call->in[SCAN_Q]->shape[0],
                share = a.heads / (a.groups ? a.groups : 1);
  const size_t state_bytes = (size_t)(a.rows * each) * sizeof(double),
               token_bytes = (size_t)(n * a.heads * a.kdim) * sizeof(double);
  wf_cuda_scratch first, second, third, fourth;
  WF_TRY(wf_cuda_take(call, state_bytes, &first));
  WF_TRY(wf_cuda_take(call, state_bytes, &second));
  WF_TRY(wf_cuda_take(call, token_bytes, &third));
  WF_TRY(wf_cuda_take(call, token_bytes, &fourth));
  double *ends = (double *)first.p, *grads = (double *)second.p;
  double *hq = (double *)third.p, *hk = (double *)fourth.p; /* of q and of weighted k, for each head */

  if (dv.p) /* backwards, a thread for each column of dS */
    WF_TRY(wf_cuda_each(call, a.rows * a.heads * a.vdim, [=] __device__(int64_t u) {
      const int64_t j = u % a.vdim, rh = u / a.vdim, h = rh % a.heads, r = rh / a.heads;
      double *s = grads + rh * a.size + j;
      for (int64_t i = 0; i < a.kdim; i++) s[i * a.vdim] = a.leave(r, h, i * a.vdim + j);
      for (int64_t t = a.row[r].begin + a.row[r].len - 1; t >= a.row[r].begin; t--) {
        const real *q = a.query(t, h), *k = a.key(t, h);
        const double e = a.decay(t, h);
        const double d = a.dout ? a.scale * (double)a.dout[t * a.dos + h * a.doh + j] : 0.0;
        double sum = 0;
        for (int64_t i = 0; i < a.kdim; i++) {
          const double here = s[i * a.vdim] + (double)q[i] * d;
          sum += (double)k[i] * here;
          s[i * a.vdim] = e * here; /* of the state before */
        }
        if (j < a.ones) dv.put(t, h, j, a.weight(t, h) * sum);
      }
    }));

  /* A thread for each row of S, forwards for dq, and of dS, backwards for dk. */
  WF_TRY(wf_cuda_each(call, a.rows * a.heads * a.kdim, [=] __device__(int64_t u) {
    const int64_t i = u % a.kdim, rh = u / a.kdim, h = rh % a.heads, r = rh / a.heads;
    const int64_t begin = a.row[r].begin, end = begin + a.row[r].len;
    double *s = ends + rh * a.size + i * a.vdim, *d = grads + rh * a.size + i * a.vdim;
    for (int64_t j = 0; j < a.vdim; j++) s[j] = a.enter(r, h, i * a.vdim + j);
    for (int64_t t = begin; t < end; t++) {
      const double e = a.decay(t, h), k = a.weight(t, h) * (double)a.key(t, h)[i];
      double sum = 0;
      for (int64_t j = 0; j < a.vdim; j++) {
        s[j] = e * s[j] + k * a.value(t, h, j);
        if (a.dout) sum += (double)a.dout[t * a.dos + h * a.doh + j] * s[j];
      }
      hq[(t * a.heads + h) * a.kdim + i] = a.scale * sum;
    }
    for (int64_t j = 0; j < a.vdim; j++) d[j] = a.leave(r, h, i * a.vdim + j);
    for (int64_t t = end - 1; t >= begin; t--) {
      const double e = a.decay(t, h), q = a.scale * (double)a.query(t, h)[i];
      double sum = 0;
      for (int64_t j = 0; j < a.vdim; j++) {
        const double here = d[j] + (a.dout ? q * (double)a.dout[t * a.dos + h * a.doh + j] : 0.0);
        sum += a.value(t, h, j) * here;
        d[j] = e * here; /* of the state before */
      }
      hk[(t * a.heads + h) * a.kdim + i] = sum;
    }
  }));
  WF_TRY(wf_cuda_each(call, n * a.groups * a.kdim, [=] __device__(int64_t u) {
    const int64_t i = u % a.kdim, g = u / a.kdim % a.groups, t = u / a.kdim / a.groups;
    double of_q = 0, of_k = 0;
    for (int64_t h = g * share; h < (g + 1) * share; h++) {
      const int64_t at = (t * a.heads + h) * a.kdim + i;
      of_q += hq[at];
      of_k += a.weight(t, h) * hk[at];
    }
    if (dq.p) dq.put(t, g, i, of_q);
    if (dk.p) dk.put(t, g, i, of_k);
  }));
  if (dw.p)
    WF_TRY(wf_cuda_each(call, n * a.heads, [=] __device__(int64_t u) {
      const int64_t h = u % a.heads, t = u / a.heads;
      double sum = 0;
      for (int64_t i = 0; i < a.kdim; i++) sum += (double)a.key(t, h)[i] * hk[u * a.kdim + i];
      dw.put(t, h, 0, sum);
    }));
  if (dg.p)
    WF_TRY(wf_cuda_each(call, a.rows * a.heads, [=] __device__(int64_t rh) {
      const int64_t h = rh % a.heads, r = rh / a.heads;
      double sum = 0;
      for (int64_t e = 0; e < a.size; e++) sum += ends[rh * a.size + e] * a.leave(r, h, e);
      for (int64_t t = a.row[r].begin + a.row[r].len - 1; t >= a.row[r].begin; t--) {
        const int64_t at = (t * a.heads + h) * a.kdim;
        for (int64_t i = 0; i < a.kdim; i++)
          sum += (double)a.query(t, h)[i] * hq[at + i] - a.weight(t, h) * (double)a.key(t, h)[i] * hk[at + i];
        dg.put(t, h, 0, sum);
      }
    }));
  if (ds.p)
    WF_TRY(wf_cuda_each(call, a.lanes * each, [=] __device__(int64_t i) {
      const int64_t lane = i / each, taken = wf_cuda_row_with(a.row, a.rows, lane, WF_ROW_TAKES);
      double v = taken >= 0 ? grads[taken * each + i % each] : 0.0;
      if (a.dstate && wf_cuda_row_with(a.row, a.rows, lane, WF_ROW_LEAVES) < 0)
        v += (double)a.dstate[i]; /* passed on */
      wf_cuda_put(ds.p + i, ds.add, (real)v);
    }));
  if (!di.p) return WF_OK;
  return wf_cuda_each(call, each, [=] __device__(int64_t i) {
    double v = 0;
    for (int64_t r = 0; r < a.rows; r++)
      if (!(a.row[r].flags & WF_ROW_TAKES)) v += grads[r * each + i];
    wf_cuda_put(di.p + i, di.add, (real)v);
  });
}
