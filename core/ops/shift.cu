/* CUDA kernels of conv, halo and their gradients: a thread for each element. A row is the sequence e = 0 ..
 * w-2+len of the w-1 tokens before it and its own (shift.c). */
#include "core/cuda_impl.cuh"
#include "core/ops/attr_impl.h"

/* ---- conv ---- */

enum { CONV_X, CONV_W, CONV_BIAS, CONV_STATE, CONV_TABLE, CONV_DY, CONV_DSTATE };

template <class real> struct conv_args {
  const real *x, *weight, *bias, *state;
  int64_t xs; /* token stride */
  const wf_row *row;
  int64_t rows, n, d, w, lanes;
  bool silu;

  __device__ const wf_row &row_of(int64_t t) const { return row[wf_cuda_row_of(row, rows, t, 0)]; }
  /* Element e of a row's sequence, channel c. */
  __device__ real at(const wf_row &r, int64_t e, int64_t c) const {
    if (e >= w - 1) return x[(r.begin + e - (w - 1)) * xs + c];
    return state && r.flags & WF_ROW_TAKES ? state[(r.lane * (w - 1) + e) * d + c] : (real)0;
  }
  /* Before the activation: token t of the row. */
  __device__ real pre(const wf_row &r, int64_t t, int64_t c) const {
    real y = bias ? bias[c] : (real)0;
    for (int64_t i = 0; i < w; i++) y += weight[c * w + i] * at(r, t + i, c);
    return y;
  }
};

template <class real> static wf_status conv_read(const wf_call *call, conv_args<real> *g) {
  const conv_attr *a = (const conv_attr *)call->attr;
  const wf_tensor *x = call->in[CONV_X];
  g->x = wf_cuda_in<real>(call, CONV_X), g->weight = wf_cuda_in<real>(call, CONV_W);
  g->bias = wf_cuda_in<real>(call, CONV_BIAS), g->state = wf_cuda_in<real>(call, CONV_STATE);
  g->xs = x->stride[0];
  g->row = wf_cuda_in<wf_row>(call, CONV_TABLE);
  g->rows = call->in[CONV_TABLE]->shape[0];
  g->n = x->shape[0], g->d = x->shape[1], g->w = call->in[CONV_W]->shape[2];
  g->lanes = a->lanes;
  g->silu = a->silu;
  return wf_cuda_check_rows(call, call->in[CONV_TABLE], g->n, a->lanes);
}

WF_CUDA_KERNEL(conv) {
  conv_args<real> g;
  WF_TRY(conv_read(call, &g));
  real *y = wf_cuda_ptr<real>(call->out[0]);
  WF_TRY(wf_cuda_each(call, g.n * g.d, [=] __device__(int64_t i) {
    const int64_t t = i / g.d;
    const wf_row &r = g.row_of(t);
    const real v = g.pre(r, t - r.begin, i % g.d);
    y[i] = g.silu ? v / (1 + exp(-v)) : v;
  }));
  if (call->n_out < 2) return WF_OK;
  real *left = wf_cuda_ptr<real>(call->out[1]);
  const int64_t size = (g.w - 1) * g.d;
  return wf_cuda_each(call, g.lanes * size, [=] __device__(int64_t i) {
    const int64_t r = wf_cuda_row_with(g.row, g.rows, i / size, WF_ROW_LEAVES);
    if (r >= 0)
      left[i] = g.at(g.row[r], g.row[r].len + i % size / g.d, i % g.d);
    else
      left[i] = g.state ? g.state[i] : (real)0;
  });
}

/* What element e of a row's sequence receives: from dpre, the gradient before the activation, and from the
 * state it is part of. */
template <class real>
__device__ static real conv_receive(const conv_args<real> &g, const real *dpre, const real *dstate,
                                    const wf_row &r, int64_t e, int64_t c) {
  real s = 0;
  for (int64_t i = 0; i < g.w; i++)
    if (e - i >= 0 && e - i < r.len) s += g.weight[c * g.w + i] * dpre[(r.begin + e - i) * g.d + c];
  if (dstate && r.flags & WF_ROW_LEAVES && e >= r.len)
    s += dstate[(r.lane * (g.w - 1) + e - r.len) * g.d + c];
  return s;
}

