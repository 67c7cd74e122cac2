/* CUDA kernels of scan_scalar and its gradient: the plain recurrence, a thread for each column or each row of
 * a head's state, which lies in scratch memory in double.
 *
 * With dS_t the gradient of S_t:  dS_t = e^{g_{t+1}} dS_{t+1} + s q_t^T do_t,
 *     dq_t = s do_t S_t^T,  dk_t = v_t dS_t^T,  dv_t = k_t dS_t,
 *     dg_t = sum_{i >= t} (q_i dq_i - k_i dk_i) + <S_end, dS_end>,
 * the last a difference of sums formed in double.
 */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"

template <class real> struct scan_args {
  const real *q, *k, *v, *g, *state, *init, *dout, *dstate;
  int64_t qs, qh, ks, kh, vs, vh, dos, doh; /* strides of tokens and heads */
  const wf_row *row;
  int64_t rows, heads, kdim, vdim, size; /* size: of a state [kdim, vdim] */
  int64_t lanes;
  double scale;

  __device__ double decay(int64_t t, int64_t h) const { return exp((double)g[t * heads + h]); }
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
  a->state = wf_cuda_in<real>(call, SCAN_STATE), a->init = wf_cuda_in<real>(call, SCAN_INIT);
  a->dout = wf_cuda_in<real>(call, SCAN_DO), a->dstate = wf_cuda_in<real>(call, SCAN_DSTATE);
  a->qs = q->stride[0], a->qh = q->stride[1];
  a->ks = k->stride[0], a->kh = k->stride[1];
  a->vs = v->stride[0], a->vh = v->stride[1];
  a->dos = a->dout ? call->in[SCAN_DO]->stride[0] : 0;
  a->doh = a->dout ? call->in[SCAN_DO]->stride[1] : 0;
  a->row = wf_cuda_in<wf_row>(call, SCAN_TABLE);
  a->rows = call->in[SCAN_TABLE]->shape[0];
  a->heads = q->shape[1], a->kdim = q->shape[2], a->vdim = v->shape[2], a->size = a->kdim * a->vdim;
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
      const real *q = a.q + t * a.qs + h * a.qh, *k = a.k + t * a.ks + h * a.kh;
      const double e = a.decay(t, h), v = (double)a.v[t * a.vs + h * a.vh + j];
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

WF_CUDA_KERNEL(scan_scalar_grad) {
  scan_args<real> a;
  WF_TRY(scan_read(call, &a));
  const int32_t want = ((const scan_attr *)call->attr)->want;
  real *out[6] = {NULL, NULL, NULL, NULL, NULL, NULL}; /* dq, dk, dv, dg, dstate, dinit */
  bool add[6] = {false, false, false, false, false, false};
  for (int i = 0, n = 0; i < 6; i++)
    if (want >> i & 1) {
      add[i] = call->add >> n & 1;
      out[i] = wf_cuda_ptr<real>(call->out[n++]);
    }
  real *dq = out[0], *dk = out[1], *dv = out[2], *dg = out[3], *dstate = out[4], *dinit = out[5];
  const bool add_q = add[0], add_k = add[1], add_v = add[2], add_g = add[3], add_s = add[4], add_i = add[5];
  const int64_t each = a.heads * a.size, n = call->in[SCAN_Q]->shape[0];
  const size_t state_bytes = (size_t)(a.rows * each) * sizeof(double);
  wf_cuda_scratch first, second, third;
  WF_TRY(wf_cuda_take(call, state_bytes, &first));
  WF_TRY(wf_cuda_take(call, state_bytes, &second));
  WF_TRY(wf_cuda_take(call, (size_t)(n * a.heads * a.kdim) * sizeof(double), &third));
  double *ends = (double *)first.p, *grads = (double *)second.p;
  double *terms = (double *)third.p; /* q dq - k dk, by token, head and feature */

  if (dv) /* backwards, a thread for each column of dS */
    WF_TRY(wf_cuda_each(call, a.rows * a.heads * a.vdim, [=] __device__(int64_t u) {
      const int64_t j = u % a.vdim, rh = u / a.vdim, h = rh % a.heads, r = rh / a.heads;
      double *s = grads + rh * a.size + j;
      for (int64_t i = 0; i < a.kdim; i++) s[i * a.vdim] = a.leave(r, h, i * a.vdim + j);
      for (int64_t t = a.row[r].begin + a.row[r].len - 1; t >= a.row[r].begin; t--) {
        const real *q = a.q + t * a.qs + h * a.qh, *k = a.k + t * a.ks + h * a.kh;
        const double e = a.decay(t, h);
        const double d = a.dout ? a.scale * (double)a.dout[t * a.dos + h * a.doh + j] : 0.0;
        double sum = 0;
        for (int64_t i = 0; i < a.kdim; i++) {
          const double here = s[i * a.vdim] + (double)q[i] * d;
          sum += (double)k[i] * here;
          s[i * a.vdim] = e * here; /* of the state before */
        }
        wf_cuda_put(dv + (t * a.heads + h) * a.vdim + j, add_v, (real)sum);
      }
    }));

  /* A thread for each row of S, forwards for dq, and of dS, backwards for dk. */
  WF_TRY(wf_cuda_each(call, a.rows * a.heads * a.kdim, [=] __device__(int64_t u) {
    const int64_t i = u % a.kdim, rh = u / a.kdim, h = rh % a.heads, r = rh / a.heads;
    const int64_t begin = a.row[r].begin, end = begin + a.row[r].len;
    double *s = ends + rh * a.size + i * a.vdim, *d = grads + rh * a.size + i * a.vdim;
    for (int64_t j = 0; j < a.vdim; j++) s[j] = a.enter(r, h, i * a.vdim + j);
    for (int64_t t = begin; t < end; t++) {
      const double e = a.decay(t, h), k = (double)a.k[t * a.ks + h * a.kh + i];
      double sum = 0;
      for (int64_t j = 0; j < a.vdim; j++) {
        s[j] = e * s[j] + k * (double)a.v[t * a.vs + h * a.vh + j];
        if (a.dout) sum += (double)a.dout[t * a.dos + h * a.doh + j] * s[j];
      }
      const int64_t at = (t * a.heads + h) * a.kdim + i;
      sum *= a.scale;
      terms[at] = sum * (double)a.q[t * a.qs + h * a.qh + i];
      if (dq) wf_cuda_put(dq + at, add_q, (real)sum);
    }
    for (int64_t j = 0; j < a.vdim; j++) d[j] = a.leave(r, h, i * a.vdim + j);
    for (int64_t t = end - 1; t >= begin; t--) {
      const double e = a.decay(t, h), q = a.scale * (double)a.q[t * a.qs + h * a.qh + i];
      double sum = 0;
      for (int64_t j = 0; j < a.vdim; j++) {
        const double here = d[j] + (a.dout ? q * (double)a.dout[t * a.dos + h * a.doh + j] : 0.0);
        sum += (double)a.v[t * a.vs + h * a.vh + j] * here;
        d[j] = e * here; /* of the state before */
      }
      const int64_t at = (t * a.heads + h) * a.kdim + i;
      terms[at] -= sum * (double)a.k[t * a.ks + h * a.kh + i];
      if (dk) wf_cuda_put(dk + at, add_k, (real)sum);
    }
  }));

  if (dg)
    WF_TRY(wf_cuda_each(call, a.rows * a.heads, [=] __device__(int64_t rh) {
      const int64_t h = rh % a.heads, r = rh / a.heads;
      double sum = 0;
      for (int64_t e = 0; e < a.size; e++) sum += ends[rh * a.size + e] * a.leave(r, h, e);
      for (int64_t t = a.row[r].begin + a.row[r].len - 1; t >= a.row[r].begin; t--) {
        for (int64_t i = 0; i < a.kdim; i++) sum += terms[(t * a.heads + h) * a.kdim + i];
        wf_cuda_put(dg + t * a.heads + h, add_g, (real)sum);
      }
    }));
  if (dstate)
    WF_TRY(wf_cuda_each(call, a.lanes * each, [=] __device__(int64_t i) {
      const int64_t lane = i / each, taken = wf_cuda_row_with(a.row, a.rows, lane, WF_ROW_TAKES);
      double v = taken >= 0 ? grads[taken * each + i % each] : 0.0;
      if (a.dstate && wf_cuda_row_with(a.row, a.rows, lane, WF_ROW_LEAVES) < 0)
        v += (double)a.dstate[i]; /* passed on */
      wf_cuda_put(dstate + i, add_s, (real)v);
    }));
  if (!dinit) return WF_OK;
  return wf_cuda_each(call, each, [=] __device__(int64_t i) {
    double v = 0;
    for (int64_t r = 0; r < a.rows; r++)
      if (!(a.row[r].flags & WF_ROW_TAKES)) v += grads[r * each + i];
    wf_cuda_put(dinit + i, add_i, (real)v);
  });
}
