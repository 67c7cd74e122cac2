/* scan_scalar: the linear recurrence with one decay for each head and token,
 *     S_t = e^{g_t} S_{t-1} + w_t k_t^T v_t,   o_t = s q_t S_t,
 * the core of RetNet, Lightning, simple GLA, Mamba-2 (w = dt) and mLSTM (w = the stabilised input gate).
 *
 * The chunk of scan_decays_impl.h with readers R = sQ, keys w K and values V. Rows of a few tokens run as
 * written above.
 */
#include "core/ops/scan_decays_impl.h"

#ifdef WF_KERNEL_PASS

static void tokens(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  (void)work;
  real *ones = scan_ones(a, s);
  for (int64_t t = 0; t < c->n; t++) {
    const real *q = c->q + t * a->qs, *k = c->k + t * a->ks, *v = c->v + t * a->vs;
    real *restrict o = scan_o(a, c, t), keep = c->g ? r_exp(c->g[t * a->gs]) : 1, w = scan_weight(a, c, t);
    memset(o, 0, (size_t)a->odim * sizeof *o);
    for (int64_t d = 0; d < a->kdim && ones; d++) {
      ones[d] = keep * ones[d] + w * k[d];
      o[a->vdim] += a->scale * q[d] * ones[d];
    }
    for (int64_t d = 0; d < a->kdim; d++) {
      real *restrict row = s + d * a->vpad, kd = w * k[d], qd = a->scale * q[d];
      for (int64_t i = 0; i < a->vdim; i++) {
        row[i] = keep * row[i] + kd * v[i];
        o[i] += qd * row[i];
      }
    }
  }
}

/* `queries`: they and P too. */
static reads chunk_of(const scan_args *a, const scan_chunk *c, bool queries, char **work) {
  reads x = reads_open(a, c, 1, false, queries, work);
  for (int64_t t = 0; t < c->n; t++)
    pack_scaled(1, a->kdim, c->k + t * a->ks, 0, NULL, scan_weight(a, c, t), x.k + t * a->kpad, a->kpad);
  tile_pack(c->n, a->vdim, c->v, a->vs, x.w, a->vpad);
  if (!queries) return x;
  pack_scaled(c->n, a->kdim, c->q, a->qs, NULL, a->scale, x.r, a->kpad);
  reads_weigh(a, &x, 0, *work);
  return x;
}

static void advance(const scan_args *a, const scan_chunk *c, real *s, real *kept, char *work) {
  (void)kept;
  reads x = chunk_of(a, c, false, &work);
  reads_leave(a, &x, s);
}

static void retreat(const scan_args *a, const scan_chunk *c, real *ds, char *work) {
  reads x = reads_open(a, c, 1, false, false, &work);
  real *dout = take(&work, c->n * a->vpad);
  pack_scaled(c->n, a->kdim, c->q, a->qs, NULL, a->scale, x.r, a->kpad);
  pack_dout(a, c, dout);
  reads_retreat(a, c, &x, dout, ds);
}

static int64_t forward_space(const scan_args *a) {
  int64_t after = a->chunk * a->vpad, weigh = a->kdim * a->cpad;
  return reads_space(a, 1) + (after > weigh ? after : weigh) + TAKE_SLACK;
}

static void forward(const scan_args *a, const scan_chunk *c, real *s, char *work) {
  reads x = chunk_of(a, c, true, &work);
  real *o = take(&work, c->n * a->vpad);
  reads_ones(a, c, &x, s);
  reads_enter(a, &x, s, o);
  lower_times(a, c->n, x.p, x.w, a->vpad, o);
  for (int64_t t = 0; t < c->n; t++) memcpy(scan_o(a, c, t), o + t * a->vpad, (size_t)a->vdim * sizeof *o);
  reads_leave(a, &x, s);
}

static int64_t grad_space(const scan_args *a) {
  int64_t c = a->chunk, weigh = a->kdim * a->cpad, after = reads_grad_space(a, 1) + 2 * c * a->vpad + 4 * c;
  return reads_space(a, 1) + (after > weigh ? after : weigh) + 4 * TAKE_SLACK;
}

static void grad(const scan_args *a, const grad_out *out, const scan_chunk *c, const real *s0,
                 const real *kept, real *ds, char *work) {
  (void)kept;
  reads x = chunk_of(a, c, true, &work);
  real *dout = take(&work, c->n * a->vpad), *dv = take(&work, c->n * a->vpad);
  double *dw = take_double(&work, c->n);
  pack_dout(a, c, dout);
  reads_written(a, &x, dout, ds, dv);
  store(&out[WANT_V], c->token, c->h, c->n, a->vdim, dv, a->vpad, 1);
  pulled d = reads_grad(a, out, c, &x, dout, s0, ds, &work);
  store(&out[WANT_Q], c->token, c->group, c->n, a->kdim, d.dr, a->kpad, a->scale);
  scan_store_keys(a, out, c, d.dk, dw);
}

static const scan_kind kind = {.chunk = 64,
                               .halved = 64 * 64,
                               .shorter = 8,
                               .smaller = 128,
                               .forward_space = forward_space,
                               .grad_space = grad_space,
                               .tokens = tokens,
                               .forward = forward,
                               .advance = advance,
                               .retreat = retreat,
                               .grad = grad};

WF_SCAN_KERNELS(scan_scalar, kind)

#else

WF_CUDA_DECLARE(scan_scalar)
WF_CUDA_DECLARE(scan_scalar_grad)
WF_SCAN_OP(scan_scalar, WF_CUDA_FN(scan_scalar), WF_CUDA_FN(scan_scalar_grad), {.g_dims = 2})

#endif