WF_CUDA_KERNEL(conv_grad) {
  conv_args<real> g;
  WF_TRY(conv_read(call, &g));
  const int32_t want = ((const conv_attr *)call->attr)->want;
  real *out[4] = {NULL, NULL, NULL, NULL}; /* dx, dweight, dbias, dstate */
  bool add[4] = {false, false, false, false};
  for (int i = 0, n = 0; i < 4; i++)
    if (want >> i & 1) {
      add[i] = call->add >> n & 1;
      out[i] = wf_cuda_ptr<real>(call->out[n++]);
    }
  const real *dy = wf_cuda_in<real>(call, CONV_DY), *later = wf_cuda_in<real>(call, CONV_DSTATE);
  const int64_t dys = dy ? call->in[CONV_DY]->stride[0] : 0, size = (g.w - 1) * g.d;
  wf_cuda_scratch space;
  WF_TRY(wf_cuda_take(call, (size_t)(g.n * g.d) * sizeof(real), &space));
  real *dpre = (real *)space.p;
  WF_TRY(wf_cuda_each(call, g.n * g.d, [=] __device__(int64_t i) {
    const int64_t t = i / g.d, c = i % g.d;
    real d = dy ? dy[t * dys + c] : (real)0;
    if (dy && g.silu) {
      const wf_row &r = g.row_of(t);
      const real v = g.pre(r, t - r.begin, c), s = 1 / (1 + exp(-v));
      d *= s * (1 + v * (1 - s));
    }
    dpre[i] = d;
  }));
  if (out[0]) {
    real *dx = out[0];
    const bool add_x = add[0];
    const int64_t dxs = call->out[0]->stride[0];
    WF_TRY(wf_cuda_each(call, g.n * g.d, [=] __device__(int64_t i) {
      const int64_t t = i / g.d, c = i % g.d;
      const wf_row &r = g.row_of(t);
      wf_cuda_put(dx + t * dxs + c, add_x, conv_receive(g, dpre, later, r, t - r.begin + g.w - 1, c));
    }));
  }
  if (out[1]) {
    real *dw = out[1];
    const bool add_w = add[1];
    WF_TRY(wf_cuda_rows(call, g.d * g.w, [=] __device__(int64_t k) {
      const int64_t c = k / g.w, i = k % g.w;
      double s = 0;
      for (int64_t t = threadIdx.x; t < g.n; t += WF_CUDA_BLOCK) {
        const wf_row &r = g.row_of(t);
        s += (double)dpre[t * g.d + c] * (double)g.at(r, t - r.begin + i, c);
      }
      s = wf_cuda_total(s);
      if (threadIdx.x == 0) wf_cuda_put(dw + k, add_w, (real)s);
    }));
  }
  if (out[2]) {
    real *db = out[2];
    const bool add_b = add[2];
    WF_TRY(wf_cuda_rows(call, g.d, [=] __device__(int64_t c) {
      double s = 0;
      for (int64_t t = threadIdx.x; t < g.n; t += WF_CUDA_BLOCK) s += (double)dpre[t * g.d + c];
      s = wf_cuda_total(s);
      if (threadIdx.x == 0) wf_cuda_put(db + c, add_b, (real)s);
    }));
  }
  if (!out[3]) return WF_OK;
  real *dstate = out[3];
  const bool add_s = add[3];
  return wf_cuda_each(call, g.lanes * size, [=] __device__(int64_t i) {
    const int64_t lane = i / size, taken = wf_cuda_row_with(g.row, g.rows, lane, WF_ROW_TAKES);
    real s = 0;
    if (later && wf_cuda_row_with(g.row, g.rows, lane, WF_ROW_LEAVES) < 0) s += later[i]; /* passed on */
    if (taken >= 0) s += conv_receive(g, dpre, later, g.row[taken], i % size / g.d, i % g.d);
    wf_cuda_put(dstate + i, add_s, s);
  });
}

/* ---- halo ---- */

static int64_t token_size(const wf_tensor *x) {
  int64_t size = 1;
  for (int i = 1; i < x->ndim; i++) size *= x->shape[i];
  return size;
}

WF_CUDA_KERNEL(halo) {
  const halo_attr *a = (const halo_attr *)call->attr;
  const wf_tensor *x = call->in[0], *table = call->in[2];
  WF_TRY(wf_cuda_check_rows(call, table, x->shape[0], a->lanes));
  const wf_row *row = wf_cuda_ptr<wf_row>(table);
  const int64_t rows = table->shape[0], before = a->w - 1, size = token_size(x), xs = x->stride[0];
  const wf_cuda_dims inside = wf_cuda_dims_of(x, 1, x->ndim);
  const real *from = wf_cuda_ptr<real>(x), *old = wf_cuda_in<real>(call, 1);
  real *to = wf_cuda_ptr<real>(call->out[0]);
  WF_TRY(wf_cuda_each(call, (x->shape[0] + rows * before) * size, [=] __device__(int64_t i) {
    const int64_t place = i / size, s = i % size, k = wf_cuda_row_of(row, rows, place, before);
    const wf_row &r = row[k];
    const int64_t e = place - r.begin - k * before;
    if (e >= before)
      to[i] = from[(r.begin + e - before) * xs + inside(s)];
    else
      to[i] = old && r.flags & WF_ROW_TAKES ? old[(r.lane * before + e) * size + s] : (real)0;
  }));
  if (call->n_out < 2) return WF_OK;
  real *left = wf_cuda_ptr<real>(call->out[1]);
  return wf_cuda_each(call, a->lanes * before * size, [=] __device__(int64_t i) {
    const int64_t r = wf_cuda_row_with(row, rows, i / size / before, WF_ROW_LEAVES);
    if (r >= 0)
      left[i] = to[(row[r].begin + r * before + row[r].len) * size + i % (before * size)];
    else
      left[i] = old ? old[i] : (real)0;
  });
}

WF_CUDA_KERNEL(halo_grad) {
  const halo_attr *a = (const halo_attr *)call->attr;
  const wf_tensor *x = call->in[0], *table = call->in[2];
  WF_TRY(wf_cuda_check_rows(call, table, x->shape[0], a->lanes));
  const wf_row *row = wf_cuda_ptr<wf_row>(table);
  const int64_t rows = table->shape[0], before = a->w - 1, size = token_size(x);
  const real *dy = wf_cuda_in<real>(call, 3), *later = wf_cuda_in<real>(call, 4);
  /* What element e of row k's sequence receives. */
  auto receive = [=] __device__(int64_t k, int64_t e, int64_t s) {
    const wf_row &r = row[k];
    real v = dy ? dy[(r.begin + k * before + e) * size + s] : (real)0;
    if (later && r.flags & WF_ROW_LEAVES && e >= r.len) v += later[(r.lane * before + e - r.len) * size + s];
    return v;
  };
  int at = 0;
  if (a->want & 1) {
    const wf_tensor *out = call->out[0];
    const wf_cuda_dims inside = wf_cuda_dims_of(out, 1, out->ndim);
    const int64_t dxs = out->stride[0];
    const bool add = call->add & 1;
    real *dx = wf_cuda_ptr<real>(out);
    WF_TRY(wf_cuda_each(call, x->shape[0] * size, [=] __device__(int64_t i) {
      const int64_t t = i / size, s = i % size, k = wf_cuda_row_of(row, rows, t, 0);
      wf_cuda_put(dx + t * dxs + inside(s), add, receive(k, t - row[k].begin + before, s));
    }));
    at++;
  }
  if (!(a->want & 2)) return WF_OK;
  const bool add = call->add >> at & 1;
  real *dold = wf_cuda_ptr<real>(call->out[at]);
  return wf_cuda_each(call, a->lanes * before * size, [=] __device__(int64_t i) {
    const int64_t lane = i / size / before, taken = wf_cuda_row_with(row, rows, lane, WF_ROW_TAKES);
    real v = 0;
    if (later && wf_cuda_row_with(row, rows, lane, WF_ROW_LEAVES) < 0) v += later[i]; /* passed on */
    if (taken >= 0) v += receive(taken, i / size % before, i % size);
    wf_cuda_put(dold + i, add, v);
  });
}
